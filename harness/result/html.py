# SPDX-License-Identifier: GPL-2.0-only
"""The report of a run as one HTML file that needs nothing but a browser.

This module decides what is shown and in which order; report.html.j2 how it looks. Every text goes
through the template's escaping, no script is in the file, and its policy forbids the browser to
run one or to fetch anything.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import jinja2

from harness.result.outcome import OracleReport, OracleStatus, Outcome, TestOutcome
from harness.result.record import RunRecord
from harness.result.summary import not_consulted, numbered, scenario
from harness.result.text import one_line, plain, printable
from harness.result.timeline import Timeline, duration, longest, timeline
from harness.result.verdict import Word

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_DETAIL_LIMIT = 4_000
"""Characters of an oracle's detail; all of it is in results.json."""

_ORDER = (Outcome.FAIL, Outcome.ERROR, Outcome.MISSING, Outcome.PASS, Outcome.SKIP)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A scenario under one mode; ``target`` is the anchor that explains it, ``bar`` percent."""

    mode: str
    outcome: Outcome | None
    time: str = ""
    bar: float = 0.0
    target: str = ""
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One scenario; ``repeated`` says that the row before has the same name."""

    name: str
    variant: str
    repeated: bool
    quiet: bool
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Area:
    """The scenarios of one file of the suite."""

    name: str
    rows: tuple[Row, ...]

    @property
    def quiet(self) -> bool:
        """Whether nothing in it needs looking at."""
        return all(row.quiet for row in self.rows)


@dataclasses.dataclass(frozen=True)
class Oracle:
    """What one oracle said in one test."""

    name: str
    status: OracleStatus
    expected: str
    seen: str
    page: int | None
    detail: str


@dataclasses.dataclass(frozen=True)
class Card:
    """A test that failed or broke, explained."""

    anchor: str
    outcome: Outcome
    name: str
    id: str
    mode: str
    time: str
    message: str
    oracles: tuple[Oracle, ...]
    command: str
    log: str


@dataclasses.dataclass(frozen=True)
class Tally:
    """How often an oracle said what, over the whole run."""

    name: str
    agreed: int
    violated: int
    silent: int


@dataclasses.dataclass(frozen=True)
class Group:
    """Tests that ended for the same reason."""

    reason: str
    names: tuple[str, ...]


def as_html(record: RunRecord) -> str:
    """report.html as text."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["printable"] = printable
    environment.filters["one_line"] = one_line
    template = environment.from_string(_TEMPLATE.read_text("utf-8"))
    modes = tuple(dict.fromkeys(outcome.mmu for outcome in record.outcomes))
    return template.render(
        record=record,
        word=record.verdict.word,
        passed=record.verdict.word is Word.PASS,
        counts=[(kind, count) for kind, count in record.counts().items() if count],
        command=printable(shlex.join(record.command)),
        modes=modes,
        areas=_areas(record, modes),
        cards=_cards(record),
        missing=_groups(record, Outcome.MISSING),
        skipped=_groups(record, Outcome.SKIP),
        tallies=_tallies(record),
        silent=not_consulted(record),
        plot=_plot(record),
        crashes=[(run.evidence, crash) for run in record.hosts for crash in run.evidence.crashes],
    )


def _plot(record: RunRecord) -> Timeline | None:
    plot = timeline(record)
    return plot if plot.lanes else None


def _areas(record: RunRecord, modes: Sequence[str]) -> tuple[Area, ...]:
    scale = longest([outcome.seconds for outcome in record.outcomes])
    table: dict[str, dict[str, dict[str, list[tuple[int, TestOutcome]]]]] = {}
    for number, outcome in enumerate(record.outcomes):
        area, _, name = scenario(outcome).partition(": ")
        rows = table.setdefault(area if name else "", {})
        rows.setdefault(name or area, {}).setdefault(outcome.mmu, []).append((number, outcome))
    areas = []
    for title, names in table.items():
        shown: list[Row] = []
        before = ""
        for text, of_modes in names.items():
            name, variant = _split(text)
            cells = tuple(_cell(mode, of_modes.get(mode, ()), scale) for mode in modes)
            quiet = all(cell.outcome in (None, Outcome.PASS, Outcome.SKIP) for cell in cells)
            shown.append(Row(name, variant, name == before, quiet, cells))
            before = name
        areas.append(Area(title or "tests", tuple(shown)))
    return tuple(areas)


def _split(text: str) -> tuple[str, str]:
    """A scenario's name, and its parameters without their brackets."""
    name, bracket, variant = text.partition(" [")
    return (name, variant.removesuffix("]")) if bracket else (text, "")


def _cell(mode: str, tests: Sequence[tuple[int, TestOutcome]], scale: float) -> Cell:
    if not tests:
        return Cell(mode, None)
    number, worst = min(tests, key=lambda item: _ORDER.index(item[1].outcome))
    seconds = sum(outcome.seconds for _, outcome in tests)
    agreed = sum(report.status is OracleStatus.AGREES for report in worst.oracles)
    title = worst.message if worst.message else f"{agreed} oracles agreed"
    ran = worst.outcome not in (Outcome.MISSING, Outcome.SKIP)
    return Cell(
        mode,
        worst.outcome,
        time=_times(worst.outcome, tests) if len(tests) > 1 else f"{seconds:.1f} s" if ran else "",
        bar=round(seconds / scale * 100, 2) if ran else 0.0,
        target={
            Outcome.FAIL: f"test-{number}",
            Outcome.ERROR: f"test-{number}",
            Outcome.MISSING: "missing",
            Outcome.SKIP: "skipped",
        }.get(worst.outcome, ""),
        title=one_line(title, 300),
    )


def _times(kind: Outcome, tests: Sequence[tuple[int, TestOutcome]]) -> str:
    """How many of the runs of a repeated test ended so."""
    return f"{sum(outcome.outcome is kind for _, outcome in tests)} of {len(tests)}"


def _cards(record: RunRecord) -> tuple[Card, ...]:
    return tuple(
        Card(
            anchor=f"test-{number}",
            outcome=outcome.outcome,
            name=numbered(outcome),
            id=one_line(outcome.id),
            mode=outcome.mmu,
            time=duration(outcome.seconds),
            message=outcome.message,
            oracles=tuple(_oracle(outcome, report) for report in _by_weight(outcome.oracles)),
            command=printable(shlex.join(outcome.command)),
            log=outcome.log_excerpt,
        )
        for number, outcome in enumerate(record.outcomes)
        if outcome.outcome in (Outcome.FAIL, Outcome.ERROR)
    )


def _by_weight(reports: Sequence[OracleReport]) -> list[OracleReport]:
    order = (OracleStatus.VIOLATED, OracleStatus.AGREES, OracleStatus.NOT_CONSULTED)
    return sorted(reports, key=lambda report: order.index(report.status))


def _oracle(outcome: TestOutcome, report: OracleReport) -> Oracle:
    detail = plain(report.detail)
    return Oracle(
        report.name,
        report.status,
        report.expected,
        report.seen,
        outcome.page if outcome.oracle == report.name else None,
        printable(json.dumps(detail, ensure_ascii=False, indent=1), _DETAIL_LIMIT)
        if detail
        else "",
    )


def _groups(record: RunRecord, kind: Outcome) -> tuple[Group, ...]:
    groups: dict[str, list[str]] = {}
    for outcome in record.outcomes:
        if outcome.outcome is kind:
            reason = one_line(outcome.message) or "no reason given"
            groups.setdefault(reason, []).append(f"{numbered(outcome)} under {outcome.mmu}")
    return tuple(Group(reason, tuple(names)) for reason, names in groups.items())


def _tallies(record: RunRecord) -> tuple[Tally, ...]:
    counts: dict[str, dict[OracleStatus, int]] = {}
    for outcome in record.outcomes:
        for report in outcome.oracles:
            of_name = counts.setdefault(report.name, dict.fromkeys(OracleStatus, 0))
            of_name[report.status] += 1
    return tuple(
        Tally(
            name,
            of_name[OracleStatus.AGREES],
            of_name[OracleStatus.VIOLATED],
            of_name[OracleStatus.NOT_CONSULTED],
        )
        for name, of_name in counts.items()
    )
