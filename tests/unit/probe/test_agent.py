# SPDX-License-Identifier: GPL-2.0-only
"""The agent: what it does on a host itself, and how it tells a slow, a dead and a silent VMM."""

from __future__ import annotations

import contextlib
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
from fake_statistics import statistics_file

from harness.probe import agent, pmem, serving, system, vmm
from harness.probe.agent import Agent, Guest
from harness.probe.backing import BACKINGS
from harness.probe.layout import PAGE_BYTES
from harness.probe.memory import Memory

SECONDS = 5.0
COUNTERS = {"pages_4k": 7, "pages_2m": 0}


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


@pytest.mark.parametrize(("left", "all_of_it"), [(6000, True), (6001, False)])
def test_an_older_kernel_reclaims_by_a_limit_that_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, all_of_it: bool
) -> None:
    (tmp_path / "memory.current").write_text("10000\n")
    (tmp_path / "memory.high").write_text("max")
    limits: list[str] = []

    def write(_: Agent, path: str, text: str) -> None:
        if not Path(path).exists():
            raise FileNotFoundError(errno.ENOENT, path)
        limits.append(text)
        (tmp_path / "memory.current").write_text(f"{left}\n")

    monkeypatch.setattr(Agent, "write", write)
    assert ask(Agent(), "reclaim", cgroup=str(tmp_path), size=4000) == {"ok": all_of_it}
    assert limits == ["6000", "max"]


def test_no_limit_stays_when_reclaim_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.current").write_text("4096\n")
    limits: list[str] = []

    def write(_: Agent, path: str, text: str) -> None:
        if path.endswith("reclaim"):
            raise FileNotFoundError(errno.ENOENT, path)
        limits.append(text)
        if text != "max":
            raise OSError(errno.EINTR, "interrupted")

    monkeypatch.setattr(Agent, "write", write)
    error = ask(Agent(), "reclaim", cgroup=str(tmp_path), size=8192)["error"]
    assert error["errno"] == errno.EINTR
    assert limits == ["0", "max"]


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


def test_several_requests_are_carried_out_in_order(tmp_path: Path) -> None:
    path = tmp_path / "control"
    path.write_text("0")
    requests = [
        {"op": "write", "path": str(path), "text": "7"},
        {"op": "read", "path": str(path)},
        {"op": "write", "path": str(path), "text": "8"},
    ]
    assert ask(Agent(), "all", requests=requests) == {
        "ok": [{"ok": None}, {"ok": "7"}, {"ok": None}]
    }
    assert path.read_text() == "8"


def test_what_comes_after_the_first_that_fails_is_not_done(tmp_path: Path) -> None:
    path = tmp_path / "control"
    path.write_text("0")
    requests = [
        {"op": "read", "path": str(path)},
        {"op": "read", "path": str(tmp_path / "none")},
        {"op": "write", "path": str(path), "text": "8"},
    ]
    first, second = ask(Agent(), "all", requests=requests)["ok"]
    assert first == {"ok": "0"}
    assert second["error"]["errno"] == errno.ENOENT
    assert path.read_text() == "0"


@pytest.mark.parametrize("op", ["swapon", "swapoff"])
def test_swap_that_is_not_there_is_an_error(tmp_path: Path, op: str) -> None:
    error = ask(Agent(), op, path=str(tmp_path / "none"))["error"]
    assert error["errno"] in (errno.ENOENT, errno.EPERM)


# Other processes.


def sleeping(pages: int) -> tuple[int, int]:
    """A child with so much memory that was touched, which sleeps: its pid and the address."""
    memory = Memory(pages)
    memory.poke(0, pages, 0, 1)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        memory.poke(0, pages, 0, 2)
        signal.pause()
        os._exit(0)
    return pid, memory.hva


@pytest.fixture
def another() -> Iterator[tuple[int, int]]:
    pid, address = sleeping(4)
    yield pid, address
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def unless_refused(reply: dict[str, Any], what: str) -> Any:
    """The value of a reply; skips where this machine does not have the system call."""
    if (error := reply.get("error")) and error["errno"] in (errno.ENOSYS, errno.EPERM):
        pytest.skip(f"{what} cannot be called here: {error['text']}.")
    assert "ok" in reply, reply
    return reply["ok"]


def test_pages_of_another_process_have_their_places(another: tuple[int, int]) -> None:
    pid, address = another
    reply = ask(Agent(), "move_pages", pid=pid, address=address, pages=4, node=0)
    assert unless_refused(reply, "move_pages(2)") == {"left": 0, "places": [0] * 4}
    # Beyond the memory of the process nothing is mapped.
    beyond = ask(Agent(), "move_pages", pid=pid, address=1 << 46, pages=1, node=0)["ok"]
    assert beyond["places"] == [-errno.EFAULT]


def test_pages_of_a_process_that_is_gone_cannot_be_moved() -> None:
    for op, more in (
        ("move_pages", {"address": 0, "pages": 1, "node": 0}),
        ("migrate_pages", {"old": 0, "new": 0}),
    ):
        error = ask(Agent(), op, pid=(1 << 22) + 1, **more)["error"]
        assert error["errno"] in (errno.ESRCH, errno.ENOSYS, errno.EPERM)


def test_all_pages_of_a_process_are_migrated(another: tuple[int, int]) -> None:
    pid, _ = another
    left = unless_refused(ask(Agent(), "migrate_pages", pid=pid, old=0, new=0), "migrate_pages(2)")
    assert left == 0
    if not Path("/sys/devices/system/node/node63").exists():
        error = ask(Agent(), "migrate_pages", pid=pid, old=0, new=63)["error"]
        assert error["errno"] == errno.EINVAL, "a node that is not there"


def test_another_process_is_advised(another: tuple[int, int]) -> None:
    pid, address = another
    reply = ask(Agent(), "advise", pid=pid, address=address, size=2 * PAGE_BYTES, advice="cold")
    assert unless_refused(reply, "process_madvise(2)") == 2 * PAGE_BYTES
    # Nobody may throw away what belongs to another process.
    for advice in ("dontneed", "remove"):
        wrong = ask(Agent(), "advise", pid=pid, address=address, size=PAGE_BYTES, advice=advice)
        assert wrong["error"]["errno"] == errno.EINVAL


def test_a_descriptor_is_closed_with_its_object() -> None:
    with contextlib.closing(agent.call_fd("pidfd_open", os.getpid(), 0)) as ours:
        number = ours.fileno()
        assert os.readlink(f"/proc/self/fd/{number}") == "anon_inode:[pidfd]"  # noqa: PTH115
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_failed_system_call_has_its_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(system.NUMBERS, "move_pages", 100_000)
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
def files(tmp_path: Path) -> Path:
    """Where guests have their files; their cgroups are beside it."""
    path = tmp_path / "files"
    path.mkdir()
    return path


@pytest.fixture
def make(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    handlers: dict[str, serving.Handler] = {
        "describe": lambda: {"pid": os.getpid()},
        "repeat": lambda text, times: text * times,
        "sleep": _sleep,
        "die": _die,
        "leave": _raise,
    }

    def run_vmm(connection: socket.socket, *arguments: object) -> None:
        *_, backing, path, _ = arguments
        if path:
            Path(str(path)).touch()
        handlers["arguments"] = lambda: [backing, path]
        handlers["files"] = lambda: {
            "vm_fd": os.memfd_create("vm"),
            "statistics_fd": statistics_file({name: [value] for name, value in COUNTERS.items()}),
        }
        serving.serve(connection, handlers)
        os._exit(0)

    monkeypatch.setattr(vmm, "run_vmm", run_vmm)
    monkeypatch.setattr(agent, "_CGROUPS", tmp_path)
    monkeypatch.setattr(agent, "_FILES", files)
    monkeypatch.setattr(pmem, "directory", lambda: files)
    payload = SimpleNamespace(joinpath=lambda _: SimpleNamespace(read_bytes=lambda: b""))
    monkeypatch.setattr("importlib.resources.files", lambda _: payload)
    guests: list[Guest] = []

    def make() -> Guest:
        guests.append(Guest(tmp_path / f"guest{len(guests)}", 1, 1, "anon", None))
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


def created(ours: Agent, name: str, **more: Any) -> dict[str, Any]:
    """What is said of a new guest."""
    request = {"name": name, "pages": 1, "vcpus": 1, "seconds": SECONDS, **more}
    facts: dict[str, Any] = ask(ours, "create", **request)["ok"]
    return facts


def given(ours: Agent, name: str) -> Any:
    return ask(ours, "arguments", guest=name, within=SECONDS)["ok"]


@pytest.mark.usefixtures("make")
@pytest.mark.parametrize("backing", list(BACKINGS))
def test_a_guest_gets_the_memory_that_was_asked_for_and_leaves_no_file(
    files: Path, backing: str
) -> None:
    ours = Agent()
    created(ours, "one", backing=backing)
    on_disk = BACKINGS[backing].file in ("disk", "dax")
    assert given(ours, "one") == [backing, str(files / "mmu-one") if on_disk else ""]
    assert [path.name for path in files.iterdir()] == (["mmu-one"] if on_disk else [])
    ask(ours, "close", name="one")
    assert list(files.iterdir()) == []


@pytest.mark.usefixtures("make")
def test_a_guest_that_was_killed_leaves_no_file(files: Path) -> None:
    ours = Agent()
    created(ours, "one", backing="file-shared")
    assert given(ours, "one")
    ask(ours, "kill", name="one", signum=signal.SIGKILL)
    assert list(files.iterdir()), "it is there as long as the guest is not closed"
    ask(ours, "close", name="one")
    assert list(files.iterdir()) == []


@pytest.mark.usefixtures("make")
def test_a_guest_is_on_anonymous_memory_unless_told_otherwise() -> None:
    ours = Agent()
    created(ours, "one")
    assert given(ours, "one") == ["anon", ""]
    ask(ours, "close", name="one")


@pytest.mark.usefixtures("make")
def test_memory_that_nobody_knows_makes_no_guest(tmp_path: Path) -> None:
    reply = ask(Agent(), "create", name="one", pages=1, vcpus=1, seconds=SECONDS, backing="tape")
    assert reply["error"]["kind"] == "KeyError"
    assert not (tmp_path / "mmu-one").exists()


@pytest.mark.usefixtures("make")
def test_a_death_is_awaited() -> None:
    ours = Agent()
    pid = created(ours, "one")["ok"]["pid"]
    assert ask(ours, "await_death", name="one", seconds=0.01) == {"ok": None}
    assert ask(ours, "describe", guest="one", within=SECONDS)["ok"], "it lives on"
    os.kill(pid, signal.SIGTERM)
    assert ask(ours, "await_death", name="one", seconds=SECONDS) == {"ok": signal.SIGTERM}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    died = ask(ours, "describe", guest="one", within=SECONDS)["died"]
    assert died["status"] == signal.SIGTERM
    assert ask(ours, "close", name="one") == {"ok": None}


@pytest.mark.usefixtures("make")
def test_a_vm_that_is_held_outlives_its_vmm() -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    ours = Agent()
    created(ours, "one")
    fds = ask(ours, "files", guest="one", within=SECONDS)["ok"]
    unless_refused(ask(ours, "hold_vm", name="one", **fds), "pidfd_getfd(2)")
    assert ask(ours, "held_statistics", name="one") == {"ok": COUNTERS}
    ask(ours, "kill", name="one", signum=signal.SIGKILL)
    assert ask(ours, "held_statistics", name="one") == {"ok": COUNTERS}
    assert "/memfd:vm (deleted)" in {_target(fd) for fd in os.listdir("/proc/self/fd")}  # noqa: PTH208
    assert ask(ours, "let_go", name="one") == {"ok": None}
    assert ask(ours, "held_statistics", name="one")["error"]["kind"] == "KeyError"
    ask(ours, "close", name="one")
    assert set(os.listdir("/proc/self/fd")) == before, "nothing holds the VM any more"  # noqa: PTH208


@pytest.mark.usefixtures("make")
def test_a_vm_without_counters_can_be_held_too() -> None:
    ours = Agent()
    created(ours, "one")
    vm_fd = ask(ours, "files", guest="one", within=SECONDS)["ok"]["vm_fd"]
    held = ask(ours, "hold_vm", name="one", vm_fd=vm_fd, statistics_fd=None)
    unless_refused(held, "pidfd_getfd(2)")
    assert ask(ours, "held_statistics", name="one") == {"ok": {}}
    assert ask(ours, "let_go", name="one") == {"ok": None}
    ask(ours, "close", name="one")


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
    except FileNotFoundError:  # that of the listing itself
        return ""


@pytest.mark.usefixtures("make")
def test_what_a_vmm_does_not_have_cannot_be_held() -> None:
    ours = Agent()
    created(ours, "one")
    error = ask(ours, "hold_vm", name="one", vm_fd=900, statistics_fd=901)["error"]
    assert error["errno"] in (errno.EBADF, errno.ENOSYS, errno.EPERM)
    assert ask(ours, "held_statistics", name="one")["error"]["kind"] == "KeyError"
    ask(ours, "close", name="one")
