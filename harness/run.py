# SPDX-License-Identifier: GPL-2.0-only
"""One run from the wish to the results directory, for whichever door was used."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from harness.coverage import Recorder
from harness.errors import HarnessError
from harness.guest.session import Session
from harness.image.linux_guest import LinuxImage, linux_image
from harness.kernel.model import Kernel
from harness.machine.mmu import Mmu
from harness.progress import Progress
from harness.result.coverage import Coverage, as_json
from harness.result.coverage_markdown import as_markdown
from harness.result.directory import ResultsDirectory, write_atomically
from harness.result.outcome import Outcome, Request, TestOutcome, completed
from harness.result.record import HostRun, KernelFacts, MachineFacts, RunRecord
from harness.result.verdict import judge
from harness.secondary import SecondaryMmus
from harness.store import Store
from harness.workbench import Parts, Wish, Workbench, make_parts

_SYMBOLS = (
    "KVM", "KVM_AMD", "KVM_INTEL", "MMU_NOTIFIER", "SWAP", "MEMCG", "KSM",
    "TRANSPARENT_HUGEPAGE", "LRU_GEN", "NUMA_BALANCING", "DEBUG_VM", "KASAN", "PROVE_LOCKING",
)  # fmt: skip
_LIBRARIES = ("drgn", "fabric", "numpy", "paramiko", "pytest", "qemu.qmp")


_MOST_HOSTS = 4
_HOST_MIB = 3072
"""The memory of a host, with QEMU's own and what is read of it."""

_FEW = 12
"""With fewer tests a host, booting it costs more than it saves."""


class Run:
    """Collects what happened, judges it, and writes it down.

    A context manager; leaving it ends the host that still runs. ``results`` is where it makes its
    results directory, or the directory of the run that it is a part of. With ``measure``, it finds
    out which notifier sites each test reaches, too.
    """

    def __init__(
        self,
        wish: Wish,
        requests: Sequence[Request],
        store: Store,
        directory: Path,
        results: Path | ResultsDirectory,
        progress: Progress,
        command: Sequence[str],
        measure: bool = False,
    ) -> None:
        self.progress = progress
        self.record: RunRecord | None = None
        self._started = datetime.datetime.now(datetime.UTC)
        self._began = time.monotonic()
        if isinstance(results, Path):
            results = ResultsDirectory.create(results.absolute(), self._started)
        self.results = results
        self._wish = wish
        self._requests = tuple(requests)
        self._store = store
        self._directory = directory
        self._command = tuple(command)
        self._outcomes: list[TestOutcome] = []
        self._hosts: list[HostRun] = []
        self._problems: list[BaseException] = []
        self._parts: Parts | None = None
        self._bench: Workbench | None = None
        self._log_position = 0
        self._repetition = 0
        self._measure = measure
        self._recorder: Recorder | None = None
        self._secondary: SecondaryMmus | None = None

    def prepare(self) -> bool:
        """Make everything that hosts are made of; whether that worked."""
        try:
            self._parts = make_parts(self._wish, self._store, self.progress)
        except HarnessError as error:
            self.problem(error)
            return False
        self._bench = Workbench(self._parts, self._directory, self.progress, self.results.keep)
        if self._measure:
            self._recorder = Recorder(self._parts.kernel, self.progress)
        return True

    def require_secondary_mmus(self) -> SecondaryMmus:
        """The module with secondary MMUs in software; raises as SecondaryMmus.require()."""
        assert self._parts is not None, "prepare() comes first"
        if self._secondary is None:
            self._secondary = SecondaryMmus(self._wish, self._parts, self._store, self.progress)
        self._secondary.require()
        return self._secondary

    def session(self, mode: Mmu, repetition: int = 0) -> Session:
        """The agent on a host in this MMU mode, a new one for each repetition."""
        assert self._bench is not None, "prepare() comes first"
        if repetition != self._repetition and not self._wish.same_hosts:
            self._bench.discard()
        self._repetition = repetition
        session = self._bench.session(mode)
        self._log_position = self._bench.log_position
        return session

    def linux_image(self) -> LinuxImage:
        """What Linux guests boot, made when the first test wants one."""
        return linux_image(self._store, self.progress)

    def watching(
        self, session: Session, request: Request
    ) -> contextlib.AbstractContextManager[None]:
        """Measure what a test reaches while the context is open, if that was asked for."""
        if self._recorder is None:
            return contextlib.nullcontext()
        return self._recorder.watching(session, request)

    @property
    def coverage(self) -> Coverage | None:
        """What was measured so far, if that was asked for."""
        return self._recorder.result() if self._recorder else None

    def log_of_test(self) -> str:
        """What the host's kernel printed since the present test asked for the host."""
        return self._bench.log_since(self._log_position) if self._bench else ""

    def report(self, outcome: TestOutcome) -> None:
        """Take in how a test ended. After anything but a pass or a skip the host is not trusted."""
        self._outcomes.append(outcome)
        if self._bench and outcome.outcome not in (Outcome.PASS, Outcome.SKIP):
            self._bench.discard()

    def hosts_at_once(self, tests: int) -> int:
        """How many hosts may share so many tests: as wished, or as this machine bears."""
        if self._measure:
            return 1
        if self._wish.hosts is not None:
            return min(self._wish.hosts, tests)
        # A host has two CPUs, and keeps both busy while a vcpu hammers.
        bearable = min(_MOST_HOSTS, (os.cpu_count() or 1) // 2, _free_mib() // _HOST_MIB)
        return max(1, min(bearable, tests // _FEW))

    def enlist(self, worker: int, progress: Progress) -> None:
        """Be the run of one of several workers, in a process forked off."""
        assert self._bench is not None, "prepare() comes first"
        self.progress = progress
        self._bench.enlist(worker, progress)

    def take(self, outcome: TestOutcome) -> None:
        """Take in how a test ended on a worker's host, which that worker has seen to."""
        self._outcomes.append(outcome)

    @property
    def enough(self) -> str:
        """Why no more tests are to be asked, because so many failed, or nothing."""
        failed = sum(outcome.outcome is Outcome.FAIL for outcome in self._outcomes)
        if not 0 < self._wish.max_failures <= failed:
            return ""
        return f"{failed} tests failed, so no more are asked; --max-failures 0 asks all of them."

    def take_hosts(self, hosts: Sequence[HostRun]) -> None:
        """Take in what the hosts of a worker left as evidence."""
        self._hosts += hosts

    def end_hosts(self) -> tuple[HostRun, ...]:
        """End the last host; what all of them left."""
        if self._bench:
            self._bench.discard()
        return (*self._hosts, *(self._bench.hosts if self._bench else ()))

    @property
    def problems(self) -> tuple[BaseException, ...]:
        """What was taken in so far of that."""
        return tuple(self._problems)

    def problem(self, error: BaseException) -> None:
        """Take in what ended the run, or a part of it, outside of any test."""
        self._problems.append(error)

    def finish(self) -> RunRecord:
        """End the last host, judge, and write the results."""
        hosts = self.end_hosts()
        requests = self._wanted()
        self.record = RunRecord(
            verdict=judge(
                requests,
                self._outcomes,
                [host.evidence for host in hosts],
                self._problems,
                strict=self._wish.strict,
            ),
            outcomes=completed(requests, self._outcomes),
            kernel=self._kernel_facts(),
            machine=self._machine_facts(),
            hosts=hosts,
            command=self._command,
            started=self._started,
            # The wall clock may have been set meanwhile.
            finished=self._started + datetime.timedelta(seconds=time.monotonic() - self._began),
            problems=tuple(str(error) or type(error).__name__ for error in self._problems),
        )
        if self._parts and self._parts.kernel.config:
            self.results.keep("kernel.config", self._parts.kernel.config.read_bytes())
        if self.coverage:
            coverage = self.coverage
            write_atomically(self.results.path / "coverage.json", as_json(coverage).encode())
            write_atomically(self.results.path / "coverage.md", as_markdown(coverage).encode())
        self.results.write(self.record)
        return self.record

    def _wanted(self) -> tuple[Request, ...]:
        """What was asked for: until a failure, not the repetitions after the one that has it."""
        good = all(outcome.outcome in (Outcome.PASS, Outcome.SKIP) for outcome in self._outcomes)
        if good or not self._wish.until_fail:
            return self._requests
        last = max(outcome.repetition for outcome in self._outcomes)
        return tuple(request for request in self._requests if request.repetition <= last)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bench:
            self._bench.discard()

    def _kernel_facts(self) -> KernelFacts:
        if self._parts is None:
            return KernelFacts(self._wish.kernel, control=self._wish.control)
        kernel = self._parts.kernel
        return KernelFacts(
            origin=kernel.origin,
            release=kernel.release,
            image_digest=kernel.digest,
            config_digest=_config_digest(kernel),
            patches=kernel.patches,
            control=self._wish.control,
            symbols={name: kernel.symbol(name) for name in _SYMBOLS},
            binary_digest=_binary_digest(kernel),
        )

    def _machine_facts(self) -> MachineFacts:
        accelerator = self._parts.accelerator if self._parts else None
        libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
        return MachineFacts(
            machine=f"{platform.system()} {platform.release()} {platform.machine()}",
            cpus=os.cpu_count() or 1,
            accelerator=accelerator.name if accelerator else None,
            accelerator_reason=accelerator.reason if accelerator else "",
            versions={"python": platform.python_version(), **libraries},
        )


def _free_mib() -> int:
    """Memory that this machine can give without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 0


def _binary_digest(kernel: Kernel) -> str:
    """Of the image and of every module: KVM is one, and the image does not change with it."""
    whole = hashlib.sha256(kernel.digest.encode())
    for module in sorted(kernel.modules.rglob("*.ko*")) if kernel.modules else ():
        if module.is_file():
            whole.update(module.name.encode() + b"\0")
            with module.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _config_digest(kernel: Kernel) -> str | None:
    if kernel.config is None:
        return None
    return hashlib.sha256(kernel.config.read_bytes()).hexdigest()
