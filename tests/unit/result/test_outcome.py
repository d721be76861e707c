# SPDX-License-Identifier: GPL-2.0-only
"""An outcome cannot claim more than its oracles said."""

from __future__ import annotations

import pytest

from harness.errors import KERNEL_LOG
from harness.result.outcome import OracleReport, OracleStatus, Outcome, Request, TestOutcome
from harness.result.outcome import completed as complete

AGREES = OracleReport("references", OracleStatus.AGREES)
VIOLATED = OracleReport("sptes", OracleStatus.VIOLATED, "0 sptes", "16 sptes")
SILENT = OracleReport("notifier", OracleStatus.NOT_CONSULTED, seen="no tracepoints")


def outcome(kind: Outcome, *oracles: OracleReport, message: str = "") -> TestOutcome:
    return TestOutcome("t.py::t[tdp]", kind, "tdp", "anon", 1.0, oracles, message=message)


@pytest.mark.parametrize(
    ("claimed", "oracles", "judged"),
    [
        (Outcome.PASS, (AGREES,), Outcome.PASS),
        (Outcome.PASS, (AGREES, SILENT), Outcome.PASS),
        (Outcome.PASS, (), Outcome.ERROR),
        (Outcome.PASS, (SILENT,), Outcome.ERROR),
        (Outcome.PASS, (AGREES, VIOLATED), Outcome.FAIL),
        (Outcome.ERROR, (VIOLATED,), Outcome.FAIL),
        (Outcome.SKIP, (VIOLATED,), Outcome.FAIL),
        (Outcome.SKIP, (SILENT,), Outcome.SKIP),
        (Outcome.FAIL, (), Outcome.FAIL),
    ],
)
def test_oracles_decide_what_an_outcome_may_be(
    claimed: Outcome, oracles: tuple[OracleReport, ...], judged: Outcome
) -> None:
    assert outcome(claimed, *oracles).outcome is judged


def test_a_pass_without_evidence_says_so_and_keeps_its_message() -> None:
    assert outcome(Outcome.PASS, message="all fine").message == (
        "Passed without evidence: no oracle agreed. all fine"
    )


def test_a_hidden_violation_names_its_oracle() -> None:
    hidden = outcome(Outcome.ERROR, AGREES, VIOLATED, message="Connection lost.")
    assert hidden.oracle == "sptes"
    assert hidden.violated == VIOLATED
    assert hidden.message.endswith("Connection lost.")


def test_guest_text_is_made_printable_on_construction() -> None:
    hostile = TestOutcome(
        "t",
        Outcome.FAIL,
        "tdp",
        "anon",
        1.0,
        (OracleReport("content", OracleStatus.VIOLATED, "\x1b", "\0", {"\x07": "\x1b"}),),
        message="\x1b[2J",
        log_excerpt="\x1b" * 1_000_000,
    )
    report = hostile.oracles[0]
    assert (report.expected, report.seen) == ("\\x1b", "\\x00")
    assert report.detail == {"\\x07": "\\x1b"}
    assert hostile.message == "\\x1b[2J"
    assert len(hostile.log_excerpt) < 100_000


def test_what_was_requested_and_not_reported_is_missing() -> None:
    reported = outcome(Outcome.PASS, AGREES)
    requests = [Request(reported.id, "tdp", "anon"), Request("t.py::u[shadow]", "shadow", "thp")]
    first, second = complete(requests, [reported])
    assert first is reported
    assert (second.id, second.outcome, second.mmu, second.backing) == (
        "t.py::u[shadow]",
        Outcome.MISSING,
        "shadow",
        "thp",
    )


def test_an_unknown_outcome_is_refused() -> None:
    with pytest.raises(ValueError, match="passed"):
        TestOutcome("t", "passed", "tdp", "anon", 1.0)  # type: ignore[arg-type]


def test_a_clean_log_alone_is_no_evidence() -> None:
    silent = OracleReport(KERNEL_LOG, OracleStatus.AGREES)
    judged = TestOutcome("t", Outcome.PASS, "tdp", "anon", 0.1, (silent,))
    assert judged.outcome is Outcome.ERROR
    spoken = OracleReport("content", OracleStatus.AGREES)
    judged = TestOutcome("t", Outcome.PASS, "tdp", "anon", 0.1, (silent, spoken))
    assert judged.outcome is Outcome.PASS
