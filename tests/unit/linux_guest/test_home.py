# SPDX-License-Identifier: GPL-2.0-only
"""Where Linux guests live: what is brought to a host, how often, and what is left of them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_beats import Console, beat

from harness.command import Completed
from harness.deadline import Deadline
from harness.errors import DeadlineError, HostLostError, LinuxGuestError, OracleUnavailable
from harness.image.linux_guest import LinuxImage
from harness.linux_guest import home
from harness.linux_guest.home import LinuxGuests, linux_guests
from harness.linux_guest.spec import LinuxGuestSpec

FDS = "9 anon_inode:kvm-vm\n"
CONTROLLERS = "/sys/fs/cgroup/cgroup.subtree_control"
USERNET = "TCP[HOST_FORWARD]  12  127.0.0.1 40321 10.0.2.15 22\n"


class FakeQmp:
    """QEMU's monitor, which is well."""

    ended = False

    def execute(self, *_: object) -> dict[str, str]:
        return {"status": "running"}

    def human(self, line: str, deadline: Deadline) -> str:
        return "for 0x100000 (ram) is 0x7f00" if line.startswith("gpa") else USERNET


class FakeProcess(Console):
    """QEMU's process, whose first word is its process id."""

    def __init__(self, first: bytes) -> None:
        super().__init__()
        self.lines.put(first)

    def status(self, deadline: Deadline) -> int:
        return -1

    def __enter__(self) -> FakeProcess:
        return self


class FakeHost:
    """A host that keeps what it was given, and what was run on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.facts = SimpleNamespace(pace=1.0, emulated=False)
        self.still: list[Any] = []
        self.files: dict[str, bytes] = {}
        self.ran: list[tuple[str, ...]] = []
        self.started: list[tuple[str, ...]] = []
        self.first = b"77"
        self.console: Callable[[Console], None] = lambda console: None

    @contextlib.contextmanager
    def pausing_inside(self, still: Callable[[], Any]) -> Iterator[None]:
        self.still.append(still)
        yield
        self.still.remove(still)

    def put(self, path: str, data: bytes, deadline: Deadline, *, mode: int = 0o644) -> None:
        self.files[path] = data

    def run(self, argv: Sequence[str], deadline: Deadline, **_: object) -> Completed:
        self.ran.append(tuple(argv))
        return Completed(tuple(argv), 0, FDS, "", 0.0)

    def background(self, argv: Sequence[str], deadline: Deadline) -> Console:
        self.started.append(tuple(argv))
        if any("qemu" in word for word in argv):
            return FakeProcess(self.first)
        console = Console()
        self.console(console)
        return console

    def check(self) -> None:
        """Nothing happened."""


class FakeSession:
    """The agent of that host."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.controllers = "cpuset memory\n"
        self.current = 0
        self._numbers = itertools.count(1)

    def new_name(self, kind: str) -> str:
        return f"{kind}{next(self._numbers)}"

    def ask(self, op: str, **arguments: Any) -> Any:
        self.asked.append((op, arguments))
        path = arguments.get("path")
        return op == "exists" and (path == CONTROLLERS or path in self.host.files)

    def read(self, path: str) -> str:
        if path == CONTROLLERS:
            return self.controllers
        if path.endswith("cgroup.events"):
            return "populated 1\nfrozen 1\n"
        if path.endswith("memory.current"):
            return f"{self.current}\n"
        return "anon 4096\n" if path.endswith("stat") else "oom_kill 0\n"


@pytest.fixture
def image(tmp_path: Path) -> LinuxImage:
    (tmp_path / "kernel").write_bytes(b"kernel")
    (tmp_path / "initramfs").write_bytes(b"initramfs")
    return LinuxImage(tmp_path / "kernel", tmp_path / "initramfs", "6.1", "d1")


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    directory = tmp_path / "host"
    directory.mkdir()
    return FakeHost(directory)


@pytest.fixture
def session(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    @contextlib.contextmanager
    def monitor(channel: object, record: Path, deadline: Deadline) -> Iterator[FakeQmp]:
        record.write_text("traffic")
        yield FakeQmp()

    monkeypatch.setattr(home, "connected_over", monitor)
    return FakeSession(host)


@contextlib.contextmanager
def place(session: Any, image: LinuxImage) -> Iterator[LinuxGuests]:
    with linux_guests(session, image) as guests:
        yield guests


def boots(host: FakeHost) -> None:
    """Have each guest come up: it says the nonce of its seed."""

    def speak(console: Console) -> None:
        seed = next(data for path, data in host.files.items() if path.endswith(".seed"))
        nonce = seed.partition(b"nonce\0")[2].lstrip(b"\0")[:32]
        console.lines.put(b"mmu-guest: ready " + nonce)
        console.lines.put(beat())

    host.console = speak


@pytest.mark.parametrize("emulated", [True, False])
def test_an_emulated_host_stands_still_while_its_guests_are_frozen(
    session: FakeSession, host: FakeHost, image: LinuxImage, emulated: bool
) -> None:
    host.facts.emulated = emulated
    with place(session, image) as guests:
        assert len(host.still) == int(emulated)
        for still in host.still:
            session.asked.clear()
            with still():
                pass
            written = {"path": f"{guests.cgroup}/cgroup.freeze"}
            assert session.asked == [
                ("write", {**written, "text": "1"}), ("write", {**written, "text": "0"})
            ]  # fmt: skip
    assert not host.still


def test_the_image_comes_to_a_host_once_and_the_seed_each_time(
    session: FakeSession, host: FakeHost, image: LinuxImage
) -> None:
    with place(session, image):
        assert sorted(host.files.values())[-2:] == [b"initramfs", b"kernel"]
        first = {path: data for path, data in host.files.items() if path.endswith(".seed")}
    (seed,) = first.values()
    assert b"PRIVATE" not in seed
    assert b"ssh-ed25519" in seed
    host.files = dict.fromkeys(host.files, b"old")
    with place(session, image):
        assert sum(data == b"old" for data in host.files.values()) == 3
        assert len(host.files) == 4


def test_guests_are_in_cgroups_in_one_that_goes(
    session: FakeSession, host: FakeHost, image: LinuxImage
) -> None:
    with place(session, image) as guests:
        made = ("make_directory", {"path": guests.cgroup})
        handed_on = {"path": f"{guests.cgroup}/cgroup.subtree_control", "text": "+memory"}
        assert session.asked[-2:] == [made, ("write", handed_on)]
        guests.limit("memory.high", 4096)
        assert session.asked[-1] == (
            "write",
            {"path": f"{guests.cgroup}/memory.high", "text": "4096"},
        )
        assert guests.statistics() == {"anon": 4096, "oom_kill": 0}
    assert host.ran[-1] == ("rmdir", guests.cgroup)


def test_what_guests_have_too_much_is_reclaimed_before_they_are_confined(
    session: FakeSession, image: LinuxImage
) -> None:
    with place(session, image) as guests:
        session.current = 9000
        guests.confine(4096)
        high = {"path": f"{guests.cgroup}/memory.high", "text": "4096"}
        reclaimed = ("reclaim", {"cgroup": guests.cgroup, "size": 9000 - 4096})
        assert session.asked[-2:] == [reclaimed, ("write", high)]
        session.current = 100
        guests.confine(4096)
        assert session.asked[-2:] == [("write", high), ("write", high)]


def test_a_kernel_without_memory_cgroups_is_said_to_lack_them(
    session: FakeSession, image: LinuxImage
) -> None:
    session.controllers = "cpuset\n"
    with pytest.raises(OracleUnavailable, match="MEMCG"), place(session, image):
        pytest.fail("there is no place")


def test_a_guest_runs_in_the_cgroup_and_leaves_its_console(
    session: FakeSession, host: FakeHost, image: LinuxImage
) -> None:
    boots(host)
    with place(session, image) as guests:
        with guests.guest(LinuxGuestSpec(disk_mib=8)) as guest:
            assert guest.pid == 77
            assert guest.counters.passes == 3
            qemu = host.started[-1]
            assert qemu[:2] == ("sh", "-c")
            assert guest.cgroup == f"{guests.cgroup}/{guest.name}"
            assert guest.cgroup in qemu
            assert ("make_directory", {"path": guest.cgroup}) in session.asked
            assert any(words[0] == "truncate" for words in host.ran)
        assert ("kill", "-KILL", "77") in host.ran
        removed, gone = host.ran[-2:]
        assert any(word.endswith(".disk") for word in removed)
        assert gone == ("rmdir", guest.cgroup)
    logs = {path.name: path.read_text() for path in host.directory.iterdir()}
    assert logs[f"{guest.name}.qmp.log"] == "traffic"
    assert "mmu-guest: ready" in logs[f"{guest.name}.serial.log"]


def test_a_guest_that_does_not_come_up_is_told_and_its_console_kept(
    session: FakeSession, host: FakeHost, image: LinuxImage
) -> None:
    host.console = lambda console: console.lines.put(b"mmu-guest: boot failed: no SSH server")
    with (
        place(session, image) as guests,
        pytest.raises(LinuxGuestError, match="no SSH server"),
        guests.guest(),
    ):
        pytest.fail("it did not come up")
    (log,) = host.directory.glob("*.serial.log")
    assert "no SSH server" in log.read_text()
    assert any("kill -KILL" in " ".join(words) for words in host.ran)
    assert any(words[0] == "rmdir" for words in host.ran)


def test_a_qemu_that_does_not_start_is_told(
    session: FakeSession, host: FakeHost, image: LinuxImage
) -> None:
    host.first = b"sh: qemu-system-x86_64: not found"
    with (
        place(session, image) as guests,
        pytest.raises(LinuxGuestError, match="could not be started"),
        guests.guest(),
    ):
        pytest.fail("there is no QEMU")


def test_a_guest_that_waits_for_a_migration_is_not_waited_for(
    session: FakeSession, host: FakeHost, image: LinuxImage
) -> None:
    with (
        place(session, image) as guests,
        guests.guest(LinuxGuestSpec(incoming=True)) as guest,
        pytest.raises(LinuxGuestError, match="not said anything"),
    ):
        _ = guest.counters


def test_what_a_test_raises_is_not_hidden_by_a_host_that_is_gone(
    session: FakeSession, host: FakeHost, image: LinuxImage
) -> None:
    boots(host)

    def gone(argv: Sequence[str], deadline: Deadline, **_: object) -> Completed:
        raise HostLostError("gone")

    def claimed() -> None:
        with place(session, image) as guests, guests.guest():
            host.run = gone  # type: ignore[method-assign]
            raise AssertionError("the claim")

    with pytest.raises(AssertionError, match="the claim"):
        claimed()


def test_a_host_that_does_not_answer_is_asked_once(
    session: FakeSession, host: FakeHost, image: LinuxImage
) -> None:
    boots(host)
    asked: list[tuple[str, ...]] = []

    def hangs(argv: Sequence[str], deadline: Deadline, **_: object) -> Completed:
        asked.append(tuple(argv))
        raise DeadlineError("It took longer.")

    def failed() -> None:
        with place(session, image) as guests, guests.guest(), guests.guest():
            host.run = hangs  # type: ignore[method-assign]
            raise AssertionError("the claim")

    with pytest.raises(AssertionError, match="the claim"):
        failed()
    assert len(asked) == 1
