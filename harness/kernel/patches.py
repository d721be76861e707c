# SPDX-License-Identifier: GPL-2.0-only
"""Patches on top of a build tree, which can always be taken off again.

The patched files are made aside, from copies of the originals, and only then put into the tree.
So a patch that does not apply changes nothing, and going from one set of patches to another
touches only the files that come out different, which keeps make incremental. A journal and the
originals lie beside the tree before it is touched, so that it can be put back even after SIGKILL.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from harness.command import Completed
from harness.errors import PatchError, UsageError
from harness.kernel import git
from harness.kernel.fingerprint import fingerprint, write_atomically

_APPLY = (
    "-c",
    "core.autocrlf=false",
    "-c",
    "core.fileMode=true",
    "apply",
    "--whitespace=nowarn",
)


def patch_digest(patch: Path) -> str:
    """The sha256 of a patch; raises UsageError for what cannot be read."""
    try:
        return hashlib.sha256(patch.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"The patch {patch} cannot be read: {error.strerror}.") from error


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

    def apply(self, patches: Sequence[Path]) -> None:
        """Make the tree be the source plus exactly these patches, in their order.

        Raises PatchError that names the patch, the files and the hunks that fail; the tree is
        then as it was.
        """
        wanted = self._render([patch.absolute() for patch in patches])
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

    def revert(self) -> None:
        """Put the source back as it was before any patch."""
        self.apply(())

    def _from(self, name: str, wanted: frozenset[str]) -> Path:
        return (self._results if name in wanted else self._originals) / name

    def _render(self, patches: Sequence[Path]) -> frozenset[str]:
        """Fill the results directory with the patched files; returns their names."""
        shutil.rmtree(self._results, ignore_errors=True)
        self._results.mkdir(parents=True)
        names = {patch: self._names(patch) for patch in patches}
        wanted = frozenset(name for touched in names.values() for name in touched)
        journal = self._read_journal()
        for name in wanted:
            original = (self._originals if name in journal else self._root) / name
            if original.is_dir() and not original.is_symlink():
                raise PatchError(f"A patch changes {name}, which is a directory in this source.")
            _copy(original, self._results / name)
        for patch in patches:
            done = git.outside_checkout(self._results, *_APPLY, "--", str(patch))
            if done.status != 0:
                raise PatchError(self._failure(patch))
        return wanted

    def _names(self, patch: Path) -> frozenset[str]:
        """The files that a patch touches: a rename has its new name forward, its old backward."""
        patch_digest(patch)
        names: set[str] = set()
        for direction in ((), ("-R",)):
            told = git.outside_checkout(
                self._results, *_APPLY, *direction, "--numstat", "-z", "--", str(patch)
            )
            if told.status != 0:
                raise PatchError(f"{patch} is not a patch that git can read: {_last(told)}")
            for record in filter(None, told.stdout.split("\0")):
                names.add(record.split("\t", 2)[2])
        for name in names:
            parts = PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts or ".git" in parts:
                raise PatchError(f"{patch} changes {name}, which is outside of the source tree.")
        if not names:
            raise PatchError(f"{patch} changes no file.")
        return frozenset(names)

    def _failure(self, patch: Path) -> str:
        """Say which hunks of a patch fail, by applying all of it that can be applied."""
        back = git.outside_checkout(self._results, *_APPLY, "--check", "-R", "--", str(patch))
        if back.status == 0:
            return f"{patch} does not apply, because this source has it already."
        # The results are thrown away, so they may be left half-patched.
        told = git.outside_checkout(self._results, *_APPLY, "--reject", "-v", "--", str(patch))
        problems = rejected(told.stderr + told.stdout) or [_last(told)]
        shutil.rmtree(self._results, ignore_errors=True)
        return (
            f"{patch} does not apply to this source:\n  "
            + "\n  ".join(problems)
            + "\nRebase it onto this kernel, or take a kernel that it was made for."
        )

    def _read_journal(self) -> dict[str, str]:
        try:
            journal = json.loads(self._journal.read_text())
        except FileNotFoundError:
            return {}
        return {str(name): str(mark) for name, mark in journal.items()}

    def _write_journal(self, journal: dict[str, str]) -> None:
        self._state.mkdir(parents=True, exist_ok=True)
        write_atomically(self._journal, json.dumps(journal, indent=1, sort_keys=True))


def rejected(output: str) -> list[str]:
    """What went wrong, one line a file, from the output of ``git apply --reject -v``."""
    lines: dict[str, list[str]] = {}
    hunks: dict[str, list[str]] = {}
    other = []
    current = ""
    for line in output.splitlines():
        if match := re.fullmatch(r"error: patch failed: (.*):(\d+)", line):
            lines.setdefault(match[1], []).append(match[2])
        elif match := re.fullmatch(r"Applying patch (.*) with \d+ rejects?\.\.\.", line):
            current = match[1]
        elif match := re.fullmatch(r"Rejected hunk #(\d+)\.", line):
            hunks.setdefault(current, []).append(match[1])
        elif match := re.fullmatch(
            r"error: (.*: (?:No such file or directory|already exists in working directory"
            r"|does not exist in index|wrong type|cannot apply binary patch.*))",
            line,
        ):
            other.append(match[1].replace("working directory", "this source"))
    told = []
    for name in dict.fromkeys([*lines, *hunks]):
        which = ", ".join(f"#{number}" for number in hunks.get(name, []))
        where = ", ".join(lines.get(name, []))
        told.append(
            f"{name}: "
            + (f"hunk {which} " if which else "a hunk ")
            + (f"(line {where}) " if where else "")
            + "does not match"
        )
    return told + other


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
