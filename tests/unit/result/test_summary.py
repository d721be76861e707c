# SPDX-License-Identifier: GPL-2.0-only
"""The closing table and what stands below it."""

from __future__ import annotations

import dataclasses

import pytest

from harness.result.outcome import Outcome, TestOutcome
from harness.result.record import RunRecord
from harness.result.summary import closing_lines, failure_lines, not_consulted, scenario, table


@pytest.mark.parametrize(
    ("test", "mmu", "name"),
    [
        ("tests/kvm/test_fork.py::test_child_writes[tdp-anon]", "tdp", "fork: child writes [anon]"),
        ("tests/kvm/test_fork.py::test_x[anon-tdp-legacy-2]", "tdp-legacy", "fork: x [anon-2]"),
        ("tests/kvm/test_fork.py::test_x[tdp-legacy]", "tdp-legacy", "fork: x"),
        ("tests/kvm/test_fork.py::test_x[tdp-tdp]", "tdp", "fork: x [tdp]"),
        ("tests/kvm/test_fork.py::test_x[shadowy]", "shadow", "fork: x [shadowy]"),
        ("tests/kvm/test_fork.py::test_x", "", "fork: x"),
        ("mine.py::Class::check_it[a]", "tdp", "mine.py::Class: check it [a]"),
        ("free text", "tdp", "free text"),
    ],
)
def test_a_scenario_is_its_name_without_the_mode(test: str, mmu: str, name: str) -> None:
    assert scenario(TestOutcome(test, Outcome.SKIP, mmu, "anon", 0.0)) == name


def test_scenarios_go_down_and_modes_across(record: RunRecord) -> None:
    contents = table(record)
    assert contents.modes == ("tdp", "shadow")
    assert {row.scenario: [cell.text for cell in row.cells] for row in contents.rows} == {
        "munmap: gone [anon]": ["pass 1.5 s", "fail 2.5 s"],
        "t: error": ["error 0.1 s", "-"],
        "t: skip": ["skip", "-"],
        "t: lost": ["-", "missing"],
    }


def test_a_cell_with_several_outcomes_shows_the_worst(record: RunRecord) -> None:
    passed, failed = record.outcomes[:2]
    same = dataclasses.replace(failed, id=passed.id, mmu=passed.mmu)
    (row,) = table(dataclasses.replace(record, outcomes=(passed, same, passed))).rows
    assert row.cells[0].outcome is Outcome.FAIL


def test_a_fail_shows_oracle_page_expectation_sight_and_repetition(record: RunRecord) -> None:
    lines = failure_lines(record.outcomes[1])
    assert lines[1:3] == ["oracle:   sptes, guest page 7", "expected: 0 sptes"]
    assert lines[3].startswith("seen:     16 sptes")
    assert lines[4] == "repeat:   ./run check --select 'a b'"


def test_oracles_that_were_not_asked_are_listed(record: RunRecord) -> None:
    assert not_consulted(record) == ("notifier was not consulted in 1 test: no tracepoints",)


def test_the_closing_lines_count_and_judge(record: RunRecord) -> None:
    counts, verdict, *reasons = closing_lines(record)
    assert counts == "1 pass, 1 fail, 1 error, 1 missing, 1 skip in 90.0 s"
    assert verdict == "FAIL (exit code 1)"
    assert reasons[0].startswith("  tests/kvm/test_munmap.py::test_gone[shadow-anon] failed")
