# SPDX-License-Identifier: GPL-2.0-only
"""Memory that the probe owns by address, so that each system call on it is the test's own.

Python's mmap objects cannot be unmapped in part or moved, which is what scenarios do.
"""

from __future__ import annotations

import base64
import ctypes
import os
import zlib

from harness.probe import storage
from harness.probe.backing import (
    BACKINGS,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    advise,
    keep_small,
    map_anonymous,
    mapped,
    populate,
)
from harness.probe.layout import PAGE_BYTES, PAGE_WORDS
from harness.probe.system import call, checked, libc

PROTECTION = {"none": PROT_NONE, "read": PROT_READ, "readwrite": PROT_READ | PROT_WRITE}

_MREMAP_MAYMOVE, _MREMAP_FIXED, _MREMAP_DONTUNMAP = 1, 2, 4
_MAP_SHARED, _MAP_FIXED = 0x01, 0x10
_MS_SYNC = 4
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_PRESENT, _PFN_MASK = 1 << 63, (1 << 55) - 1

libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mremap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 2, ctypes.c_int, ctypes.c_void_p]
libc.mremap.restype = ctypes.c_void_p
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


class Memory:
    """A stretch of host-virtual memory addressed in pages, as scenarios speak of it.

    Every method takes the index of the first page and a number of pages. ``backing`` is a name
    from BACKINGS; ``path`` is where its file is made if it has one on disk.
    """

    def __init__(self, pages: int, backing: str = "anon", path: str = "") -> None:
        self.pages = pages
        self.path = path
        self._backing = BACKINGS[backing]
        size = max(pages * PAGE_BYTES, self._backing.least_bytes)
        self._fd = self._backing.open(path, size)
        self.hva = map_anonymous(size)
        self._backing.map(self.hva, size, self._fd, 0)

    @property
    def page_bytes(self) -> int:
        """The size of the pages that the memory is sure to have."""
        return self._backing.page_bytes

    def span(self, first: int, pages: int) -> tuple[int, int]:
        """The address and length in bytes of a range; raises ValueError outside the memory."""
        if first < 0 or pages < 1 or first + pages > self.pages:
            raise ValueError(f"pages {first}+{pages} are not all within the {self.pages} pages")
        return self.hva + first * PAGE_BYTES, pages * PAGE_BYTES

    # What changes the mapping.

    def madvise(self, first: int, pages: int, advice: str) -> None:
        """Call madvise(2) with an advice from ADVICE."""
        advise(*self.span(first, pages), advice)

    def populate(self, first: int, pages: int) -> None:
        """Have all pages of a range there, as if each had been written to."""
        populate(*self.span(first, pages))

    def mprotect(self, first: int, pages: int, protection: str) -> None:
        """Call mprotect(2) with a protection from PROTECTION."""
        checked(libc.mprotect(*self.span(first, pages), PROTECTION[protection]))

    def munmap(self, first: int, pages: int) -> None:
        """Call munmap(2)."""
        checked(libc.munmap(*self.span(first, pages)))

    def remap(self, first: int, pages: int) -> None:
        """Map the backing over a range anew: zeros, or what the file has there."""
        address, size = self.span(first, pages)
        self._backing.map(address, size, self._fd, first * PAGE_BYTES)

    def replace(self, first: int, pages: int) -> None:
        """Map fresh anonymous memory over a range, whatever the backing is."""
        address, size = self.span(first, pages)
        map_anonymous(size, address)
        keep_small(address, size)

    def show_window(self, fd: int, source: int) -> None:
        """Map what a device shows of another process's memory, from an address of that on."""
        flags = _MAP_SHARED | _MAP_FIXED
        size = self.pages * PAGE_BYTES
        mapped(libc.mmap(self.hva, size, PROT_READ | PROT_WRITE, flags, fd, source))

    def move(self, first: int, pages: int, *, leaving: bool = False) -> int:
        """Call mremap(2) to move a range to a new address, which is returned.

        A hole is left, or with ``leaving`` a mapping without pages (MREMAP_DONTUNMAP).
        """
        address, size = self.span(first, pages)
        target = map_anonymous(size)
        flags = _MREMAP_MAYMOVE | _MREMAP_FIXED | (_MREMAP_DONTUNMAP if leaving else 0)
        return mapped(libc.mremap(address, size, size, flags, target))

    def move_back(self, first: int, pages: int, source: int) -> None:
        """Call mremap(2) to move what move() took away to where it was."""
        address, size = self.span(first, pages)
        mapped(libc.mremap(source, size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, address))

    def follow(self, address: int) -> None:
        """Take the memory to be where all of it was moved to."""
        self.hva = address

    def resize(self, old: int, new: int) -> None:
        """Call mremap(2) to give the first ``old`` pages the size of ``new``, where they are."""
        address, size = self.span(0, max(old, new))
        sizes = (old * PAGE_BYTES, new * PAGE_BYTES)
        assert size == max(sizes)
        mapped(libc.mremap(address, *sizes, 0, None))

    def remap_file_pages(self, first: int, pages: int, source: int) -> None:
        """Call remap_file_pages(2): show the file from page ``source`` on in a range."""
        address, size = self.span(first, pages)
        call("remap_file_pages", address, size, 0, source, 0)

    # What changes the file below.

    def truncate(self, pages: int) -> None:
        """Call ftruncate(2) on the file below; its size in pages."""
        os.ftruncate(self._fd, pages * PAGE_BYTES)

    def punch(self, first: int, pages: int) -> None:
        """Call fallocate(2) to punch a hole into the file below."""
        _, size = self.span(first, pages)
        flags = _KEEP_SIZE | _PUNCH_HOLE
        checked(libc.fallocate(self._fd, flags, first * PAGE_BYTES, size))

    def allocate(self, first: int, pages: int) -> None:
        """Call fallocate(2) to have room in the file below, zeros where nothing was."""
        _, size = self.span(first, pages)
        checked(libc.fallocate(self._fd, 0, first * PAGE_BYTES, size))

    def msync(self, first: int, pages: int) -> None:
        """Call msync(2) with MS_SYNC."""
        checked(libc.msync(*self.span(first, pages), _MS_SYNC))

    def fsync(self) -> None:
        """Call fsync(2) on the file below."""
        os.fsync(self._fd)

    def stored(self, first: int, pages: int, word: int) -> list[int]:
        """One word of each page as its disk has it now; nothing is written back for that."""
        _, size = self.span(first, pages)
        device = storage.device_of(self.path)
        data = storage.read_stored(self.path, first * PAGE_BYTES, size, device)
        return memoryview(data).cast("Q")[word::PAGE_WORDS].tolist()

    # What the CPU does, and what can be seen.

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
        return pack(self._pagemap(first, pages))

    def frames(self, first: int, pages: int) -> list[int]:
        """The frame of each page, or 0 where there is none; root alone is told."""
        entries = memoryview(self._pagemap(first, pages)).cast("Q").tolist()
        return [entry & _PFN_MASK if entry & _PRESENT else 0 for entry in entries]

    def _pagemap(self, first: int, pages: int) -> bytes:
        address, size = self.span(first, pages)
        fd = os.open("/proc/self/pagemap", os.O_RDONLY)
        try:
            return os.pread(fd, size // PAGE_BYTES * 8, address // PAGE_BYTES * 8)
        finally:
            os.close(fd)

    def mincore(self, first: int, pages: int) -> str:
        """One byte a page, packed by pack(): 1 if it is in memory, the swap cache included.

        For a swapped-out page mincore(2) looks the entry up in the swap cache, which is where a
        page that something still references stays although pagemap calls it swapped.
        """
        address, size = self.span(first, pages)
        vector = ctypes.create_string_buffer(size // PAGE_BYTES)
        checked(libc.mincore(address, size, vector))
        return pack(vector.raw)


def pack(data: bytes) -> str:
    """Bytes as text for a JSON message, compressed."""
    return base64.b64encode(zlib.compress(data, 1)).decode()
