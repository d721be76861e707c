# SPDX-License-Identifier: GPL-2.0-only
"""A memslot that comes, moves and goes, on a machine that only remembers which slots it had."""

from __future__ import annotations

import errno
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from harness.probe import layout, system
from harness.probe.aliasing import Aliasing
from harness.probe.vm import ALIAS_SLOT

HVA, PAGES = 0x7000_0000, 4
SIZE = PAGES * layout.PAGE_BYTES
SECONDS = 10.0

FIRST = (ALIAS_SLOT, layout.ALIAS_GPA, HVA, SIZE)
SECOND = (ALIAS_SLOT, layout.ALIAS_GPA + SIZE, HVA, SIZE)
GONE = (ALIAS_SLOT, layout.ALIAS_GPA + SIZE, HVA, 0)


class FakeMachine:
    """Remembers what became of its memslots; ``fails`` is the call that fails, from 1 on."""

    def __init__(self, enough: int, fails: int = 0) -> None:
        self.calls: list[tuple[int, int, int, int]] = []
        self.reached = threading.Event()
        self._enough, self._fails = enough, fails

    def set_slot(self, slot: int, gpa: int, hva: int, size: int) -> None:
        self.calls.append((slot, gpa, hva, size))
        if len(self.calls) >= self._enough:
            self.reached.set()
        if len(self.calls) == self._fails:
            raise OSError(errno.ENOSPC, "No space left on device")


def begun(machine: FakeMachine) -> Aliasing:
    memory = SimpleNamespace(pages=PAGES, hva=HVA)
    aliasing = Aliasing(machine, memory)  # type: ignore[arg-type]
    assert machine.reached.wait(SECONDS)
    return aliasing


def test_the_slot_comes_moves_and_goes_in_each_round() -> None:
    machine = FakeMachine(enough=7)
    rounds = begun(machine).end()
    assert rounds >= 3
    assert machine.calls == [FIRST, SECOND, GONE] * rounds, "and in the end it is gone"


@pytest.mark.parametrize("enough", [1, 2])
def test_a_round_that_was_begun_is_finished(enough: int) -> None:
    machine = FakeMachine(enough)
    aliasing = begun(machine)
    assert aliasing.end() >= 1
    assert machine.calls[-1] == GONE


def test_it_goes_on_for_as_many_rounds_as_are_wanted_and_time_allows() -> None:
    machine = FakeMachine(enough=1)
    assert begun(machine).end(least=20, seconds=SECONDS) >= 20
    assert machine.calls[-1] == GONE
    assert begun(FakeMachine(enough=1)).end(least=10**9, seconds=0.01) < 10**9


def test_nothing_happens_after_the_end() -> None:
    machine = FakeMachine(enough=3)
    aliasing = begun(machine)
    rounds = aliasing.end()
    assert not any(thread.is_alive() for thread in aliasing._threads)
    assert len(machine.calls) == 3 * rounds


def test_a_slot_of_its_own_shows_other_memory_whose_protection_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed: list[tuple[int, int, int]] = []

    def mprotect(address: int, size: int, protection: int) -> int:
        changed.append((address, size, protection))
        return 0

    monkeypatch.setattr(system.libc, "mprotect", mprotect)
    machine = FakeMachine(enough=4)
    memory = SimpleNamespace(pages=PAGES, hva=HVA)
    aliasing = Aliasing(machine, memory, own=True)  # type: ignore[arg-type]
    assert machine.reached.wait(SECONDS)
    assert aliasing.end() >= 1
    shown = {hva for _, _, hva, _ in machine.calls}
    assert len(shown) == 1
    assert HVA not in shown
    assert {(address, size) for address, size, _ in changed} == {(shown.pop(), SIZE)}
    assert {protection for *_, protection in changed} == {1, 3}, "and is left as it was"
    assert changed[-1][2] == 3


@pytest.mark.parametrize("fails", [1, 2, 3, 5])
def test_a_slot_that_cannot_be_had_is_told_at_the_end(fails: int) -> None:
    machine = FakeMachine(enough=fails, fails=fails)
    aliasing: Any = begun(machine)
    with pytest.raises(OSError, match="No space left"):
        aliasing.end(least=10**9, seconds=SECONDS)
    assert len(machine.calls) == fails, "it is not tried again"


def test_the_alias_is_out_of_the_way_of_everything_else() -> None:
    size = layout.MOST_PAGES * layout.PAGE_BYTES
    assert layout.MEMORY_GPA + size <= layout.ALIAS_GPA
    # It moves by its own size; the guest's tables reach both places.
    assert layout.ALIAS_GPA + 2 * size <= layout.MAPPED_GIB << 30
