# SPDX-License-Identifier: GPL-2.0-only
"""Read what a block device has of a file, whatever the page cache thinks.

Reading a file past the page cache (O_DIRECT) first writes back what of it is dirty, so it cannot
tell whether somebody else wrote that back before. The device itself does not know the file's
pages: where the file's blocks are, the file system says (FIEMAP), and there they are read.
Structures and numbers are those of include/uapi/linux/fiemap.h, which is ABI.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from harness.probe import kvm

_FIEMAP = 0xC020660B
_HEADER = struct.Struct("<QQIIII")
_EXTENT = struct.Struct("<QQQ16xI12x")
_MOST = 64
_LAST = 1 << 0
_NOT_THERE = 0x2 | 0x4 | 0x8 | 0x800
"""Flags of an extent whose blocks are not known, not chosen yet, encoded, or never written."""


def device_of(path: str) -> str:
    """The block device that a file is on, as a path below /dev."""
    number = Path(path).stat().st_dev
    uevent = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/uevent").read_text()
    names = [line.partition("=")[2] for line in uevent.splitlines() if line.startswith("DEVNAME=")]
    return f"/dev/{names[0]}"


def read_stored(path: str, offset: int, size: int, device: str) -> bytes:
    """``size`` bytes of a file, from ``offset`` on, as its device has them.

    Both are multiples of the block size. Raises OSError with ENODATA where the device has no
    blocks of the file, or none that were ever written.
    """
    found = bytearray()
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        for start, length in _pieces(extents(path, offset, size), offset, size):
            # Direct reads go into whole pages.
            with mmap.mmap(-1, length) as buffer:
                if os.preadv(fd, [buffer], start) != length:
                    raise OSError(errno.EIO, f"{device} ends before byte {start + length}")
                found += buffer
    finally:
        os.close(fd)
    return bytes(found)


def extents(path: str, offset: int, size: int) -> list[tuple[int, int, int, int]]:
    """Where a range of a file is: (offset, place on the device, length, flags) of each extent.

    Nothing is written back for that.
    """
    found: list[tuple[int, int, int, int]] = []
    end = offset + size
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while offset < end:
            buffer = ctypes.create_string_buffer(_HEADER.size + _MOST * _EXTENT.size)
            _HEADER.pack_into(buffer, 0, offset, end - offset, 0, 0, _MOST, 0)
            kvm.ioctl(fd, _FIEMAP, ctypes.addressof(buffer))
            count = _HEADER.unpack_from(buffer)[3]
            for index in range(count):
                logical, physical, length, flags = _EXTENT.unpack_from(
                    buffer, _HEADER.size + index * _EXTENT.size
                )
                found.append((logical, physical, length, flags))
                offset = logical + length
            if not count or found[-1][3] & _LAST:
                break
    finally:
        os.close(fd)
    return found


def _pieces(
    extents: list[tuple[int, int, int, int]], offset: int, size: int
) -> Iterator[tuple[int, int]]:
    """The parts of a device, as (place, length), that make up a range of a file, in order."""
    at, end = offset, offset + size
    for logical, physical, length, flags in extents:
        if logical + length <= at:
            continue
        if logical > at or flags & _NOT_THERE:
            break
        skip = at - logical
        take = min(length - skip, end - at)
        yield physical + skip, take
        at += take
        if at == end:
            return
    raise OSError(errno.ENODATA, f"the device has nothing of the file's byte {at}")
