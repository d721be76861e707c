# SPDX-License-Identifier: GPL-2.0-only
"""What people see: moving on a terminal, plain elsewhere, and never what a guest commands."""

from __future__ import annotations

import dataclasses
import datetime
import io
import re

import pytest

from harness import display
from harness.result.coverage import Cell, Coverage, Site
from harness.result.outcome import OracleReport, OracleStatus, Outcome, Request, TestOutcome
from harness.result.record import HostRun, KernelFacts, MachineFacts, RunRecord
from harness.result.verdict import Evidence, judge


class Tty(io.StringIO):
    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def isatty(self) -> bool:
        return True


class Latin(io.StringIO):
    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "iso-8859-1"


@pytest.mark.parametrize(
    ("stream", "environment", "moving"),
    [
        (Tty(), {"TERM": "xterm"}, True),
        (Tty(), {"TERM": "xterm", "CI": "true"}, False),
        (Tty(), {"TERM": "dumb"}, False),
        (Tty(), {}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_only_a_person_at_a_terminal_sees_things_move(
    stream: io.StringIO, environment: dict[str, str], *, moving: bool
) -> None:
    assert isinstance(display.progress(stream, environment), display.Terminal) is moving


def test_a_plain_log_has_a_line_at_the_start_and_the_end_of_a_phase() -> None:
    stream = Latin()
    clock = iter(range(0, 1000, 1)).__next__
    progress = display.Plain(stream, lambda: float(clock()))
    with progress.phase("booting"):
        progress.note("tcg, because")
        progress.update("dropped")
    with pytest.raises(ValueError, match="no"), progress.phase("testing"):
        raise ValueError("no")
    lines = stream.getvalue().splitlines()
    assert lines[0:2] == ["... booting", "    tcg, because"]
    assert lines[2].startswith("ok booting  ")
    assert lines[3] == "... testing"
    assert lines[4].startswith("FAILED testing  ")
    assert len(lines) == 5


def test_a_brief_log_has_one_line_a_phase_and_no_colour() -> None:
    stream = Tty()
    progress = display.progress(stream, {"TERM": "xterm"}, brief=True)
    with progress.phase("booting"):
        pass
    with pytest.raises(ValueError, match="no"), progress.phase("testing"):
        raise ValueError("no")
    assert [line.rpartition("  ")[0] for line in stream.getvalue().splitlines()] == [
        "✓ booting",
        "✗ testing",
    ]
    bare = display.console(stream, {"TERM": "xterm"}, bare=True)
    bare.print("verdict", style="bold red")
    assert "\x1b" not in stream.getvalue()


def test_updates_in_a_plain_log_come_twice_a_minute() -> None:
    stream = Latin()
    now = 0.0
    progress = display.Plain(stream, lambda: now)
    with progress.phase("building"):
        for second in range(100):
            now = float(second)
            progress.update(f"file {second}")
    spoken = [line for line in stream.getvalue().splitlines() if "file" in line]
    assert spoken == [f"... building, {at} s: file {at}" for at in (30, 60, 90)]


def test_the_screen_that_cannot_show_a_character_gets_an_escape() -> None:
    stream = Latin()
    display.Plain(stream).note("世 ü \x1b[31m")
    assert stream.getvalue() == "    \\u4e16 ü \\x1b[31m\n"


def test_an_update_that_is_too_long_loses_its_own_end_and_nothing_else() -> None:
    stream = Tty()
    console = display.console(stream, {"TERM": "xterm", "COLUMNS": "60"})
    progress = display.Terminal(console)
    with progress.phase("Soak of guests"):
        progress.update("swap storm: " + "many words " * 20)
        assert progress._live is not None
        progress._live.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert re.search(r"Soak of guests 0 s swap storm: many words", shown)


def test_finished_phases_stay_on_a_terminal() -> None:
    stream = Tty()
    progress = display.progress(stream, {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "100"})
    with progress.phase("outer"):
        with progress.phase("inner"):
            progress.update("half \x1b]0;title\x07 [bold]done[/bold]")
        progress.note("said [bold]once[/bold] \x1b]0;title\x07")
    shown = stream.getvalue()
    assert "half \\x1b]0;title\\x07 [bold]done[/bold]" in shown
    for name in ("inner", "outer"):
        assert re.search(rf"✓ {name}  \d+\.\d s", shown)
    assert "said [bold]once[/bold] \\x1b]0;title\\x07" in shown
    assert "\x1b]0;" not in shown


@pytest.fixture
def record() -> RunRecord:
    name = "tests/kvm/test_fork.py::test_child[tdp-anon]"
    report = OracleReport("references", OracleStatus.VIOLATED, "1 reference", "2 [red]\x1b[31m")
    outcome = TestOutcome(
        name,
        Outcome.FAIL,
        "tdp",
        "anon",
        1.0,
        (report,),
        message="one too many",
        page=7,
        command=("./run", "check", "--kernel", "x" * 200),
    )
    evidence = Evidence("tdp", "tdp", "n", "n", log_end_mark=True)
    now = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    return RunRecord(
        judge([Request(name, "tdp", "anon")], [outcome], [evidence]),
        (outcome,),
        KernelFacts("deb:linux-source-6.12"),
        MachineFacts("x86_64", 2),
        (HostRun(evidence),),
        ("./run", "check"),
        now,
        now,
    )


def shown(record: RunRecord, stream: io.StringIO, environment: dict[str, str]) -> str:
    display.show(record, display.console(stream, environment))
    return stream.getvalue()


def test_the_end_of_a_log_is_the_table_the_failure_and_the_verdict(record: RunRecord) -> None:
    text = shown(record, io.StringIO(), {})
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0].split() == ["scenario", "tdp"]
    assert "fork: child [anon]  fail 1.0 s" in lines
    assert "  oracle:   references, guest page 7" in lines
    assert "  expected: 1 reference" in lines
    assert "  seen:     2 [red]\\x1b[31m" in lines
    assert f"  repeat:   ./run check --kernel {'x' * 200}" in lines
    assert lines[-1] == "FAIL (exit code 1)"
    assert "\x1b" not in text


@pytest.mark.parametrize(("silent", "rows"), [(10, 12), (11, 3)])
def test_many_scenarios_without_a_report_are_one_row(
    record: RunRecord, silent: int, rows: int
) -> None:
    missing = tuple(
        TestOutcome(
            f"tests/kvm/test_x.py::test_y[tdp-{number}]", Outcome.MISSING, "tdp", "anon", 0.0
        )
        for number in range(silent)
    )
    changed = dataclasses.replace(record, outcomes=(*record.outcomes, *missing))
    text = shown(changed, io.StringIO(), {})
    lines = [line.split() for line in text.splitlines()]
    table = lines[: lines.index(next(line for line in lines if line[0] == "fail"))]
    assert len(table) == rows
    assert (["and", str(silent), "more", "missing"] in table) == (rows == 3)
    assert f"{silent} missing" in text


def test_colour_is_for_terminals_and_can_be_refused(record: RunRecord) -> None:
    assert "\x1b[1;31mFAIL" in shown(record, Tty(), {"TERM": "xterm"})
    refused = shown(record, Tty(), {"TERM": "xterm", "NO_COLOR": "1"})
    assert "31m" not in refused.replace("\\x1b[31m", "")


def test_a_pass_is_shown_as_one(record: RunRecord) -> None:
    agrees = OracleReport("references", OracleStatus.AGREES)
    passed = dataclasses.replace(
        record.outcomes[0], outcome=Outcome.PASS, oracles=(agrees,), oracle=None
    )
    verdict = judge([], [passed], [run.evidence for run in record.hosts])
    text = shown(
        dataclasses.replace(record, outcomes=(passed,), verdict=verdict), io.StringIO(), {}
    )
    assert text.splitlines()[-1] == "PASS (exit code 0)"
    assert "oracle:" not in text


@pytest.fixture
def measured() -> Coverage:
    start = "__mmu_notifier_invalidate_range_start"
    fork = Site(start, "copy_page_range", "mm/memory.c", 1392)
    device = Site(start, "migrate_vma_collect", "mm/migrate_device.c", 309)
    names = ("first [red]", "second \x1b[31m")
    cells = [Cell(f"t.py::{name}[tdp]", "tdp", f"t: {name}", {fork: 2}) for name in names]
    return Coverage(
        "6.12.117", (fork, device), (*cells, Cell("t", "shadow", "t", problem="it fell"))
    )


def test_the_table_of_coverage_says_who_reached_what_and_why_not(measured: Coverage) -> None:
    stream = io.StringIO()
    display.show_coverage(measured, display.console(stream, {}))
    text = stream.getvalue()
    lines = [line.split() for line in text.splitlines()]
    assert ["hook", "of", "2008", "tdp", "shadow", "reached", "by"] in lines
    assert "notifier site of 6.12.117" in text
    words = ("copy_page_range:", "invalidate_range_start", "2", "-", "t:", "first", "[red]")
    assert [*words, "and", "1", "more"] in lines
    assert ["mm/memory.c:1392"] in lines
    assert "never: needs a device driver" in text
    assert "1 of 2 notifier sites of 6.12.117" in text
    assert "1 test not measured: it fell" in text
    assert "\x1b" not in text


def test_without_sites_there_is_no_table_but_the_reason() -> None:
    stream = io.StringIO()
    blind = Coverage("6.1.0", problems=("The kernel 6.1.0 has no vmlinux.",))
    display.show_coverage(blind, display.console(stream, {}))
    assert stream.getvalue() == "The kernel 6.1.0 has no vmlinux.\n"
