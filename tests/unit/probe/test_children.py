# SPDX-License-Identifier: GPL-2.0-only
"""The requests of a VMM that need no guest: memory, and children forked off it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.probe import vmm
from harness.probe.memory import Memory

PAGES = 4


@pytest.fixture
def ours() -> Iterator[vmm.Vmm]:
    machine = SimpleNamespace(list_words=lambda vcpu, count: [], vcpus=[], fd=3)
    ours = vmm.Vmm(machine, Memory(PAGES))  # type: ignore[arg-type]
    yield ours
    for name in reversed(list(ours._children)):
        ours.end_child(name)


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
    return vmm.answer(ours.handlers(), {"op": op, **arguments})


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
    assert ours.handlers().keys() >= vmm.memory_handlers(ours._memory).keys()


def test_a_conversation_is_lines_until_the_peer_hangs_up() -> None:
    here, there = socket.socketpair()
    handlers = {"double": lambda number: number * 2}
    thread = threading.Thread(target=vmm.serve, args=(there, handlers), daemon=True)
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
