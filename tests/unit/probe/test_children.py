# SPDX-License-Identifier: GPL-2.0-only
"""The requests of a VMM that need no guest: memory, memslots, and children forked off it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from harness.probe import layout, serving, userfault, vmm
from harness.probe.layout import PAGE_BYTES
from harness.probe.memory import Memory
from harness.probe.vm import ALIAS_SLOT, MEMORY_SLOT

PAGES = 4


class FakeMachine:
    """Remembers what became of its memslots and what its vcpus were ordered."""

    def __init__(self) -> None:
        self.fd = 3
        self.statistics = SimpleNamespace(fd=4)
        self.slots: list[tuple[int, int, int, int]] = []
        self.orders: list[dict[str, int]] = []
        self.vcpus: list[Any] = [SimpleNamespace(order=self.orders.append, index=0)]

    def list_words(self, vcpu: int, count: int) -> list[int]:
        return []

    def set_slot(self, slot: int, gpa: int, hva: int, size: int) -> None:
        self.slots.append((slot, gpa, hva, size))


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def ours(machine: FakeMachine) -> Iterator[vmm.Vmm]:
    ours = vmm.Vmm(machine, Memory(PAGES))  # type: ignore[arg-type]
    yield ours
    for name in reversed(list(ours.children)):
        ours.children.end_child(name)


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError out of whatever waits for too long."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ask(ours: vmm.Vmm, op: str, **arguments: Any) -> dict[str, Any]:
    return serving.answer(ours.handlers(), {"op": op, **arguments})


def child(ours: vmm.Vmm, name: str, op: str, **arguments: Any) -> dict[str, Any]:
    return ask(ours, "child", name=name, request={"op": op, "first": 0, "pages": 1, **arguments})


def test_a_child_keeps_what_it_was_forked_with(ours: vmm.Vmm) -> None:
    ask(ours, "poke", first=0, pages=2, word=0, value=1)
    assert ask(ours, "fork", name="a")["ok"] > 1
    ask(ours, "poke", first=0, pages=1, word=0, value=2)
    assert child(ours, "a", "peek", pages=3, word=0) == {"ok": [1, 1, 0]}
    child(ours, "a", "poke", first=1, word=0, value=3)
    assert ask(ours, "peek", first=0, pages=3, word=0) == {"ok": [2, 1, 0]}


def test_what_the_kernel_refuses_a_child_has_its_errno(ours: vmm.Vmm) -> None:
    ask(ours, "fork", name="a")
    child(ours, "a", "munmap", first=1)
    error = child(ours, "a", "mprotect", pages=3, protection="read")["error"]
    assert error["errno"] == errno.ENOMEM
    assert "in the forked child" in error["text"]
    # It was the child's memory; the parent's is whole.
    assert ask(ours, "mprotect", first=0, pages=3, protection="read") == {"ok": None}


def test_what_a_child_cannot_do_is_an_error(ours: vmm.Vmm) -> None:
    ask(ours, "fork", name="a")
    error = child(ours, "a", "peek", first=PAGES, word=0)["error"]
    assert error["errno"] is None
    assert f"not all within the {PAGES} pages" in error["text"]


def test_a_child_that_ends_has_its_status(ours: vmm.Vmm) -> None:
    pid = ask(ours, "fork", name="a")["ok"]
    assert ask(ours, "end_child", name="a") == {"ok": 0}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert ask(ours, "end_child", name="a")["error"]["kind"] == "KeyError"


@pytest.mark.parametrize("order", ["abc", "cba", "bac"])
def test_children_end_in_any_order(ours: vmm.Vmm, order: str) -> None:
    for name in ("a", "b", "c"):
        ask(ours, "fork", name=name)
    with at_most(20):
        for name in order:
            assert ask(ours, "end_child", name=name) == {"ok": 0}


def test_errors_are_data(ours: vmm.Vmm) -> None:
    assert ask(ours, "no such request")["error"]["kind"] == "KeyError"
    assert ask(ours, "peek", first=0)["error"]["kind"] == "TypeError"
    assert ask(ours, "peek", first=9, pages=1, word=0)["error"]["kind"] == "ValueError"
    ask(ours, "munmap", first=1, pages=1)
    error = ask(ours, "mprotect", first=0, pages=3, protection="none")["error"]
    assert (error["kind"], error["errno"]) == ("OSError", errno.ENOMEM)


def test_every_request_that_a_memory_answers_a_child_answers_too(ours: vmm.Vmm) -> None:
    both = vmm.memory_handlers(ours._memory)
    assert ours.handlers().keys() >= both.keys()
    for name, handler in both.items():
        assert handler == getattr(ours._memory, name), "and it is the memory that answers"


# Where things are.


def test_a_vmm_describes_itself(ours: vmm.Vmm) -> None:
    assert ask(ours, "describe")["ok"] == {
        "pid": os.getpid(),
        "vm_fd": 3,
        "statistics_fd": 4,
        "path": "",
        "hva": ours._memory.hva,
        "pages": PAGES,
        "gpa": layout.MEMORY_GPA,
        "vcpus": 1,
    }


def test_orders_are_for_where_the_guest_has_the_memory(ours: vmm.Vmm, machine: FakeMachine) -> None:
    for more in ({}, {"address": layout.MEMORY_GPA}, {"address": layout.ALIAS_GPA}):
        assert ask(ours, "order", vcpu=0, orders={"op": 5, "first": 2, **more}) == {"ok": None}
    plain = {"op": 5, "first": 2, "gpa": layout.MEMORY_GPA + 2 * PAGE_BYTES}
    assert machine.orders == [
        plain,
        plain,
        {"op": 5, "first": 2, "gpa": layout.ALIAS_GPA + 2 * PAGE_BYTES},
    ]


def test_a_memslot_follows_memory_that_was_moved(ours: vmm.Vmm, machine: FakeMachine) -> None:
    ask(ours, "poke", first=0, pages=PAGES, word=0, value=9)
    old = ours._memory.hva
    address = ask(ours, "move", first=0, pages=PAGES)["ok"]
    assert ask(ours, "follow", address=address) == {"ok": None}
    assert address != old
    size = PAGES * PAGE_BYTES
    # A memslot cannot be given another address, so it goes and comes again.
    assert machine.slots == [
        (MEMORY_SLOT, layout.MEMORY_GPA, address, 0),
        (MEMORY_SLOT, layout.MEMORY_GPA, address, size),
    ]
    assert ask(ours, "peek", first=0, pages=PAGES, word=0) == {"ok": [9] * PAGES}
    assert ask(ours, "describe")["ok"]["hva"] == address


def test_a_race_is_between_the_memory_and_one_vcpu(ours: vmm.Vmm, machine: FakeMachine) -> None:
    machine.vcpus[0].mailbox = SimpleNamespace(done=0)
    played = ask(ours, "race", kind="discard", vcpu=0, page=1, rounds=2, seconds=0.01)
    assert played == {"ok": {"rounds": 0, "lost": 0}}
    assert ask(ours, "race", kind="discard", vcpu=1, page=1, rounds=2, seconds=0.01)["error"]


def test_an_alias_comes_and_goes_until_its_end(ours: vmm.Vmm, machine: FakeMachine) -> None:
    assert ask(ours, "end_aliasing")["error"]["text"] == "no memslot comes and goes"
    assert ask(ours, "begin_aliasing") == {"ok": None}
    until = time.monotonic() + 10
    while len(machine.slots) < 3:
        assert time.monotonic() < until
    assert ask(ours, "end_aliasing")["ok"] >= 1
    assert {slot for slot, *_ in machine.slots} == {ALIAS_SLOT}
    assert machine.slots[-1][-1] == 0
    assert "error" in ask(ours, "end_aliasing"), "it ended once"


# userfaultfd; test_userfaultfd.py has the real one.


class FakeProtection:
    """Stands for a WriteProtection; ``made`` are all of them."""

    made: ClassVar[list[FakeProtection]] = []

    def __init__(self, start: int, size: int, features: tuple[str, ...], page_bytes: int) -> None:
        self.arguments = (start, size, features, page_bytes)
        self.faults = [5, 2]
        self.closed = 0
        self.made.append(self)

    def close(self) -> None:
        self.closed += 1


def test_a_range_is_protected_until_its_end(ours: vmm.Vmm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmm, "WriteProtection", FakeProtection)
    monkeypatch.setattr(FakeProtection, "made", [])
    assert ask(ours, "faults") == {"ok": []}
    wanted = {"first": 1, "pages": 2, "features": ["write-protect"]}
    assert ask(ours, "protect_by_userfault", **wanted) == {"ok": None}
    (protection,) = FakeProtection.made
    assert protection.arguments == (*ours._memory.span(1, 2), ("write-protect",), PAGE_BYTES)
    assert ask(ours, "faults") == {"ok": [5, 2]}
    for _ in range(2):
        assert ask(ours, "end_protection") == {"ok": None}
    assert protection.closed == 1
    assert ask(ours, "faults") == {"ok": []}


@pytest.mark.parametrize("missing", [0, PAGE_BYTES])
def test_pages_that_userfaultfd_moves_are_moved_all(
    ours: vmm.Vmm, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    moves: list[tuple[int, int, int]] = []

    def move(target: int, source: int, size: int) -> int:
        moves.append((target, source, size))
        return size - missing

    monkeypatch.setattr(userfault, "move", move)
    answer = ask(ours, "move_by_userfault", first=1, pages=2)
    ((target, source, size),) = moves
    assert (source, size) == ours._memory.span(1, 2)
    if missing:
        assert answer["error"]["text"] == f"only {PAGE_BYTES} of {2 * PAGE_BYTES} bytes were moved"
    else:
        assert answer == {"ok": target}


def test_a_conversation_is_lines_until_the_peer_hangs_up() -> None:
    here, there = socket.socketpair()
    handlers = {"double": lambda number: number * 2}
    thread = threading.Thread(target=serving.serve, args=(there, handlers), daemon=True)
    thread.start()
    with here, here.makefile("rwb") as stream:
        for number in (1, 21):
            stream.write(json.dumps({"op": "double", "number": number}).encode() + b"\n")
            stream.flush()
            assert json.loads(stream.readline()) == {"ok": number * 2}
        here.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    assert not thread.is_alive()


def test_a_child_that_is_killed_is_no_mystery(ours: vmm.Vmm) -> None:
    pid = ask(ours, "fork", name="c")["ok"]
    os.kill(pid, signal.SIGKILL)
    error = child(ours, "c", "peek", first=0, pages=1, word=0)["error"]
    assert error["kind"] == "ChildKilled"
    assert "wait status 9" in error["text"]


# A write that would wait for itself.


@pytest.fixture
def protection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write protection that a kernel need not have: nobody writes to what it protects."""
    fake = SimpleNamespace(close=lambda: None, faults=[])
    monkeypatch.setattr(vmm, "WriteProtection", lambda *_: fake)


@pytest.mark.usefixtures("protection")
@pytest.mark.parametrize(("first", "pages"), [(1, 1), (2, 1), (0, 2), (0, PAGES)])
def test_a_vmm_that_would_wait_for_itself_says_so_instead(
    ours: vmm.Vmm, first: int, pages: int
) -> None:
    ask(ours, "protect_by_userfault", first=1, pages=2, features=["write-protect"])
    where = {"first": first, "pages": pages, "word": 0}
    error = ask(ours, "poke", **where, value=1)["error"]
    assert error["errno"] is None
    assert f"pages {first}+{pages} are write-protected" in error["text"]
    assert ask(ours, "peek", **where) == {"ok": [0] * pages}
    ask(ours, "end_protection")
    assert ask(ours, "poke", **where, value=1) == {"ok": None}
    assert ask(ours, "peek", **where) == {"ok": [1] * pages}


@pytest.mark.usefixtures("protection")
@pytest.mark.parametrize("page", [0, 3])
def test_a_vmm_writes_beside_what_is_protected(ours: vmm.Vmm, page: int) -> None:
    ask(ours, "protect_by_userfault", first=1, pages=2, features=["write-protect"])
    assert ask(ours, "poke", first=page, pages=1, word=0, value=1) == {"ok": None}
