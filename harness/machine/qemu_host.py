# SPDX-License-Identifier: GPL-2.0-only
"""A host that is a QEMU machine."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.command import Completed
from harness.deadline import Deadline
from harness.errors import (
    DeadlineError,
    EmulationError,
    HarnessError,
    HostLostError,
    KernelSplat,
)
from harness.kernel.model import Kernel
from harness.machine import debugger
from harness.machine.console import ConsoleLog
from harness.machine.dump import name_kernel
from harness.machine.gdbstub import attached
from harness.machine.host import HostFacts, Stillness
from harness.machine.qemu import Qemu
from harness.machine.qmp import Qmp
from harness.machine.spec import RunPaths
from harness.machine.splat import Splat, before_emulation_failed
from harness.machine.ssh import RunKeys, Ssh, SshChannel

if TYPE_CHECKING:
    import drgn

_START_SECONDS = 30.0
_QMP_SECONDS = 10.0
_SETTLE_SECONDS = 3.0
"""How long a crash report may take to be printed to its end."""

_CRASH_SECONDS = 2.0
"""How long after a lost connection a crash report may still begin."""

_LOOK_SECONDS = 1.0
"""How often the log is looked at while an answer is waited for."""

_LAST_WORD_SECONDS = 10.0
"""How long a fast host may take to answer once its kernel has complained."""


class QemuHost:
    """A QEMU machine that is up; made by ``harness.machine.boot``."""

    def __init__(
        self,
        qemu: Qemu,
        qmp: Qmp,
        ssh: Ssh,
        kernel: Kernel,
        paths: RunPaths,
        facts: HostFacts,
        nonce: str,
    ) -> None:
        self.facts = facts
        self.nonce = nonce
        self.qmp = qmp
        self.ssh = ssh
        self.qemu = qemu
        self._kernel = kernel
        self._paths = paths
        self._program: drgn.Program | None = None
        self._checked = qemu.console.mark()
        self._stale = False
        self._stands = False
        self._still: Stillness = contextlib.nullcontext

    @property
    def log(self) -> ConsoleLog:
        """All that the host's kernel printed."""
        return self.qemu.console

    @property
    def directory(self) -> Path:
        """Where files are left whose names end in .log, to be kept with the host's logs."""
        return self._paths.directory

    def run(
        self,
        argv: Sequence[str],
        deadline: Deadline,
        *,
        stdin: bytes | None = None,
        check: bool = True,
    ) -> Completed:
        """Run a command to its end; CommandError when ``check`` is set and it fails."""
        with self._explained():
            completed = self.ssh.run(argv, deadline, stdin)
        return completed.checked() if check else completed

    def channel(self, argv: Sequence[str], deadline: Deadline | None = None) -> HostChannel:
        """Start a process and keep talking to it."""
        deadline = deadline or Deadline.after(
            _START_SECONDS * self.facts.pace, f"Starting {argv[0]} in the host"
        )
        with self._explained():
            return HostChannel(self, self.ssh.open(argv, deadline))

    def background(self, argv: Sequence[str], deadline: Deadline) -> SshChannel:
        """Start a process that other threads talk to; its errors are not explained."""
        with self._explained():
            return self.ssh.open(argv, deadline)

    def through(self, port: int, keys: RunKeys, deadline: Deadline) -> Ssh:
        """Commands in a guest whose SSH server answers on a port of the host's loopback."""
        return self.ssh.through(port, keys, deadline)

    def put(self, path: str, data: bytes, deadline: Deadline, *, mode: int = 0o644) -> None:
        """Write a file, which appears complete or not at all."""
        partial = shlex.quote(f"{path}.partial")
        script = f"cat >{partial} && chmod {mode:o} {partial} && mv {partial} {shlex.quote(path)}"
        self.run(["/bin/sh", "-c", script], deadline, stdin=data)

    def debugger(self) -> drgn.Program:
        """A drgn program that reads the host's memory from outside; attached once."""
        if self._program is None:
            modules = ("kvm", self.facts.vendor)
            # Attaching pauses the host as well, and if that hangs, then with Python's lock held.
            with self.paused():
                self._program = debugger.attach(self._paths.debugger, self._kernel, modules)
        return self._program

    def write_physical(self, address: int, data: bytes) -> None:
        """Write to the host's memory from outside, at a physical address; it stands still then."""
        deadline = Deadline.after(_QMP_SECONDS * self.facts.pace, "Writing to the host's memory")
        stub = self._paths.stub
        if not stub.exists():
            self.qmp.human(f"gdbserver unix:{stub},server=on,wait=off", deadline)
        with attached(stub, deadline) as writer:
            writer.write_physical(address, data)

    def dump(self, path: Path, deadline: Deadline) -> None:
        """Write the host's memory to a file on L0, compressed, as crash and drgn read it."""
        wanted = {"paging": False, "protocol": f"file:{path.absolute()}", "format": "kdump-zlib"}
        with _if_possible(self._still):
            self.qmp.execute("dump-guest-memory", deadline, wanted)
        name_kernel(path, self.facts.release)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The host's CPUs stand still, or still do: its memory can be read as one picture."""
        if self._stands:
            yield
            return
        with self._still():
            self._monitor("stop", "Pausing the host")
            self._stands = True
            try:
                yield
            finally:
                self._stands = False
                self._monitor("cont", "Continuing the host")

    @contextlib.contextmanager
    def pausing_inside(self, still: Stillness) -> Iterator[None]:
        """While the context is open, the host's CPUs are stopped inside of ``still`` only."""
        self._still = still
        try:
            yield
        finally:
            self._still = contextlib.nullcontext

    def check(self) -> None:
        """Raise what happened to the host since the last check, if anything did.

        Reports that a starved machine causes as well (``Splat.timing``) are not raised.
        """
        if splat := self._report():
            raise splat
        if self.qemu.ended:
            raise self._ended()
        if not self.ssh.alive:
            raise HostLostError("The SSH connection to the host is gone.")

    def explain(self, error: HarnessError) -> HarnessError:
        """The error that tells best what happened, when ``error`` is what we noticed.

        A report in the kernel's log beats the end of QEMU, and that beats a lost connection.
        """
        waiting = Deadline.after(_CRASH_SECONDS, "a crash report")
        if isinstance(error, HostLostError) and not self.ssh.alive:
            for _ in waiting.ticks():
                if self.qemu.ended or self._new_splats():
                    break
        if splat := self._report():
            return splat
        if self.qemu.ended:
            return self._ended()
        timing = [splat.line for splat in self.log.splats(self._checked) if splat.timing]
        if timing and isinstance(error, DeadlineError):
            return DeadlineError(f"{error} The host's kernel says: {timing[-1]}")
        return error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (HostLostError, DeadlineError) as error:
            raise self.explain(error) from error

    @property
    def complained(self) -> bool:
        """Whether the host's kernel has reported something since the last check."""
        return bool(self._new_splats())

    def _new_splats(self) -> tuple[Splat, ...]:
        return tuple(splat for splat in self.log.splats(self._checked) if not splat.timing)

    def _report(self) -> HarnessError | None:
        """The kernel's reports since the last time, as one error; asking again gives none."""
        if self.qemu.ended:
            self.qemu.wait(Deadline.after(_SETTLE_SECONDS, "the end of the console"))
        position = self.log.mark()
        splats = self._new_splats()
        if splats:
            self.log.settle(Deadline.after(_SETTLE_SECONDS, "the end of a crash report"))
            position = self.log.mark()
            splats = self._new_splats()
        self._checked = position
        if not splats:
            return None
        if self.facts.emulated:
            genuine = () if self._stale else before_emulation_failed(splats)
            self._stale |= len(genuine) < len(splats)
            if not genuine:
                return self._emulation_failed(splats[0])
            splats = genuine
        more = len(splats) - 1
        note = f"\n({more} more in the host's log)" if more else ""
        return KernelSplat(splats[0].kind, splats[0].excerpt + note)

    def _emulation_failed(self, splat: Splat) -> EmulationError:
        return EmulationError(
            f"The emulation of QEMU {self.facts.qemu_version} ran code of the kernel that the "
            "kernel had changed meanwhile, so this says nothing about the kernel. QEMU 7.2 is "
            "known for it; use QEMU 10 or later, or a machine with nested KVM. The kernel's "
            f"report:\n{splat.excerpt}"
        )

    def _ended(self) -> HarnessError:
        """What the end of QEMU means: ours, unless the host switched itself off."""
        if self.qemu.switched_off:
            return HostLostError("The host switched itself off, or reset itself without a word.")
        return self.qemu.error()

    def _monitor(self, command: str, what: str) -> None:
        try:
            self.qmp.execute(command, Deadline.after(_QMP_SECONDS * self.facts.pace, what))
        except HarnessError as error:
            raise self.explain(error) from error


@contextlib.contextmanager
def _if_possible(still: Stillness) -> Iterator[None]:
    """Inside of ``still``, unless the host cannot do that any more."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(HarnessError, OSError):
            stack.enter_context(still())
        yield
        with contextlib.suppress(HarnessError, OSError):
            stack.close()


class HostChannel:
    """A long-lived process in a host; what goes wrong is explained by the host's log."""

    def __init__(self, host: QemuHost, channel: SshChannel) -> None:
        self._host = host
        self._channel = channel

    def send(self, data: bytes) -> None:
        """Send bytes to its standard input."""
        with self._explained():
            self._channel.send(data)

    def receive_line(self, deadline: Deadline) -> bytes:
        """The next line of its standard output, without the newline.

        A kernel that has complained since the last check may still answer, but is not waited for
        as long: what it crashed in may well be what should have answered.
        """
        with self._explained():
            while True:
                try:
                    return self._channel.receive_line(deadline.within(_LOOK_SECONDS))
                except DeadlineError:
                    deadline.check("Nothing more came from the host.")
                    if self._host.complained:
                        seconds = _LAST_WORD_SECONDS * self._host.facts.pace
                        return self._channel.receive_line(deadline.within(seconds))

    @property
    def stderr_tail(self) -> str:
        """The end of its standard error."""
        return self._channel.stderr_tail

    def close(self) -> None:
        """Close it; the process sees the end of its input."""
        self._channel.close()

    def __enter__(self) -> HostChannel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (HostLostError, DeadlineError) as error:
            raise self._host.explain(error) from error
