# SPDX-License-Identifier: GPL-2.0-only
"""A device that is no more than this process: it accesses memory by the CPU, and counts."""

from __future__ import annotations

import ctypes
import mmap

from harness.probe.layout import PAGE_WORDS

COUNTERS = (
    "attached",
    "releases",
    "in_progress",
    "ends_too_many",
    "after_release",
    "late",
    "misses",
)


class FakeDevice:
    """Stands for Device. Its counters are shared with children, as a file description is.

    ``stale`` has its stores go nowhere; ``doubly`` releases twice.
    """

    stale = False
    doubly = False

    def __init__(self) -> None:
        self.fd = 77
        self.closed = False
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._counters = memoryview(self._shared).cast("Q")

    def attach(self, kind: str, flags: list[str], start: int, size: int) -> None:
        if "signalled" in flags:
            raise InterruptedError(4, "Interrupted system call")
        if self._live:
            raise OSError(16, "busy")
        self._live = 1
        self._count("attached")

    def detach(self) -> None:
        if not self._live:
            raise OSError(22, "not attached")
        self._live = 0
        self._count("releases", 2 if self.doubly else 1)

    def load(self, address: int, pages: int, word: int) -> list[int]:
        return [self._word(address, page, word).value for page in range(pages)]

    def store(self, address: int, pages: int, word: int, value: int) -> None:
        self._count("misses", pages)
        if self.stale:
            return
        for page in range(pages):
            self._word(address, page, word).value = value

    def state(self) -> dict[str, int]:
        return {name: self._counters[number] for number, name in enumerate(COUNTERS)}

    def records(self) -> list[list[int]]:
        return [[1, 0, 4096, 1, 0, 1, 7]]

    def close(self) -> None:
        self.closed = True

    @property
    def _live(self) -> int:
        return self._counters[len(COUNTERS)]

    @_live.setter
    def _live(self, value: int) -> None:
        self._counters[len(COUNTERS)] = value

    def _count(self, name: str, more: int = 1) -> None:
        self._counters[COUNTERS.index(name)] += more

    @staticmethod
    def _word(address: int, page: int, word: int) -> ctypes.c_uint64:
        return ctypes.c_uint64.from_address(address + (page * PAGE_WORDS + word) * 8)
