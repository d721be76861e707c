# SPDX-License-Identifier: GPL-2.0-only
"""A Linux guest that fails: whose fault it is, and that it is said in a sentence."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from test_beats import Console, beat

from harness.command import Completed
from harness.deadline import Deadline
from harness.errors import (
    CommandError,
    DeadlineError,
    GuestEmulationError,
    HarnessError,
    HostLostError,
    KernelSplat,
    LinuxGuestError,
    OracleUnavailable,
    QmpError,
    Violation,
)
from harness.linux_guest.beats import Serial
from harness.linux_guest.changes import (
    elastic,
    free_mib,
    plug,
    resize,
    set_balloon,
    snapshotting,
    unplug,
)
from harness.linux_guest.guest import STALL_SECONDS, LinuxGuest, watch_for
from harness.linux_guest.spec import LinuxGuestSpec
from harness.machine.ssh import RunKeys

PANIC = b"[   12.345678] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b"
TWICE = b"[   18.359000] BUG: ENTRY_TRAMPOLINE stack guard page was hit at 00000000918c1336"
LOCKUP = b"[   12.345678] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [workload:77]"
FDS = (
    "0 /dev/null\n7 anon_inode:kvm\n9 anon_inode:kvm-vm\n12 /memfd:window (deleted)\n"
    "14 /var/tmp/linux1.window\n"
)
CGROUP = "/sys/fs/cgroup/all/linux1"
FILES = {
    f"{CGROUP}/memory.stat": "anon 4096\nfile 0\n",
    f"{CGROUP}/memory.current": "8192\n",
    f"{CGROUP}/memory.swap.current": "0\n",
    f"{CGROUP}/memory.events": "max 3\noom_kill 1\n",
}
USERNET = "  Protocol[State]    FD  Source\n  TCP[HOST_FORWARD]  12  127.0.0.1 40321 10.0.2.15 22\n"


class FakeShell:
    """A connection into the guest; ``answer`` is what each command gives, or raises."""

    def __init__(self) -> None:
        self.alive = True
        self.asked: list[tuple[str, ...]] = []
        self.answer: Completed | Exception = Completed((), 0, "", "", 0.0)

    def run(self, argv: Sequence[str], deadline: Deadline, stdin: bytes | None = None) -> Completed:
        self.asked.append(tuple(argv))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        self.alive = False


class FakeHost:
    """The host of a guest: it runs small commands, and may have complaints of its own."""

    def __init__(self) -> None:
        self.facts = SimpleNamespace(pace=1.0, emulated=False, qemu_version="7.2.22")
        self.problem: Exception | None = None
        self.asked: list[tuple[str, ...]] = []
        self.shell = FakeShell()
        self.ports: list[int] = []
        self.lives = False

    def check(self) -> None:
        if self.problem:
            raise self.problem

    def run(self, argv: Sequence[str], deadline: Deadline, **_: object) -> Completed:
        self.asked.append(tuple(argv))
        if "/stat" in argv[2]:
            return Completed(tuple(argv), 0 if self.lives else 1, "", "", 0.0)
        text = FDS if "readlink" in argv[2:3][0] else "futex_wait\n" if len(argv) > 3 else ""
        return Completed(tuple(argv), 0, text, "", 0.0)

    def through(self, port: int, keys: RunKeys, deadline: Deadline) -> FakeShell:
        self.ports.append(port)
        self.shell.alive = True
        return self.shell


class FakeQmp:
    """QEMU's monitor; commands are answered from a table."""

    def __init__(self) -> None:
        self.ended = False
        self.answers: dict[str, Any] = {"query-status": {"status": "running"}}
        self.asked: list[tuple[str, object]] = []
        self.happened: list[dict[str, Any]] = [{"event": "RESUME"}, {"event": "STOP"}]

    def execute(self, command: str, deadline: Deadline, arguments: object = None) -> Any:
        self.asked.append((command, arguments))
        if self.ended:
            raise QmpError(f"The QMP command {command} failed.")
        return self.answers.get(command, {})

    def events(self) -> tuple[object, ...]:
        return tuple(self.happened)

    def wait_event(self, name: str, deadline: Deadline, since: int = 0) -> object:
        self.asked.append((name, since))
        return {}

    def human(self, line: str, deadline: Deadline) -> str:
        if line.startswith("gpa2hva"):
            return "Host virtual address for 0x100000 (ram) is 0x7f0000100000"
        return USERNET


class FakeProcess:
    """QEMU's process; ``end`` is its exit status, or what asking for it raises."""

    def __init__(self) -> None:
        self.stderr_tail = ""
        self.end: int | Exception = 0

    def status(self, deadline: Deadline) -> int:
        if isinstance(self.end, Exception):
            raise self.end
        return self.end


@pytest.fixture
def parts() -> SimpleNamespace:
    """What a guest is made of, to be broken by a test."""
    return SimpleNamespace(
        host=FakeHost(),
        qmp=FakeQmp(),
        process=FakeProcess(),
        serial=Serial(Console()),
        told=[],
        refusals=[],
    )


@pytest.fixture
def guest(parts: SimpleNamespace) -> LinuxGuest:
    """A guest that runs and has said something."""

    def ask(op: str, **arguments: Any) -> None:
        parts.told.append((op, arguments))
        if parts.refusals:
            raise OSError(parts.refusals.pop(), "refused")

    session: Any = SimpleNamespace(host=parts.host, ask=ask, read=FILES.__getitem__)
    keys: Any = None
    made = LinuxGuest(
        session,
        LinuxGuestSpec(),
        "linux1",
        parts.process,
        parts.serial,
        parts.qmp,
        77,
        keys,
        CGROUP,
    )
    parts.serial.take(b"mmu-guest: ready n0nce\r")
    made.await_ready("n0nce", soon())
    parts.serial.take(beat())
    return made


def soon(seconds: float = 5.0) -> Deadline:
    return Deadline.after(seconds, "the test")


def test_where_its_memory_is_comes_from_qemu(guest: LinuxGuest) -> None:
    assert (guest.pid, guest.vm_fd, guest.hva) == (77, 9, 0x7F0000100000)
    assert guest.gpa == 1 << 20
    assert guest.pages == (128 - 1) * 256
    assert guest.descriptor("/memfd:") == 12
    assert guest.descriptor(r".*\.window$") == 14
    with pytest.raises(LinuxGuestError, match="no open /nothing"):
        guest.descriptor("/nothing")


def test_a_guest_that_is_well_is_let_be(guest: LinuxGuest) -> None:
    guest.check()
    assert guest.watch().passes == 3


def test_a_boot_that_fails_says_why(parts: SimpleNamespace, guest: LinuxGuest) -> None:
    serial = Serial(Console())
    parts.process.stderr_tail = "qemu: no such rom"
    keys: Any = None
    booting = LinuxGuest(
        guest.session,
        LinuxGuestSpec(),
        "linux2",
        parts.process,
        serial,
        parts.qmp,
        78,
        keys,
        CGROUP,
    )
    serial.take(b"mmu-guest: boot failed: no network\r")
    with pytest.raises(LinuxGuestError, match=r"linux2 did not come up: no network[\s\S]*such rom"):
        booting.await_ready("n0nce", soon())


def test_a_qemu_that_ends_in_the_boot_is_not_waited_for(
    parts: SimpleNamespace, guest: LinuxGuest
) -> None:
    guest.serial = Serial(Console())
    parts.qmp.ended = True
    with pytest.raises(LinuxGuestError, match="did not come up: its QEMU ended"):
        guest.await_ready("n0nce", soon(600))


def test_another_guest_than_ours_is_not_believed(guest: LinuxGuest) -> None:
    with pytest.raises(LinuxGuestError, match="Another guest"):
        guest.await_ready("other", soon())


def test_a_boot_without_a_word_ends_with_its_deadline(
    parts: SimpleNamespace, guest: LinuxGuest
) -> None:
    guest.serial = Serial(Console())
    with pytest.raises(LinuxGuestError, match="did not come up: the test took longer"):
        guest.await_ready("n0nce", soon(0.05))


def test_a_panic_of_the_guest_is_the_hosts_doing(parts: SimpleNamespace, guest: LinuxGuest) -> None:
    parts.serial.take(PANIC)
    parts.qmp.ended = True
    with pytest.raises(Violation, match="Attempted to kill init") as caught:
        guest.watch()
    assert caught.value.oracle == "guest"


@pytest.mark.parametrize(("emulated", "blamed"), [(False, Violation), (True, GuestEmulationError)])
def test_an_interrupt_that_came_twice_is_the_emulators_doing(
    parts: SimpleNamespace, guest: LinuxGuest, blamed: type[HarnessError], *, emulated: bool
) -> None:
    parts.host.facts.emulated = emulated
    parts.serial.take(TWICE)
    with pytest.raises(blamed, match="ENTRY_TRAMPOLINE"):
        guest.check()


def test_what_a_starved_machine_causes_is_no_complaint(
    parts: SimpleNamespace, guest: LinuxGuest
) -> None:
    parts.serial.take(LOCKUP)
    guest.check()


def test_the_hosts_log_comes_first(parts: SimpleNamespace, guest: LinuxGuest) -> None:
    parts.serial.take(PANIC)
    parts.host.problem = KernelSplat("oops", "BUG: unable to handle page fault")
    with pytest.raises(KernelSplat):
        guest.check()


@pytest.mark.parametrize(
    ("end", "lives", "said"),
    [
        (-1, False, "was killed, as by the OOM killer"),
        (137, False, "was killed, as by the OOM killer"),
        (1, False, "ended with status 1.[\\s\\S]*out of disk"),
        (HostLostError("gone"), False, "nor does its host"),
        (-1, True, "was cut"),
    ],
)
def test_a_qemu_that_dies_is_infrastructure(
    parts: SimpleNamespace, guest: LinuxGuest, end: int | Exception, lives: bool, said: str
) -> None:
    parts.qmp.ended = True
    parts.host.lives = lives
    parts.process.end = end
    parts.process.stderr_tail = "out of disk"
    with pytest.raises(LinuxGuestError, match=said):
        guest.watch()


@pytest.mark.parametrize(("emulated", "blamed"), [(False, Violation), (True, GuestEmulationError)])
def test_a_guest_that_resets_itself_is_the_hosts_doing_where_nothing_is_emulated(
    parts: SimpleNamespace, guest: LinuxGuest, blamed: type[HarnessError], *, emulated: bool
) -> None:
    parts.host.facts.emulated = emulated
    parts.qmp.ended = True
    parts.qmp.happened.append(
        {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-reset"}}
    )
    with pytest.raises(blamed, match=r"linux1.*without a word"):
        guest.watch()


def test_a_qemu_that_was_told_to_quit_is_no_reset(
    parts: SimpleNamespace, guest: LinuxGuest
) -> None:
    parts.qmp.ended = True
    parts.qmp.happened.append(
        {"event": "SHUTDOWN", "data": {"guest": False, "reason": "host-qmp-quit"}}
    )
    with pytest.raises(LinuxGuestError, match="ended with status 0"):
        guest.watch()


def test_a_guest_that_kvm_cannot_run_is_the_hosts_doing(
    parts: SimpleNamespace, guest: LinuxGuest
) -> None:
    parts.qmp.answers["query-status"] = {"status": "internal-error"}
    parts.process.stderr_tail = "error: kvm run failed Bad address"
    with pytest.raises(Violation, match="Bad address"):
        guest.check()


def test_a_wrong_word_is_the_hosts_doing(parts: SimpleNamespace, guest: LinuxGuest) -> None:
    parts.serial.take(beat(errors=3, page=4, word=5, expected=0x10, seen=0x20))
    with pytest.raises(Violation, match=r"word 5 with 0x20 instead of 0x10 on page 4"):
        guest.watch()


def test_a_gap_in_the_guests_own_time_is_no_progress(
    parts: SimpleNamespace, guest: LinuxGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.linux_guest.guest.slowness", lambda: 1.0)
    parts.serial.take(beat(up=12.5 + STALL_SECONDS + 1))
    with pytest.raises(Violation, match=r"a gap of 11.0 s by its own clock[\s\S]*futex_wait"):
        guest.watch()


def test_a_gap_on_a_machine_that_has_become_busy_is_none(
    guest: LinuxGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for up, slow, fails in ((16.0, 1.0, True), (16.0, 3.0, False), (46.0, 2.0, True)):
        monkeypatch.setattr("harness.linux_guest.guest.slowness", lambda slow=slow: slow)
        guest.serial.longest_gap = up
        with pytest.raises(Violation, match="progress") if fails else contextlib.nullcontext():
            guest.watch()


def test_a_guest_that_never_speaks_again_is_no_progress(
    guest: LinuxGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(guest.serial), "silence", 3600.0)
    with pytest.raises(Violation, match="nothing for 3600 s"):
        guest.watch()


def test_passes_that_do_not_come_are_waited_for_in_vain(guest: LinuxGuest) -> None:
    with pytest.raises(DeadlineError, match="linux1 is in pass 3 of 5"):
        guest.await_passes(2, seconds=0.05)


def test_guests_are_watched_for_a_stated_time(parts: SimpleNamespace, guest: LinuxGuest) -> None:
    watch_for([guest], 0.05)
    parts.serial.take(beat(errors=1))
    with pytest.raises(Violation):
        watch_for([guest], 0.05)


def test_commands_go_through_the_port_that_qemu_forwards(
    parts: SimpleNamespace, guest: LinuxGuest
) -> None:
    fields = json.loads(beat().partition(b"beat ")[2])
    parts.host.shell.answer = Completed((), 0, json.dumps(fields), "", 0.0)
    assert guest.order("check").passes == 3
    assert parts.host.ports == [40321]
    (asked,) = parts.host.shell.asked
    assert asked[-3:] == ("check", "/run/order", "/run/answer")
    guest.order("idle")
    assert parts.host.ports == [40321], "one connection is enough"


def test_a_command_that_fails_in_the_guest_is_told(
    parts: SimpleNamespace, guest: LinuxGuest
) -> None:
    parts.host.shell.answer = Completed(("rm",), 1, "", "no such file", 0.0)
    with pytest.raises(CommandError, match="no such file"):
        guest.run(["rm", "x"])
    assert guest.run(["rm", "x"], check=False).status == 1


def test_ssh_that_is_lost_while_the_host_lives_is_infrastructure(
    parts: SimpleNamespace, guest: LinuxGuest
) -> None:
    parts.host.shell.answer = HostLostError("The SSH connection was lost.")
    with pytest.raises(LinuxGuestError, match="linux1 cannot be reached over SSH"):
        guest.run(["true"])
    parts.host.shell.answer = Completed((), 0, "", "", 0.0)
    parts.host.shell.alive = False
    guest.run(["true"])
    assert parts.host.ports == [40321, 40321], "a new connection is made"


def test_a_command_that_is_cut_off_is_no_failing_command(
    parts: SimpleNamespace, guest: LinuxGuest
) -> None:
    parts.host.shell.answer = Completed(("true",), -1, "", "", 0.0)
    with pytest.raises(LinuxGuestError, match="cut off"):
        guest.run(["true"], check=False)


def test_a_monitor_that_is_cut_off_in_a_question_is_the_end_of_qemu(
    parts: SimpleNamespace, guest: LinuxGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        parts.qmp.ended = True
        raise QmpError("The QMP command query-status failed: Disconnected.")

    monkeypatch.setattr(parts.qmp, "execute", cut)
    with pytest.raises(LinuxGuestError, match="QEMU of linux1 ended"):
        guest.check()


def test_a_panic_that_arrives_after_the_end_of_qemu_is_heard(
    parts: SimpleNamespace, guest: LinuxGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.qmp.ended = True
    monkeypatch.setattr(parts.serial.log, "settle", lambda deadline: parts.serial.take(PANIC))
    with pytest.raises(Violation, match="Attempted to kill init"):
        guest.watch()


def test_ssh_that_is_lost_because_the_guest_panicked_is_the_hosts_doing(
    parts: SimpleNamespace, guest: LinuxGuest
) -> None:
    parts.serial.take(PANIC)
    parts.host.shell.answer = HostLostError("The SSH connection was lost.")
    with pytest.raises(Violation):
        guest.run(["true"])


def test_killing_waits_for_the_end(parts: SimpleNamespace, guest: LinuxGuest) -> None:
    guest.kill()
    assert parts.host.asked[-1] == ("kill", "-KILL", "77")
    guest.close()
    assert parts.host.asked[-1] == ("kill", "-KILL", "77")
    with contextlib.suppress(LinuxGuestError):
        guest.check()


def test_an_end_by_others_is_waited_for(parts: SimpleNamespace, guest: LinuxGuest) -> None:
    parts.process.end = 137
    assert guest.await_end() == 137
    asked = list(parts.host.asked)
    guest.close()
    assert parts.host.asked == asked, "nobody is left to be killed"


def test_its_cgroup_is_its_own(parts: SimpleNamespace, guest: LinuxGuest) -> None:
    guest.limit("memory.max", 4096)
    assert parts.told == [("write", {"path": f"{CGROUP}/memory.max", "text": "4096"})]
    assert guest.memory_statistics() == {
        "anon": 4096,
        "file": 0,
        "memory.current": 8192,
        "memory.swap.current": 0,
    }
    assert guest.oom_kills() == 1


def test_large_pages_are_made_where_the_kernel_lets_them(
    parts: SimpleNamespace, guest: LinuxGuest
) -> None:
    parts.refusals += [errno.EAGAIN, errno.EINVAL]
    made = guest.collapse()
    assert made == len(parts.told) - 2
    starts = [arguments["address"] for _, arguments in parts.told]
    assert not any(start % (2 << 20) for start in starts)
    assert guest.hva <= starts[0] < starts[-1] + (2 << 20) <= guest.hva + guest.pages * 4096


def test_a_kernel_that_cannot_collapse_on_request_is_not_blamed(
    parts: SimpleNamespace, guest: LinuxGuest
) -> None:
    parts.refusals += [errno.EINVAL] * 100
    with pytest.raises(OracleUnavailable, match="MADV_COLLAPSE"):
        guest.collapse()
    # One that knows how, but may not, is another matter.
    parts.refusals[:] = [errno.EINVAL] * 99 + [errno.EAGAIN]
    assert guest.collapse() == 0


def test_a_migration_that_fails_is_told(parts: SimpleNamespace, guest: LinuxGuest) -> None:
    parts.qmp.answers["query-migrate"] = {"status": "failed", "error-desc": "no room"}
    with (
        pytest.raises(LinuxGuestError, match="no room"),
        snapshotting(guest, "/var/tmp/x"),
    ):
        assert parts.qmp.asked[-1][0] == "migrate"
    assert ("migrate", {"uri": "exec:cat >/var/tmp/x"}) in parts.qmp.asked


def completed(text: str) -> Completed:
    return Completed((), 0, text, "", 0.0)


def test_memory_that_is_plugged_in_is_where_qemu_says_when_the_guest_has_it(
    parts: SimpleNamespace, guest: LinuxGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = iter([60, 60, 188])
    monkeypatch.setattr(guest, "run", lambda argv: completed(f"MemTotal: {next(totals) << 10} kB"))
    devices = [{"data": {"id": "other", "addr": 1}}, {"data": {"id": "dimm", "addr": 1 << 32}}]
    parts.qmp.answers["query-memory-devices"] = devices
    window = plug(guest, "dimm", 128)
    assert (window.gpa, window.pages, window.pid) == (1 << 32, 128 * 256, guest.pid)
    assert not list(totals), "it was awaited"
    unplug(guest, "dimm")
    # The event may come before the answer to the command that causes it.
    assert [what for what, _ in parts.qmp.asked[-3:]] == [
        "device_del",
        "DEVICE_DELETED",
        "object-del",
    ]
    assert parts.qmp.asked[-2] == ("DEVICE_DELETED", 2)


def test_memory_grows_and_shrinks_when_the_guest_has_done_so(
    parts: SimpleNamespace, guest: LinuxGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = iter([60, 60, 124, 124])
    monkeypatch.setattr(guest, "run", lambda argv: completed(f"MemTotal: {next(totals) << 10} kB"))

    def grow(command: str, deadline: Deadline, arguments: object = None) -> object:
        if command == "qom-set":
            device["size"] = 64 << 20
        return ask(command, deadline, arguments)

    ask = parts.qmp.execute
    monkeypatch.setattr(parts.qmp, "execute", grow)
    device = {
        "id": "virtio-mem", "memaddr": 1 << 32, "max-size": 256 << 20, "size": 0,
    }  # fmt: skip
    parts.qmp.answers["query-memory-devices"] = [{"data": device}]
    window = elastic(guest)
    assert (window.gpa, window.pages) == (1 << 32, 256 * 256)
    resize(guest, 64)
    assert len(list(totals)) == 1, "it was awaited"
    (_, wish), *looks = parts.qmp.asked[-2:]
    assert wish == {
        "path": "/machine/peripheral/virtio-mem",
        "property": "requested-size",
        "value": 64 << 20,
    }
    assert looks == [("query-memory-devices", None)]
    # What goes down needs no wait for the guest's kernel, which has let go of it already.
    device["size"] = 128 << 20
    monkeypatch.setattr(guest, "run", lambda argv: completed("MemTotal: 65536 kB"))
    resize(guest, 64)


def test_what_a_guest_has_to_spare_its_kernel_says(
    guest: LinuxGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "run", lambda argv: completed("MemFree:  10999 kB\n"))
    assert free_mib(guest) == 10


def test_a_balloon_is_awaited(parts: SimpleNamespace, guest: LinuxGuest) -> None:
    parts.qmp.answers["query-balloon"] = {"actual": 100 << 20}
    set_balloon(guest, 100)
    assert ("balloon", {"value": 100 << 20}) in parts.qmp.asked
