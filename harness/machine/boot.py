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
from harness.errors import BootError, DeadlineError, HarnessError, HostLostError, QemuError
from harness.image import layout
from harness.image.disk import make_overlay, write_seed, write_swap
from harness.kernel.model import Kernel
from harness.machine.host import HostFacts
from harness.machine.qemu import Qemu, running
from harness.machine.qemu_host import QemuHost
from harness.machine.qmp import Qmp, connected
from harness.machine.spec import HostSpec, RunPaths, argv
from harness.machine.splat import visible
from harness.machine.ssh import RunKeys, Ssh
from harness.progress import Progress

BOOT_SECONDS = 120.0
"""How long a host may take to come up. An emulated one takes 4 s on the reference machine, a
distribution's kernel 10 s, one with KASAN and lockdep a minute."""

_REFERENCE_SECONDS = 4.0
"""The boot time at which ``pace`` is 1: two cores of 2.6 GHz, TCG, the project's own config."""

_MONITOR_SECONDS = 20.0
_LAST_LINES = 12

_NETWORK = f"{layout.MARK}: network"
_LISTENING = f"{layout.MARK}: listening"
_READY = f"{layout.MARK}: ready "
_FAILED = f"{layout.MARK}: boot failed: "


@contextlib.contextmanager
def boot(
    spec: HostSpec,
    run: Path,
    kernel: Kernel,
    progress: Progress,
    *,
    seconds: float = BOOT_SECONDS,
) -> Iterator[QemuHost]:
    """A host that is up, until the context is left.

    ``run`` is a private directory with a short path, of this host alone; what is in it afterwards
    (the QMP traffic in qmp.log) is evidence. Raises BootError when the kernel does not come up,
    has no KVM, or does not take the MMU mode; QemuError when QEMU itself fails.
    """
    paths = RunPaths(run)
    nonce = secrets.token_hex(16)
    keys = RunKeys.generate()
    with progress.phase(f"boot {kernel.release} ({spec.mmu})"), contextlib.ExitStack() as stack:
        _make_disks(spec, paths, keys, nonce)
        qemu_program = require("qemu-system-x86_64", "qemu-system-x86")
        words = argv(spec, paths, qemu_program)
        started = time.monotonic()
        deadline = Deadline.after(seconds, f"The boot of the kernel {kernel.release}")
        qemu = stack.enter_context(running(words))
        monitor = deadline.within(_MONITOR_SECONDS)
        qmp = stack.enter_context(
            connected(paths.qmp, run / "qmp.log", monitor, qemu.require_alive)
        )
        _confirm_accelerator(qmp, spec, monitor)
        port = _forwarded_port(qmp, monitor)
        milestones = _Milestones(qemu, kernel, deadline)
        milestones.reach(_NETWORK)
        milestones.reach(_LISTENING)
        ssh = _connect(port, keys, deadline, qemu, kernel)
        stack.callback(ssh.close)
        milestones.reach(_READY)
        answers = _ask(ssh, deadline, qemu, kernel)
        facts = _facts(spec, qmp, qemu, words, answers, time.monotonic() - started)
        if answers.get("nonce") != nonce:
            raise QemuError("Another host than ours answers: it does not know this run's nonce.")
        spec.mmu.check(facts.parameters)
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
    }
    write_seed(paths.seed, files)
    if spec.swap_mib > 0:
        write_swap(paths.swap, spec.swap_mib)


def _confirm_accelerator(qmp: Qmp, spec: HostSpec, deadline: Deadline) -> None:
    enabled = bool(qmp.execute("query-kvm", deadline)["enabled"])
    if enabled != (spec.accelerator.name == "kvm"):
        raise QemuError(
            f"QEMU was told to use {spec.accelerator.name}, but says that KVM is "
            f"{'on' if enabled else 'off'}."
        )


def _forwarded_port(qmp: Qmp, deadline: Deadline) -> int:
    """The port of L0's loopback that leads to the host's SSH; QMP itself does not tell it."""
    for line in qmp.human("info usernet", deadline).splitlines():
        fields = line.split()
        if fields and fields[0] == "TCP[HOST_FORWARD]":
            return int(fields[3])
    raise QemuError("QEMU forwards no port to the host's SSH server.")


class _Milestones:
    """The lines that the host's init prints for us, which come in any order."""

    def __init__(self, qemu: Qemu, kernel: Kernel, deadline: Deadline) -> None:
        self._qemu = qemu
        self._kernel = kernel
        self._lines = qemu.console.follow(deadline)
        self._seen: list[str] = []

    def reach(self, word: str) -> None:
        """Follow the console until a line has begun with ``word``; raises what stops the boot."""
        while not any(line.startswith(word) for line in self._seen):
            try:
                line = next(self._lines)
            except StopIteration:
                raise _gone(self._qemu, self._kernel) from None
            except DeadlineError as error:
                raise _boot_error(self._kernel, self._qemu, str(error)) from error
            if line.startswith(_FAILED):
                reason = visible(line.removeprefix(_FAILED))
                raise _boot_error(self._kernel, self._qemu, reason)
            if line.startswith(layout.MARK):
                self._seen.append(line)


def _connect(port: int, keys: RunKeys, deadline: Deadline, qemu: Qemu, kernel: Kernel) -> Ssh:
    try:
        return Ssh.connect(port, keys, deadline)
    except HostLostError as error:
        raise _unanswered(error, qemu, kernel) from error


def _ask(ssh: Ssh, deadline: Deadline, qemu: Qemu, kernel: Kernel) -> dict[str, str]:
    """What the host's init found out, as name -> value."""
    try:
        completed = ssh.run(["cat", f"{layout.RUN_DIRECTORY}/facts"], deadline).checked()
    except (HostLostError, DeadlineError) as error:
        raise _unanswered(error, qemu, kernel) from error
    pairs = (line.partition("=") for line in completed.stdout.splitlines())
    return {name: value for name, _, value in pairs}


def _facts(
    spec: HostSpec,
    qmp: Qmp,
    qemu: Qemu,
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
        boot_reports=qemu.console.splats(),
    )


def _unanswered(error: HarnessError, qemu: Qemu, kernel: Kernel) -> HarnessError:
    """Why the host fell silent after it had come up."""
    if qemu.wait(Deadline.after(1.0, "the end of QEMU")):
        return _gone(qemu, kernel)
    return _boot_error(kernel, qemu, str(error))


def _gone(qemu: Qemu, kernel: Kernel) -> HarnessError:
    """Why QEMU ended during the boot: the kernel's doing, or not."""
    qemu.wait(Deadline.after(5.0, "the end of QEMU"))
    if splats := [splat for splat in qemu.console.splats() if splat.kind == "panic"]:
        return _boot_error(kernel, qemu, splats[-1].line)
    if not qemu.switched_off:
        return qemu.error()
    return _boot_error(kernel, qemu, "it switched the machine off, or reset it without a word")


def _boot_error(kernel: Kernel, qemu: Qemu, reason: str) -> BootError:
    tail = qemu.console.tail(_LAST_LINES)
    log = visible(tail).replace("\n", "\n  ") if tail else "(nothing)"
    return BootError(
        f"The kernel {kernel.release} did not come up: {reason.rstrip('.')}. "
        f"The end of its log:\n  {log}"
    )
