# SPDX-License-Identifier: GPL-2.0-only
"""The kinds of memory that a memslot can point to, and how each is mapped."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os

from harness.probe import layout
from harness.probe.layout import LARGE_PAGE_BYTES, PAGE_BYTES
from harness.probe.system import checked, libc

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS = 0x01, 0x02, 0x10, 0x20
_NORESERVE, _HUGETLB, _HUGE_2MB = 0x4000, 0x40000, 21 << 26
_FIXED_NOREPLACE = 0x100000
_MAP_FAILED = ctypes.c_void_p(-1).value
_MFD_CLOEXEC, _MFD_HUGETLB = 1, 4

_NEVER_LARGE = "nohugepage"
"""One backing at a time: a large page must not come about by itself."""

ADVICE = {
    "dontneed": 4, "free": 8, "remove": 9, "dontfork": 10, "dofork": 11, "mergeable": 12,
    "unmergeable": 13, "hugepage": 14, "nohugepage": 15, "cold": 20, "pageout": 21,
    "populate_write": 23, "collapse": 25,
}  # fmt: skip
"""madvise(2) advice by name, from include/uapi/asm-generic/mman-common.h."""

libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mmap.restype = ctypes.c_void_p
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@dataclasses.dataclass(frozen=True)
class Backing:
    """How memory of one kind is mapped: mmap flags, the file below it, and advice on its size.

    ``file`` is ``memfd``, ``hugetlb``, ``disk`` or ``dax`` where there is a file, and empty for
    anonymous memory. ``least_bytes`` are mapped even if the guest has less.
    """

    flags: int
    advice: str | None = _NEVER_LARGE
    file: str = ""
    page_bytes: int = PAGE_BYTES
    least_bytes: int = 0

    def open(self, path: str, size: int) -> int:
        """The file of ``size`` bytes below the memory as a descriptor, or -1 where there is none.

        ``path`` is where a file on disk or on DAX is made; it must not be there yet.
        """
        if not self.file:
            return -1
        if self.file in ("memfd", "hugetlb"):
            large = _MFD_HUGETLB | _HUGE_2MB if self.file == "hugetlb" else 0
            fd = os.memfd_create("guest", _MFD_CLOEXEC | large)
            os.ftruncate(fd, size)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            # Zeros that are written, not a hole: private mappings shall find pages to copy.
            for _ in range(0, size, LARGE_PAGE_BYTES):
                os.write(fd, bytes(min(LARGE_PAGE_BYTES, size)))
            os.ftruncate(fd, size)
            os.fsync(fd)
        return fd

    def map(self, address: int, size: int, fd: int, offset: int) -> None:
        """Map the memory at an address, over whatever was there."""
        prot = PROT_READ | PROT_WRITE
        mapped(libc.mmap(address, size, prot, self.flags | _FIXED, fd, offset if fd >= 0 else 0))
        if self.advice is not None:
            advise(address, size, self.advice)


BACKINGS = {
    "anon": Backing(_PRIVATE | _ANONYMOUS | _NORESERVE),
    "thp": Backing(_PRIVATE | _ANONYMOUS | _NORESERVE, "hugepage"),
    "hugetlb": Backing(
        _PRIVATE | _ANONYMOUS | _HUGETLB | _HUGE_2MB, None, page_bytes=LARGE_PAGE_BYTES
    ),
    "hugetlb-shared": Backing(_SHARED, None, file="hugetlb", page_bytes=LARGE_PAGE_BYTES),
    # A page table is shared between processes that map the same 1 GiB of a hugetlb file.
    "hugetlb-wide": Backing(
        _SHARED | _NORESERVE, None, "hugetlb", page_bytes=LARGE_PAGE_BYTES, least_bytes=1 << 30
    ),
    "memfd": Backing(_SHARED, file="memfd"),
    "file-shared": Backing(_SHARED, file="disk"),
    "file-private": Backing(_PRIVATE, file="disk"),
    "dax": Backing(_SHARED, file="dax"),
    "ksm": Backing(_PRIVATE | _ANONYMOUS | _NORESERVE),
}
"""Each kind of memory by the name that scenarios give it. ``ksm`` is merged by the scenario."""


def map_anonymous(size: int, address: int | None = None) -> int:
    """Map private anonymous memory and return its address, aligned to a large page.

    It is where a VMM has nothing else, so that whoever watches the kernel can tell guests' memory
    by its address. With an ``address`` it is mapped exactly there, over whatever was.
    """
    flags = _PRIVATE | _ANONYMOUS | _NORESERVE
    prot = PROT_READ | PROT_WRITE
    if address is not None:
        return mapped(libc.mmap(address, size, prot, flags | _FIXED, -1, 0))
    for place in range(layout.HVA_FIRST, layout.HVA_LAST, layout.HVA_STEP):
        try:
            return mapped(libc.mmap(place, size, prot, flags | _FIXED_NOREPLACE, -1, 0))
        except FileExistsError:
            continue
    raise OSError(errno.ENOMEM, "there is no place left for memory of guests")


def mapped(address: int) -> int:
    """The address that mmap(2) or mremap(2) returned; raises OSError when it failed."""
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return address


def advise(address: int, size: int, advice: str) -> None:
    """Call madvise(2) with an advice from ADVICE."""
    checked(libc.madvise(address, size, ADVICE[advice]))


def populate(address: int, size: int) -> None:
    """Have all pages of a stretch of memory there, as if each had been written to."""
    try:
        advise(address, size, "populate_write")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Before v5.14 there is no such advice. Private memory that is locked is written to as well.
        checked(libc.mlock(address, size))
        checked(libc.munlock(address, size))


def keep_small(address: int, size: int) -> None:
    """Have no large pages in a stretch of memory, whatever the host's default."""
    advise(address, size, _NEVER_LARGE)
