# SPDX-License-Identifier: GPL-2.0-only
"""What can go wrong, and the exit code that says so.

The tree separates what a kernel did from what happened to us, because a verdict must never
mix the two::

    HarnessError                    203  a bug in the harness, unless a subclass says otherwise
    ├── Violation                     1  the kernel broke a guarantee (also an AssertionError)
    │   └── KernelSplat               1  the kernel complained in its own log
    ├── KernelUntestableError       125  this kernel cannot be tested
    │   ├── ImageError                   not a bootable x86-64 bzImage
    │   ├── SourceError                  no such source, or not a kernel tree
    │   ├── PatchError                   a patch does not apply
    │   ├── KconfigError                 the configuration cannot be had
    │   ├── BuildError                   make failed
    │   └── BootError                    built, but did not come up
    ├── InfrastructureError         200  our machine, network or tools failed
    │   ├── CommandError                 a program we ran failed
    │   ├── DeadlineError                something took longer than it may
    │   ├── StoreError                   the cache cannot be read or written
    │   ├── QemuError                    QEMU did not start, or died
    │   ├── EmulationError               QEMU ran something else than the kernel's code
    │   │   └── GuestEmulationError      it broke a Linux guest, and its host is well
    │   ├── QmpError                     QEMU did not answer as QMP promises
    │   ├── HostLostError                the connection to the host is gone
    │   ├── ProbeError                   the probe inside the host broke its protocol
    │   └── LinuxGuestError              a Linux guest did not come up, died, or went silent
    ├── OracleUnavailable             -  this kernel or host cannot be asked; never a pass
    ├── UsageError                  201  bad input from the user
    ├── MachineUnfitError           202  this machine cannot run the harness
    └── Interrupted             130, 143  SIGINT or SIGTERM

Every message is a sentence for a person: what happened, where, and what to do.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Sequence

KERNEL_LOG = "kernel log"
"""The oracle that says whether the kernel complained. That it did not is no evidence that anything
was tested, so its agreement alone makes no pass."""


class ExitCode(enum.IntEnum):
    """The exit codes of every door, chosen so that ``git bisect run`` reads them rightly."""

    PASS = 0
    FAIL = 1
    UNTESTABLE = 125
    INTERRUPTED = 130
    TERMINATED = 143
    INFRASTRUCTURE = 200
    USAGE = 201
    UNFIT = 202
    BUG = 203


class HarnessError(Exception):
    """The root of the tree; raised itself only for a bug in the harness."""

    exit_code = ExitCode.BUG


class Violation(HarnessError, AssertionError):
    """The kernel broke a guarantee; the only kind of error that makes a test *fail*.

    ``oracle`` names who noticed, ``expected`` and ``seen`` are short texts, and ``page`` is the
    index of the first guest page concerned, or None where no single page is.
    """

    exit_code = ExitCode.FAIL

    def __init__(self, oracle: str, expected: str, seen: str, page: int | None = None) -> None:
        self.oracle = oracle
        self.expected = expected
        self.seen = seen
        self.page = page
        where = "" if page is None else f" on guest page {page}"
        super().__init__(f"{oracle}{where}: expected {expected}; seen: {seen}")


class KernelSplat(Violation):
    """The kernel under test reported a fault of its own (panic, oops, WARN, lockdep, KASAN...)."""

    def __init__(self, kind: str, excerpt: str) -> None:
        self.kind = kind
        self.excerpt = excerpt
        super().__init__(KERNEL_LOG, "no complaint of the kernel", f"{kind}: {excerpt}")


class KernelUntestableError(HarnessError):
    """This kernel cannot be tested, for a reason that lies in the kernel or its input."""

    exit_code = ExitCode.UNTESTABLE


class ImageError(KernelUntestableError):
    """The file is not a complete x86-64 bzImage."""


class SourceError(KernelUntestableError):
    """The kernel source cannot be found, or is not a kernel source."""


class PatchError(KernelUntestableError):
    """A patch does not apply; the message names the hunks."""


class KconfigError(KernelUntestableError):
    """A requested symbol does not exist or was dropped; the message says by which dependency."""


class BuildError(KernelUntestableError):
    """The build failed; the message carries the first error and the path of the log."""


class BootError(KernelUntestableError):
    """The kernel did not come up, or lacks what the tests stand on; carries the end of its log."""


class InfrastructureError(HarnessError):
    """Our machine, network or tools failed: never a pass, a fail or a skip."""

    exit_code = ExitCode.INFRASTRUCTURE


class CommandError(InfrastructureError):
    """A program that we ran failed; carries its argv, exit status and the end of its output."""

    def __init__(self, argv: Sequence[str], status: int, output: str, hint: str = "") -> None:
        self.argv = tuple(argv)
        self.status = status
        self.output = output
        how = f"was killed by {_signal_name(-status)}" if status < 0 else f"exited with {status}"
        last = output.strip().splitlines()[-8:]
        text = f"{argv[0]} {how}."
        if last:
            text += " It said:\n  " + "\n  ".join(last)
        if hint:
            text += f"\n{hint}"
        super().__init__(text)


class DeadlineError(InfrastructureError):
    """Something took longer than it may."""


class StoreError(InfrastructureError):
    """The cache directory cannot be read or written."""


class QemuError(InfrastructureError):
    """QEMU did not start, or died although nobody asked it to."""


class EmulationError(InfrastructureError):
    """The emulator executed something else than the code of the kernel under test."""


class GuestEmulationError(EmulationError):
    """The emulator broke a Linux guest; its host is well."""


class QmpError(InfrastructureError):
    """QEMU did not answer, or answered with an error."""


class HostLostError(InfrastructureError):
    """The connection to the host under test is gone."""


class ProbeError(InfrastructureError):
    """The probe inside the host broke its protocol, or failed outside the kernel's doing."""


class LinuxGuestError(InfrastructureError):
    """A Linux guest on the host did not come up, its QEMU died, or it cannot be reached."""


class OracleUnavailable(HarnessError):
    """An oracle cannot be consulted on this kernel or host; the message says what it lacks.

    The suite catches it and lists the oracle as not consulted. Where a scenario has no other
    oracle for its claim, the scenario is skipped with this reason.
    """


class UsageError(HarnessError):
    """Bad input from the user."""

    exit_code = ExitCode.USAGE


class MachineUnfitError(HarnessError):
    """This machine cannot run the harness; the message says what is missing."""

    exit_code = ExitCode.UNFIT


class Interrupted(HarnessError):
    """The user, or the system, asked us to stop."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        # A closed terminal (SIGHUP) ends us as SIGTERM does; 129 has no meaning of its own.
        interrupted = signum == signal.SIGINT
        self.exit_code = ExitCode.INTERRUPTED if interrupted else ExitCode.TERMINATED
        super().__init__(f"Interrupted by {_signal_name(signum)}.")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
