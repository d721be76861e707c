# SPDX-License-Identifier: GPL-2.0-only
"""A second memslot that comes, moves and goes without end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from harness.probe import layout
from harness.probe.backing import keep_small, map_anonymous, populate
from harness.probe.memory import PROTECTION, Memory
from harness.probe.system import checked, libc
from harness.probe.vm import ALIAS_SLOT, VirtualMachine


class Aliasing:
    """Begins at once; the slot is moved by its own size, and deleted, in each round.

    It shows the guest's memory, or with ``own`` memory that nothing else shows and whose protection
    is changed without end meanwhile: each invalidation begins and ends with or without a memslot.
    """

    def __init__(self, machine: VirtualMachine, memory: Memory, *, own: bool = False) -> None:
        self._machine = machine
        self._size = memory.pages * layout.PAGE_BYTES
        self._hva = memory.hva
        self._over = threading.Event()
        self._changed = threading.Condition()
        self._rounds = 0
        self._error: OSError | None = None
        tasks: list[Callable[[], None]] = [self._come_and_go]
        if own:
            self._hva = map_anonymous(self._size)
            keep_small(self._hva, self._size)
            # Where there are pages, an invalidation lasts.
            populate(self._hva, self._size)
            tasks.append(self._protect)
        self._threads = [
            threading.Thread(target=self._repeat, args=(task,), daemon=True) for task in tasks
        ]
        for thread in self._threads:
            thread.start()

    def end(self, least: int = 1, seconds: float = 0.0) -> int:
        """Stop with the slot deleted; how many rounds there were.

        Not before so many rounds, or seconds. Raises what a round raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._rounds >= least, seconds)
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return self._rounds

    def _repeat(self, task: Callable[[], None]) -> None:
        try:
            while not self._over.is_set():
                task()
        except OSError as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _come_and_go(self) -> None:
        places = (layout.ALIAS_GPA, layout.ALIAS_GPA + self._size)
        for gpa in places:
            self._machine.set_slot(ALIAS_SLOT, gpa, self._hva, self._size)
            # The vcpus shall get to use the slot before it goes.
            time.sleep(0.001)
        self._machine.set_slot(ALIAS_SLOT, places[-1], self._hva, 0)
        with self._changed:
            self._rounds += 1
            self._changed.notify_all()

    def _protect(self) -> None:
        for protection in ("read", "readwrite"):
            checked(libc.mprotect(self._hva, self._size, PROTECTION[protection]))
