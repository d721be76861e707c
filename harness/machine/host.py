# SPDX-License-Identifier: GPL-2.0-only
"""What a test holds: a machine that runs the kernel under test.

Nothing above this room knows that a host is QEMU; a real machine over SSH can be another
implementation of ``Host``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from harness.command import Completed
from harness.deadline import Deadline
from harness.machine.console import ConsoleLog
from harness.machine.mmu import Mmu
from harness.machine.splat import Splat

if TYPE_CHECKING:
    import drgn

    from harness.machine.ssh import RunKeys


@dataclasses.dataclass(frozen=True)
class HostFacts:
    """What is known of a host once it is up.

    ``release`` is uname -r as seen inside, ``parameters`` what /sys/module says of KVM's
    parameters (as in ``kvm_amd.npt``), ``boot_seconds`` the time from the start of QEMU to the
    first answer, ``pace`` a factor of at least 1 by which this machine is slower than the one on
    which deadlines were chosen, ``boot_reports`` the kernel's complaints during the boot, and
    ``notes`` what the host's init could not set up (a sysctl or cgroup controller that this
    kernel lacks).
    """

    release: str
    accelerator: str
    accelerator_reason: str
    qemu_version: str
    mmu: Mmu
    vendor: str
    parameters: dict[str, str]
    boot_seconds: float
    pace: float
    argv: tuple[str, ...]
    boot_reports: tuple[Splat, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def emulated(self) -> bool:
        """Whether the host's CPUs are emulated, and not the machine's own."""
        return self.accelerator == "tcg"


Stillness = Callable[[], AbstractContextManager[None]]
"""Makes a context in which what runs on a host stands still."""


class Channel(Protocol):
    """A long-lived process in a host; a context manager that closes it."""

    def send(self, data: bytes) -> None:
        """Send bytes to its standard input."""

    def receive_line(self, deadline: Deadline) -> bytes:
        """The next line of its standard output, without the newline."""

    @property
    def stderr_tail(self) -> str:
        """The end of its standard error."""

    def close(self) -> None:
        """Close it; the process sees the end of its input."""

    def __enter__(self) -> Channel: ...

    def __exit__(self, *error: object) -> None: ...


class Process(Channel, Protocol):
    """A channel whose process has an exit status."""

    def status(self, deadline: Deadline) -> int:
        """Its exit status once it has ended; a negative one when the connection broke."""

    def __enter__(self) -> Process: ...


class Shell(Protocol):
    """Runs commands in a guest of a host, over a connection inside that to the host."""

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, as far as we know."""

    def run(self, argv: Sequence[str], deadline: Deadline, stdin: bytes | None = None) -> Completed:
        """Run a command to its end, whatever its status."""

    def close(self) -> None:
        """Close the connection."""


class Host(Protocol):
    """A running host. Each method may raise KernelSplat, QemuError or HostLostError.

    A report of the kernel in its log beats everything else: a connection that is lost because
    the kernel crashed is the kernel's failure, not ours.
    """

    @property
    def facts(self) -> HostFacts:
        """What is known of the host."""

    @property
    def nonce(self) -> str:
        """The word that this run gave to this host, and that it answered with."""

    @property
    def log(self) -> ConsoleLog:
        """All that the host's kernel printed."""

    @property
    def directory(self) -> Path:
        """Where on L0 files are left whose names end in .log, to be kept with the host's logs."""

    def run(
        self,
        argv: Sequence[str],
        deadline: Deadline,
        *,
        stdin: bytes | None = None,
        check: bool = True,
    ) -> Completed:
        """Run a command to its end; CommandError when ``check`` is set and it fails."""

    def channel(self, argv: Sequence[str], deadline: Deadline | None = None) -> Channel:
        """Start a process and keep talking to it."""

    def background(self, argv: Sequence[str], deadline: Deadline) -> Process:
        """Start a process that other threads talk to.

        What goes wrong with it is raised as it is: only whoever asks ``check`` hears the host's
        log, and so nobody hears it twice.
        """

    def through(self, port: int, keys: RunKeys, deadline: Deadline) -> Shell:
        """Commands in a guest whose SSH server answers on a port of the host's loopback."""

    def put(self, path: str, data: bytes, deadline: Deadline, *, mode: int = 0o644) -> None:
        """Write a file, which appears complete or not at all."""

    def debugger(self) -> drgn.Program:
        """A drgn program that reads the host's memory from outside; OracleUnavailable if not."""

    def write_physical(self, address: int, data: bytes) -> None:
        """Write to the host's memory from outside; OracleUnavailable if that cannot be done."""

    def dump(self, path: Path, deadline: Deadline) -> None:
        """Write the host's memory to a file on L0, compressed, as crash and drgn read it."""

    def paused(self) -> AbstractContextManager[None]:
        """The host's CPUs stand still: its memory can be read as one picture."""

    def pausing_inside(self, still: Stillness) -> AbstractContextManager[None]:
        """While the context is open, the host's CPUs are stopped inside of ``still`` only."""

    def check(self) -> None:
        """Raise what happened to the host since the last check, if anything did."""
