# SPDX-License-Identifier: GPL-2.0-only
"""What a host makes of its kernel's log: the kernel's failure, or the emulator's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import EmulationError, ExitCode, HostLostError, KernelSplat
from harness.machine.console import ConsoleLog
from harness.machine.host import HostFacts
from harness.machine.mmu import Mmu
from harness.machine.qemu_host import QemuHost

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
