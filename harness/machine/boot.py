# SPDX-License-Identifier: GPL-2.0-only
"""From a description of a host to a host that answers."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from harness.command import require
from harness.deadline import Deadline
from harness.errors import (
    BootError,
    DeadlineError,
    HarnessError,
    HostLostError,
    QemuError,
    QmpError,
)
from harness.image import layout
from harness.image.disk import make_overlay, write_seed, write_swap
from harness.kernel.model import Kernel
from harness.machine.host import HostFacts
from harness.machine.pace import slowness
from harness.machine.qemu import Qemu, running
from harness.machine.qemu_host import QemuHost
from harness.machine.qmp import Qmp, connected
from harness.machine.spec import HostSpec, RunPaths, argv
from harness.machine.splat import visible
from harness.machine.ssh import RunKeys, Ssh
from harness.progress import Progress

BOOT_SECONDS = 120.0
"""How long a host may take to come up where nothing else runs. An emulated one takes 4 s on the
reference machine, a distribution's kernel 10 s, one with KASAN and lockdep a minute."""

_REFERENCE_SECONDS = 4.0
"""The boot time at which ``pace`` is 1: two cores of 2.6 GHz, TCG, the project's own config."""

_MONITOR_SECONDS = 20.0
_END_SECONDS = 2.0
"""How long QEMU may take to end once it stopped answering, and its console to be read."""

_MOST_NOTES = 200
_MOST_SHOWN = 10
"""Lines that a host's init may say besides its milestones, and how many of them are shown."""

_LAST_LINES = 12
_LAST_CHARACTERS = 4000

_NETWORK = f"{layout.MARK}: network"
_LISTENING = f"{layout.MARK}: listening"
_READY = f"{layout.MARK}: ready "
_FAILED = f"{layout.MARK}: boot failed: "
_MILESTONES = (_NETWORK, _LISTENING, _READY)


@contextlib.contextmanager
def boot(
    spec: HostSpec,
    run: Path,
    kernel: Kernel,
    progress: Progress,
    *,
    seconds: float | None = None,
) -> Iterator[QemuHost]:
    """A host that is up, until the context is left.

    ``run`` is a private directory with a short path, of this host alone; what is in it afterwards
    (the QMP traffic in qmp.log) is evidence. It may take ``seconds``, by default as many as a boot
    is worth on a machine as busy as this one is. Raises BootError when the kernel does not come up,
    has no KVM, or does not take the MMU mode; QemuError when QEMU itself fails.
    """
    paths = RunPaths(run)
    nonce = secrets.token_hex(16)
    keys = RunKeys.generate()
    with progress.phase(f"boot {kernel.release} ({spec.mmu})"), contextlib.ExitStack() as stack:
        _make_disks(spec, paths, keys, nonce)
        words = argv(spec, paths, require("qemu-system-x86_64", "qemu-system-x86"))
        if seconds is None:
            # The pace is known when a host is up; until then it is guessed from work of our own.
            seconds = BOOT_SECONDS * slowness()
        started = time.monotonic()
        deadline = Deadline.after(seconds, f"The boot of the kernel {kernel.release}")
        qemu = stack.enter_context(running(words))
        machine = _Machine(qemu, kernel, deadline)
        qmp, port = machine.monitor(stack, spec, paths)
        ssh, answers = machine.come_up(stack, port, keys)
        facts = _facts(spec, qmp, machine, words, answers, time.monotonic() - started)
        if answers.get("nonce") != nonce:
            raise QemuError("Another host than ours answers: it does not know this run's nonce.")
        spec.mmu.check(facts.parameters)
        for note in facts.notes[:_MOST_SHOWN]:
            progress.note(f"The host says: {note}.")
        for splat in facts.boot_reports[:_MOST_SHOWN]:
            progress.note(f"The kernel complained during its boot: {splat.line}")
        entered = stack.pop_all()
    with entered:
        yield QemuHost(qemu, qmp, ssh, kernel, paths, facts, nonce)


def _make_disks(spec: HostSpec, paths: RunPaths, keys: RunKeys, nonce: str) -> None:
    make_overlay(paths.overlay, spec.root)
    sysctl = "".join(f"{name.replace('.', '/')} {value}\n" for name, value in spec.sysctl)
    files = {
        "nonce": f"{nonce}\n".encode(),
        "ssh_host_ed25519_key": keys.host_private,
        "authorized_keys": keys.authorized,
        "sysctl": sysctl.encode(),
        "cpus": f"{spec.cpus_in_use}\n".encode(),
    }
    write_seed(paths.seed, files)
    if spec.swap_mib > 0:
        write_swap(paths.swap, spec.swap_mib)


class _Machine:
    """A QEMU on its way up. What stops it is told apart: the kernel's doing, or ours."""

    def __init__(self, qemu: Qemu, kernel: Kernel, deadline: Deadline) -> None:
        self.qemu = qemu
        self._kernel = kernel
        self._deadline = deadline
        self._lines = qemu.console.follow(deadline)
        self._seen: list[str] = []

    def monitor(
        self, stack: contextlib.ExitStack, spec: HostSpec, paths: RunPaths
    ) -> tuple[Qmp, int]:
        """A QMP connection, and the port of L0's loopback that leads to the host's SSH."""
        deadline = self._deadline.within(_MONITOR_SECONDS)
        record = paths.directory / "qmp.log"
        try:
            qmp = stack.enter_context(connected(paths.qmp, record, deadline, self._alive))
            _confirm_accelerator(qmp, spec, deadline)
            return qmp, forwarded_port(qmp, deadline)
        except (QmpError, DeadlineError) as error:
            if self.qemu.wait(Deadline.after(_END_SECONDS, "the end of QEMU")):
                raise self._gone() from error
            raise QemuError(f"QEMU cannot be controlled: {error}") from error

    def come_up(
        self, stack: contextlib.ExitStack, port: int, keys: RunKeys
    ) -> tuple[Ssh, dict[str, str]]:
        """An SSH connection, and what the host's init found out as name -> value."""
        try:
            self._reach(_NETWORK)
            self._reach(_LISTENING)
            # The rest of the host's init goes on while keys are exchanged.
            ssh = Ssh.connect(port, keys, self._deadline)
            stack.callback(ssh.close)
            self._reach(_READY)
            return ssh, _ask(ssh, self._deadline)
        except (HostLostError, DeadlineError) as error:
            if self.qemu.wait(Deadline.after(_END_SECONDS, "the end of QEMU")):
                raise self._gone() from error
            raise self._failed(str(error)) from error

    @property
    def notes(self) -> tuple[str, ...]:
        """What the host's init said besides that it got on: settings that were not taken."""
        lines = (line for line in self._seen if not line.startswith(_MILESTONES))
        return tuple(visible(line.removeprefix(f"{layout.MARK}: ")) for line in lines)

    def _reach(self, word: str) -> None:
        """Follow the console until a line has begun with ``word``; they come in any order."""
        while not self._has(word):
            line = next(self._lines, None)
            if line is None:
                raise self._gone()
            if line.startswith(_FAILED):
                raise self._failed(visible(line.removeprefix(_FAILED)))
            first = any(line.startswith(one) and not self._has(one) for one in _MILESTONES)
            if first or (line.startswith(layout.MARK) and len(self._seen) < _MOST_NOTES):
                self._seen.append(line)

    def _has(self, word: str) -> bool:
        return any(line.startswith(word) for line in self._seen)

    def _alive(self) -> None:
        if self.qemu.ended:
            raise self._gone()

    def _gone(self) -> HarnessError:
        """Why QEMU ended: the kernel's doing, or not."""
        self.qemu.wait(Deadline.after(_END_SECONDS, "the end of QEMU"))
        panics = [splat for splat in self.qemu.console.splats() if splat.kind == "panic"]
        if panics:
            return self._failed(panics[-1].line)
        if self.qemu.switched_off:
            return self._failed("it switched the machine off, or reset it without a word")
        return self.qemu.error()

    def _failed(self, reason: str) -> BootError:
        tail = visible(self.qemu.console.tail(_LAST_LINES)[-_LAST_CHARACTERS:])
        log = tail.replace("\n", "\n  ") if tail else "(nothing)"
        return BootError(
            f"The kernel {self._kernel.release} did not come up: {reason.rstrip('.')}. "
            f"The end of its log:\n  {log}"
        )


def _confirm_accelerator(qmp: Qmp, spec: HostSpec, deadline: Deadline) -> None:
    enabled = bool(qmp.execute("query-kvm", deadline)["enabled"])
    if enabled != (spec.accelerator.name == "kvm"):
        raise QemuError(
            f"QEMU was told to use {spec.accelerator.name}, but says that KVM is "
            f"{'on' if enabled else 'off'}."
        )


def forwarded_port(qmp: Qmp, deadline: Deadline) -> int:
    """The port that QEMU forwards; its kernel chose it, and QMP itself does not tell it."""
    for line in qmp.human("info usernet", deadline).splitlines():
        fields = line.split()
        if fields and fields[0] == "TCP[HOST_FORWARD]":
            return int(fields[3])
    raise QemuError("QEMU forwards no port to the SSH server of its machine.")


def _ask(ssh: Ssh, deadline: Deadline) -> dict[str, str]:
    completed = ssh.run(["cat", f"{layout.RUN_DIRECTORY}/facts"], deadline).checked()
    answers: dict[str, str] = {}
    for line in completed.stdout.splitlines():
        name, _, value = line.partition("=")
        # What is said twice and differently is known to nobody, a nonce least of all.
        agrees = answers.setdefault(name, value) == value
        answers[name] = value if agrees else f"{answers[name]} or {value}"
    return answers


def _facts(
    spec: HostSpec,
    qmp: Qmp,
    machine: _Machine,
    words: tuple[str, ...],
    answers: dict[str, str],
    seconds: float,
) -> HostFacts:
    return HostFacts(
        release=answers.get("release", ""),
        accelerator=spec.accelerator.name,
        accelerator_reason=spec.accelerator.reason,
        qemu_version=qmp.version,
        mmu=spec.mmu,
        vendor=answers.get("vendor", ""),
        parameters={name: value for name, value in answers.items() if "." in name},
        boot_seconds=seconds,
        pace=max(1.0, seconds / _REFERENCE_SECONDS),
        argv=words,
        boot_reports=machine.qemu.console.splats(),
        notes=machine.notes,
    )
