# SPDX-License-Identifier: GPL-2.0-only
"""What the end of a Linux guest's QEMU means, when nobody of us has ended it."""

from __future__ import annotations

import contextlib

from harness.deadline import Deadline
from harness.errors import GuestEmulationError, HarnessError, LinuxGuestError, Violation
from harness.machine.host import Host, HostFacts, Process
from harness.machine.qmp import Qmp
from harness.machine.splat import Splat, visible

_SECONDS = 30.0
_KILLED = 128 + 9

_GIVEN_TWICE = "ENTRY_TRAMPOLINE stack guard page was hit"
"""What a kernel of x86 says that is interrupted at the first instruction of an interrupt's entry:
it takes itself to have been in the kernel, and goes on with the user's GS."""


def explained(name: str, host: Host, process: Process, qmp: Qmp, pid: int) -> HarnessError:
    """Whose doing it is that the QEMU of guest ``name`` is gone, or not in reach.

    That a stock guest resets itself without a word, as after a triple fault, is the doing of the
    host's kernel, unless the host's CPUs are emulated, where it happens to hosts as well: see
    docs/emulation.md. Anything else is infrastructure.
    """
    if _was_reset(qmp):
        return _reset(name, host.facts)
    with contextlib.suppress(HarnessError):
        if _exists(name, host, pid):
            return LinuxGuestError(f"The connection to the QEMU of {name} was cut.")
        status = process.status(_soon(host, f"The end of {name}"))
        how = f"ended with status {status}"
        # SSH tells no status of a process that a signal ended, and a shell above it 128 and 9.
        if status < 0 or status == _KILLED:
            how = "was killed, as by the OOM killer when its cgroup or the host is too small"
        words = visible(process.stderr_tail.strip())
        said = f" It said:\n{words}" if words else ""
        return LinuxGuestError(f"QEMU of {name} {how}.{said}")
    return LinuxGuestError(f"QEMU of {name} does not answer, nor does its host.")


def complained(name: str, splat: Splat, facts: HostFacts) -> HarnessError:
    """Whose doing it is that the kernel of guest ``name`` reports something."""
    if facts.emulated and _GIVEN_TWICE in splat.line:
        return GuestEmulationError(
            f"QEMU's emulation gave {name} an interrupt twice (this is {facts.qemu_version}; see "
            f"docs/emulation.md), and its kernel says: {splat.line}"
        )
    return Violation("guest", "no complaint of the guest's kernel", splat.excerpt)


def _was_reset(qmp: Qmp) -> bool:
    """Whether it was the guest that ended QEMU, by a reset."""
    ends = [event["data"] for event in qmp.events() if event["event"] == "SHUTDOWN"]
    return any(end.get("guest") and end.get("reason") == "guest-reset" for end in ends)


def _reset(name: str, facts: HostFacts) -> HarnessError:
    if facts.emulated:
        return GuestEmulationError(
            f"{name} reset itself without a word. Under QEMU's emulation that happens now and "
            f"then (this is {facts.qemu_version}), so it says nothing about the kernel; use a "
            "machine with nested KVM."
        )
    return Violation(
        "guest", f"{name} to go on", "it reset itself without a word, as after a triple fault"
    )


def _exists(name: str, host: Host, pid: int) -> bool:
    """Whether there is QEMU's process in the host, and it is not just waiting to be reaped."""
    script = 'read -r _ _ state _ <"/proc/$1/stat" && [ "$state" != Z ]'
    deadline = _soon(host, f"Looking for {name}")
    return host.run(["sh", "-c", script, "sh", str(pid)], deadline, check=False).status == 0


def _soon(host: Host, what: str) -> Deadline:
    return Deadline.after(_SECONDS * host.facts.pace, what)
