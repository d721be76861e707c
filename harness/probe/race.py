# SPDX-License-Identifier: GPL-2.0-only
"""Rounds of one operation of the primary MMU against a vcpu in full run.

They are played inside the VMM because what comes after the system call must come at once. In each
round it is known what the vcpu may do from the moment when the call has returned; a write that
arrives where it may no longer go was made through a stale translation.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable
from typing import Any

from harness.probe.layout import PAGE_BYTES
from harness.probe.memory import Memory
from harness.probe.system import call
from harness.probe.vm import Vcpu

_VISITS = 3
"""After so many visits begun, at least one began and ended in between."""


SPAN = 32
"""How many pages a vcpu has to hammer whose way is crossed."""

_DISCARDS, _AHEAD = 64, 2
"""How often its way is crossed in a round, and how many pages ahead of it at most."""


class OutOfTime(Exception):
    """The vcpu did not do in time what it may do."""


class Race:
    """A vcpu that hammers one page patiently, and what is done to that page meanwhile.

    All rounds may take so many ``seconds``, and each wait for the vcpu a quarter of them: slowness
    is spread out, and a vcpu that stands still is found out soon.
    """

    def __init__(self, memory: Memory, vcpu: Vcpu, page: int, seconds: float) -> None:
        self._memory = memory
        self._vcpu = vcpu
        self._page = page
        self._until = time.monotonic() + seconds
        self._patience = seconds / 4
        self._node = 0
        self._kinds: dict[str, Callable[[], bool]] = {
            "discard": self._discard,
            "discard-all": self._discard_all,
            "discard-ahead": self._discard_ahead,
            "punch": self._punch,
            "protect": self._protect,
            "fork": self._fork,
            "move": self._move,
            "migrate": self._migrate,
            "pageout": self._page_out,
        }

    def play(self, kind: str, rounds: int) -> dict[str, int]:
        """How many ``rounds`` were played in time, and in how many of them a write was ``lost``."""
        played = lost = 0
        try:
            for _ in range(rounds):
                lost += self._kinds[kind]()
                played += 1
        except OutOfTime:
            pass
        return {"rounds": played, "lost": lost}

    # Rounds; each returns whether a write went where it may not go.

    def _discard(self) -> bool:
        """What the vcpu writes after MADV_DONTNEED is in the new page, which is zero at first."""
        self._memory.madvise(self._page, 1, "dontneed")
        self._await_visits()
        return self._word() == 0

    def _discard_all(self) -> bool:
        """The same at the end of a long invalidation, inside of which the vcpu faults."""
        self._memory.populate(0, self._memory.pages)
        self._memory.madvise(0, self._memory.pages, "dontneed")
        self._await_visits()
        return self._word() == 0

    def _discard_ahead(self) -> bool:
        """The same for the page that the vcpu is just coming to, many times over.

        A fault there may begin before such a discard and end after it. It is told by the pages that
        the vcpu then writes to without the VMM seeing that; only the last discard of a page tells.
        """
        box = self._vcpu.mailbox
        for number in range(_DISCARDS):
            ahead = (box.current - self._page + number % _AHEAD) % SPAN
            self._memory.madvise(self._page + ahead, 1, "dontneed")
        for _ in range(SPAN):
            self._await_visits()
        return 0 in self._memory.peek(self._page, SPAN, self._vcpu.index)

    def _punch(self) -> bool:
        """The same for a page of a file that loses it."""
        self._memory.punch(self._page, 1)
        self._await_visits()
        return self._word() == 0

    def _protect(self) -> bool:
        """Nothing is written to a page once mprotect has taken that right away."""
        self._memory.mprotect(self._page, 1, "read")
        before = self._word()
        try:
            self._await_refusal()
            after = self._word()
        finally:
            self._memory.mprotect(self._page, 1, "readwrite")
        self._await_visits()
        return before != after

    def _fork(self) -> bool:
        """What a child was forked with stays as it is, whatever the vcpu writes afterwards."""
        with _Twin(self._word) as twin:
            before = twin.ask()
            self._await_visits()
            return twin.ask() != before

    def _move(self) -> bool:
        """Nothing is written to a page that was moved elsewhere, until it is back."""
        address = self._memory.move(self._page, 1)
        place = ctypes.c_uint64.from_address(address + 8 * self._vcpu.index)
        before = place.value
        try:
            self._await_refusal()
            after = place.value
        finally:
            # Others may wait for the page, too.
            self._memory.move_back(self._page, 1, address)
        self._await_visits()
        return before != after

    def _migrate(self) -> bool:
        """Between nodes a page loses nothing; the vcpu itself compares what it reads."""
        self._node = 1 - self._node
        migrate([self._memory.hva + self._page * PAGE_BYTES], self._node)
        self._await_visits()
        return False

    def _page_out(self) -> bool:
        """On the way to the disk and back a page loses nothing; the vcpu itself compares."""
        self._memory.madvise(self._page, 1, "pageout")
        self._await_visits()
        return False

    # What is waited for.

    def _word(self) -> int:
        return self._memory.peek(self._page, 1, self._vcpu.index)[0]

    def _await_visits(self) -> None:
        start = self._vcpu.mailbox.done
        self._await(lambda: self._vcpu.mailbox.done >= start + _VISITS)

    def _await_refusal(self) -> None:
        start = self._vcpu.refusals
        self._await(lambda: self._vcpu.refusals > start)

    def _await(self, reached: Callable[[], bool]) -> None:
        until = min(self._until, time.monotonic() + self._patience)
        while not reached():
            if time.monotonic() > until:
                raise OutOfTime
            # Without it, this thread would keep the interpreter from the one of the vcpu.
            time.sleep(0)


class _Twin:
    """A forked child that says on demand what it sees."""

    def __init__(self, look: Callable[[], int]) -> None:
        self._look = look

    def __enter__(self) -> _Twin:
        asking, self._asked = os.pipe()
        self._answers, answering = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._asked)
            while os.read(asking, 1):
                os.write(answering, struct.pack("<Q", self._look()))
            os._exit(0)
        os.close(asking)
        os.close(answering)
        return self

    def ask(self) -> int:
        """What the child sees now."""
        os.write(self._asked, b"?")
        (word,) = struct.unpack("<Q", os.read(self._answers, 8))
        return int(word)

    def __exit__(self, *error: Any) -> None:
        os.close(self._asked)
        os.waitpid(self._pid, 0)
        os.close(self._answers)


def migrate(addresses: list[int], node: int, pid: int = 0) -> tuple[int, list[int]]:
    """Call move_pages(2): how many pages could not be moved, and where each page is then.

    A page's place is its node, or a negative error number, or UNTOLD: the kernel says nothing of
    pages that it tried to move in vain. Raises OSError when the call fails.
    """
    count = len(addresses)
    pages = (ctypes.c_void_p * count)(*addresses)
    nodes = (ctypes.c_int * count)(*[node] * count)
    status = (ctypes.c_int * count)(*[UNTOLD] * count)
    left = call("move_pages", pid, count, pages, nodes, status, _MPOL_MF_MOVE)
    return left, status[:]


_MPOL_MF_MOVE = 2
UNTOLD = -(1 << 31)
"""Neither a node nor an error number."""
