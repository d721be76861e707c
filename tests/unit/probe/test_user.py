# SPDX-License-Identifier: GPL-2.0-only
"""A process with secondary MMUs: its requests, the thread that hammers, and children that leave."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_device import FakeDevice

from harness.probe import hammering, leaving, serving, user
from harness.probe.device import Refused
from harness.probe.hammering import Hammering
from harness.probe.memory import Memory
from harness.probe.user import User

PAGES = 4
WORD = 3
SECONDS = 20.0


@pytest.fixture
def memory() -> Memory:
    return Memory(PAGES)


@pytest.fixture
def ours(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    monkeypatch.setattr(user, "Device", FakeDevice)
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    ours = User(memory)
    yield ours
    signal.signal(signal.SIGUSR1, before)
    for name in ours.children:
        ours.children.end_child(name)


def ask(ours: User, op: str, **arguments: Any) -> Any:
    answer = serving.answer(ours.handlers(), {"op": op, **arguments})
    return answer.get("ok") if "ok" in answer else answer["error"]


def test_a_device_is_opened_attached_and_used(ours: User, memory: Memory) -> None:
    assert ask(ours, "open_device", name="a") == 77
    assert ask(ours, "device_fd", name="a") == 77
    ask(ours, "attach", name="a", kind="tlb", flags=[])
    assert ask(ours, "store", name="a", first=1, pages=2, word=WORD, value=9) == {"words": []}
    assert memory.peek(0, PAGES, WORD) == [0, 9, 9, 0]
    assert ask(ours, "load", name="a", first=0, pages=3, word=WORD) == {"words": [0, 9, 9]}
    assert ask(ours, "records", name="a") == [[1, 0, 4096, 1, 0, 1, 7]]
    assert ask(ours, "state", name="a")["attached"] == 1
    ask(ours, "detach", name="a")
    assert ask(ours, "detach", name="a")["errno"] == 22
    ask(ours, "close_device", name="a")
    assert ask(ours, "state", name="a")["kind"] == "KeyError"


def test_what_the_primary_mmu_refuses_is_an_answer(
    ours: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Refused(14, 2)

    monkeypatch.setattr(FakeDevice, "store", refuse)
    ask(ours, "open_device", name="a")
    said = ask(ours, "store", name="a", first=0, pages=PAGES, word=0, value=1)
    assert said == {"refused": 14, "done": 2}


def test_an_attempt_to_attach_leaves_the_device_detached(ours: User) -> None:
    ask(ours, "open_device", name="a")
    attempt = {"name": "a", "kind": "tlb"}
    assert ask(ours, "attach_ends", **attempt, flags=["signalled"]) == "EINTR"
    assert ask(ours, "attach_ends", **attempt, flags=[]) == "ok"
    assert ask(ours, "attach_ends", **attempt, flags=[]) == "ok"
    assert ask(ours, "attach_under_signals", **attempt, attempts=5) == {"ok": 8}
    assert ask(ours, "state", name="a")["releases"] == 10


def test_a_child_has_the_devices_of_its_parent(ours: User) -> None:
    ask(ours, "open_device", name="a")
    ask(ours, "fork", name="child")
    request = {"op": "attach", "name": "a", "kind": "tlb", "flags": []}
    assert ask(ours, "child", name="child", request=request) is None
    assert ask(ours, "state", name="a")["attached"] == 1


# The thread that hammers.


def played(memory: Memory, kind: str, rounds: int, *, stale: bool = False) -> dict[str, int]:
    device = FakeDevice()
    device.stale = stale
    thread = Hammering(device, memory, WORD)  # type: ignore[arg-type]
    try:
        return thread.play(kind, rounds, SECONDS)
    finally:
        thread.end()


@pytest.mark.parametrize("kind", ["discard", "fork", "protect"])
def test_writes_that_arrive_are_not_lost(
    memory: Memory, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The CPU's own stores would be signals where the device's are refused.
    monkeypatch.setattr(Memory, "mprotect", lambda *_: None)
    assert played(memory, kind, 4) == {"rounds": 4, "lost": 0}


def test_writes_that_go_elsewhere_are_lost(memory: Memory) -> None:
    assert played(memory, "discard", 3, stale=True) == {"rounds": 3, "lost": 3 * PAGES}


def test_a_thread_that_stands_still_is_out_of_time_and_not_lost(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeDevice, "store", _forbidden)
    device = FakeDevice()
    thread = Hammering(device, memory, WORD)  # type: ignore[arg-type]
    assert thread.play("discard", 3, 0.05) == {"rounds": 0, "lost": 0}
    assert thread.end() == 0


def test_a_write_to_a_free_page_is_lost_and_ends_the_rounds(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_: object) -> None:
        raise Refused(errno.ESTALE, 0)

    monkeypatch.setattr(FakeDevice, "store", stale)
    thread = Hammering(FakeDevice(), memory, WORD)  # type: ignore[arg-type]
    assert thread.play("discard", 3, SECONDS) == {"rounds": 0, "lost": 1}
    with pytest.raises(Refused):
        thread.end()


def test_what_ended_the_thread_is_raised_at_its_end(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeDevice, "store", _broken)
    device = FakeDevice()
    thread = Hammering(device, memory, WORD)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="broken"):
        thread.end()


def _forbidden(*_: object) -> None:
    raise Refused(14, 0)


def _broken(*_: object) -> None:
    raise RuntimeError("broken")


# Children that leave. The device of these tests hears of no end of memory, as a real one does.


@pytest.fixture
def leave(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(leaving, "Device", FakeDevice)
    return lambda way, rounds=3: leaving.play(way, memory, rounds, SECONDS)


@pytest.mark.parametrize("way", ["exit-first", "detach-first", "both"])
def test_the_counters_of_all_rounds_are_summed(leave: Any, way: str) -> None:
    sums = leave(way)
    assert (sums["rounds"], sums["attached"], sums["releases"]) == (3, 3, 3)


def test_who_leaves_it_to_the_end_of_the_memory_does_not_detach(leave: Any) -> None:
    sums = leave("close")
    assert (sums["attached"], sums["releases"]) == (3, 0)


def test_a_child_that_attaches_over_and_over_is_killed_at_different_moments(leave: Any) -> None:
    sums = leave("attaching")
    assert sums["attached"] >= 1 + 2 + 3
    # This device is no kernel: SIGKILL comes between its own two steps, too.
    assert abs(sums["releases"] - sums["attached"]) <= sums["rounds"]


def test_a_release_too_many_shows(leave: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDevice, "doubly", True)
    sums = leave("exit-first")
    assert sums["releases"] == 2 * sums["attached"]


def test_a_child_that_does_not_come_that_far_is_late(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "Device", FakeDevice)
    monkeypatch.setattr(FakeDevice, "store", lambda *_: time.sleep(60))
    with pytest.raises(leaving.Late, match="misses"):
        leaving.play("exit-first", memory, 1, 0.2)


def test_hammering_knows_no_other_operation(memory: Memory) -> None:
    thread = Hammering(FakeDevice(), memory, WORD)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        thread.play("nothing", 1, SECONDS)
    assert thread.end() >= 0
    assert issubclass(hammering.OutOfTime, Exception)
