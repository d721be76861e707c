# SPDX-License-Identifier: GPL-2.0-only
"""results.ktap, read by the rules of the kernel's documentation and by nothing of ours."""

from __future__ import annotations

import dataclasses
import re

import pytest
from sample_record import HOSTILE, samples

from harness.result.ktap import as_ktap
from harness.result.record import RunRecord

SAMPLES = samples()
_RESULT = re.compile(r"(ok|not ok) ([0-9]+) ([^#]*?)(?: # ?(?:(SKIP|ERROR)(?= |$) ?)?(.*))?")


@dataclasses.dataclass(frozen=True)
class Result:
    ok: bool
    name: str
    directive: str
    data: str


def read(text: str, depth: int = 0) -> list[Result]:
    """The results at a level of indentation; what does not keep to the format raises."""
    indent = "  " * depth
    lines = [line.removeprefix(indent) for line in text.split("\n") if line.startswith(indent)]
    lines = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert lines[0] == "KTAP version 1"
    results: list[Result] = []
    while lines:
        assert lines.pop(0) == "KTAP version 1"
        plan = re.fullmatch(r"1\.\.([0-9]+)", lines.pop(0))
        assert plan
        for number in range(1, int(plan[1]) + 1):
            found = _RESULT.fullmatch(lines.pop(0))
            assert found
            assert int(found[2]) == number
            results.append(Result(found[1] == "ok", found[3], found[4] or "", found[5] or ""))
    return results


@pytest.mark.parametrize("name", SAMPLES)
def test_it_keeps_to_the_format(name: str) -> None:
    record = SAMPLES[name]
    text = as_ktap(record)
    top = read(text)
    assert [result.name for result in top[:-1]] == list(
        dict.fromkeys(outcome.mmu for outcome in record.outcomes)
    )
    if record.outcomes:
        assert len(read(text, 1)) == len(record.outcomes)


@pytest.mark.parametrize("name", SAMPLES)
def test_only_a_run_that_passed_is_ok(name: str) -> None:
    verdict = read(as_ktap(SAMPLES[name]))[-1]
    assert verdict.name == "verdict"
    assert verdict.ok == (name == "passed")
    assert (verdict.directive == "ERROR") == (name in ("unbuilt", "skipped", "empty"))


def test_the_five_outcomes_are_told_apart(record: RunRecord) -> None:
    results = read(as_ktap(record), 1)
    assert [(result.ok, result.directive, result.data) for result in results[:3]] == [
        (True, "", "1.500 s"),
        (False, "ERROR", "error: Gone."),
        (True, "SKIP", "no NUMA"),
    ]
    failed, missing = results[3:]
    assert not failed.ok
    assert failed.directive == ""
    assert "sptes stay" in failed.data
    assert missing.data.startswith("missing: ")
    assert [result.ok for result in read(as_ktap(record))] == [False, False, False]


def test_a_mode_in_which_all_was_skipped_is_skipped() -> None:
    assert [result.directive for result in read(as_ktap(SAMPLES["skipped"]))] == [
        *("SKIP", "SKIP", "SKIP"),
        "ERROR",
    ]


def test_what_a_guest_prints_is_no_result() -> None:
    text = as_ktap(SAMPLES["failed"])
    assert "not ok 1 guest" in HOSTILE
    assert "not ok 1 guest" in text
    assert not [line for line in text.split("\n") if line.strip().startswith("not ok 1 guest")]
