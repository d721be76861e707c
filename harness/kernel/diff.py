# SPDX-License-Identifier: GPL-2.0-only
"""Find the diffs in a text, whatever stands around them, and take them apart into hunks.

Only the shape is read here; that a hunk fits a file is for git to say. The lines of a hunk are
counted, as its header promises them, so that nothing of a commit message is taken for a part of
it, and a patch that was cut off is noticed before anything is tried.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_EXTENDED = re.compile(
    rb"(?:old mode|new mode|deleted file mode|new file mode|copy from|copy to|rename from|"
    rb"rename to|similarity index|dissimilarity index|index|Binary files) "
)
_BINARY_DATA = re.compile(rb"(?:literal|delta) \d+$|[A-Za-z][0-9A-Za-z!#$%&()*+;<=>?@^_`{|}~-]+$|$")
_COMBINED = (b"diff --cc ", b"diff --combined ")
_NOWHERE = "/dev/null"


class DiffError(ValueError):
    """The text holds a damaged diff; the message is a clause that names the line."""


@dataclasses.dataclass(frozen=True)
class Hunk:
    """One hunk: its ``number`` in the file from 1, the ``line`` of the old file, its bytes."""

    number: int
    line: int
    text: bytes

    def before(self) -> Iterator[bytes]:
        """The lines that the old file must have: context, and what is removed."""
        for line in self.text.split(b"\n")[1:]:
            if line[:1] in (b" ", b"-"):
                yield line[1:]


@dataclasses.dataclass(frozen=True)
class FileDiff:
    """What a patch does to one file: the bytes of the header, and the hunks.

    ``old`` and ``new`` are the names in the diff, with their first directories (a/, b/) and None
    where there is no such file. ``renames`` includes copies.
    """

    header: bytes
    hunks: tuple[Hunk, ...]
    old: str | None
    new: str | None
    renames: bool = False

    @property
    def text(self) -> bytes:
        """The whole, as git reads it."""
        return self.header + b"".join(hunk.text for hunk in self.hunks)

    @property
    def creates(self) -> bool:
        """Whether the file must not be there before."""
        return self.old is None

    @property
    def deletes(self) -> bool:
        """Whether the file is gone afterwards."""
        return self.new is None

    def path(self, strip: int = 1) -> str:
        """The file's name in the tree, without the first ``strip`` directories."""
        name = self.new or self.old or ""
        # What git calls "rename from" has no a/ before it.
        return name if self.renames else "/".join(name.split("/")[strip:]) or name


def read_diffs(text: bytes) -> tuple[bytes, tuple[FileDiff, ...]]:
    """The text before the first diff, and all diffs; raises DiffError for a damaged one."""
    return _Reader(text).read()


class _Reader:
    """Goes through the lines of a text once."""

    def __init__(self, text: bytes) -> None:
        # The last line may have lost its end, which is no damage to what it says.
        self._lines = [line + b"\n" for line in text.split(b"\n")]
        if self._lines[-1] == b"\n":
            self._lines.pop()
        self._at = 0

    def read(self) -> tuple[bytes, tuple[FileDiff, ...]]:
        found: list[FileDiff] = []
        first = len(self._lines)
        while self._at < len(self._lines):
            start = self._at
            line = self._lines[start]
            if line.startswith(_COMBINED):
                raise DiffError(
                    f"line {start + 1} begins the combined diff of a merge, which says not how to "
                    "change one tree"
                )
            if line.startswith(b"diff --git "):
                found.append(self._git())
            elif self._is_plain():
                found.append(self._plain())
            else:
                self._at += 1
                continue
            first = min(first, start)
        return b"".join(self._lines[:first]), tuple(found)

    def _peek(self, ahead: int = 0) -> bytes:
        index = self._at + ahead
        return self._lines[index] if index < len(self._lines) else b""

    def _is_plain(self) -> bool:
        return (
            self._peek().startswith(b"--- ")
            and self._peek(1).startswith(b"+++ ")
            and _HUNK.match(self._peek(2)) is not None
        )

    def _plain(self) -> FileDiff:
        header = self._peek() + self._peek(1)
        old, new = _name(self._peek()[4:]), _name(self._peek(1)[4:])
        self._at += 2
        return FileDiff(header, self._hunks(new or old or ""), old, new)

    def _git(self) -> FileDiff:
        first = self._peek()
        header = [first]
        self._at += 1
        while _EXTENDED.match(self._peek()):
            header.append(self._peek())
            self._at += 1
        if self._peek().startswith(b"GIT binary patch"):
            header += self._binary()
        elif self._is_plain():
            header += [self._peek(), self._peek(1)]
            self._at += 2
        old, new, renames = _git_names(header)
        return FileDiff(b"".join(header), self._hunks(new or old or ""), old, new, renames)

    def _binary(self) -> Iterator[bytes]:
        yield self._peek()
        self._at += 1
        while self._at < len(self._lines) and _BINARY_DATA.match(self._peek().rstrip(b"\n")):
            yield self._peek()
            self._at += 1

    def _hunks(self, name: str) -> tuple[Hunk, ...]:
        hunks: list[Hunk] = []
        while match := _HUNK.match(self._peek()):
            hunks.append(self._hunk(match, len(hunks) + 1, name))
        return tuple(hunks)

    def _hunk(self, header: re.Match[bytes], number: int, name: str) -> Hunk:
        start = self._at
        old, new = (1 if header[group] is None else int(header[group]) for group in (2, 4))
        self._at += 1
        while old > 0 or new > 0:
            kind = self._peek()[:1]
            # Editors and mailers take the blank from empty lines of context; git knows that too.
            context = kind in (b" ", b"\n", b"\r")
            if not context and kind not in (b"-", b"+", b"\\"):
                where = "at the end of the text" if not kind else f"in line {self._at + 1}"
                raise DiffError(
                    f"hunk #{number} of {name} (line {start + 1}) lacks {max(old, new)} of its "
                    f"lines: it ends {where}, so the patch was cut off or edited"
                )
            old -= context or kind == b"-"
            new -= context or kind == b"+"
            self._at += 1
        if old < 0 or new < 0:
            raise DiffError(
                f"hunk #{number} of {name} (line {start + 1}) has more lines than its header "
                "promises, so the patch was edited"
            )
        if self._peek().startswith(b"\\ "):
            self._at += 1
        return Hunk(number, int(header[1]), b"".join(self._lines[start : self._at]))


def _git_names(header: list[bytes]) -> tuple[str | None, str | None, bool]:
    """The old name, the new name, and whether they stand in "rename" or "copy" lines."""
    said = {}
    for line in header[1:]:
        for key in (b"--- ", b"+++ ", b"rename from ", b"rename to ", b"copy from ", b"copy to "):
            if line.startswith(key):
                said[key.split()[-1]] = _name(line[len(key) :])
    if b"from" in said and b"to" in said:
        return said[b"from"], said[b"to"], True
    # Without a change of contents both names stand in the first line only, and are the same.
    rest = header[0][len(b"diff --git ") :].rstrip(b"\n")
    old, new = said.get(b"---"), said.get(b"+++")
    if b"---" not in said:
        half = (len(rest) - 1) // 2
        old, new = _name(rest[:half]), _name(rest[half + 1 :])
    if any(line.startswith(b"new file mode ") for line in header):
        old = None
    if any(line.startswith(b"deleted file mode ") for line in header):
        new = None
    return old, new, False


def _name(raw: bytes) -> str | None:
    """A file name as a diff has it, without the time that may follow after a tab."""
    name = raw.rstrip(b"\r\n").split(b"\t")[0].decode(errors="replace").strip('"')
    return None if name == _NOWHERE else name
