# SPDX-License-Identifier: GPL-2.0-only
"""Which scenario noticed which control: pure judgement over the results of one run each.

A control is *killed* when a scenario that should see it fails. One that no such scenario sees has
*survived*, whatever else happened, and so has one that only a *stranger* noticed: a scenario that
should not care, which then failed for a reason that nobody understands. A control that stops its
host is killed by that, with the line of the log that says so.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.catalogue import Entry, matches
from harness.errors import KERNEL_LOG, ExitCode
from harness.result.outcome import Outcome, Request
from harness.result.summary import scenario
from harness.result.text import Json, one_line, plain

SCHEMA = 1
"""Version of kill-matrix.json."""


class Fate(enum.StrEnum):
    """What became of a control."""

    KILLED = "killed"
    STOPPED = "killed by a stop"
    SURVIVED = "SURVIVED"
    STRANGER = "NOTICED ONLY BY STRANGERS"
    UNOBSERVABLE = "not observable here"
    ERROR = "ERROR"


WELL = (Fate.KILLED, Fate.STOPPED, Fate.UNOBSERVABLE)
"""What may become of a control without a bug of the suite."""


class Role(enum.StrEnum):
    """What a scenario is to a control."""

    SEES = "should see it"
    BLIND = "should not care"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left behind: its exit code and, where it got that far, results.json.

    ``last_line`` is the last line on the console of its last host.
    """

    code: int
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    last_line: str = ""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is what it is."""
        return tuple(self.results.get("verdict", {}).get("reasons", ()))

    @property
    def crash(self) -> str:
        """The first line of the first crash report of a host, or nothing."""
        for host in self.results.get("qemu", {}).get("hosts", ()):
            for crash in host["crashes"]:
                return one_line(f"{crash['kind']}: {_headline(crash['excerpt'])}")
        return ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One scenario under one control; ``oracle`` is who noticed, ``seen`` what."""

    id: str
    scenario: str
    mmu: str
    role: Role
    outcome: Outcome
    oracle: str | None = None
    seen: str = ""

    @property
    def noticed(self) -> bool:
        """Whether the scenario failed."""
        return self.outcome is Outcome.FAIL


@dataclasses.dataclass(frozen=True)
class Row:
    """One control: its fate, why, and a cell for each scenario that was asked."""

    entry: Entry
    fate: Fate
    cells: tuple[Cell, ...] = ()
    why: str = ""
    seconds: float = 0.0
    code: int = 0

    @property
    def name(self) -> str:
        """The control's name."""
        return self.entry.name

    @property
    def missed(self) -> tuple[Cell, ...]:
        """The scenarios that were to prove on this control that they can fail, and passed."""
        proofs = (*self.entry.also, *self.entry.linux)
        return tuple(
            cell
            for cell in self.cells
            if cell.outcome is Outcome.PASS and any(matches(proof, cell.id) for proof in proofs)
        )

    @property
    def killers(self) -> tuple[Cell, ...]:
        """The scenarios that should see the control, and did."""
        return tuple(cell for cell in self.cells if cell.role is Role.SEES and cell.noticed)

    @property
    def strangers(self) -> tuple[Cell, ...]:
        """The scenarios that should not care, and failed."""
        return tuple(cell for cell in self.cells if cell.role is Role.BLIND and cell.noticed)


@dataclasses.dataclass(frozen=True)
class Matrix:
    """All of it: the good kernel's run, and a row for each control that was tried.

    ``planned`` are the names of all that were to be tried, ``seconds`` what that took by the clock.
    """

    kernel: str
    good: Run
    rows: tuple[Row, ...]
    planned: tuple[str, ...] = ()
    seconds: float = 0.0


def judged(entry: Entry, run: Run) -> Row:
    """What one run of a control says about it."""
    cells = tuple(_cell(entry, test) for test in run.results.get("tests", ()))
    row = Row(entry, Fate.SURVIVED, cells, seconds=run.seconds, code=run.code)
    if row.killers:
        first = row.killers[0]
        why = run.crash if first.oracle == KERNEL_LOG else f"{first.oracle}: {first.seen}"
        return dataclasses.replace(row, fate=Fate.KILLED, why=one_line(why))
    if row.strangers:
        why = "; ".join(f"{cell.scenario} ({cell.oracle})" for cell in row.strangers)
        return dataclasses.replace(row, fate=Fate.STRANGER, why=why)
    if stopped := _stop(run, cells):
        return dataclasses.replace(row, fate=Fate.STOPPED, why=stopped)
    if run.code not in (ExitCode.PASS, ExitCode.FAIL):
        return dataclasses.replace(row, fate=Fate.ERROR, why=one_line(" ".join(run.reasons)))
    skipped = [cell.scenario for cell in cells if cell.outcome is Outcome.SKIP]
    why = f"skipped: {', '.join(skipped)}" if skipped else "every scenario passed"
    return dataclasses.replace(row, why=why)


def unobservable(entry: Entry, proof: str) -> Row:
    """The row of a control that cannot show on this machine."""
    return Row(entry, Fate.UNOBSERVABLE, why=proof)


def exit_code(matrix: Matrix) -> int:
    """1 if the good kernel fails or a control survives; else the code of what broke, or 0."""
    stops = (ExitCode.INTERRUPTED, ExitCode.TERMINATED)
    codes = [matrix.good.code, *(row.code for row in matrix.rows)]
    for code in codes:
        if code in stops:
            return code
    if matrix.good.code != ExitCode.PASS:
        return matrix.good.code
    if len(matrix.rows) < len(matrix.planned):
        return ExitCode.INTERRUPTED
    if any(row.fate in (Fate.SURVIVED, Fate.STRANGER) or row.missed for row in matrix.rows):
        return ExitCode.FAIL
    return next((row.code for row in matrix.rows if row.fate is Fate.ERROR), ExitCode.PASS)


def as_json(matrix: Matrix) -> str:
    """kill-matrix.json as text."""
    return json.dumps(document(matrix), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def document(matrix: Matrix) -> Json:
    """kill-matrix.json as plain data."""
    return plain(
        {
            "schema": SCHEMA,
            "kernel": matrix.kernel,
            "planned": matrix.planned,
            "exit_code": int(exit_code(matrix)),
            "seconds": round(matrix.seconds, 1),
            "good": {
                "exit_code": int(matrix.good.code),
                "reasons": matrix.good.reasons,
                "seconds": round(matrix.good.seconds, 1),
            },
            "controls": [_row(row) for row in matrix.rows],
        }
    )


def as_text(matrix: Matrix) -> str:
    """kill-matrix.txt: controls down, scenarios across, with the scenarios below."""
    columns = _columns(matrix)
    width = max((len(row.entry.name) for row in matrix.rows), default=0)
    lines = [" " * width + " " + " ".join(f"{n:>2}" for n in range(1, len(columns) + 1))]
    for row in matrix.rows:
        marks = {cell.scenario: _mark(cell) for cell in row.cells}
        cells = " ".join(f"{marks.get(name, ' '):>2}" for name in columns)
        lines.append(f"{row.entry.name:<{width}} {cells}  {row.fate}".rstrip())
    lines += [
        "",
        "K killed it, s should have seen it and did not, . did not care and passed,",
        "! failed and should not have cared, - skipped, x broke",
        "",
        *(f"{number:>3}  {name}" for number, name in enumerate(columns, 1)),
        "",
        *summary(matrix),
    ]
    return "\n".join(lines) + "\n"


def summary(matrix: Matrix) -> list[str]:
    """The closing lines: how many of each fate, what is wrong, and the exit code."""
    counts = {fate: sum(row.fate is fate for row in matrix.rows) for fate in Fate}
    said = ", ".join(f"{count} {fate}" for fate, count in counts.items() if count)
    left = len(matrix.planned) - len(matrix.rows)
    lines = [f"{left} of {len(matrix.planned)} controls were not tried."] if left > 0 else []
    lines += [f"{len(matrix.rows)} controls in {matrix.seconds:.0f} s: {said or 'none'}"]
    if matrix.good.code != ExitCode.PASS:
        lines.append(f"The good kernel did not pass: {one_line(' '.join(matrix.good.reasons))}")
    for row in matrix.rows:
        if row.fate not in (Fate.KILLED, Fate.STOPPED):
            lines.append(f"{row.entry.name}: {row.fate}: {row.why}")
        lines += [f"{row.entry.name}: not seen by {cell.scenario}" for cell in row.missed]
    return [*lines, f"exit code {int(exit_code(matrix))}"]


def killed_by(row: Row) -> str:
    """Who noticed a control, in the width of a table cell."""
    if row.fate is Fate.KILLED:
        return "; ".join(f"{cell.scenario} ({cell.oracle})" for cell in row.killers)
    return row.why


def _stop(run: Run, cells: Sequence[Cell]) -> str:
    """The log line of a host that crashed or hung under a control, or nothing."""
    if run.crash:
        return run.crash
    hung = [cell for cell in cells if cell.outcome in (Outcome.ERROR, Outcome.MISSING)]
    if run.code == ExitCode.INFRASTRUCTURE and any(cell.role is Role.SEES for cell in hung):
        return one_line(f"no answer in {hung[0].scenario}; last on the console: {run.last_line}")
    return ""


def _cell(entry: Entry, test: Mapping[str, Any]) -> Cell:
    sees = any(matches(pattern, test["id"]) for pattern in entry.claims)
    violated = [item for item in test["oracles"] if item["name"] == test["oracle"]]
    return Cell(
        id=test["id"],
        scenario=scenario(Request(test["id"], test["mmu"], test["backing"])),
        mmu=test["mmu"],
        role=Role.SEES if sees else Role.BLIND,
        outcome=Outcome(test["outcome"]),
        oracle=test["oracle"],
        seen=one_line(violated[0]["seen"] if violated else test["message"]),
    )


def _row(row: Row) -> dict[str, object]:
    return {
        "name": row.entry.name,
        "breaks": row.entry.breaks,
        "stands_for": row.entry.stands_for,
        "fate": row.fate,
        "why": row.why,
        "seconds": round(row.seconds, 1),
        "scenarios": [dataclasses.asdict(cell) for cell in row.cells],
    }


def _columns(matrix: Matrix) -> list[str]:
    return sorted({cell.scenario for row in matrix.rows for cell in row.cells})


def _mark(cell: Cell) -> str:
    sees = cell.role is Role.SEES
    match cell.outcome:
        case Outcome.FAIL:
            return "K" if sees else "!"
        case Outcome.PASS:
            return "s" if sees else "."
        case Outcome.SKIP:
            return "-"
        case _:
            return "x"


def _headline(excerpt: str) -> str:
    """The line of a crash report that names it: rulers and the cut line come before."""
    lines = [line for line in excerpt.splitlines() if line.strip()]
    telling = [line for line in lines if not line.rstrip().endswith("---") and "====" not in line]
    return (telling or lines or [""])[0]
