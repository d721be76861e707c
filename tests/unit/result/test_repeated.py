# SPDX-License-Identifier: GPL-2.0-only
"""A run that repeats its tests: each repetition is in each format, and tables count them."""

from __future__ import annotations

import dataclasses
import json
from xml.etree import ElementTree as ET

import kcidb_io  # type: ignore[import-untyped]
import pytest
from sample_record import samples

from harness.result.github import as_markdown
from harness.result.html import as_html
from harness.result.junit import as_junit
from harness.result.kcidb import as_kcidb
from harness.result.ktap import as_ktap
from harness.result.outcome import (
    OracleReport,
    OracleStatus,
    Outcome,
    Request,
    TestOutcome,
    completed,
)
from harness.result.record import RunRecord
from harness.result.summary import closing_lines, numbered, scenario, table
from harness.result.verdict import judge

AGREES = OracleReport("content", OracleStatus.AGREES)
VIOLATED = OracleReport("content", OracleStatus.VIOLATED, "1", "2")


def outcome(number: int, kind: Outcome) -> TestOutcome:
    oracle = VIOLATED if kind is Outcome.FAIL else AGREES
    id_ = f"tests/kvm/test_fork.py::test_a[tdp-run{number}-thp]"
    return TestOutcome(id_, kind, "tdp", "thp", 1.0, (oracle,), repetition=number)


@pytest.fixture
def repeated() -> RunRecord:
    """Four repetitions of one test, of which the second failed and the last never came."""
    kinds = (Outcome.PASS, Outcome.FAIL, Outcome.PASS)
    outcomes = [outcome(number, kind) for number, kind in enumerate(kinds, 1)]
    last = Request("tests/kvm/test_fork.py::test_a[tdp-run4-thp]", "tdp", "thp", 4)
    requests = [*(Request(one.id, "tdp", "thp", one.repetition) for one in outcomes), last]
    return dataclasses.replace(
        samples()["passed"],
        verdict=judge(requests, outcomes, []),
        outcomes=completed(requests, outcomes),
        hosts=(),
    )


def test_they_are_one_scenario_with_numbers(repeated: RunRecord) -> None:
    assert {scenario(one) for one in repeated.outcomes} == {"fork: a [thp]"}
    assert [numbered(one) for one in repeated.outcomes] == [
        f"fork: a [thp] (run {number})" for number in range(1, 5)
    ]


def test_a_table_counts_those_that_ended_worst(repeated: RunRecord) -> None:
    (row,) = table(repeated).rows
    assert [cell.text for cell in row.cells] == ["fail 1 of 4"]
    passed = dataclasses.replace(repeated, outcomes=repeated.outcomes[:1] + repeated.outcomes[2:3])
    assert [cell.text for cell in table(passed).rows[0].cells] == ["pass 2 of 2"]


def test_the_closing_lines_say_how_many_runs(repeated: RunRecord) -> None:
    assert closing_lines(repeated)[0].startswith("2 pass, 1 fail, 1 missing in 4 runs in ")


def test_every_repetition_is_a_case_of_junit(repeated: RunRecord) -> None:
    root = ET.fromstring(as_junit(repeated))
    names = [case.get("name") for case in root.iter("testcase")]
    assert names == [*(f"test_a[tdp-run{number}-thp]" for number in range(1, 5)), "verdict"]


def test_every_repetition_is_a_line_of_ktap(repeated: RunRecord) -> None:
    lines = as_ktap(repeated).splitlines()
    assert "  1..4" in lines
    assert any(line.startswith("  not ok 2 fork: a [thp] (run 2) # ") for line in lines)
    assert any(
        line.startswith("  not ok 4 fork: a [thp] (run 4) # ERROR missing") for line in lines
    )


def test_every_repetition_is_a_test_of_kcidb(repeated: RunRecord) -> None:
    report = json.loads(as_kcidb(repeated))
    kcidb_io.schema.V5_3.validate(report)
    _, *tests = report["tests"]
    assert len({test["id"] for test in tests}) == 4
    assert {test["path"] for test in tests} == {"mmu_harness.tdp.fork.a.tdp-thp"}


def test_people_see_one_row_and_each_failure(repeated: RunRecord) -> None:
    assert "| fork&#58; a &#91;thp&#93; | ❌ fail 1 of 4 |" in as_markdown(repeated)
    page = as_html(repeated)
    assert "1 of 4" in page
    assert "fork: a [thp] (run 2)" in page
    assert page.count('class="cell') == 1
