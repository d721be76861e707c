# SPDX-License-Identifier: GPL-2.0-only
"""What a test of the suite is to pytest: its MMU mode, its repetition, and how it ended."""

from __future__ import annotations

import dataclasses
import datetime
import re
import time
from collections.abc import Callable, Sequence

import pytest

from harness.errors import OracleUnavailable, Violation
from harness.machine.mmu import Mmu
from harness.oracle.evidence import Evidence
from harness.result.outcome import Outcome, Request, TestOutcome, run_word

MODE = "mmu_mode"
REPETITION = "mmu_repetition"
DEFAULT_BACKING = "anon"

SECONDARY_MMUS = "notifier_user"
"""The fixture of tests that need the module with secondary MMUs."""

_WITH_KVM = "probe_guest"


def parametrize(metafunc: pytest.Metafunc, modes: Sequence[Mmu], times: int) -> None:
    """Have a test of the suite run once in each MMU mode, or so many times in each.

    One without KVM runs in the first mode only.
    """
    if MODE not in metafunc.fixturenames:
        return
    if SECONDARY_MMUS in metafunc.fixturenames and _WITH_KVM not in metafunc.fixturenames:
        modes = modes[:1]
    if times == 1:
        metafunc.parametrize(MODE, modes, ids=str, scope="session")
        return
    metafunc.fixturenames.append(REPETITION)
    cells = [(mode, number) for number in range(1, times + 1) for mode in modes]
    names = [f"{mode}-{run_word(number)}" for mode, number in cells]
    metafunc.parametrize((MODE, REPETITION), cells, ids=names, scope="session")


def order(modes: Sequence[Mmu], *, same_hosts: bool) -> Callable[[pytest.Item], tuple[int, int]]:
    """The key that sorts tests so that as few hosts as possible are booted.

    Each mode is a host of its own, and each repetition, unless it is to be on the ``same_hosts``.
    Tests of others come first.
    """
    places = {mode: number for number, mode in enumerate(modes)}

    def key(item: pytest.Item) -> tuple[int, int]:
        mode = mode_of(item)
        place = -1 if mode is None else places.get(mode, -1)
        repetition = repetition_of(item)
        return (place, repetition) if same_hosts else (repetition, place)

    return key


def first_of_each(found: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The first cell of each scenario in each MMU mode and repetition, and the other cells.

    Tests of others are all among the first.
    """
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    seen = set()
    for item in found:
        key = (item.nodeid.partition("[")[0], mode_of(item), repetition_of(item))
        (left if mode_of(item) is not None and key in seen else kept).append(item)
        seen.add(key)
    return kept, left


def mode_of(item: pytest.Item) -> Mmu | None:
    """The MMU mode of a test of the suite, or None for any other test."""
    mode = _parameter(item, MODE)
    return mode if isinstance(mode, Mmu) else None


def repetition_of(item: pytest.Item) -> int:
    """The number of a test's repetition from 1 on, or 0 where nothing is repeated."""
    number = _parameter(item, REPETITION)
    return number if isinstance(number, int) else 0


def request_of(item: pytest.Item) -> Request:
    """The test as it stands in the record of a run."""
    backing = _parameter(item, "backing") or DEFAULT_BACKING
    return Request(item.nodeid, str(mode_of(item)), str(backing), repetition_of(item))


def once(item: pytest.Item) -> str:
    """The id of a test without its repetition, by which it can be asked for alone."""
    number = repetition_of(item)
    return re.sub(rf"-{run_word(number)}(?=-|\]$)", "", item.nodeid) if number else item.nodeid


def _parameter(item: pytest.Item, name: str) -> object:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(name) if callspec is not None else None


@dataclasses.dataclass
class Judged:
    """What happened to one test so far."""

    error: BaseException | None = None
    skipped: bool = False
    seconds: float = 0.0
    began: datetime.datetime | None = None
    evidence: Evidence | None = None
    started: float = dataclasses.field(default_factory=time.monotonic)

    @classmethod
    def of(cls, item: pytest.Item) -> Judged:
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


_KEY = pytest.StashKey[Judged]()


def agree(report: pytest.TestReport, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Have pytest say of a phase what the verdict will: an oracle that cannot be asked is a skip.

    Otherwise ``-x``, ``--lf`` and pytest's own counts would be about something else.
    """
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, OracleUnavailable) and not isinstance(error, Violation):
        report.outcome = "skipped"
        path, line, _ = item.reportinfo()
        report.longrepr = (str(path), (line or 0) + 1, f"Skipped: {error}")


def overrule(report: pytest.TestReport, outcome: TestOutcome, raised: BaseException | None) -> None:
    """Have pytest count a test as failed that raised nothing and is no pass all the same."""
    if outcome.outcome in (Outcome.FAIL, Outcome.ERROR) and (
        raised is None or isinstance(raised, (pytest.skip.Exception, OracleUnavailable))
    ):
        report.outcome = "failed"
        report.longrepr = outcome.message
