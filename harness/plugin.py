# SPDX-License-Identifier: GPL-2.0-only
"""The doors of pytest: options, fixtures, and the verdict over a run.

A test belongs to the suite when it asks for one of the fixtures ``host``, ``guest``,
``probe_guest``, ``linux_guest``, ``user``, ``notifier_user`` or ``evidence``. It then runs once in
each MMU mode, or in the first one only if it does without KVM. Tests that ask for none of them are
none of this plugin's business, and a run without any such test is left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from harness import ci, display, distributed, items
from harness.distributed import Role
from harness.errors import (
    ExitCode,
    HarnessError,
    Interrupted,
    OracleUnavailable,
    UsageError,
    Violation,
)
from harness.guest.probe import GuestFactory, ProbeGuest
from harness.guest.probe import probe_guest as new_guest
from harness.guest.session import Session
from harness.guest.user import NotifierUser, UserFactory
from harness.guest.user import notifier_user as new_user
from harness.items import Judged, first_of_each, mode_of, order, request_of
from harness.janitor import Janitor
from harness.linux_guest.guest import LinuxGuest
from harness.linux_guest.home import LinuxGuests
from harness.linux_guest.home import linux_guests as place_for_linux_guests
from harness.machine import mmu
from harness.machine.host import Host
from harness.oracle.evidence import Evidence
from harness.oracle.secondary import SecondaryEvidence
from harness.progress import Progress, Silent
from harness.result.directory import ResultsDirectory
from harness.result.outcome import Outcome, Request, TestOutcome
from harness.result.summary import numbered
from harness.result.verdict import exit_code
from harness.run import Run
from harness.spread import Spread
from harness.store import Store
from harness.wishing import add_options, header, wish_of
from harness.workbench import Wish

_PAGES = 2048
_LARGE_PAGES = 16384
_USER_PAGES = 512
_BACKING = items.DEFAULT_BACKING
PLUGIN = "mmu-harness-run"

_SAME_SECONDS = 1.0
"""Signals that are closer together are one."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Check the options before anything is collected."""
    config.addinivalue_line("markers", "linux_guest: drives whole Linux systems on the host")
    config.addinivalue_line("markers", "secondary_mmu: of the notifiers themselves, without KVM")
    try:
        wish = wish_of(config)
        role = distributed.role(config)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    if wish.until_fail:
        # The same as for pytest itself, which has many ways to end a session and knows them all.
        config.option.maxfail = 1
    suite = SuitePlugin(config, wish, role)
    config.pluginmanager.register(suite, PLUGIN)
    distributed.join(config, suite, role)


class SuitePlugin:
    """The plugin for one pytest session."""

    def __init__(self, config: pytest.Config, wish: Wish, role: Role) -> None:
        self.listener: Callable[[TestOutcome], None] | None = None
        self._config = config
        self._wish = wish
        self._role = role
        self._stack = contextlib.ExitStack()
        self._janitor: Janitor | None = None
        self._run: Run | None = None
        self._session: pytest.Session | None = None
        self._spread: Spread | None = None
        # Without pytest's own reporter, which is how check() runs, this plugin reports.
        blocked = config.pluginmanager.is_blocked("terminal")
        self._speaks = blocked and role is not Role.WORKER
        self._signal: signal.Signals | None = None
        self._stopped = 0.0
        self._broke: ExitCode | None = None
        self._ci = bool(config.getoption("--ci"))
        # pytest keeps what is printed to itself, and a job must hear it at once.
        heard = self._ci and self._speaks
        self._job = ci.job(sys.stdout, os.environ) if heard else ci.Unknown()

    @property
    def exit_code(self) -> ExitCode | None:
        """The code of the verdict, once there is one, or of what kept the run from beginning."""
        if self._run and self._run.record:
            return self._run.record.verdict.exit_code
        return self._broke

    @property
    def run(self) -> Run | None:
        """The run, once it has begun."""
        return self._run

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Remember what may have to be ended."""
        self._session = session

    def pytest_report_header(self) -> list[str]:
        """Say which kernel is tested, and on what."""
        return header(self._wish)

    # Selection.

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test of the suite in each MMU mode, as often as it was wished for."""
        items.parametrize(metafunc, self._wish.modes, self._wish.repeat)

    # The name of the argument is pytest's. Last, because -k has its say before.
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Bring the tests of a host together, and leave out what a quick look does without."""
        items.sort(key=order(self._wish.modes, same_hosts=self._wish.same_hosts))
        if self._wish.quick:
            items[:], left = first_of_each(items)
            config.hook.pytest_deselected(items=left)

    # The run.

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Make the kernel and all else before the first test, so that a failure is told once."""
        requests = [request_of(item) for item in session.items if mode_of(item)]
        if self._config.option.collectonly or session.testsfailed or self._role is not Role.ALONE:
            return None
        if not requests and not self._speaks:
            return None
        run = self.begin(requests, Path(self._config.getoption("--results")))
        if not requests:
            return None
        # True says that the loop is over: no test runs without a kernel.
        return True if not run.prepare() or self._ran_on_many_hosts(session) else None

    def open(self) -> Path:
        """The private directory of this process, with the promise that nothing is left."""
        if self._janitor is None:
            self._janitor = self._stack.enter_context(Janitor())
        return self._janitor.directory

    def begin(self, requests: Sequence[Request], results: Path | ResultsDirectory) -> Run:
        """Begin the run of these tests; ends the session where there is no place for it."""
        try:
            return self._begun(requests, results)
        except HarnessError as error:
            self._broke = error.exit_code
            if self._speaks:
                print(f"mmu-harness: {error}", file=sys.stderr)
            pytest.exit(str(error), int(error.exit_code))

    def _begun(self, requests: Sequence[Request], results: Path | ResultsDirectory) -> Run:
        if self._role is not Role.WORKER:  # which pytest-xdist ends in its own way
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, self._stop)
        directory = self.open()
        assert self._janitor is not None
        progress = self._progress()
        self._job.begin()
        self._run = self._stack.enter_context(
            Run(
                self._wish,
                requests,
                Store(None, self._janitor.adopt, self._janitor.release, progress.note),
                directory,
                results,
                progress,
                command=self._wish.command(),
                measure=self._config.getoption("--coverage"),
            )
        )
        return self._run

    def _ran_on_many_hosts(self, session: pytest.Session) -> bool:
        """Run all tests on several hosts at once, if that is worth it; whether it was done."""
        modes = [mode_of(item) for item in session.items]
        hosts = self._run.hosts_at_once(len(modes)) if self._run and all(modes) else 1
        if hosts < 2 or self._run is None:
            return False
        self._spread = Spread(self._run, session)
        self.listener = self._spread.judged
        self._spread.over(hosts, [self._host_of(item) for item in session.items])
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        return True

    def _host_of(self, item: pytest.Item) -> str:
        """Names the tests that can share a host."""
        again = "" if self._wish.same_hosts else items.repetition_of(item) or ""
        return f"{mode_of(item)} {again}".strip()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Show a test as a phase where phases are shown."""
        if self._run is None or not self._speaks or not mode_of(item):
            return (yield)
        with (
            contextlib.suppress(_NotPassed),
            self._run.progress.phase(f"{mode_of(item)}  {numbered(request_of(item))}"),
        ):
            result = yield
            if Judged.of(item).outcome not in (Outcome.PASS, Outcome.SKIP):
                raise _NotPassed
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Judge a test by the class of what it raised, not by the phase in which it did."""
        report = yield
        if self._run is not None and mode_of(item):
            Judged.of(item).add(call)
            items.agree(report, item, call)
            if call.when == "teardown":
                outcome = self._outcome(item)
                items.overrule(report, outcome, Judged.of(item).error)
                self._run.report(outcome)
                if self.listener is not None:
                    self.listener(outcome)
                if self._signal is not None:
                    # Whoever swallowed the interrupt shall not make us go on.
                    item.session.shouldstop = "the run was interrupted"
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Pass on what pytest itself says of a test, and end a run that has failed enough."""
        if self._spread is not None:
            self._spread.reported(report)
        if self._run is not None and self._session is not None and self._run.enough:
            self._session.shouldfail = self._run.enough

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(
        self, session: pytest.Session, exitstatus: int
    ) -> Generator[None, object, object]:
        """Give the verdict when all fixtures are gone, and leave with its exit code."""
        ended = session.shouldstop or session.shouldfail
        stopped = self._signal is not None or (
            exitstatus == pytest.ExitCode.INTERRUPTED and not ended
        )
        try:
            return (yield)
        except Exception as error:
            if self._run is None or self._role is Role.WORKER:
                raise
            # What cannot be taken down after an interrupt is what the interrupt cut short.
            if not stopped:
                self._run.problem(error)
            return None
        finally:
            if self._run is not None and self._role is not Role.WORKER:
                self._conclude(self._run, session, stopped)

    def _conclude(self, run: Run, session: pytest.Session, stopped: bool) -> None:
        if stopped:
            run.problem(Interrupted(self._signal or signal.SIGINT))
        if run.enough:
            run.progress.note(run.enough)
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
        """End the session as pytest ends it for SIGINT, and remember for whom.

        A second signal ends it at once, and leaves the hosts to the janitor's helper. One that
        comes with the first is the first by another way: a terminal tells a whole group, and a
        runner its child.
        """
        if self._signal is None:
            self._signal, self._stopped = signal.Signals(signum), time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self._stopped > _SAME_SECONDS:
            error = Interrupted(signum)
            os.write(2, f"\nmmu-harness: {error} It was the second time: no results.\n".encode())
            os._exit(error.exit_code)

    # Fixtures.

    @pytest.fixture
    def session(self, request: pytest.FixtureRequest, mmu_mode: mmu.Mmu) -> Iterator[Session]:
        """The agent on the host of this test."""
        assert self._run is not None
        if items.SECONDARY_MMUS in request.fixturenames:
            # What cannot be loaded needs no host.
            self._run.require_secondary_mmus()
        session = self._run.session(mmu_mode, items.repetition_of(request.node))
        # All that a test makes on the host depends on this fixture, and is gone when it ends.
        with self._run.watching(session, request_of(request.node)):
            yield session

    @pytest.fixture
    def host(self, session: Session) -> Host:
        """The machine that runs the kernel under test, in this test's MMU mode."""
        return session.host

    @pytest.fixture
    def evidence(self, request: pytest.FixtureRequest, host: Host) -> Iterator[Evidence]:
        """Asks the oracles; at the end of the test the kernel's log must be clean."""
        evidence = SecondaryEvidence(host)
        judged = Judged.of(request.node)
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
    def linux_guests(self, session: Session, evidence: Evidence) -> Iterator[LinuxGuests]:
        """A place on the host for guests that are whole Linux systems under QEMU."""
        assert self._run is not None
        if session.host.facts.mmu is mmu.Mmu.NESTED:
            raise OracleUnavailable(
                "A Linux guest runs no guest of its own; it is for other modes."
            )
        with place_for_linux_guests(session, self._run.linux_image()) as guests:
            yield guests

    @pytest.fixture
    def notifier_user(self, session: Session, evidence: Evidence) -> UserFactory:
        """Makes processes that use secondary MMUs without KVM; each ends with its context."""
        assert self._run is not None
        self._run.require_secondary_mmus().load(session)

        def make(pages: int = _USER_PAGES, backing: str = _BACKING) -> Any:
            return new_user(session, pages, backing)

        return make

    @pytest.fixture
    def user(self, notifier_user: UserFactory, backing: str) -> Iterator[NotifierUser]:
        """A process with 2 MiB of the test's backing, on which secondary MMUs can be attached."""
        with notifier_user(backing=backing) as user:
            yield user

    @pytest.fixture
    def linux_guest(self, linux_guests: LinuxGuests) -> Iterator[LinuxGuest]:
        """One of them, which has booted and is at work."""
        with linux_guests.guest() as guest:
            yield guest

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
        judged = Judged.of(item)
        request = request_of(item)
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
            command=self._wish.command(mode_of(item), items.once(item)),
            started=judged.began,
            repetition=request.repetition,
        )

    def _progress(self) -> Progress:
        if self._role is Role.WORKER:
            return Silent()
        if self._speaks:
            return display.progress(sys.stdout, brief=self._ci)
        return Silent() if self._config.getoption("--quiet") else display.Plain(sys.stdout)


class _NotPassed(Exception):
    """Ends the phase of a test that did not pass, so that it shows as such."""
