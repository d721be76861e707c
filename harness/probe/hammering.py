# SPDX-License-Identifier: GPL-2.0-only
"""A thread that writes to memory by a device without end, and operations played against it.

Each round of the thread writes the number of the round to every page. Whatever was done to the
memory, two rounds later each page must have a number from after it: a page that has not was written
where it no longer is.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable

from harness.probe.device import Device, Refused
from harness.probe.layout import PAGE_BYTES
from harness.probe.memory import Memory
from harness.probe.race import migrate

_NODES = 2
_TIMES = 4
"""How often memory is discarded at once. The first time finds all of it in the TLB, and a round of
the thread over before a page is gone; from then on each page takes it a fault."""


class OutOfTime(Exception):
    """The thread did not get through its rounds in time."""


class FreePage(Exception):
    """The device has met an entry of a page that is free, and written nothing there."""


class Hammering:
    """The thread; it begins at once, on one ``word`` of each page."""

    def __init__(self, device: Device, memory: Memory, word: int) -> None:
        self.rounds = 0
        self._device = device
        self._memory = memory
        self._word = word
        self._stop = False
        self._error: Exception | None = None
        self._node = 0
        self._kinds: dict[str, Callable[[], object]] = {
            "discard": self._discard,
            "protect": self._protect,
            "fork": _fork,
            "migrate": self._migrate,
            "move": self._move,
        }
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Have it end after its present round; how many it was. Raises what ended it before."""
        self._stop = True
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.rounds

    def play(self, kind: str, rounds: int, seconds: float) -> dict[str, int]:
        """How many ``rounds`` of an operation were played in time, and how many writes ``lost``.

        The first that would have gone to a free page ends it.
        """
        until = time.monotonic() + seconds
        played = lost = 0
        try:
            while played < rounds:
                # It lets go of the interpreter for as long as it uses the device, so when we have
                # it again, the thread is in the middle of that.
                self._await_rounds(self.rounds + 1, until)
                self._kinds[kind]()
                lost += self._stale(until)
                played += 1
        except OutOfTime:
            pass
        except FreePage:
            lost += 1
        return {"rounds": played, "lost": lost}

    def _stale(self, until: float) -> int:
        """How many pages do not have what was written to them after this moment."""
        whole = self.rounds + 2
        self._await_rounds(whole, until)
        seen = self._memory.peek(0, self._memory.pages, self._word)
        return sum(value < whole for value in seen)

    def _await_rounds(self, rounds: int, until: float) -> None:
        while self.rounds < rounds:
            if isinstance(self._error, Refused) and self._error.errno == errno.ESTALE:
                raise FreePage
            if time.monotonic() > until or self._error is not None:
                raise OutOfTime
            # Gives the interpreter to the thread that is waited for.
            time.sleep(0)

    def _run(self) -> None:
        address, _ = self._memory.span(0, self._memory.pages)
        try:
            while not self._stop:
                if self._store(address):
                    self.rounds += 1
        except Exception as error:  # kept for whoever ends it
            self._error = error

    def _store(self, address: int) -> bool:
        """Write the next round's number; False when the memory may not be written just now."""
        try:
            self._device.store(address, self._memory.pages, self._word, self.rounds + 1)
        except Refused as refused:
            if refused.errno != errno.EFAULT:
                raise
            return False
        return True

    def _discard(self) -> None:
        for _ in range(_TIMES):
            self._memory.madvise(0, self._memory.pages, "dontneed")

    def _protect(self) -> None:
        self._memory.mprotect(0, self._memory.pages, "read")
        self._memory.mprotect(0, self._memory.pages, "readwrite")

    def _migrate(self) -> None:
        address, _ = self._memory.span(0, self._memory.pages)
        self._node = (self._node + 1) % _NODES
        migrate([address + page * PAGE_BYTES for page in range(self._memory.pages)], self._node)

    def _move(self) -> None:
        """Move all away and back: what is written meanwhile waits for it, or is refused."""
        source = self._memory.move(0, self._memory.pages, leaving=True)
        self._memory.move_back(0, self._memory.pages, source)


def _fork() -> None:
    """A child that shares the memory and ends at once."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
