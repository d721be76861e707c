# SPDX-License-Identifier: GPL-2.0-only
"""The agent: what it does on a host itself, and how it tells a slow, a dead and a silent VMM."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.probe import agent, vmm
from harness.probe.agent import Agent, Guest

SECONDS = 5.0


def ask(ours: Agent, op: str, **arguments: Any) -> dict[str, Any]:
    """One request as it comes from L0; not through serve(), which ends all guests."""
    request = json.loads(json.dumps({"op": op, **arguments}))
    reply: dict[str, Any] = json.loads(json.dumps(ours._answer(request)))
    return reply


def test_files_of_the_host_are_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "control"
    ours = Agent()
    assert ask(ours, "exists", path=str(path)) == {"ok": False}
    error = ask(ours, "write", path=str(path), text="1")["error"]
    assert error["errno"] == errno.ENOENT, "a control file is never made by writing"
    path.write_text("something longer")
    assert ask(ours, "write", path=str(path), text="7\n") == {"ok": None}
    assert ask(ours, "read", path=str(path)) == {"ok": "7\n"}
    assert ask(ours, "exists", path=str(path)) == {"ok": True}
    path.write_bytes(b"\xff\xfe")
    assert ask(ours, "read", path=str(path)) == {"ok": "\ufffd\ufffd"}


def test_a_directory_is_made_once(tmp_path: Path) -> None:
    ours = Agent()
    path = str(tmp_path / "instance")
    assert ask(ours, "make_directory", path=path) == {"ok": None}
    assert ask(ours, "make_directory", path=path)["error"]["errno"] == errno.EEXIST


def test_reclaim_says_whether_all_was_reclaimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.reclaim").write_text("")
    assert ask(Agent(), "reclaim", cgroup=str(tmp_path), size=4096) == {"ok": True}
    assert (tmp_path / "memory.reclaim").read_text() == "4096"

    def again(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(Agent, "write", again)
    assert ask(Agent(), "reclaim", cgroup=str(tmp_path), size=4096) == {"ok": False}


def test_a_kernel_without_reclaim_is_said(tmp_path: Path) -> None:
    error = ask(Agent(), "reclaim", cgroup=str(tmp_path), size=1)["error"]
    assert error["errno"] == errno.ENOENT


def test_draining_the_lru_batches_moves_no_page() -> None:
    try:
        agent.drain_lru()
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            pytest.skip(f"move_pages(2) cannot be called here: {error.strerror}.")
        raise


def test_a_failed_system_call_has_its_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "_MOVE_PAGES", 100_000)
    assert ask(Agent(), "drain_lru")["error"]["errno"] == errno.ENOSYS


def test_a_guest_that_is_not_there_is_an_error() -> None:
    reply = ask(Agent(), "describe", guest="guest9", within=1)
    assert reply["error"]["text"] == "no guest guest9"


def test_an_agent_greets_with_the_nonce_and_ends_with_its_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = io.BytesIO()
    requests = io.BytesIO(b'{"op": "exists", "path": "/"}\n')
    monkeypatch.setattr(sys, "argv", ["probe.pyz", "n0nce"])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=requests))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=answers))
    agent.main()
    hello, exists = map(json.loads, answers.getvalue().splitlines())
    assert hello == {"hello": "n0nce", "cpus": os.cpu_count()}
    assert exists == {"ok": True}


# Guests, whose VMM is a plain process here.

Make = Callable[[], Guest]


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def _die(signum: int) -> None:
    os.kill(os.getpid(), signum)


def _raise() -> None:
    raise SystemExit("no more")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    handlers: dict[str, vmm.Handler] = {
        "describe": lambda: {"pid": os.getpid()},
        "repeat": lambda text, times: text * times,
        "sleep": _sleep,
        "die": _die,
        "leave": _raise,
    }

    def run_vmm(connection: socket.socket, *_: object) -> None:
        vmm.serve(connection, handlers)
        os._exit(0)

    monkeypatch.setattr(vmm, "run_vmm", run_vmm)
    monkeypatch.setattr(agent, "_CGROUPS", tmp_path)
    payload = SimpleNamespace(joinpath=lambda _: SimpleNamespace(read_bytes=lambda: b""))
    monkeypatch.setattr("importlib.resources.files", lambda _: payload)
    guests: list[Guest] = []

    def make() -> Guest:
        guests.append(Guest(tmp_path / f"guest{len(guests)}", 1, 1))
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()


def test_a_guest_lives_in_a_process_and_a_cgroup_of_its_own(make: Make) -> None:
    guest = make()
    assert guest.cgroup.is_dir()
    assert guest.ask({"op": "describe"}, SECONDS) == {"ok": {"pid": guest.pid}}
    assert os.getsid(guest.pid) == guest.pid
    guest.close()
    assert not guest.cgroup.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(guest.pid, 0)


def test_a_long_answer_arrives_whole(make: Make) -> None:
    times = 500_000
    assert make().ask({"op": "repeat", "text": "0123456", "times": times}, SECONDS) == {
        "ok": "0123456" * times
    }


def test_a_vmm_that_takes_its_time_is_late_with_the_places_where_it_sleeps(make: Make) -> None:
    guest = make()
    late = guest.ask({"op": "sleep", "seconds": 0.2}, 0.02)["late"]
    assert f"{guest.pid} wchan: " in late
    assert f"{guest.pid} stack: " in late
    # The answer comes yet, and is not lost.
    assert guest.answer(SECONDS) == {"ok": "slept"}


def test_a_vmm_that_is_killed_has_died_by_that_signal(make: Make) -> None:
    guest = make()
    died = {"died": {"status": signal.SIGKILL, "said": ""}}
    assert guest.ask({"op": "die", "signum": signal.SIGKILL}, SECONDS) == died
    assert guest.ask({"op": "describe"}, SECONDS) == died


def test_a_vmm_that_fails_leaves_its_last_words(make: Make) -> None:
    died = make().ask({"op": "leave"}, SECONDS)["died"]
    assert os.waitstatus_to_exitcode(died["status"]) == 1
    assert json.loads(died["said"]) == {"failed": "SystemExit: no more"}


def test_killing_a_vmm_waits_until_it_is_gone(make: Make) -> None:
    guest = make()
    assert guest.kill(signal.SIGTERM) == signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(guest.pid, 0)
    assert guest.ask({"op": "describe"}, SECONDS)["died"]["status"] == signal.SIGTERM


def test_a_cgroup_that_stays_is_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = make()
    monkeypatch.setattr("time.sleep", lambda _: None)
    left = guest.cgroup / "left"
    left.touch()
    with pytest.raises(OSError, match="could not be removed"):
        guest.close()
    left.unlink()


def test_the_end_of_the_input_ends_all_guests(make: Make) -> None:
    requests = [
        {"op": "create", "name": "one", "pages": 1, "vcpus": 1, "seconds": SECONDS},
        {"op": "create", "name": "two", "pages": 1, "vcpus": 1, "seconds": SECONDS},
        {"op": "describe", "guest": "two", "within": SECONDS},
    ]
    lines = b"".join(json.dumps(request).encode() + b"\n" for request in requests)
    answers = io.BytesIO()
    Agent().serve(io.BytesIO(lines), answers)
    one, two, described = map(json.loads, answers.getvalue().splitlines())
    assert described["ok"] == two["ok"]["ok"]
    for answer in (one, two):
        assert not Path(answer["ok"]["cgroup"]).exists()
        with pytest.raises(ProcessLookupError):
            os.kill(answer["ok"]["ok"]["pid"], 0)


def test_a_guest_can_be_killed_and_then_closed(make: Make) -> None:
    ours = Agent()
    created = ask(ours, "create", name="one", pages=1, vcpus=1, seconds=SECONDS)
    assert created["ok"]["cgroup"].endswith("/mmu-one")
    assert ask(ours, "kill", name="one", signum=signal.SIGKILL) == {"ok": signal.SIGKILL}
    assert ask(ours, "close", name="one") == {"ok": None}
    assert ask(ours, "close", name="one")["error"]["kind"] == "KeyError"
