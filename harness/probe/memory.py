# SPDX-License-Identifier: GPL-2.0-only
"""Memory that the probe owns by address, so that each system call on it is the test's own.

Python's mmap objects cannot be unmapped in part or moved, which is what scenarios do.
"""

from __future__ import annotations

import base64
import ctypes
import os
import zlib

from harness.probe.kvm import libc
from harness.probe.layout import LARGE_PAGE_BYTES, PAGE_BYTES, PAGE_WORDS

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x02, 0x10, 0x20, 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value

ADVICE = {"dontneed": 4, "free": 8, "hugepage": 14, "nohugepage": 15, "cold": 20, "pageout": 21}
"""madvise(2) advice by name, from include/uapi/asm-generic/mman-common.h."""

PROTECTION = {"none": PROT_NONE, "read": PROT_READ, "readwrite": PROT_READ | PROT_WRITE}

libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mmap.restype = ctypes.c_void_p
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def map_anonymous(size: int, address: int | None = None) -> int:
    """Map private anonymous memory and return its address, aligned to a large page.

    With an ``address`` it is mapped exactly there, over whatever was.
    """
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
    if address is not None:
        return _mapped(libc.mmap(address, size, 3, flags | _MAP_FIXED, -1, 0))
    # Too much, and then the ends cut off: mmap itself aligns to base pages only.
    start = _mapped(libc.mmap(None, size + LARGE_PAGE_BYTES, 3, flags, -1, 0))
    aligned = -(-start // LARGE_PAGE_BYTES) * LARGE_PAGE_BYTES
    if aligned > start:
        _checked(libc.munmap(start, aligned - start))
    if tail := start + LARGE_PAGE_BYTES - aligned:
        _checked(libc.munmap(aligned + size, tail))
    return aligned


def _mapped(address: int) -> int:
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return address


def keep_small(address: int, size: int) -> None:
    """Have no large pages in a stretch of memory, whatever the host's default."""
    _checked(libc.madvise(address, size, ADVICE["nohugepage"]))


class Memory:
    """A stretch of host-virtual memory addressed in pages, as scenarios speak of it.

    Every method takes the index of the first page and a number of pages.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.hva = map_anonymous(pages * PAGE_BYTES)
        # One backing at a time: a large page must not come about by itself.
        keep_small(self.hva, pages * PAGE_BYTES)

    def span(self, first: int, pages: int) -> tuple[int, int]:
        """The address and length in bytes of a range; raises ValueError outside the memory."""
        if first < 0 or pages < 1 or first + pages > self.pages:
            raise ValueError(f"pages {first}+{pages} are not all within the {self.pages} pages")
        return self.hva + first * PAGE_BYTES, pages * PAGE_BYTES

    def madvise(self, first: int, pages: int, advice: str) -> None:
        """Call madvise(2) with an advice from ADVICE."""
        _checked(libc.madvise(*self.span(first, pages), ADVICE[advice]))

    def mprotect(self, first: int, pages: int, protection: str) -> None:
        """Call mprotect(2) with a protection from PROTECTION."""
        _checked(libc.mprotect(*self.span(first, pages), PROTECTION[protection]))

    def munmap(self, first: int, pages: int) -> None:
        """Call munmap(2)."""
        _checked(libc.munmap(*self.span(first, pages)))

    def remap(self, first: int, pages: int) -> None:
        """Map fresh anonymous memory over a range."""
        address, size = self.span(first, pages)
        map_anonymous(size, address)
        keep_small(address, size)

    def peek(self, first: int, pages: int, word: int) -> list[int]:
        """Load one word of each page with the CPU, through the primary MMU."""
        address, size = self.span(first, pages)
        words = (ctypes.c_uint64 * (size // 8)).from_address(address)
        return words[word::PAGE_WORDS]

    def poke(self, first: int, pages: int, word: int, value: int) -> None:
        """Store ``value`` into one word of each page with the CPU, through the primary MMU."""
        address, size = self.span(first, pages)
        words = (ctypes.c_uint64 * (size // 8)).from_address(address)
        for index in range(word, size // 8, PAGE_WORDS):
            words[index] = value

    def pagemap(self, first: int, pages: int) -> str:
        """The range's entries of /proc/self/pagemap, packed by pack()."""
        address, size = self.span(first, pages)
        fd = os.open("/proc/self/pagemap", os.O_RDONLY)
        try:
            return pack(os.pread(fd, size // PAGE_BYTES * 8, address // PAGE_BYTES * 8))
        finally:
            os.close(fd)

    def mincore(self, first: int, pages: int) -> str:
        """One byte a page, packed by pack(): 1 if it is in memory, the swap cache included.

        For a swapped-out page mincore(2) looks the entry up in the swap cache, which is where a
        page that something still references stays although pagemap calls it swapped.
        """
        address, size = self.span(first, pages)
        vector = ctypes.create_string_buffer(size // PAGE_BYTES)
        _checked(libc.mincore(address, size, vector))
        return pack(vector.raw)


def pack(data: bytes) -> str:
    """Bytes as text for a JSON message, compressed."""
    return base64.b64encode(zlib.compress(data, 1)).decode()
