# SPDX-License-Identifier: GPL-2.0-only
"""A table of machines that go wrong, each with what is said and whose fault it is.

The QEMU here is a program that pretends (fake_qemu.py); all on our side of it is real.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_qemu import Faults, install

from harness.deadline import Deadline
from harness.errors import (
    BootError,
    DeadlineError,
    ExitCode,
    HarnessError,
    HostLostError,
    KernelSplat,
    QemuError,
)
from harness.kernel.model import Kernel
from harness.machine.accelerator import Accelerator
from harness.machine.boot import boot
from harness.machine.qemu_host import QemuHost
from harness.machine.spec import HostSpec
from harness.progress import Silent
from harness.result.directory import ResultsDirectory

SECONDS = 30.0
MIB = 1 << 20


@pytest.fixture
def run_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mmu-", dir="/tmp") as path:
        yield Path(path)


Boot = Callable[..., contextlib.AbstractContextManager[QemuHost]]


@pytest.fixture
def machine(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Boot:
    """Boots a machine with faults."""

    @contextlib.contextmanager
    def booted(faults: Faults, seconds: float | None = SECONDS) -> Iterator[QemuHost]:
        for name, value in install(run_directory / "bin", faults).items():
            monkeypatch.setenv(name, value)
        root, image = run_directory / "root.img", run_directory / "kernel"
        root.write_bytes(bytes(MIB))
        image.write_bytes(b"")
        spec = HostSpec(image, root, Accelerator("tcg", ""), memory_mib=64, swap_mib=1)
        kernel = Kernel(image, "9.9.9-fake", "", str(image))
        with boot(spec, run_directory, kernel, Silent(), seconds=seconds) as host:
            yield host

    return booted


def soon(seconds: float = 20) -> Deadline:
    return Deadline.after(seconds, "the test")


def users_of(directory: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(directory / "qmp") in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


# Machines that never come up.


@dataclasses.dataclass(frozen=True)
class Case:
    """Faults, the error that they end in, its exit code, and what it says as an expression."""

    faults: Faults
    error: type[HarnessError]
    code: ExitCode
    says: str
    seconds: float = SECONDS


OURS, KERNELS = ExitCode.INFRASTRUCTURE, ExitCode.UNTESTABLE
PANIC = "[    1.0] Kernel panic - not syncing: no init\n"
STRANGE = "\0\x1b[2J\x1b]0;owned\x07\xff\xfe\x9b31m\xc0\x80 Kernel\r\n"

NEVER_UP = {
    "port taken": Case(
        Faults(status=1, words="Could not set up host forwarding rule 'tcp:127.0.0.1:0-:22'\n"),
        QemuError, OURS, r"ended with status 1\. It said:\nCould not set up host forwarding rule",
    ),
    "no memory for QEMU": Case(
        Faults(status=1, words="cannot set up guest memory 'ram0': Cannot allocate memory\n"),
        QemuError, OURS, "Cannot allocate memory",
    ),
    "panic, then reset": Case(
        Faults(console=PANIC, ends=True), BootError, KERNELS, "not syncing: no init",
    ),
    "boot loop": Case(
        Faults(console="booting\n", ends=True), BootError, KERNELS, "reset it without a word",
    ),
    "strange bytes": Case(
        Faults(console=STRANGE + PANIC, ends=True), BootError, KERNELS,
        r"(?s)no init.*\\u\{0\}\\u\{1b\}\[2J\\u\{1b\}\]0;owned\\u\{7\}",
    ),
    "no QMP socket": Case(
        Faults(qmp="no socket"), QemuError, OURS, "does not listen on its QMP socket", 3,
    ),
    "QMP without a greeting": Case(
        Faults(qmp="silent"), QemuError, OURS, "does not answer on its QMP socket", 3,
    ),
    "QMP falls silent": Case(
        Faults(qmp="falls silent"), QemuError, OURS, "does not answer on its QMP socket", 3,
    ),
    "QMP ends in mid-JSON": Case(
        Faults(qmp="ends in mid-JSON"), QemuError, OURS, "QEMU cannot be controlled",
    ),
    "QMP talks nonsense": Case(
        Faults(qmp="talks nonsense"), QemuError, OURS, "QEMU cannot be controlled",
    ),
    "QMP sends a line without end": Case(
        Faults(qmp="sends a line without end"), QemuError, OURS, "QEMU cannot be controlled",
    ),
    "sshd refuses": Case(
        Faults(ssh="refuses"), BootError, KERNELS, "No SSH connection to the host: .*refused",
    ),
    "sshd stalls": Case(
        Faults(ssh="stalls"), BootError, KERNELS, "No SSH connection to the host", 4,
    ),
    "sshd dies before it tells": Case(
        Faults(ssh="dies before it tells"), BootError, KERNELS, "SSH connection was lost while cat",
    ),
    "no nonce": Case(
        Faults(nonce="none"), QemuError, OURS, "Another host than ours answers",
    ),
    "a stale nonce": Case(
        Faults(nonce="stale"), QemuError, OURS, "Another host than ours answers",
    ),
    "two nonces": Case(
        Faults(nonce="twice"), QemuError, OURS, "Another host than ours answers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEVER_UP)
def test_what_keeps_a_machine_from_coming_up(machine: Boot, run_directory: Path, name: str) -> None:
    case = NEVER_UP[name]
    started = time.monotonic()
    with (
        pytest.raises(case.error, match=case.says) as caught,
        machine(case.faults, case.seconds),
    ):
        pytest.fail("it came up")
    assert type(caught.value) is case.error
    assert caught.value.exit_code == case.code
    assert not [c for c in str(caught.value) if ord(c) < 32 and c != "\n"]
    assert time.monotonic() - started < case.seconds + 10
    assert users_of(run_directory) == []


# Machines that go wrong later.


@dataclasses.dataclass(frozen=True)
class Later:
    """A command after which a machine that is up is wrong, and what the next look at it says."""

    command: list[str]
    error: type[HarnessError]
    code: ExitCode
    says: str


WARNING = "say '<4>WARNING: CPU: 0 PID: 1 at mm/rmap.c:1 on_purpose+0x1/0x2'"
LATER = {
    "sshd dies in mid-command": Later(
        ["drop"], HostLostError, OURS, "SSH connection was lost while drop ran",
    ),
    "a command never ends": Later(["sleep"], DeadlineError, OURS, "sleep in the host"),
    "QEMU SIGSEGV": Later(["signal", "11"], QemuError, OURS, "killed by signal 11"),
    "QEMU SIGKILL": Later(["signal", "9"], QemuError, OURS, "killed by signal 9"),
    "QEMU SIGTERM": Later(["signal", "15"], QemuError, OURS, "killed by signal 15"),
    "QEMU SIGSTOP": Later(["signal", "19"], DeadlineError, OURS, "signal in the host"),
}  # fmt: skip


@pytest.mark.parametrize("name", LATER)
def test_what_happens_to_a_machine_that_was_up(
    machine: Boot, run_directory: Path, name: str
) -> None:
    case = LATER[name]
    with machine(Faults()) as host:
        host.check()
        with pytest.raises(case.error, match=case.says) as caught:
            host.run(case.command, soon(3))
        assert type(caught.value) is case.error
        assert caught.value.exit_code == case.code
    assert users_of(run_directory) == []


def test_a_report_after_all_went_well_is_still_the_kernels(machine: Boot) -> None:
    with machine(Faults()) as host:
        host.run(["true"], soon())
        host.check()
        host.run(["say", "<4>WARNING: CPU: 0 PID: 1 at mm/rmap.c:1 on_purpose+0x1/0x2"], soon())
        with pytest.raises(KernelSplat, match="on_purpose") as caught:
            soon().poll(lambda: host.check())
        assert caught.value.exit_code == ExitCode.FAIL


def test_a_machine_that_stood_still_for_a_while_goes_on(machine: Boot) -> None:
    with machine(Faults()) as host:
        os.kill(host.qemu.pid, signal.SIGSTOP)
        threading.Timer(1.5, os.kill, [host.qemu.pid, signal.SIGCONT]).start()
        started = time.monotonic()
        assert host.run(["true"], soon()).status == 0
        assert time.monotonic() - started > 1
        host.check()


# Floods.


def memory() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_flood_on_the_console_is_bounded_in_memory_and_on_disk(
    machine: Boot, tmp_path: Path
) -> None:
    before = memory()
    with machine(Faults(flood_mib=100, notes=20_000), 120) as host:
        kept = host.log.text().encode()
        assert len(host.facts.notes) <= 200
    assert b"bytes are not kept" in kept
    assert len(kept) <= 9 * MIB
    assert ResultsDirectory(tmp_path).keep("console.log", kept).stat().st_size <= 9 * MIB
    assert memory() - before < 150 * MIB


def test_a_flood_of_events_is_bounded_and_does_not_hide_answers(
    machine: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.machine.qmp._MOST_EVENTS", 5_000)
    with machine(Faults(qmp="floods"), 120) as host:
        assert host.qmp.execute("query-kvm", soon())["enabled"] is False
        assert len(host.qmp.events()) == 5_000
        record = host._paths.directory / "qmp.log"
        assert record.stat().st_size <= 2 * MIB


# The wall clock.


@pytest.mark.parametrize("days", [1, -1])
def test_a_wall_clock_that_is_set_changes_nothing(
    machine: Boot, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    real = time.time
    with machine(Faults()) as host:
        monkeypatch.setattr(time, "time", lambda: real() + days * 86_400)
        assert host.run(["true"], soon()).status == 0
        started = time.monotonic()
        with pytest.raises(DeadlineError, match=r"took longer than 0\.5 s"):
            host.run(["sleep"], soon(0.5))
        assert 0.4 < time.monotonic() - started < 10
        assert host.run(["true"], soon()).status == 0


def test_several_machines_at_once_have_ports_and_sockets_of_their_own(
    machine: Boot, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def host(number: int, found: dict[int, Any]) -> None:
        base = run_directory / str(number)
        base.mkdir()
        (base / "root.img").write_bytes(bytes(MIB))
        spec = HostSpec(base, base / "root.img", Accelerator("tcg", ""), memory_mib=64, swap_mib=1)
        kernel = Kernel(base, "9.9.9-fake", "", "")
        with boot(spec, base, kernel, Silent(), seconds=120) as one:
            found[number] = (one.nonce, one.run(["true"], soon(60)).status)

    for name, value in install(run_directory / "bin", Faults()).items():
        monkeypatch.setenv(name, value)
    found: dict[int, Any] = {}
    threads = [threading.Thread(target=host, args=(number, found)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({nonce for nonce, _ in found.values()}) == 10
    assert {status for _, status in found.values()} == {0}


# A busy machine.


@contextlib.contextmanager
def busy(times: int) -> Iterator[None]:
    """Have so many times more processes run than there are CPUs."""
    count = times * (os.cpu_count() or 1)
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def test_a_boot_on_a_busy_machine_gets_more_time(
    machine: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.machine.boot.BOOT_SECONDS", 4.0)
    # A host that is up only after the time that is enough where nothing else runs.
    with busy(5), machine(Faults(delay=5), None) as host:
        assert host.facts.boot_seconds > 4
        assert host.facts.pace > 1


def test_the_same_boot_fails_where_nothing_else_runs(
    machine: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.machine.boot.BOOT_SECONDS", 4.0)
    monkeypatch.setattr("harness.machine.boot.slowness", lambda: 1.0)
    with (
        pytest.raises(BootError, match="took longer than 4 s"),
        machine(Faults(delay=60), None),
    ):
        pytest.fail("it came up")
