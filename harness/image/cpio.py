# SPDX-License-Identifier: GPL-2.0-only
"""Writes a cpio archive in the newc format, as the kernel unpacks it into its first root.

The format is that of Documentation/driver-api/early-userspace/buffer-format.rst in the kernel.
"""

from __future__ import annotations

import stat
from pathlib import PurePosixPath


class Archive:
    """Collects directories, files, links and devices; ``finished()`` is the archive's bytes.

    Parent directories are made as needed. Owners are root, times are zero: the same input makes
    the same bytes.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._directories: set[PurePosixPath] = {PurePosixPath(".")}
        self._inode = 0

    def directory(self, path: str) -> None:
        """Add a directory, and its parents."""
        wanted = PurePosixPath(path)
        for each in (*reversed(wanted.parents), wanted):
            if each not in self._directories:
                self._directories.add(each)
                self._add(str(each), stat.S_IFDIR | 0o755)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self.directory(str(PurePosixPath(path).parent))
        self._add(path, stat.S_IFREG | mode, data)

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device that only root may use."""
        self.directory(str(PurePosixPath(path).parent))
        self._add(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self.directory(str(PurePosixPath(path).parent))
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def finished(self) -> bytes:
        """The whole archive."""
        return b"".join([*self._parts, _record("TRAILER!!!", (0,) * 13, b"")])

    def _add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, 0, 0)
        self._parts.append(_record(name, fields, data))


def _record(name: str, fields: tuple[int, ...], data: bytes) -> bytes:
    text = name.encode() + b"\0"
    values = (*fields[:11], len(text), 0)
    header = b"070701" + b"".join(b"%08X" % value for value in values)
    return _padded(header + text) + _padded(data)


def _padded(data: bytes) -> bytes:
    """The data, filled up to a multiple of four bytes, as newc wants it."""
    return data + b"\0" * (-len(data) % 4)
