# SPDX-License-Identifier: GPL-2.0-only
"""Runs the good kernel, then each control, for the kill matrix.

Each check is a process of its own, the very command that a person would type, with its own results
directory below ours; what is judged is what it wrote there. Controls are checked beside each other,
because a check that fails waits for seconds to be sure, in forks of a process that has loaded what
a check needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness import kill_matrix
from harness.catalogue import CATALOGUE, SUITES, Entry, entry, expression, matches
from harness.command import run_logged
from harness.control import ControlSeries, all_controls, split
from harness.crew import Crew, Given, Lost, pieces
from harness.deadline import Deadline
from harness.errors import ExitCode, HarnessError, Interrupted, UsageError
from harness.forked import run_forked
from harness.kernel import reference
from harness.kill_matrix import WELL, Matrix, Row, Run, judged, unobservable
from harness.machine.accelerator import choose
from harness.progress import Progress, Silent
from harness.result.directory import ResultsDirectory, write_atomically
from harness.result.outcome import Outcome
from harness.result.text import one_line
from harness.store import Store
from harness.workbench import Wish, make_kernel

_CHECK_SECONDS = 7200.0
"""A check has deadlines of its own for everything; this one is for a check that is broken."""

_CHECK_BYTES, _MOST_AT_ONCE = 4 << 30, 8
"""The memory that a check may need, and how many checks at once are worth it."""

_GOOD = "good"


class Asked(enum.StrEnum):
    """Which of the scenarios that should see a control are asked."""

    FEW = "few"
    EVERY = "every"
    LINUX = "linux"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which controls to run on which kernel, in which MMU modes; no names mean all of them.

    ``asked`` is FEW for the scenarios that suffice to see a control, EVERY for those, too, that are
    only to prove that they can fail, and LINUX for those with Linux guests instead, and only the
    controls that have some. ``at_once`` is how many controls are checked at a time, by default as
    many as this machine bears.
    """

    kernel: str
    names: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    accelerator: str = "auto"
    jobs: int | None = None
    asked: Asked = Asked.FEW
    at_once: int | None = None


Command = Callable[[Sequence[str]], int]
"""Runs the words of a command line in this process, and returns the exit code."""


class Campaign:
    """One run of a plan; ``results`` is where its directory is made, once there is a kernel.

    ``command`` is the command line of the harness, of which each check is a call.
    """

    def __init__(
        self, plan: Plan, store: Store, results: Path, progress: Progress, command: Command
    ) -> None:
        self.directory: Path | None = None
        self._command = command
        self._plan = plan
        self._store = store
        self._results = results.absolute()
        self._progress = progress

    def run(self) -> Matrix:
        """Build once, run the good kernel, then each control; write the matrix, and return it.

        Raises UsageError for unknown names, and KernelUntestableError when the controls cannot be
        built into this kernel. What was done before an interrupt is written, too.
        """
        series, entries = chosen(self._plan, self._store, self._progress)
        accelerator = choose(self._plan.accelerator)
        wish = Wish(self._plan.kernel, series.patches, jobs=self._plan.jobs)
        make_kernel(wish, self._store, self._progress)
        now = datetime.datetime.now(datetime.UTC)
        self.directory = ResultsDirectory.create(self._results, now).path
        planned = tuple(item.name for item in entries)
        matrix = Matrix(self._plan.kernel, Run(ExitCode.INTERRUPTED), (), planned)
        started = time.monotonic()
        try:
            matrix = dataclasses.replace(matrix, good=self._good(series, entries))
            if matrix.good.code == ExitCode.PASS:
                for row in self._judged(entries, matrix.good, accelerator.name):
                    self._progress.note(f"{row.fate}: {kill_matrix.killed_by(row)}")
                    rows = sorted((*matrix.rows, row), key=lambda row: planned.index(row.name))
                    matrix = dataclasses.replace(matrix, rows=tuple(rows))
        finally:
            matrix = dataclasses.replace(matrix, seconds=time.monotonic() - started)
            _write(matrix, self.directory)
        return matrix

    def _judged(self, entries: Sequence[Entry], good: Run, accelerator: str) -> Iterator[Row]:
        """A row for each control as it comes, in no order where several are checked at once."""
        tried = []
        for item in entries:
            proof = item.unobservable.get(accelerator) or self._lacking(item, good)
            if proof:
                yield unobservable(item, proof)
            else:
                tried.append(item)
        workers = min(self._workers, len(tried))
        if workers > 1:
            yield from self._judged_at_once(tried, good, workers)
            return
        for item in tried:
            with self._progress.phase(item.name):
                run = self._control(item, good)
            yield judged(item, run)

    def _judged_at_once(self, tried: Sequence[Entry], good: Run, workers: int) -> Iterator[Row]:
        def serve(_: int, given: Given, tell: Callable[[object], None]) -> None:
            self._progress = Silent()  # the first process speaks for all
            # It also hears what the terminal sends to all, and ends us by SIGTERM, once.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            with contextlib.suppress(Interrupted):
                for piece in given:
                    for number in piece.numbers:
                        tell((number, self._control(tried[number], good)))

        work = pieces(["check"] * len(tried), 1)
        what = f"{len(tried)} controls, {workers} at once"
        with Crew(workers, work, serve) as crew, self._progress.phase(what):
            for message in crew.messages():
                if isinstance(message, Lost):
                    raise HarnessError(
                        f"A worker of the campaign ended with status {message.status}; what it "
                        "said is on standard error."
                    )
                number, run = message
                row = judged(tried[number], run)
                self._progress.ended(row.name, row.seconds, well=row.fate in WELL)
                yield row

    def _good(self, series: ControlSeries, entries: Sequence[Entry]) -> Run:
        """Every scenario that any of the controls is tried on, with none of them switched on."""
        scenarios = [
            f"{name} {mode}"
            for item in entries
            for name in (*self._sees(item), *self._blind(item))
            for mode in self._modes(item)
        ]
        modes = dict.fromkeys(mode for item in entries for mode in self._modes(item))
        words = [f"--patch={patch}" for patch in series.patches]
        # What is asked of it are races, too, and they want CPUs.
        words.append(f"--hosts={min(self._workers, os.cpu_count() or 1)}")
        with self._progress.phase("The good kernel"):
            selected = f"-k{expression(scenarios)}"
            return self._check(_GOOD, [*words, *_modes(modes), *SUITES, selected], self._started)

    def _lacking(self, item: Entry, good: Run) -> str:
        """What the good kernel lacks that all who should see a control need, or nothing."""
        tests = [
            test
            for test in good.results.get("tests", ())
            if any(matches(scenario, test["id"]) for scenario in self._sees(item))
        ]
        if tests and all(test["outcome"] == Outcome.SKIP for test in tests):
            return one_line(str(tests[0]["message"]))
        return ""

    def _control(self, item: Entry, good: Run) -> Run:
        """A control on its scenarios, of those that the good kernel passed."""
        modes = self._modes(item)
        tests = ordered(self._sees(item), self._blind(item), good, modes)
        if not tests:
            return Run(ExitCode.USAGE)
        # One host each, because there are several checks already.
        words = [f"--control={item.name}", "--hosts=1", *_modes(modes), *tests]
        return self._check(item.name, words, self._forked)

    @property
    def _workers(self) -> int:
        return self._plan.at_once or _bearable()

    def _sees(self, item: Entry) -> tuple[str, ...]:
        if self._plan.asked is Asked.LINUX:
            return item.linux
        return (*item.sees, *(item.also if self._plan.asked is Asked.EVERY else ()))

    def _blind(self, item: Entry) -> tuple[str, ...]:
        return () if self._plan.asked is Asked.LINUX else item.blind

    def _modes(self, item: Entry) -> tuple[str, ...]:
        return self._plan.modes or item.modes

    def _check(self, name: str, words: Sequence[str], how: _How) -> Run:
        """One check; a second one where the first broke for reasons of infrastructure.

        What breaks twice in the same place is no accident; what breaks once proves nothing.
        """
        run = self._once(name, words, how)
        if run.code != ExitCode.INFRASTRUCTURE:
            return run
        self._progress.note(f"{name} broke, and is tried again: {' '.join(run.reasons)}")
        again = self._once(f"{name}-again", words, how)
        return dataclasses.replace(again, seconds=again.seconds + run.seconds)

    def _once(self, name: str, words: Sequence[str], how: _How) -> Run:
        assert self.directory is not None, "run() comes first"
        directory = self.directory / "runs" / name
        directory.mkdir(parents=True)
        jobs = [f"--jobs={self._plan.jobs}"] if self._plan.jobs else []
        command = [
            "check",
            f"--kernel={self._plan.kernel}",
            f"--accel={self._plan.accelerator}",
            f"--results={directory}",
            "--max-failures=0",
            *jobs,
            *words,
        ]
        deadline = Deadline.after(_CHECK_SECONDS, f"The check of {name}")
        status, seconds = how(command, deadline, directory / "output.log")
        return read_run(directory / "latest", status, seconds)

    def _started(self, words: Sequence[str], deadline: Deadline, log: Path) -> tuple[int, float]:
        """Start a check anew, so that its progress is seen; its status and its seconds."""
        # Not the current directory's idea of a module called harness.
        argv = [sys.executable, "-P", "-m", "harness", *words]
        done = run_logged(argv, deadline, log, on_line=self._progress.update)
        return done.status, done.seconds

    def _forked(self, words: Sequence[str], deadline: Deadline, log: Path) -> tuple[int, float]:
        """Run a check in a fork; its status and its seconds."""
        return run_forked(lambda: self._command(words), deadline, log)


_How = Callable[[Sequence[str], Deadline, Path], tuple[int, float]]
"""Runs the words of a command line, with its output in a log; its status and its seconds."""


def chosen(plan: Plan, store: Store, progress: Progress) -> tuple[ControlSeries, tuple[Entry, ...]]:
    """The patch series for the plan's kernel, and the entries of the controls that it names.

    Raises UsageError for a name that is unknown or that none of the scenarios asked is known for.
    """
    kernel = reference.parse(plan.kernel)
    for name in plan.names:
        split(name)  # raises with the list of known ones
    series = all_controls(kernel, store, progress)
    for name in plan.names:
        series.control(name)
        item = entry(name)
        if item is None:
            raise UsageError(
                f"No scenario is known that should see the control {name}; add it to the catalogue."
            )
        if plan.asked is Asked.LINUX and not item.linux:
            raise UsageError(f"No scenario with Linux guests is known that should see {name}.")
    wanted = plan.names or series.names
    entries = (item for item in CATALOGUE if item.name in wanted)
    return series, tuple(item for item in entries if item.linux or plan.asked is not Asked.LINUX)


def ordered(
    sees: Sequence[str], blind: Sequence[str], good: Run, modes: Sequence[str]
) -> list[str]:
    """The ids of a control's tests, of those that the good kernel passed, in the given modes.

    Those that should not care come first: a host is thrown away after a test that failed.
    """
    ids = [test["id"] for test in good.results.get("tests", ()) if test["mmu"] in modes]
    return list(
        dict.fromkeys(
            id
            for scenarios in (blind, sees)
            for id in ids
            if any(matches(scenario, id) for scenario in scenarios)
        )
    )


def read_run(directory: Path, status: int, seconds: float) -> Run:
    """What a check left in its results directory; a check that wrote nothing has its code alone."""
    code = status if status >= 0 else ExitCode.INFRASTRUCTURE
    results: dict[str, object] = {}
    with contextlib.suppress(OSError, ValueError):
        results = json.loads((directory / "results.json").read_text("utf-8"))
    return Run(code, results, seconds, _last_line(directory))


def _write(matrix: Matrix, directory: Path) -> None:
    formats: dict[str, Callable[[Matrix], str]] = {
        "kill-matrix.txt": kill_matrix.as_text,
        "kill-matrix.json": kill_matrix.as_json,
    }
    for name, format_ in formats.items():
        write_atomically(directory / name, format_(matrix).encode("utf-8", "backslashreplace"))


def _last_line(directory: Path) -> str:
    logs = sorted(
        (directory / "logs").glob("*.console.log"), key=lambda log: log.stat().st_mtime_ns
    )
    if not logs:
        return ""
    lines = logs[-1].read_text("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _bearable() -> int:
    """How many checks this machine bears at once, as memory allows.

    One more than CPUs, because a check that fails waits for seconds to be sure: on two CPUs 11
    controls took 88 s so, and 95 s with one less.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min((os.cpu_count() or 1) + 1, memory // _CHECK_BYTES, _MOST_AT_ONCE))


def _modes(modes: Sequence[str] | dict[str, None]) -> list[str]:
    return [f"--mmu={mode}" for mode in modes]
