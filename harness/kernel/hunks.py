# SPDX-License-Identifier: GPL-2.0-only
"""Apply one patch with git, and say of every hunk what became of it.

git decides; what is done here is to ask it in pieces when the whole does not apply, and in
reverse for what does not fit forward: a hunk that can be taken off again is in the source already.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterator
from pathlib import Path

from harness.command import Completed
from harness.kernel import git
from harness.kernel.diff import FileDiff, Hunk
from harness.kernel.series import Patch

_APPLY = (
    "-c",
    "core.autocrlf=false",
    "-c",
    "core.fileMode=true",
    "apply",
    "--whitespace=nowarn",
)
_SUCCEEDED = re.compile(r"Hunk #(\d+) succeeded at \d+ \(offset (-?\d+) lines?\)\.")
_CHECKING = re.compile(r"Checking patch .*\.\.\.")


class Status(enum.StrEnum):
    """What became of a hunk, a file or a patch, from good to bad."""

    APPLIED = "applied"
    OFFSET = "applied with offset"
    ALREADY = "already applied"
    REJECTED = "rejected"


@dataclasses.dataclass(frozen=True)
class HunkReport:
    """What became of one hunk; ``offset`` is how many lines further down it was found."""

    hunk: Hunk
    status: Status
    offset: int = 0

    def line(self) -> str:
        """The report in one line."""
        moved = f" ({_lines(self.offset)})" if self.offset else ""
        return f"hunk #{self.hunk.number} (line {self.hunk.line}) {self.status}{moved}"


@dataclasses.dataclass(frozen=True)
class FileReport:
    """What became of the changes to one file.

    ``whole`` is the status where there are no hunks, because only a name or a mode changes.
    ``problem`` is a clause where it is not the hunks that do not fit; ``exists`` tells that a
    file which is to be created is there already, with other contents.
    """

    path: str
    hunks: tuple[HunkReport, ...]
    whole: Status
    problem: str = ""
    exists: bool = False

    @property
    def status(self) -> Status:
        """Of all changes to the file."""
        if self.problem:
            return Status.REJECTED
        return _together({report.status for report in self.hunks} or {self.whole})

    def failure(self) -> str:
        """What does not fit, in one line."""
        if self.problem:
            return f"{self.path}: {self.problem}"
        bad = [report.hunk for report in self.hunks if report.status is Status.REJECTED]
        if self.hunks and not bad:
            return f"{self.path}: a part of the hunks is in this source already"
        which = ", ".join(f"#{hunk.number}" for hunk in bad)
        where = ", ".join(str(hunk.line) for hunk in bad)
        return f"{self.path}: hunk {which} (line {where}) does not match"


@dataclasses.dataclass(frozen=True)
class PatchReport:
    """What became of a patch in a tree."""

    patch: Patch
    files: tuple[FileReport, ...]

    @property
    def status(self) -> Status:
        """Of the whole patch."""
        return _together({file.status for file in self.files})

    @property
    def existing(self) -> tuple[str, ...]:
        """Files that it creates and that are there, code first; a reason for not applicable."""
        found = [file.path for file in self.files if file.exists]
        return tuple(sorted(found, key=lambda path: (not path.endswith(".c"), path)))

    @property
    def verdict(self) -> str:
        """What became of it, as a clause."""
        if self.existing:
            return f"not applicable: this tree already has {' and '.join(self.existing)}"
        if self.status is not Status.REJECTED:
            return str(self.status)
        if any(file.status is Status.REJECTED for file in self.files):
            return "rejected"
        return "rejected: this tree has a part of it already"

    def failures(self) -> list[str]:
        """What does not fit, one line a file."""
        bad = [file.failure() for file in self.files if file.status is Status.REJECTED]
        return bad or [
            f"{file.path}: {file.status}" for file in self.files if file.status is Status.ALREADY
        ]

    def moves(self) -> list[str]:
        """Where hunks went that were not found at their lines, one line a file."""
        told = []
        for file in self.files:
            moved = [report for report in file.hunks if report.offset]
            if moved:
                where = ", ".join(f"#{r.hunk.number} {_lines(r.offset)}" for r in moved)
                told.append(f"{file.path}: hunk {where}")
        return told


def apply(patch: Patch, root: Path) -> PatchReport:
    """Apply a patch to the files below ``root``, and report.

    Where the report's status is rejected, the files are left as far as they could be changed:
    ``root`` must be a copy that can be thrown away. Where it is already applied they are as they
    were.
    """
    whole = _git(root, patch, patch.text, "-v")
    if whole.status == 0:
        return PatchReport(patch, tuple(_applied(patch, whole.stderr)))
    if _fits(root, patch, patch.text, "-R"):
        return PatchReport(patch, tuple(_uniform(f, patch, Status.ALREADY) for f in patch.files))
    return PatchReport(patch, tuple(_piecewise(root, patch, file) for file in patch.files))


def touched(patch: Patch, root: Path) -> Completed | frozenset[str]:
    """The files that a patch touches as git understands it, or what git has to say against it.

    A rename has its new name forward, and its old one backward.
    """
    names: set[str] = set()
    for direction in ((), ("-R",)):
        told = _git(root, patch, patch.text, *direction, "--numstat", "-z")
        if told.status != 0:
            return told
        for record in filter(None, told.stdout.split("\0")):
            names.add(record.split("\t", 2)[2])
    return frozenset(names)


def _applied(patch: Patch, output: str) -> Iterator[FileReport]:
    """The reports on a patch that applies, from git's words: one section a file, in order."""
    sections: list[dict[int, int]] = []
    for line in output.splitlines():
        if _CHECKING.fullmatch(line):
            sections.append({})
        elif (match := _SUCCEEDED.fullmatch(line)) and sections:
            sections[-1][int(match[1])] = int(match[2])
    for file, offsets in zip(patch.files, sections, strict=True):
        hunks = tuple(_found(hunk, offsets.get(hunk.number, 0)) for hunk in file.hunks)
        yield FileReport(file.path(patch.strip), hunks, Status.APPLIED)


def _piecewise(root: Path, patch: Patch, file: FileDiff) -> FileReport:
    """Apply what can be applied of the changes to one file."""
    done = _git(root, patch, file.text, "-v")
    if done.status == 0:
        (report,) = _applied(dataclasses.replace(patch, files=(file,)), done.stderr)
        return report
    if _fits(root, patch, file.text, "-R"):
        return _uniform(file, patch, Status.ALREADY)
    rejected = _uniform(file, patch, Status.REJECTED)
    if file.creates and (root / rejected.path).exists():
        return dataclasses.replace(rejected, problem="already exists in this source", exists=True)
    if problem := _problem(done.stderr):
        return dataclasses.replace(rejected, problem=problem)
    if file.renames or file.creates or file.deletes:
        return rejected
    hunks = tuple(_one(root, patch, file, hunk) for hunk in file.hunks)
    return dataclasses.replace(rejected, hunks=hunks)


def _one(root: Path, patch: Patch, file: FileDiff, hunk: Hunk) -> HunkReport:
    """Apply one hunk alone. Those before it are applied, if they could be."""
    text = file.header + hunk.text
    done = _git(root, patch, text, "-v")
    if done.status == 0:
        match = next(filter(None, map(_SUCCEEDED.fullmatch, done.stderr.splitlines())), None)
        return _found(hunk, int(match[2]) if match else 0)
    there = _fits(root, patch, text, "-R")
    return HunkReport(hunk, Status.ALREADY if there else Status.REJECTED)


def _found(hunk: Hunk, offset: int) -> HunkReport:
    return HunkReport(hunk, Status.OFFSET if offset else Status.APPLIED, offset)


def _uniform(file: FileDiff, patch: Patch, status: Status) -> FileReport:
    hunks = tuple(HunkReport(hunk, status) for hunk in file.hunks)
    return FileReport(file.path(patch.strip), hunks, status)


def _problem(output: str) -> str:
    """What is wrong with a file rather than with a hunk, from the words of git."""
    for line in output.splitlines():
        match = re.fullmatch(
            r"error: .*?: ((?:No such file or directory|already exists in working directory"
            r"|does not exist in index|wrong type|has type .*|cannot apply binary patch.*))",
            line,
        )
        if match:
            return match[1].replace("working directory", "this source")
    return ""


def _fits(root: Path, patch: Patch, text: bytes, *options: str) -> bool:
    return _git(root, patch, text, "--check", *options).status == 0


def _git(root: Path, patch: Patch, text: bytes, *options: str) -> Completed:
    return git.outside_checkout(root, *_APPLY, f"-p{patch.strip}", *options, "-", stdin=text)


def _together(statuses: set[Status]) -> Status:
    """The status of a whole from those of its parts.

    Half of it being there is no good reason to add the other half, so that counts as rejected.
    """
    if Status.REJECTED in statuses or (Status.ALREADY in statuses and len(statuses) > 1):
        return Status.REJECTED
    if Status.ALREADY in statuses:
        return Status.ALREADY
    return Status.OFFSET if Status.OFFSET in statuses else Status.APPLIED


def _lines(offset: int) -> str:
    return f"{offset:+} line{'' if abs(offset) == 1 else 's'}"
