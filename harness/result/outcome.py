# SPDX-License-Identifier: GPL-2.0-only
"""What one test said about the kernel, with the evidence it stands on."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import Mapping, Sequence
from typing import ClassVar

from harness.errors import KERNEL_LOG, ExitCode
from harness.result.text import EXCERPT_LIMIT, one_line, plain, printable


class Outcome(enum.StrEnum):
    """How a test ended.

    ``fail`` is what the kernel did; ``error`` is a test or a machine that broke; ``missing`` is a
    test that was requested and never reported.
    """

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    ERROR = "error"
    MISSING = "missing"
    SKIP = "skip"


class OracleStatus(enum.StrEnum):
    """What an oracle said; one that could not be asked is named, never passed over."""

    AGREES = "agrees"
    VIOLATED = "violated"
    NOT_CONSULTED = "not consulted"


@dataclasses.dataclass(frozen=True)
class OracleReport:
    """What one oracle expected and saw; ``detail`` may hold whatever JSON can carry.

    Text is made printable and bounded on construction, since it may come out of a guest. For an
    oracle that was not consulted, ``seen`` says why.
    """

    name: str
    status: OracleStatus
    expected: str = ""
    seen: str = ""
    detail: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        detail = plain(self.detail)
        _settle(
            self,
            name=one_line(self.name),
            status=OracleStatus(self.status),
            expected=printable(self.expected),
            seen=printable(self.seen),
            detail=detail,
        )


@dataclasses.dataclass(frozen=True)
class Request:
    """One test that was selected to run, known before anything boots.

    ``repetition`` counts from 1 on in a run that repeats its tests, and is 0 in any other.
    """

    id: str
    mmu: str
    backing: str
    repetition: int = 0


@dataclasses.dataclass(frozen=True)
class TestOutcome:
    """How one requested test ended; ``seconds`` is its run time without booting.

    ``oracle`` and ``page`` (index of the first guest page concerned) say who noticed a violation
    and where. ``code`` is the exit code of the error's class, for outcomes that are no verdict on
    the kernel. ``command`` is the argv that repeats this test alone. ``started`` is an aware
    datetime, None for a test that never began. ``repetition`` is the request's.

    Two rules hold for every object of this class: a test that passed although no oracle agreed
    is an error, and a test in which an oracle saw a violation is a fail.
    """

    __test__: ClassVar[bool] = False  # pytest takes every class of this name for a test

    id: str
    outcome: Outcome
    mmu: str
    backing: str
    seconds: float
    oracles: tuple[OracleReport, ...] = ()
    message: str = ""
    oracle: str | None = None
    page: int | None = None
    log_excerpt: str = ""
    code: ExitCode | None = None
    command: tuple[str, ...] = ()
    started: datetime.datetime | None = None
    repetition: int = 0

    def __post_init__(self) -> None:
        outcome, message = self._judged()
        first = self.violated
        oracle = self.oracle or (first.name if first and outcome is Outcome.FAIL else None)
        _settle(
            self,
            outcome=outcome,
            message=printable(message),
            oracle=oracle,
            log_excerpt=printable(self.log_excerpt, EXCERPT_LIMIT),
        )

    @property
    def violated(self) -> OracleReport | None:
        """The report of the oracle that saw a violation: the named one, or else the first."""
        reports = [report for report in self.oracles if report.status is OracleStatus.VIOLATED]
        named = [report for report in reports if report.name == self.oracle]
        return next(iter(named + reports), None)

    def _judged(self) -> tuple[Outcome, str]:
        outcome = Outcome(self.outcome)
        if self.violated is not None and outcome is not Outcome.FAIL:
            what = f"{self.violated.name} saw a violation; the test ended as {outcome}."
            return Outcome.FAIL, f"{what} {self.message}".strip()
        agreed = any(
            report.status is OracleStatus.AGREES and report.name != KERNEL_LOG
            for report in self.oracles
        )
        if outcome is Outcome.PASS and not agreed:
            return Outcome.ERROR, f"Passed without evidence: no oracle agreed. {self.message}"
        return outcome, self.message


def run_word(repetition: int) -> str:
    """The word by which a repetition stands among the parameters in a test's id."""
    return f"run{repetition}"


def completed(
    requested: Sequence[Request], outcomes: Sequence[TestOutcome]
) -> tuple[TestOutcome, ...]:
    """All outcomes in the order of the requests, with a ``missing`` one for what never reported."""
    reported = {outcome.id for outcome in outcomes}
    missing = (
        TestOutcome(
            request.id,
            Outcome.MISSING,
            request.mmu,
            request.backing,
            0.0,
            message="Requested, but never reported.",
            repetition=request.repetition,
        )
        for request in requested
        if request.id not in reported
    )
    order = {request.id: number for number, request in enumerate(requested)}
    # Several hosts report as they get on; what nobody asked for comes last.
    return tuple(
        sorted((*outcomes, *missing), key=lambda outcome: order.get(outcome.id, len(order)))
    )


def _settle(target: object, **values: object) -> None:
    # Frozen for everybody else: these are the values that construction itself decides.
    for name, value in values.items():
        object.__setattr__(target, name, value)
