# SPDX-License-Identifier: GPL-2.0-only
"""What a host makes of its kernel's log: the kernel's failure, or the emulator's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import DeadlineError, EmulationError, ExitCode, HostLostError, KernelSplat
from harness.machine.console import ConsoleLog
from harness.machine.host import HostFacts
from harness.machine.mmu import Mmu
from harness.machine.qemu_host import HostChannel, QemuHost

LOGS = Path(__file__).parent / "logs"
STALE = (LOGS / "stale-code-tcg-6.12.txt").read_bytes()
WARNING = (LOGS / "warning-boot-6.12.txt").read_bytes()


def host(accelerator: str) -> QemuHost:
    facts = HostFacts(
        release="6.12.117",
        accelerator=accelerator,
        accelerator_reason="",
        qemu_version="7.2.22",
        mmu=Mmu.TDP,
        vendor="AuthenticAMD",
        parameters={},
        boot_seconds=2.5,
        pace=1.0,
        argv=("qemu",),
    )
    qemu: Any = SimpleNamespace(console=ConsoleLog(), ended=False)
    ssh: Any = SimpleNamespace(alive=False)
    nothing: Any = None
    return QemuHost(qemu, nothing, ssh, nothing, nothing, facts, "nonce")


def told(host: QemuHost, printed: bytes) -> type[BaseException]:
    host.log.append(printed)
    with pytest.raises((KernelSplat, EmulationError, HostLostError)) as error:
        host.check()
    return error.type


def test_stale_code_under_emulation_is_no_failure_of_the_kernel() -> None:
    emulated = host("tcg")
    emulated.log.append(STALE)
    with pytest.raises(EmulationError, match=r"QEMU 7\.2\.22 ran code") as error:
        emulated.check()
    assert error.value.exit_code is ExitCode.INFRASTRUCTURE
    assert "int3" in str(error.value)


def test_what_comes_after_stale_code_is_no_failure_of_the_kernel_either() -> None:
    emulated = host("tcg")
    lines = STALE.splitlines(keepends=True)
    panic = next(number for number, line in enumerate(lines) if b"Kernel panic" in line)
    assert told(emulated, b"".join(lines[:panic])) is EmulationError
    assert told(emulated, b"".join(lines[panic:])) is EmulationError


def test_what_came_before_it_is() -> None:
    emulated = host("tcg")
    assert told(emulated, WARNING + STALE) is KernelSplat
    assert told(emulated, WARNING) is EmulationError
    assert told(host("tcg"), WARNING) is KernelSplat


def test_a_real_machine_runs_no_stale_code() -> None:
    assert told(host("kvm"), STALE) is KernelSplat


def test_a_log_without_reports_leaves_what_else_happened() -> None:
    assert told(host("tcg"), b"[    9.0] all is well\n") is HostLostError


# Conversations.


class Mute:
    """A channel on which only what was put there comes; ``meanwhile`` happens at each wait."""

    def __init__(self, *lines: bytes, meanwhile: Callable[[int], object] = lambda _: None) -> None:
        self.lines = list(lines)
        self.waits: list[float] = []
        self._meanwhile = meanwhile

    def receive_line(self, deadline: Deadline) -> bytes:
        self.waits.append(deadline.seconds)
        self._meanwhile(len(self.waits))
        if not self.lines:
            raise deadline.error()
        return self.lines.pop(0)


class Clock:
    """Stands for the module ``time`` in harness.deadline: each look at it takes a second."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.deadline.time", Clock())


def channel(host: QemuHost, mute: Mute) -> HostChannel:
    mute_: Any = mute
    return HostChannel(host, mute_)


def test_an_answer_is_passed_on() -> None:
    assert channel(host("kvm"), Mute(b"one")).receive_line(soon()) == b"one"


@pytest.mark.usefixtures("clock")
def test_an_answer_that_takes_long_is_waited_for() -> None:
    mute = Mute()
    mute._meanwhile = lambda wait: mute.lines.append(b"late") if wait == 4 else None
    assert channel(host("kvm"), mute).receive_line(soon(500.0)) == b"late"


@pytest.mark.usefixtures("clock")
def test_no_answer_is_told_with_the_time_that_was_given() -> None:
    with pytest.raises(DeadlineError, match="took longer than 30 s") as caught:
        channel(host("kvm"), Mute()).receive_line(soon(30.0))
    assert "Nothing more came" in str(caught.value)


@pytest.mark.usefixtures("clock")
def test_a_kernel_that_complained_is_not_waited_for_as_long() -> None:
    real = host("kvm")
    mute = Mute(meanwhile=lambda wait: real.log.append(WARNING) if wait == 2 else None)
    with pytest.raises(KernelSplat):
        channel(real, mute).receive_line(soon(10_000.0))
    assert len(mute.waits) == 3
    assert mute.waits[-1] == 10.0


@pytest.mark.usefixtures("clock")
def test_a_kernel_that_complained_may_still_answer() -> None:
    real = host("kvm")
    mute = Mute()

    def meanwhile(wait: int) -> None:
        if wait == 1:
            real.log.append(WARNING)
        else:
            mute.lines.append(b"after all")

    mute._meanwhile = meanwhile
    assert channel(real, mute).receive_line(soon(10_000.0)) == b"after all"


def soon(seconds: float = 30.0) -> Deadline:
    return Deadline.after(seconds, "An answer")
