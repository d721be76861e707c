# SPDX-License-Identifier: GPL-2.0-only
"""The kill matrix calls a control killed only when a scenario that should see it did."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from harness import kill_matrix
from harness.catalogue import Entry
from harness.errors import KERNEL_LOG, ExitCode
from harness.kill_matrix import Fate, Matrix, Role, Run, judged, unobservable

ENTRY = Entry(
    "spte-kept",
    "sptes go",
    "a bug",
    sees=("test_unmap aligned",),
    blind=("test_fork anon", "test_exit killed"),
)
SEES = "tests/kvm/test_unmap.py::test_unmapped[tdp-anon-aligned]"
BLIND = "tests/kvm/test_fork.py::test_child[tdp-anon]"
OTHER = "tests/kvm/test_exit.py::test_a_killed_vmm[tdp]"


def asked(id: str, outcome: str = "pass", oracle: str | None = None) -> dict[str, Any]:
    report = {"name": oracle, "status": "violated", "expected": "none", "seen": "page 7 is stale"}
    return {
        "id": id,
        "outcome": outcome,
        "mmu": "tdp",
        "backing": "anon",
        "oracle": oracle,
        "oracles": [report] if oracle else [],
        "message": "it broke" if outcome == "error" else "",
    }


def run(*tests: dict[str, Any], code: int = 0, crash: str = "", last_line: str = "") -> Run:
    crashes = [{"kind": "BUG", "excerpt": crash}] if crash else []
    results = {
        "tests": list(tests),
        "verdict": {"reasons": ["because"]},
        "qemu": {"hosts": [{"crashes": crashes}]},
    }
    return Run(code, results, seconds=10.0, last_line=last_line)


def matrix(*rows: kill_matrix.Row, good: int = 0) -> Matrix:
    return Matrix("deb:linux-source-6.12", run(code=good), rows)


KILLED = judged(ENTRY, run(asked(SEES, "fail", "translations"), asked(BLIND), code=1))
SURVIVED = judged(ENTRY, run(asked(SEES), asked(BLIND), asked(OTHER)))
STRANGER = judged(ENTRY, run(asked(SEES), asked(BLIND, "fail", "content"), code=1))
BROKEN = judged(ENTRY, run(asked(SEES, "error"), code=ExitCode.BUG))


def test_a_control_is_killed_by_a_scenario_that_should_see_it() -> None:
    assert KILLED.fate is Fate.KILLED
    assert [cell.oracle for cell in KILLED.killers] == ["translations"]
    assert KILLED.why == "translations: page 7 is stale"
    assert {cell.id: cell.role for cell in KILLED.cells} == {SEES: Role.SEES, BLIND: Role.BLIND}


def test_a_control_that_nobody_sees_survives() -> None:
    assert SURVIVED.fate is Fate.SURVIVED
    assert SURVIVED.why == "every scenario passed"


def test_a_skipped_scenario_kills_nothing() -> None:
    row = judged(ENTRY, run(asked(SEES, "skip"), asked(BLIND)))
    assert row.fate is Fate.SURVIVED
    assert row.why == "skipped: unmap: unmapped [anon-aligned]"


def test_one_that_only_a_stranger_notices_is_not_killed() -> None:
    assert STRANGER.fate is Fate.STRANGER
    assert "fork: child [anon] (content)" in STRANGER.why


def test_a_stranger_besides_a_killer_takes_nothing_away() -> None:
    row = judged(ENTRY, run(asked(SEES, "fail", "x"), asked(BLIND, "fail", "y"), code=1))
    assert row.fate is Fate.KILLED
    assert [cell.id for cell in row.strangers] == [BLIND]


def test_a_scenario_that_was_to_prove_itself_and_did_not_is_a_failure() -> None:
    entry = dataclasses.replace(ENTRY, also=("test_race punch",))
    punch = "tests/kvm/test_race.py::test_no_write[tdp-punch-1]"
    killer = asked(SEES, "fail", "translations")
    missed = judged(entry, run(killer, asked(punch), code=1))
    assert missed.fate is Fate.KILLED
    assert [cell.id for cell in missed.missed] == [punch]
    assert [cell.role for cell in missed.cells] == [Role.SEES, Role.SEES]
    assert kill_matrix.exit_code(matrix(missed)) == ExitCode.FAIL
    assert f"spte-kept: not seen by {missed.missed[0].scenario}" in kill_matrix.summary(
        matrix(missed)
    )
    proven = judged(entry, run(killer, asked(punch, "fail", "content"), code=1))
    assert proven.missed == ()
    assert kill_matrix.exit_code(matrix(proven)) == ExitCode.PASS


def test_a_crash_that_a_scenario_saw_is_told_with_its_line() -> None:
    excerpt = "------------[ cut here ]------------\nkernel BUG at tdp_mmu.c:475!\nRIP"
    row = judged(ENTRY, run(asked(SEES, "fail", KERNEL_LOG), code=1, crash=excerpt))
    assert row.fate is Fate.KILLED
    assert row.why == "BUG: kernel BUG at tdp_mmu.c:475!"


def test_a_stop_is_no_pass_but_a_death_by_that() -> None:
    panic = judged(
        ENTRY, run(asked(SEES), asked(BLIND), code=1, crash="Kernel panic - not syncing")
    )
    assert panic.fate is Fate.STOPPED
    assert panic.why == "BUG: Kernel panic - not syncing"
    hang = judged(ENTRY, run(asked(SEES, "error"), code=200, last_line="hung task: vcpu0"))
    assert hang.fate is Fate.STOPPED
    assert hang.why.endswith("last on the console: hung task: vcpu0")


@pytest.mark.parametrize(
    ("tests", "code"),
    [
        ([asked(BLIND, "error"), asked(SEES)], ExitCode.INFRASTRUCTURE),
        ([asked(SEES, "error")], ExitCode.BUG),
        ([], ExitCode.UNTESTABLE),
        ([], ExitCode.INTERRUPTED),
    ],
)
def test_what_broke_for_other_reasons_is_an_error(tests: list[dict[str, Any]], code: int) -> None:
    row = judged(ENTRY, run(*tests, code=code))
    assert row.fate is Fate.ERROR
    assert kill_matrix.exit_code(matrix(KILLED, row)) == code


@pytest.mark.parametrize(
    ("rows", "good", "code"),
    [
        ([KILLED], 0, 0),
        ([KILLED, unobservable(ENTRY, "no TLB")], 0, 0),
        ([KILLED, SURVIVED], 0, 1),
        ([STRANGER], 0, 1),
        ([BROKEN], 0, 203),
        ([BROKEN, SURVIVED], 0, 1),
        ([KILLED], 1, 1),
        ([], 125, 125),
        ([SURVIVED], 143, 143),
    ],
)
def test_the_exit_code_says_whether_the_suite_can_fail(
    rows: list[kill_matrix.Row], good: int, code: int
) -> None:
    assert kill_matrix.exit_code(matrix(*rows, good=good)) == code


def test_the_table_has_a_mark_for_each_cell() -> None:
    text = kill_matrix.as_text(matrix(KILLED, SURVIVED, STRANGER, good=1))
    head, *lines = text.splitlines()
    assert head.split() == ["1", "2", "3"]
    assert "  1  exit: a killed vmm" in lines
    assert "  2  fork: child [anon]" in lines
    assert "  3  unmap: unmapped [anon-aligned]" in lines
    assert lines[0].split()[1:] == [".", "K", "killed"]
    assert lines[1].split()[1:] == [".", ".", "s", "SURVIVED"]
    assert lines[2].split()[1:3] == ["!", "s"]
    assert "The good kernel did not pass: because" in text


def test_the_document_can_be_read_again() -> None:
    read = json.loads(kill_matrix.as_json(matrix(KILLED, SURVIVED)))
    assert read["exit_code"] == 1
    assert [row["fate"] for row in read["controls"]] == ["killed", "SURVIVED"]
    assert read["controls"][0]["scenarios"][0] == {
        "id": SEES,
        "scenario": "unmap: unmapped [anon-aligned]",
        "mmu": "tdp",
        "role": "should see it",
        "outcome": "fail",
        "oracle": "translations",
        "seen": "page 7 is stale",
    }


def test_what_a_host_printed_is_shown_as_text_only() -> None:
    row = judged(ENTRY, run(asked(SEES), code=1, crash="panic \x1b[31m\u202e"))
    assert "\x1b" not in row.why
    assert "\u202e" not in row.why
