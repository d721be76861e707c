# SPDX-License-Identifier: GPL-2.0-only
"""A second memslot on the same memory that comes, moves and goes without end."""

from __future__ import annotations

import threading
import time

from harness.probe import layout
from harness.probe.memory import Memory
from harness.probe.vm import ALIAS_SLOT, VirtualMachine


class Aliasing:
    """Begins at once; the slot is moved by its own size, and deleted, in each round."""

    def __init__(self, machine: VirtualMachine, memory: Memory) -> None:
        self._machine = machine
        self._memory = memory
        self._over = threading.Event()
        self._rounds = 0
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Stop with the slot deleted; how many rounds there were. Raises what a round raised."""
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._rounds

    def _run(self) -> None:
        size = self._memory.pages * layout.PAGE_BYTES
        places = (layout.ALIAS_GPA, layout.ALIAS_GPA + size)
        try:
            while not self._over.is_set():
                for gpa in places:
                    self._machine.set_slot(ALIAS_SLOT, gpa, self._memory.hva, size)
                    # The vcpus shall get to use the slot before it goes.
                    time.sleep(0.001)
                self._machine.set_slot(ALIAS_SLOT, places[-1], self._memory.hva, 0)
                self._rounds += 1
        except OSError as error:
            self._error = error
