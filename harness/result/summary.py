# SPDX-License-Identifier: GPL-2.0-only
"""What a person reads at the end of a run, as data and plain text; harness/display.py shows it."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Sequence

from harness.result.outcome import OracleStatus, Outcome, Request, TestOutcome, run_word
from harness.result.record import RunRecord
from harness.result.text import one_line

_PARAMETERS = re.compile(r"\[(.*)\]$", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A scenario under one MMU mode; ``outcome`` is None where it was not requested.

    ``times`` says how many of the ``runs`` ended that way.
    """

    outcome: Outcome | None
    seconds: float = 0.0
    times: int = 1
    runs: int = 1

    @property
    def text(self) -> str:
        """The cell in a few characters."""
        if self.outcome is None:
            return "-"
        if self.runs > 1:
            return f"{self.outcome} {self.times} of {self.runs}"
        if self.outcome in (Outcome.MISSING, Outcome.SKIP):
            return str(self.outcome)
        return f"{self.outcome} {self.seconds:.1f} s"


@dataclasses.dataclass(frozen=True)
class Row:
    """One scenario with a cell for each mode of the table."""

    scenario: str
    cells: tuple[Cell, ...]

    @property
    def silent(self) -> bool:
        """Whether no test of it reported."""
        return all(cell.outcome in (None, Outcome.MISSING) for cell in self.cells)


@dataclasses.dataclass(frozen=True)
class Table:
    """Scenarios down, MMU modes across."""

    modes: tuple[str, ...]
    rows: tuple[Row, ...]


def table(record: RunRecord) -> Table:
    """The closing table; scenarios and modes in the order in which they were reported.

    Where a cell holds several outcomes, it shows the worst.
    """
    modes = tuple(dict.fromkeys(outcome.mmu for outcome in record.outcomes))
    cells: dict[str, dict[str, list[TestOutcome]]] = {}
    for outcome in record.outcomes:
        cells.setdefault(scenario(outcome), {}).setdefault(outcome.mmu, []).append(outcome)
    rows = (
        Row(name, tuple(_cell(of_modes.get(mode, ())) for mode in modes))
        for name, of_modes in cells.items()
    )
    return Table(modes, tuple(rows))


def scenario(outcome: Request | TestOutcome) -> str:
    """The name of a test for people: its file and function as words, without mode and repetition.

    ``tests/kvm/test_fork.py::test_child_writes[tdp-anon]`` is ``fork: child writes [anon]``.
    """
    path, _, name = outcome.id.rpartition("::")
    found = _PARAMETERS.search(name)
    parameters = found[1] if found else ""
    if found:
        name = name[: found.start()]
        for word in (outcome.mmu, run_word(outcome.repetition) if outcome.repetition else ""):
            edges = rf"(?:^|-){re.escape(word)}(?=-|$)"
            parameters = re.sub(edges, "", parameters, count=1).strip("-") if word else parameters
    file = path.rpartition("/")[2].removesuffix(".py").removeprefix("test_")
    words = name.removeprefix("test_").replace("_", " ")
    text = f"{file.replace('_', ' ')}: {words}" if file else words
    return one_line(f"{text} [{parameters}]" if parameters else text)


def numbered(outcome: Request | TestOutcome) -> str:
    """The same with the number of the repetition, where there are several."""
    which = f" (run {outcome.repetition})" if outcome.repetition else ""
    return scenario(outcome) + which


def failure_lines(outcome: TestOutcome) -> list[str]:
    """What went wrong in one test: oracle, page, expectation, observation, and how to repeat it."""
    lines = [outcome.message] if outcome.message else []
    for report in outcome.oracles:
        if report.status is OracleStatus.VIOLATED:
            where = f", guest page {outcome.page}" if _noticed(outcome, report.name) else ""
            lines.append(f"oracle:   {report.name}{where}")
            lines.append(f"expected: {report.expected}")
            lines.append(f"seen:     {report.seen}")
    if outcome.command:
        lines.append(f"repeat:   {shlex.join(outcome.command)}")
    return lines


def not_consulted(record: RunRecord) -> tuple[str, ...]:
    """A sentence for each oracle that could not be asked, with the reason and how often."""
    counts: dict[tuple[str, str], int] = {}
    for outcome in record.outcomes:
        for report in outcome.oracles:
            if report.status is OracleStatus.NOT_CONSULTED:
                key = (report.name, one_line(report.seen) or "no reason given")
                counts[key] = counts.get(key, 0) + 1
    return tuple(
        f"{name} was not consulted in {count} test{'s' if count > 1 else ''}: {why}"
        for (name, why), count in counts.items()
    )


def closing_lines(record: RunRecord) -> list[str]:
    """The last lines of a run: counts, and the verdict with its reasons."""
    counts = ", ".join(f"{count} {kind}" for kind, count in record.counts().items() if count)
    verdict = record.verdict
    head = f"{verdict.word} (exit code {int(verdict.exit_code)})"
    runs = f" in {record.repetitions} runs" if record.repetitions > 1 else ""
    lines = [f"{counts or 'no tests'}{runs} in {record.seconds:.1f} s", head]
    lines += [f"  {reason}" for reason in verdict.reasons]
    return lines


def _noticed(outcome: TestOutcome, oracle: str) -> bool:
    return outcome.page is not None and outcome.oracle == oracle


def _cell(outcomes: Sequence[TestOutcome]) -> Cell:
    order = (Outcome.FAIL, Outcome.ERROR, Outcome.MISSING, Outcome.PASS, Outcome.SKIP)
    worst = min((item.outcome for item in outcomes), key=order.index, default=None)
    times = sum(item.outcome is worst for item in outcomes)
    return Cell(worst, sum(item.seconds for item in outcomes), times, len(outcomes))
