# SPDX-License-Identifier: GPL-2.0-only
"""One run over several hosts at once: each worker has a host, and takes tests as it is free.

A worker is a fork of the process that collected the tests and made the kernel. It runs them as
that process would have done, and tells it of each report of pytest, of each outcome, and of what
its hosts left as evidence. Only the first process judges.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from harness.crew import Crew, Given, Lost, pieces
from harness.errors import HarnessError, InfrastructureError
from harness.result.outcome import TestOutcome
from harness.result.record import HostRun
from harness.run import Run

_LONGEST_PIECE = 10
"""Tests that a worker takes at a time: few, so that all workers end together."""

Tell = Callable[[object], None]


@dataclasses.dataclass(frozen=True)
class _Reported:
    """A report of pytest, in the form that pytest gives it for another process."""

    data: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Ended:
    """A phase of a worker has ended."""

    name: str
    seconds: float
    well: bool


@dataclasses.dataclass(frozen=True)
class _Noted:
    """A worker has something to say."""

    text: str


class _Told:
    """A Progress that tells another process."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Tell of a phase when it has ended."""
        started = time.monotonic()
        well = False
        try:
            yield
            well = True
        finally:
            self._tell(_Ended(name, time.monotonic() - started, well))

    def update(self, text: str) -> None:
        """Drop it: what is not shown needs no news."""

    def ended(self, name: str, seconds: float, *, well: bool) -> None:
        """Pass it on."""
        self._tell(_Ended(name, seconds, well))

    def note(self, text: str) -> None:
        """Pass it on."""
        self._tell(_Noted(text))


class Spread:
    """The tests of a pytest session, which is not named here, over several hosts."""

    def __init__(self, run: Run, session: Any) -> None:
        self._run = run
        self._session = session
        self._tell: Tell | None = None
        self._judged = 0

    def over(self, hosts: int, kinds: Sequence[str]) -> None:
        """Run all tests on so many hosts; ``kinds`` has the MMU mode of each."""
        run, session = self._run, self._session
        with (
            Crew(hosts, pieces(kinds, _LONGEST_PIECE), self._serve) as crew,
            run.progress.phase(f"{len(kinds)} tests on {hosts} hosts at once"),
        ):
            try:
                for message in crew.messages():
                    self._hear(message)
                    run.progress.update(f"{self._judged} of {len(kinds)}")
                    if session.shouldfail or session.shouldstop:
                        crew.finish()
            except KeyboardInterrupt:
                crew.stop()
                for message in crew.messages():
                    self._hear(message)
                raise

    def judged(self, outcome: TestOutcome) -> None:
        """Have the first process know of an outcome."""
        if self._tell is not None:
            self._tell(outcome)

    def reported(self, report: Any) -> None:
        """Have the first process know of a report of pytest."""
        if self._tell is not None:
            config = self._session.config
            data = config.hook.pytest_report_to_serializable(config=config, report=report)
            self._tell(_Reported(data))

    def _hear(self, message: object) -> None:
        run, config = self._run, self._session.config
        match message:
            case TestOutcome():
                self._judged += 1
                run.take(message)
            case _Reported(data):
                report = config.hook.pytest_report_from_serializable(config=config, data=data)
                config.hook.pytest_runtest_logreport(report=report)
            case _Ended(name, seconds, well):
                run.progress.ended(name, seconds, well=well)
            case _Noted(text):
                run.progress.note(text)
            case Lost():
                run.problem(_lost(message))
            case tuple():
                run.take_hosts([host for host in message if isinstance(host, HostRun)])

    def _serve(self, number: int, given: Given, tell: Tell) -> None:
        """Be a worker: run the tests of each piece, then end the last host and tell of it."""
        session = self._session
        self._tell = tell
        self._run.enlist(number, _Told(tell))
        # It would print what the first process prints, too.
        session.config.pluginmanager.unregister(name="terminalreporter")
        try:
            for piece in given:
                items = [session.items[index] for index in piece.numbers]
                for item, following in itertools.zip_longest(items, items[1:]):
                    session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                    if given.over:
                        break
        except KeyboardInterrupt:
            pass  # the first process knows why
        finally:
            # It also ends us for good, should ending the host take too long.
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, signal.SIG_IGN)
            tell(self._run.end_hosts())


def _lost(lost: Lost) -> HarnessError:
    """Why a worker ended before its time; its tests are missing."""
    status = lost.status or 0
    if status < 0:
        return InfrastructureError(
            f"Worker {lost.worker} was killed by signal {-status}, as when the machine has no "
            "memory left; with --hosts 1 only one host runs at a time."
        )
    return HarnessError(
        f"Worker {lost.worker} ended with status {status}; what it said is on standard error."
    )
