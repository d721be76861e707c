# SPDX-License-Identifier: GPL-2.0-only
"""All that a run needs, made once: the kernel, the image, the probe, and hosts as they are wanted.

One host runs at a time. It is booted for the first test that wants its MMU mode, kept while it is
trusted, and thrown away with everything on it after a test that did not pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.control import Control, find_control
from harness.deadline import Deadline
from harness.errors import BootError, HarnessError, InfrastructureError
from harness.guest.session import Session, session
from harness.guest.zipapp import probe_zipapp
from harness.image.disk import modules_disk
from harness.image.initramfs import initramfs
from harness.image.rootfs import HostImage, host_image
from harness.kernel import reference
from harness.kernel.build import obtain
from harness.kernel.model import Kernel
from harness.machine.accelerator import Accelerator, choose
from harness.machine.boot import boot
from harness.machine.host import Host
from harness.machine.mmu import Mmu
from harness.machine.qemu_host import QemuHost
from harness.machine.spec import HostSpec
from harness.machine.splat import before_emulation_failed
from harness.progress import Progress
from harness.result.record import HostRun
from harness.result.verdict import Crash, Evidence
from harness.store import Store

END_MARK = "mmu-harness: end"
_END_SECONDS = 20.0
_BOOTS = 2
"""How often a host is booted before a failure of our own machinery ends its MMU mode."""

_MOST_CRASHES = 50
"""Reports of one host's kernel in the record; a kernel in distress prints them without end."""

_PMEM_MIB = 64
"""For guests on DAX: a file system with room for one of 8 MiB."""

_SYSCTL = (
    # Drops sptes whenever it likes, which is a scenario of its own and a disturbance in others.
    ("kernel.numa_balancing", "0"),
    # For guests on hugetlb memory; a guest of 8 MiB, its child, and as much again on each node.
    ("vm.nr_hugepages", "24"),
)

DEFAULT_KERNEL = "deb:linux-source-6.12"
DEFAULT_MODES = (Mmu.TDP, Mmu.SHADOW)

FAILED_ENOUGH = 20
"""So many failed tests end a run: each costs a host, and the verdict is known."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a user asked for: which kernel, changed how, in which MMU modes, on what.

    ``strict`` forbids to skip what this kernel or host cannot be asked; ``hosts`` is how many of
    them may run at once, by default as many as this machine bears. ``repeat`` is how often all
    tests run, on new hosts each time or on the ``same_hosts``; ``until_fail`` ends that at the
    first test that does not pass. ``quick`` is content with one cell of each scenario, and with
    ``max_failures`` that many failed tests end the run (0: none), as each costs a new host.
    """

    kernel: str = DEFAULT_KERNEL
    patches: tuple[Path, ...] = ()
    fragments: tuple[Path, ...] = ()
    modes: tuple[Mmu, ...] = DEFAULT_MODES
    accelerator: str = "auto"
    control: str | None = None
    jobs: int | None = None
    strict: bool = False
    hosts: int | None = None
    vmlinux: Path | None = None
    repeat: int = 1
    until_fail: bool = False
    same_hosts: bool = False
    quick: bool = False
    max_failures: int = FAILED_ENOUGH

    def command(self, mode: Mmu | None = None, test: str | None = None) -> tuple[str, ...]:
        """The command that wishes the same, in all its modes or in one, and for one test or all."""
        words = ["mmu-harness", "check", "--kernel", self.kernel]
        for option, paths in (("--patch", self.patches), ("--config", self.fragments)):
            for path in paths:
                words += [option, str(path)]
        if self.vmlinux:
            words += ["--vmlinux", str(self.vmlinux)]
        for each in [mode] if mode else self.modes:
            words += ["--mmu", str(each)]
        if self.accelerator != "auto":
            words += ["--accel", self.accelerator]
        if self.control:
            words += ["--control", self.control]
        if self.strict:
            words.append("--strict")
        return (*words, test) if test else (*words, *self._extent())

    def _extent(self) -> tuple[str, ...]:
        """The words that say which tests run, and how often."""
        words = ["--repeat", str(self.repeat)] if self.repeat > 1 else []
        words += ["--until-fail"] if self.until_fail else []
        words += ["--same-hosts"] if self.same_hosts else []
        words += ["--quick"] if self.quick else []
        if self.max_failures != FAILED_ENOUGH:
            words += ["--max-failures", str(self.max_failures)]
        return tuple(words)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What hosts are made of."""

    kernel: Kernel
    image: HostImage
    initrd: Path | None
    modules: Path | None
    probe: Path
    accelerator: Accelerator
    control: Control | None


def make_kernel(wish: Wish, store: Store, progress: Progress) -> tuple[Kernel, Control | None]:
    """The kernel of a wish, with the patches of its control below the user's."""
    ref = reference.parse(wish.kernel)
    control = find_control(wish.control, ref, store, progress) if wish.control else None
    series = control.patches if control else ()
    patches = (*series, *wish.patches)
    kernel = obtain(
        ref,
        patches,
        store,
        progress,
        wish.jobs,
        fragments=wish.fragments,
        vmlinux=wish.vmlinux,
    )
    return kernel, control


def make_parts(wish: Wish, store: Store, progress: Progress) -> Parts:
    """Everything that a host is made of, from the store where it was made before."""
    accelerator = choose(wish.accelerator)
    progress.note(f"Accelerator {accelerator.name}: {accelerator.reason}")
    kernel, control = make_kernel(wish, store, progress)
    image = host_image(store, progress)
    return Parts(
        kernel=kernel,
        image=image,
        initrd=initramfs(kernel, image, store),
        modules=modules_disk(kernel, store),
        probe=probe_zipapp(store),
        accelerator=accelerator,
        control=control,
    )


def host_spec(parts: Parts, mode: Mmu) -> HostSpec:
    """A host of these parts."""
    return HostSpec(
        kernel=parts.kernel.image,
        root=parts.image.root,
        accelerator=parts.accelerator,
        initrd=parts.initrd,
        modules=parts.modules,
        mmu=mode,
        sysctl=_SYSCTL,
        pmem_mib=_PMEM_MIB,
        parameters=(parts.control.parameter,) if parts.control else (),
    )


class Workbench:
    """The hosts of a run; ``directory`` is private to the run and short.

    ``keep`` receives the logs of each host when it goes: a name and the bytes.
    """

    def __init__(
        self,
        parts: Parts,
        directory: Path,
        progress: Progress,
        keep: Callable[[str, bytes], object],
    ) -> None:
        self.parts = parts
        self._directory = directory
        self._progress = progress
        self._keep = keep
        self._prefix = ""
        self._numbers = itertools.count(1)
        self._current: _Running | None = None
        self._hopeless: dict[Mmu, HarnessError] = {}
        self._ended: list[HostRun] = []

    def enlist(self, worker: int, progress: Progress) -> None:
        """Have hosts as one of several workers, by names that no other gives."""
        self._prefix = f"{worker}-"
        self._progress = progress

    @property
    def hosts(self) -> Sequence[HostRun]:
        """The hosts that came and went, with what they left as evidence."""
        return tuple(self._ended)

    @property
    def log_position(self) -> int:
        """The present end of the present host's console log."""
        return self._current.host.log.mark() if self._current else 0

    def log_since(self, position: int) -> str:
        """What the present host printed since a position."""
        return self._current.host.log.text(position) if self._current else ""

    def session(self, mode: Mmu) -> Session:
        """An agent on a host in this MMU mode, booted if there is none.

        What kept a mode from booting is raised again at the next request for it. A failure of our
        own machinery says nothing about the kernel, which has not been asked anything yet, so the
        boot is tried once more.
        """
        if mode in self._hopeless:
            raise self._hopeless[mode]
        if self._current is None or self._current.mode is not mode:
            self.discard()
            try:
                self._current = self._boot_patiently(mode)
            except HarnessError as error:
                self._hopeless[mode] = error
                raise
        return self._current.session

    def _boot_patiently(self, mode: Mmu) -> _Running:
        for left in reversed(range(_BOOTS)):
            try:
                return self._boot(mode)
            except InfrastructureError as error:
                if not left:
                    raise
                self._progress.note(f"The host is booted once more: {error}")
        raise AssertionError("unreachable")

    def discard(self) -> None:
        """Shut the present host down, if there is one, and keep its logs."""
        if self._current is None:
            return
        running, self._current = self._current, None
        self._keep(f"{running.name}.dmesg.log", running.dmesg())
        ended = running.say_end()
        self._ended.append(running.record(ended))
        with contextlib.suppress(HarnessError):
            # A host that is beyond an orderly end has been judged already.
            running.stack.close()
        self._keep(f"{running.name}.console.log", running.host.log.text().encode())

    def _boot(self, mode: Mmu) -> _Running:
        parts = self.parts
        name = f"{self._prefix}host{next(self._numbers)}-{mode}"
        directory = self._directory / name
        directory.mkdir(mode=0o700)
        started = datetime.datetime.now(datetime.UTC)
        with contextlib.ExitStack() as stack:
            stack.callback(self._keep_logs, directory)
            spec = host_spec(parts, mode)
            host = stack.enter_context(boot(spec, directory, parts.kernel, self._progress))
            if parts.control:
                _confirm(parts.control, host)
            agent = stack.enter_context(session(host, parts.probe))
            return _Running(name, mode, directory, host, agent, started, stack.pop_all())

    def _keep_logs(self, directory: Path) -> None:
        """Keep what a host left in its directory, whether it came up or not."""
        for log in sorted(directory.glob("*.log")):
            self._keep(f"{directory.name}.{log.name}", log.read_bytes())


@dataclasses.dataclass(frozen=True)
class _Running:
    """A host that is up."""

    name: str
    mode: Mmu
    directory: Path
    host: QemuHost
    session: Session
    started: datetime.datetime
    stack: contextlib.ExitStack

    def dmesg(self) -> bytes:
        """The kernel's whole log, of which the console has only warnings and worse."""
        deadline = Deadline.after(_END_SECONDS * self.host.facts.pace, "Reading the kernel's log")
        try:
            return self.host.run(["dmesg"], deadline).stdout.encode()
        except HarnessError as error:
            return f"The host could not be asked any more: {error}\n".encode()

    def say_end(self) -> bool:
        """Have the host's kernel end its log with our mark; whether the mark came out."""
        mark = f"{END_MARK} {self.host.nonce}"
        deadline = Deadline.after(_END_SECONDS * self.host.facts.pace, "The end of the host's log")
        position = self.host.log.mark()
        try:
            # Level 2 is more urgent than any console filter.
            self.host.run(["tee", "/dev/kmsg"], deadline, stdin=f"<2>{mark}\n".encode())
            return any(mark in line for line in self.host.log.follow(deadline, position))
        except HarnessError:
            return False

    def record(self, ended: bool) -> HostRun:
        """What is left of the host for the verdict."""
        facts = self.host.facts
        boot = {splat.line for splat in facts.boot_reports}
        splats = self.host.log.splats()
        crashes = tuple(
            Crash(splat.kind, splat.excerpt)
            for splat in (before_emulation_failed(splats) if facts.emulated else splats)
            if splat.line not in boot and not splat.timing
        )
        if len(crashes) > _MOST_CRASHES:
            more = f"{len(crashes) - _MOST_CRASHES} more"
            crashes = (*crashes[:_MOST_CRASHES], Crash(more, "They are in the console's log."))
        evidence = Evidence(
            host=self.name,
            mmu=str(self.mode),
            nonce_expected=self.host.nonce,
            nonce_seen=self.host.nonce,
            log_end_mark=ended,
            crashes=crashes,
        )
        return HostRun(
            evidence=evidence,
            qemu_version=facts.qemu_version,
            argv=facts.argv,
            release=facts.release,
            boot_seconds=facts.boot_seconds,
            pace=facts.pace,
            started=self.started,
        )


def _confirm(control: Control, host: Host) -> None:
    """Believe that a control is on only because the kernel says so."""
    deadline = Deadline.after(_END_SECONDS * host.facts.pace, "Reading the host's kernel log")
    if control.confirmation not in host.run(["dmesg"], deadline).stdout:
        raise BootError(
            f"The host booted with {control.parameter}, but its kernel does not say "
            f"{control.confirmation!r}, so it is no control."
        )
