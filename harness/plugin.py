# SPDX-License-Identifier: GPL-2.0-only
"""The doors of pytest: options, fixtures, and the verdict over a run.

A test belongs to the suite when it asks for one of the fixtures ``host``, ``guest``,
``probe_guest`` or ``evidence``. It then runs once in each MMU mode. Tests that ask for none of
them are none of this plugin's business, and a run without any such test is left alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import signal
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from harness import ci, display
from harness.errors import ExitCode, Interrupted, OracleUnavailable, UsageError, Violation
from harness.guest.probe import GuestFactory, ProbeGuest
from harness.guest.probe import probe_guest as new_guest
from harness.guest.session import Session
from harness.janitor import Janitor
from harness.machine import accelerator, mmu
from harness.machine.host import Host
from harness.oracle.evidence import Evidence
from harness.progress import Progress, Silent
from harness.result.outcome import Outcome, Request, TestOutcome
from harness.result.summary import scenario
from harness.result.verdict import exit_code
from harness.run import Run
from harness.spread import Spread
from harness.store import Store
from harness.workbench import DEFAULT_KERNEL, DEFAULT_MODES, Wish

_MODE = "mmu_mode"
_PAGES = 2048
_LARGE_PAGES = 16384
_BACKING = "anon"
PLUGIN = "mmu-harness-run"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite."""
    group = parser.getgroup("mmu-harness", "which kernel to test, and on what")
    group.addoption(
        "--kernel",
        metavar="REF",
        default=DEFAULT_KERNEL,
        help="bzImage, source tree, TREE@REV, tarball, https, deb: or running (%(default)s)",
    )
    group.addoption("--patch", metavar="FILE", action="append", default=[], help="apply on top")
    group.addoption("--vmlinux", metavar="FILE", type=Path, help="with its debug information")
    group.addoption("--config", metavar="FILE", action="append", default=[], help="add a fragment")
    group.addoption("--mmu", metavar="MODE", action="append", default=[], help=", ".join(mmu.Mmu))
    group.addoption("--accel", metavar="NAME", default="auto", help=", ".join(accelerator.REQUESTS))
    group.addoption("--control", metavar="NAME", help="break one guarantee, to see tests fail")
    group.addoption("--results", metavar="DIR", default="results", help="where results go")
    # pytest has an option --strict of its own.
    group.addoption("--no-skips", action="store_true", help="a skipped test makes a run end in 125")
    group.addoption("--ci", action="store_true", help="for CI jobs: plain lines, annotations")
    group.addoption("--hosts", metavar="N", type=int, help="how many run at once (by CPUs, memory)")
    group.addoption("--jobs", metavar="N", type=int, help="for make; default: number of CPUs")
    group.addoption("--coverage", action="store_true", help="which notifier sites are reached")


def pytest_configure(config: pytest.Config) -> None:
    """Check the options before anything is collected."""
    try:
        modes = tuple(mmu.parse(name) for name in config.getoption("--mmu")) or DEFAULT_MODES
        if config.getoption("--accel") not in accelerator.REQUESTS:
            valid = ", ".join(accelerator.REQUESTS)
            given = config.getoption("--accel")
            raise UsageError(f"There is no accelerator {given!r}; choose one of {valid}.")
        if config.getoption("--hosts") is not None and config.getoption("--hosts") < 1:
            raise UsageError("--hosts takes a number from 1 on.")
        if "-" in config.getoption("--patch"):
            raise UsageError("Standard input is pytest's own; use mmu-harness check --patch -.")
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    control = config.getoption("--control")
    wish = Wish(
        kernel=config.getoption("--kernel"),
        patches=tuple(map(Path, config.getoption("--patch"))),
        fragments=tuple(map(Path, config.getoption("--config"))),
        modes=tuple(dict.fromkeys(modes)),
        accelerator=config.getoption("--accel"),
        control=control,
        jobs=config.getoption("--jobs"),
        strict=config.getoption("--no-skips"),
        vmlinux=config.getoption("--vmlinux"),
        hosts=config.getoption("--hosts"),
    )
    config.pluginmanager.register(SuitePlugin(config, wish), PLUGIN)


class SuitePlugin:
    """The plugin for one pytest session."""

    def __init__(self, config: pytest.Config, wish: Wish) -> None:
        self._config = config
        self._wish = wish
        self._stack = contextlib.ExitStack()
        self._run: Run | None = None
        self._spread: Spread | None = None
        # Without pytest's own reporter, which is how check() runs, this plugin reports.
        self._speaks = config.pluginmanager.is_blocked("terminal")
        self._signal: signal.Signals | None = None
        self._ci = bool(config.getoption("--ci"))
        # pytest keeps what is printed to itself, and a job must hear it at once.
        heard = self._ci and self._speaks
        self._job = ci.job(sys.stdout, os.environ) if heard else ci.Unknown()

    @property
    def exit_code(self) -> ExitCode | None:
        """The verdict's exit code, once there is one."""
        return self._run.record.verdict.exit_code if self._run and self._run.record else None

    # Selection.

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test of the suite once in each MMU mode."""
        if _MODE in metafunc.fixturenames:
            metafunc.parametrize(_MODE, self._wish.modes, ids=str, scope="session")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Bring the tests of a mode together, because each mode is a host of its own."""
        order = {mode: number for number, mode in enumerate(self._wish.modes)}
        items.sort(key=lambda item: order.get(_mode_of(item), -1))  # type: ignore[arg-type]

    # The run.

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Make the kernel and all else before the first test, so that a failure is told once."""
        requests = [_request(item) for item in session.items if _mode_of(item)]
        if self._config.option.collectonly or session.testsfailed:
            return None
        if not requests and not self._speaks:
            return None
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._stop)
        janitor = self._stack.enter_context(Janitor())
        self._job.begin()
        progress = self._progress()
        self._run = self._stack.enter_context(
            Run(
                self._wish,
                requests,
                Store(adopt=janitor.adopt, release=janitor.release),
                janitor.directory,
                Path(self._config.getoption("--results")),
                progress,
                command=self._wish.command(),
                measure=self._config.getoption("--coverage"),
            )
        )
        if not requests:
            return None
        # True says that the loop is over: no test runs without a kernel.
        return True if not self._run.prepare() or self._ran_on_many_hosts(session) else None

    def _ran_on_many_hosts(self, session: pytest.Session) -> bool:
        """Run all tests on several hosts at once, if that is worth it; whether it was done."""
        modes = [_mode_of(item) for item in session.items]
        hosts = self._run.hosts_at_once(len(modes)) if self._run and all(modes) else 1
        if hosts < 2 or self._run is None:
            return False
        self._spread = Spread(self._run, session)
        self._spread.over(hosts, [str(mode) for mode in modes])
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Show a test as a phase where phases are shown."""
        if self._run is None or not self._speaks or not _mode_of(item):
            return (yield)
        with (
            contextlib.suppress(_NotPassed),
            self._run.progress.phase(f"{_mode_of(item)}  {scenario(_request(item))}"),
        ):
            result = yield
            if _Judged.of(item).outcome not in (Outcome.PASS, Outcome.SKIP):
                raise _NotPassed
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Judge a test by the class of what it raised, not by the phase in which it did."""
        report = yield
        if self._run is not None and _mode_of(item):
            _Judged.of(item).add(call)
            if call.when == "teardown":
                outcome = self._outcome(item)
                self._run.report(outcome)
                if self._spread is not None:
                    self._spread.judged(outcome)
                if self._signal is not None:
                    # Whoever swallowed the interrupt shall not make us go on.
                    item.session.shouldstop = "the run was interrupted"
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Pass on what pytest itself says of a test, from the process that ran it."""
        if self._spread is not None:
            self._spread.reported(report)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(
        self, session: pytest.Session, exitstatus: int
    ) -> Generator[None, object, object]:
        """Give the verdict when all fixtures are gone, and leave with its exit code."""
        stopped = self._signal is not None or (
            exitstatus == pytest.ExitCode.INTERRUPTED and not session.shouldstop
        )
        try:
            return (yield)
        except Exception as error:
            if self._run is None:
                raise
            # What cannot be taken down after an interrupt is what the interrupt cut short.
            if not stopped:
                self._run.problem(error)
            return None
        finally:
            if self._run is not None:
                self._conclude(self._run, session, stopped)

    def _conclude(self, run: Run, session: pytest.Session, stopped: bool) -> None:
        if stopped:
            run.problem(Interrupted(self._signal or signal.SIGINT))
        session.exitstatus = int(run.finish().verdict.exit_code)
        self._stack.close()
        if self._speaks:
            self.pytest_terminal_summary()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep what could not be collected, to be told by whoever reports."""
        if report.failed and self._speaks:
            print(report.longreprtext, file=sys.stderr)

    def pytest_terminal_summary(self) -> None:
        """Show the closing table and the verdict."""
        if self._run is not None and self._run.record is not None:
            terminal = display.console(sys.stdout, bare=self._ci)
            if self._run.coverage is not None:
                display.show_coverage(self._run.coverage, terminal)
            display.show(self._run.record, terminal)
            print(f"Results: {self._run.results.path}", flush=True)
            self._job.publish(self._run.record)

    def pytest_unconfigure(self) -> None:
        """Leave nothing behind, however the session ended."""
        self._stack.close()
        self._job.end()

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        """End the session as pytest ends it for SIGINT, and remember for whom."""
        self._signal = signal.Signals(signum)
        raise KeyboardInterrupt

    # Fixtures.

    @pytest.fixture
    def session(self, request: pytest.FixtureRequest, mmu_mode: mmu.Mmu) -> Iterator[Session]:
        """The agent on the host of this test."""
        assert self._run is not None
        session = self._run.session(mmu_mode)
        # All that a test makes on the host depends on this fixture, and is gone when it ends.
        with self._run.watching(session, _request(request.node)):
            yield session

    @pytest.fixture
    def host(self, session: Session) -> Host:
        """The machine that runs the kernel under test, in this test's MMU mode."""
        return session.host

    @pytest.fixture
    def evidence(self, request: pytest.FixtureRequest, host: Host) -> Iterator[Evidence]:
        """Asks the oracles; at the end of the test the kernel's log must be clean."""
        evidence = Evidence(host)
        judged = _Judged.of(request.node)
        judged.evidence = evidence
        yield evidence
        evidence.log_is_clean()

    @pytest.fixture
    def probe_guest(self, session: Session, evidence: Evidence) -> GuestFactory:
        """Makes probe guests on the host; each ends with its context."""

        def make(pages: int = _PAGES, vcpus: int = 1, backing: str = _BACKING) -> Any:
            return new_guest(session, pages, vcpus, backing)

        return make

    @pytest.fixture
    def backing(self) -> str:
        """The kind of memory that a test's guest has, unless the test is parametrized with it."""
        return _BACKING

    @pytest.fixture
    def guest(self, probe_guest: GuestFactory, backing: str) -> Iterator[ProbeGuest]:
        """A probe guest with 8 MiB of memory of the test's backing, and one vcpu."""
        with probe_guest(backing=backing) as guest:
            yield guest

    @pytest.fixture
    def large_guest(self, probe_guest: GuestFactory) -> Iterator[ProbeGuest]:
        """A probe guest with 64 MiB of anonymous memory and one vcpu."""
        with probe_guest(_LARGE_PAGES) as guest:
            yield guest

    def _outcome(self, item: pytest.Item) -> TestOutcome:
        assert self._run is not None
        judged = _Judged.of(item)
        request = _request(item)
        error = judged.error
        return TestOutcome(
            id=request.id,
            outcome=judged.outcome,
            mmu=request.mmu,
            backing=request.backing,
            seconds=judged.seconds,
            oracles=judged.evidence.reports if judged.evidence else (),
            message=str(error) if error is not None else "",
            oracle=error.oracle if isinstance(error, Violation) else None,
            page=error.page if isinstance(error, Violation) else None,
            log_excerpt=self._run.log_of_test() if error is not None else "",
            code=exit_code(error) if error is not None else None,
            command=self._wish.command(_mode_of(item), item.nodeid),
            started=judged.began,
        )

    def _progress(self) -> Progress:
        if self._speaks:
            return display.progress(sys.stdout, brief=self._ci)
        return Silent() if self._config.getoption("--quiet") else display.Plain(sys.stdout)


class _NotPassed(Exception):
    """Ends the phase of a test that did not pass, so that it shows as such."""


@dataclasses.dataclass
class _Judged:
    """What happened to one test so far."""

    error: BaseException | None = None
    skipped: bool = False
    seconds: float = 0.0
    began: datetime.datetime | None = None
    evidence: Evidence | None = None
    started: float = dataclasses.field(default_factory=time.monotonic)

    @classmethod
    def of(cls, item: pytest.Item) -> _Judged:
        """The judgement of a test, made at the first mention."""
        if _KEY not in item.stash:
            item.stash[_KEY] = cls()
        return item.stash[_KEY]

    def add(self, call: pytest.CallInfo[None]) -> None:
        """Take in a phase of the test: what the kernel did outranks what happened to us."""
        if call.when == "call":
            self.seconds = call.duration
            self.began = datetime.datetime.fromtimestamp(call.start, datetime.UTC)
        if call.excinfo is None:
            return
        error = call.excinfo.value
        if isinstance(error, (pytest.skip.Exception, OracleUnavailable)):
            if self.error is None:
                self.skipped, self.error = True, error
        elif (
            self.error is None
            or self.skipped
            or (isinstance(error, Violation) and not isinstance(self.error, Violation))
        ):
            self.skipped = False
            self.error = error

    @property
    def outcome(self) -> Outcome:
        """The test's outcome."""
        if self.error is None:
            return Outcome.PASS
        if self.skipped:
            return Outcome.SKIP
        return Outcome.FAIL if isinstance(self.error, Violation) else Outcome.ERROR


_KEY = pytest.StashKey[_Judged]()


def _mode_of(item: pytest.Item) -> mmu.Mmu | None:
    """The MMU mode of a test of the suite, or None for any other test."""
    callspec = getattr(item, "callspec", None)
    mode = callspec.params.get(_MODE) if callspec is not None else None
    return mode if isinstance(mode, mmu.Mmu) else None


def _request(item: pytest.Item) -> Request:
    callspec = getattr(item, "callspec", None)
    backing = callspec.params.get("backing", _BACKING) if callspec is not None else _BACKING
    return Request(id=item.nodeid, mmu=str(_mode_of(item)), backing=str(backing))
