# SPDX-License-Identifier: GPL-2.0-only
"""Patches on top of a build tree, which can always be taken off again.

The patched files are made aside, from copies of the originals, and only then put into the tree.
So a patch that does not apply changes nothing, and going from one set of patches to another
touches only the files that come out different, which keeps make incremental. A journal and the
originals lie beside the tree before it is touched, so that it can be put back even after SIGKILL.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from harness.command import Completed
from harness.errors import PatchError
from harness.kernel import hunks
from harness.kernel.fingerprint import fingerprint, place, write_atomically
from harness.kernel.hunks import PatchReport, Status
from harness.kernel.landmarks import release_of_tree, target
from harness.kernel.series import Patch
from harness.kernel.source import Reader


class Patched:
    """The patches on the tree at ``root``; ``state`` is a directory of its own beside the tree."""

    def __init__(self, root: Path, state: Path) -> None:
        self._root = root
        self._state = state
        self._originals = state / "originals"
        self._results = state / "results"
        self._journal = state / "journal.json"

    def touched(self) -> frozenset[str]:
        """The files that may differ from the source because of patches."""
        return frozenset(self._read_journal())

    def apply(self, patches: Sequence[Patch]) -> tuple[PatchReport, ...]:
        """Make the tree be the source plus exactly these patches, in their order.

        A patch that the source has already changes nothing. Raises PatchError that names the
        patch, the files and the hunks that fail; the tree is then as it was.
        """
        wanted, reports = self._render(patches)
        before = self._read_journal()
        for name in sorted(wanted - before.keys()):
            _copy(self._root / name, self._originals / name)
        journal = dict(before)
        for name in wanted - before.keys():
            journal[name] = fingerprint(self._originals / name)
        # From here on the journal says what may have been changed.
        self._write_journal(journal)
        for name in sorted(journal):
            _place(self._from(name, wanted), self._root, name)
        self._write_journal({name: journal[name] for name in wanted})
        for name in journal.keys() - wanted:
            _remove(self._originals / name)
        shutil.rmtree(self._results, ignore_errors=True)
        return reports

    def revert(self) -> None:
        """Put the source back as it was before any patch."""
        self.apply(())

    def _from(self, name: str, wanted: frozenset[str]) -> Path:
        return (self._results if name in wanted else self._originals) / name

    def _render(self, patches: Sequence[Patch]) -> tuple[frozenset[str], tuple[PatchReport, ...]]:
        """Fill the results directory with the patched files; returns their names."""
        journal = self._read_journal()

        def take(name: str, target: Path) -> None:
            original = (self._originals if name in journal else self._root) / name
            if original.is_dir() and not original.is_symlink():
                raise IsADirectoryError
            _copy(original, target)

        names, reports = _render(patches, take, self._results)
        for report in reports:
            if report.status is Status.REJECTED:
                shutil.rmtree(self._results, ignore_errors=True)
                raise PatchError(explain(report, release_of_tree(self._root)))
        return names, reports

    def _read_journal(self) -> dict[str, str]:
        try:
            journal = json.loads(self._journal.read_text())
        except FileNotFoundError:
            return {}
        return {str(name): str(mark) for name, mark in journal.items()}

    def _write_journal(self, journal: dict[str, str]) -> None:
        self._state.mkdir(parents=True, exist_ok=True)
        write_atomically(self._journal, json.dumps(journal, indent=1, sort_keys=True))


def try_out(patches: Sequence[Patch], read: Reader, scratch: Path) -> tuple[PatchReport, ...]:
    """What would become of the patches in a source, which is only read.

    ``scratch`` is made and removed. The reports end with the first patch that is rejected: what
    comes after it was made to go on top of it. Raises PatchError as Patched.apply() does, but
    not for a patch that is rejected.
    """

    def take(name: str, target: Path) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            mark, data = read(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            place(target, mark, data)

    try:
        return _render(patches, take, scratch)[1]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _render(
    patches: Sequence[Patch], take: Callable[[str, Path], None], results: Path
) -> tuple[frozenset[str], tuple[PatchReport, ...]]:
    """Make the patched files in ``results`` from copies of the originals that ``take`` puts there.

    Returns the names of all files that the patches touch, and the reports.
    """
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    touched = frozenset(name for patch in patches for name in _names(patch, results))
    for name in sorted(touched):
        try:
            take(name, results / name)
        except OSError as error:
            raise PatchError(
                f"A patch changes {name}, which is no file in this source "
                f"({error.strerror or 'Is a directory'})."
            ) from error
    reports = []
    for patch in patches:
        reports.append(hunks.apply(patch, results))
        if reports[-1].status is Status.REJECTED:
            break
    return touched, tuple(reports)


def explain(report: PatchReport, release: str) -> str:
    """Why a patch does not apply to a tree of this release, for a person."""
    made_for = target(report.patch)
    advice = "Rebase it onto this kernel, or take a kernel that it was made for"
    if made_for is not None and made_for.excludes(release):
        advice += f" ({made_for}, since {' and '.join(made_for.because)}; this is {release})"
    return (
        f"{report.patch.origin}{_which(report.patch)} does not apply to this source; "
        f"{report.verdict}:\n  " + "\n  ".join(report.failures()) + f"\n{advice}."
    )


def described(report: PatchReport, release: str) -> list[str]:
    """The whole report on a patch in a tree of this release, as lines."""
    patch = report.patch
    subject = f": {patch.subject}" if patch.subject and patch.subject not in patch.name else ""
    count = len(patch.paths)
    lines = [f"{patch.name}{subject}", f"  changes {count} file{'' if count == 1 else 's'}"]
    made_for = target(patch)
    if made_for is not None:
        lines.append(f"  made for {made_for}: {', '.join(made_for.because)}; this is {release}")
    for file in report.files:
        problem = f": {file.problem}" if file.problem else ""
        lines.append(f"  {file.path}: {file.status}{problem}")
        lines += [f"    {hunk.line()}" for hunk in file.hunks if not file.problem]
    return [*lines, f"  => {report.verdict}"]


def _which(patch: Patch) -> str:
    """What tells a patch from others in the same file."""
    return "" if patch.name == patch.origin.name else f" ({patch.name})"


def _names(patch: Patch, results: Path) -> frozenset[str]:
    """The files that a patch touches."""
    names = hunks.touched(patch, results)
    if isinstance(names, Completed):
        raise PatchError(f"{patch.origin} is not a patch that git can read: {_last(names)}")
    for name in names:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or ".git" in parts:
            raise PatchError(f"{patch.origin} changes {name}, which is outside of the source tree.")
    return names


def _last(told: Completed) -> str:
    lines = (told.stderr or told.stdout).strip().splitlines()
    return lines[-1] if lines else f"git apply exited with {told.status}"


def _copy(source: Path, target: Path) -> None:
    """Have at ``target`` what is at ``source``, nothing included."""
    _remove(target)
    if source.is_symlink() or source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)


def _place(source: Path, root: Path, name: str) -> None:
    """Have at ``root``/``name`` what is at ``source``, with the present time, if it differs."""
    target = root / name
    if fingerprint(source) == fingerprint(target):
        return
    if fingerprint(source) == "-":
        target.unlink()
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".mmu-harness-{target.name}")
    _remove(fresh)
    # Without the times of the source, so that make sees the change.
    shutil.copy(source, fresh, follow_symlinks=False)
    fresh.replace(target)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
