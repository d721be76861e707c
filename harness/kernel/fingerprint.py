# SPDX-License-Identifier: GPL-2.0-only
"""Tell whether files are the same, cheaply when they were looked at before."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path

Marks = dict[str, tuple[str, str]]
"""Of each file by its name: its fingerprint, and what it looked like then, in a word."""

_SETTLED_NANOSECONDS = 2_000_000_000
"""A file changed more recently than this may change again within one tick of its clock."""


def fingerprint(path: str | os.PathLike[str]) -> str:
    """What make and git can see of a file: its kind, its executable bit, its contents.

    "-" when there is no file. Raises OSError for what is no regular file and no symbolic link.
    """
    try:
        return look(path)[0]
    except (FileNotFoundError, NotADirectoryError):
        return "-"


def look(path: str | os.PathLike[str]) -> tuple[str, bytes]:
    """The fingerprint of a file together with its contents, or the target of a link."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        kind, data = "l", os.fsencode(os.readlink(path))  # noqa: PTH115 - pathlib alters "./x"
    elif stat.S_ISREG(mode):
        kind = "x" if mode & 0o100 else "f"
        with open(path, "rb") as file:  # noqa: PTH123 - called for 80,000 files
            data = file.read()
    else:
        raise OSError(errno.EINVAL, "is neither a file nor a link", os.fspath(path))
    return marked(kind, data), data


def place(path: Path, mark: str, data: bytes) -> None:
    """Write a file or link anew, as look() has seen it; its directory must be there."""
    path.unlink(missing_ok=True)
    if mark.startswith("l"):
        os.symlink(data, os.fsencode(path))  # noqa: PTH211 - pathlib alters "./x"
    else:
        path.write_bytes(data)
        path.chmod(0o755 if mark.startswith("x") else 0o644)


def marked(kind: str, data: bytes) -> str:
    """The fingerprint of a file of this kind: "f", "x" if executable, "l" for a link."""
    return kind + hashlib.sha256(data).hexdigest()


def digest(files: Mapping[str, str]) -> str:
    """One digest of a tree from the fingerprints of its files."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(os.fsencode(name) + b"\0" + files[name].encode() + b"\0")
    return total.hexdigest()


def read_marks(path: Path) -> Marks:
    """What write_marks() wrote; raises OSError and ValueError where that cannot be read."""
    text = path.read_text("utf-8", "surrogateescape")
    lines = (line.split(" ", 2) for line in text.split("\0"))
    return {name: (mark, stamp) for mark, stamp, name in lines}


def write_marks(path: Path, marks: Marks) -> None:
    """Write marks so that they are never seen half-written.

    As one line of text for each file, because JSON took a second for the 87,000 of a kernel; no
    name has a NUL.
    """
    lines = (f"{mark} {stamp} {name}" for name, (mark, stamp) in marks.items())
    write_atomically(path, "\0".join(lines))


class FingerprintCache:
    """Fingerprints of the files below one directory, kept in ``file`` between runs.

    A file whose size, times and inode are as they were is not read again.
    """

    def __init__(self, root: Path, file: Path) -> None:
        self._root = root
        self._file = file
        self._known: Marks = {}
        with contextlib.suppress(OSError, ValueError):
            self._known = read_marks(file)
        self._seen: Marks = {}
        self._changed = False

    def get(self, name: str) -> str:
        """The fingerprint of one file."""
        path = f"{self._root}/{name}"
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return "-"
        stamp = (
            f"{status.st_size},{status.st_mtime_ns},{status.st_ctime_ns},{status.st_ino},"
            f"{status.st_mode}"
        )
        known = self._known.get(name)
        if known is not None and known[1] == stamp:
            self._seen[name] = known
            return known[0]
        self._changed = True
        value = fingerprint(path)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NANOSECONDS:
            self._seen[name] = (value, stamp)
        return value

    def save(self) -> None:
        """Keep what was seen for the next run."""
        if self._changed or len(self._seen) != len(self._known):
            write_marks(self._file, self._seen)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that it is never seen half-written."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        # Names of files are what they are, and need not be UTF-8.
        fresh.write_text(text, "utf-8", "surrogateescape")
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
