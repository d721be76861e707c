# SPDX-License-Identifier: GPL-2.0-only
"""A build tree that stays, so that each build compiles only what differs from the one before.

It is shared by all versions of one source, and whoever uses it holds its lock in the store. What
lies beside the tree makes it survive SIGKILL at any moment: a manifest of the source files in it,
what comes while it becomes another source, the journal of the patches, and a mark while make runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.errors import KernelUntestableError, MachineUnfitError, SourceError
from harness.kernel.fingerprint import (
    Marks,
    fingerprint,
    place,
    read_marks,
    write_atomically,
    write_marks,
)
from harness.kernel.hunks import PatchReport, Status
from harness.kernel.patches import Patched
from harness.kernel.series import Patch
from harness.kernel.source import Files, Source, everything
from harness.progress import Progress

_Record = tuple[str, str]
"""The fingerprint of a source file, and size and mtime (ns) of its copy in the tree."""

_COMING = ("-", "-")
"""The record of a file that may not have come yet."""

_WHOLE = ""
"""What the manifest calls the whole source; no file has that name."""


class BuildTree:
    """The tree at ``root`` = ``home``/source, with its state beside it in ``home``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "source"
        self._patched = Patched(self.root, home / "patched")
        self._manifest = home / "manifest"
        self._coming = home / "coming.json"
        # Read once: whoever has the tree's lock is alone, and 80,000 records take a while.
        self._known: tuple[Marks, str] | None = None
        self._making = home / "making"
        self._made = home / "made"

    def become(self, source: Source, patches: Sequence[Patch], progress: Progress) -> None:
        """Make the tree be this source with these patches, touching only files that differ.

        What became of a patch that did not go on just as it is, is noted. Raises PatchError
        when a patch does not apply, SourceError when the source changes meanwhile.
        """
        self._forget_untrusted_products()
        records, digest = self._read_manifest()
        if digest != source.digest or not self._intact(records):
            if records:
                self._patched.revert()
            else:
                # Without a manifest nothing tells source files from build products.
                for path in (self.root, self.home / "patched"):
                    shutil.rmtree(path, ignore_errors=True)
            with source.open(self.home / "incoming") as files:
                self._take(files, records, source.digest, progress)
        for report in self._patched.apply(patches):
            _note(report, progress)

    def fingerprints(self, wanted: re.Pattern[str]) -> dict[str, str]:
        """The fingerprints of the files whose whole names match, patches included."""
        records, _ = self._read_manifest()
        patched = self._patched.touched()
        found = {name: mark for name, (mark, _) in records.items() if wanted.fullmatch(name)}
        found |= {name: fingerprint(self.root / name) for name in patched if wanted.fullmatch(name)}
        return found

    @contextlib.contextmanager
    def being_made(self) -> Iterator[None]:
        """Guard a run of make: if it is cut short, what it wrote is not trusted later.

        A killed compiler may leave half an object file that is newer than its source. A make
        that ends by itself, even in failure, removes such targets.
        """
        self._making.touch()
        try:
            yield
        except (KernelUntestableError, MachineUnfitError):
            self._finish_make()
            raise
        self._finish_make()

    def _finish_make(self) -> None:
        self._made.touch()
        self._making.unlink()

    def _forget_untrusted_products(self) -> None:
        """Remove what a make wrote that was cut short, or at a time that is yet to come.

        make goes by times. Once the clock was set back, a source file that is written now would
        seem older than what was made of its predecessor.
        """
        marks = [path.stat().st_mtime_ns for path in (self._making, self._made) if path.exists()]
        now = time.time_ns()
        if self._making.exists():
            began = min(self._making.stat().st_mtime_ns, now)
        elif marks and max(marks) > now:
            began = now
        else:
            return
        records, _ = self._read_manifest()
        keep = records.keys() | self._patched.touched()
        for name in everything(self.root):
            # include/config tells make what the objects were built for, and is written safely.
            if name in keep or name.startswith("include/config/"):
                continue
            path = self.root / name
            if path.lstat().st_mtime_ns >= began:
                path.unlink()
        for mark in (self._making, self._made):
            mark.unlink(missing_ok=True)

    def _take(self, files: Files, records: Marks, digest: str, progress: Progress) -> None:
        """Put the files of a source into the tree, and write the manifest."""
        if files.ours and not self.root.exists():
            files.root.rename(self.root)
            moved = {name: self._record(name, mark) for name, mark in files.fingerprints.items()}
            self._write_manifest(moved, digest)
            return
        self.root.mkdir(parents=True, exist_ok=True)
        # While it is neither the old nor the new source, this says so, and what else is source.
        coming = files.fingerprints.keys() - records.keys()
        coming |= {name for name, record in records.items() if record == _COMING}
        write_atomically(self._coming, json.dumps(sorted(coming)))
        for name in records.keys() - files.fingerprints.keys():
            self._remove(name)
        fresh: Marks = {}
        ready: set[str] = set()
        with progress.phase("Update the build tree"):
            for count, (name, mark) in enumerate(files.fingerprints.items()):
                old = records.get(name)
                if old is None or old[0] != mark or not self._unchanged(name, old):
                    self._put(files, name, mark, ready)
                    old = self._record(name, mark)
                fresh[name] = old
                if count % 5000 == 0:
                    progress.update(f"{count} of {len(files.fingerprints)} files")
        self._write_manifest(fresh, digest)

    def _put(self, files: Files, name: str, mark: str, ready: set[str]) -> None:
        """Have the source's file in the tree; ``ready`` are directories known to be there."""
        target = self.root / name
        directory = name.rpartition("/")[0]
        if directory not in ready:
            self._clear_way(name)
            ready.add(directory)
        elif target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        if fingerprint(target) == mark:
            return
        try:
            seen, data = files.read(name)
        except OSError as error:
            raise SourceError(f"{files.root / name} cannot be read: {error.strerror}.") from error
        if seen != mark:
            raise SourceError(f"{files.root / name} changed while it was read; run it again.")
        # Written anew: make must see that the file changed, however old the source is.
        place(target, mark, data)

    def _clear_way(self, name: str) -> None:
        """Remove what has the place of a file or of one of its directories."""
        target = self.root / name
        for parent in reversed(target.parents[: name.count("/")]):
            if parent.is_symlink() or parent.is_file():
                parent.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            (self.root / name).unlink()

    def _intact(self, records: Marks) -> bool:
        """Whether nobody has changed the tree's source files, except for the patches."""
        patched = self._patched.touched()
        return all(
            name in patched
            or self._unchanged(name, record)
            # A file that was patched and put back has other times, but the same contents.
            or fingerprint(self.root / name) == record[0]
            for name, record in records.items()
        )

    def _unchanged(self, name: str, record: _Record) -> bool:
        try:
            status = os.lstat(f"{self.root}/{name}")
        except OSError:
            return False
        return _stamp(status) == record[1]

    def _record(self, name: str, mark: str) -> _Record:
        return (mark, _stamp(os.lstat(f"{self.root}/{name}")))

    def _read_manifest(self) -> tuple[Marks, str]:
        if self._known is None:
            self._known = self._load_manifest()
        return self._known

    def _load_manifest(self) -> tuple[Marks, str]:
        if not self.root.is_dir():
            return {}, ""
        try:
            if not self._coming.exists():
                records = read_marks(self._manifest)
                digest, _ = records.pop(_WHOLE)
                return records, digest
            # It was cut short on the way to another source, perhaps the first one.
            coming = {str(name): _COMING for name in json.loads(self._coming.read_text())}
            if not self._manifest.exists():
                return coming, ""
            records = read_marks(self._manifest)
            del records[_WHOLE]
            return coming | records, ""
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}, ""

    def _write_manifest(self, records: Marks, digest: str) -> None:
        # The last line is what tells a whole manifest from one that is cut short.
        write_marks(self._manifest, {**records, _WHOLE: (digest, "-")})
        self._coming.unlink(missing_ok=True)
        self._known = records, digest


def _stamp(status: os.stat_result) -> str:
    """Whether a file may have been written to since, in a word."""
    return f"{status.st_size},{status.st_mtime_ns}"


def _note(report: PatchReport, progress: Progress) -> None:
    if report.status is Status.ALREADY:
        progress.note(f"{report.patch.name}: this source has it already.")
    elif report.status is Status.OFFSET:
        progress.note(f"{report.patch.name} applied with offset: {'; '.join(report.moves())}.")
