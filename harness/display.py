# SPDX-License-Identifier: GPL-2.0-only
"""How a run looks to a person: phases while it works, a table and the verdict at the end.

On a terminal, phases move; anywhere else each is one line at its start and one at its end. What
comes from a machine under test reaches a screen as plain text only: never as markup, and with its
control characters already escaped.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from harness.kill_matrix import Fate, Matrix, killed_by, summary
from harness.progress import Progress
from harness.result.coverage import Coverage, Row, hook_rows, notes, site_rows
from harness.result.coverage import summary as coverage_summary
from harness.result.outcome import Outcome
from harness.result.record import RunRecord
from harness.result.summary import closing_lines, failure_lines, not_consulted, numbered, table
from harness.result.text import one_line, printable
from harness.result.verdict import Word

_FEW_ROWS = 10
"""So many scenarios without a report are shown one by one."""

_STYLES = {
    Outcome.PASS: "green",
    Outcome.FAIL: "bold red",
    Outcome.ERROR: "magenta",
    Outcome.MISSING: "magenta",
    Outcome.SKIP: "yellow",
}
_FATES = {
    Fate.KILLED: "green",
    Fate.STOPPED: "green",
    Fate.UNOBSERVABLE: "yellow",
    Fate.SURVIVED: "bold red",
    Fate.STRANGER: "bold red",
    Fate.ERROR: "magenta",
}
_UPDATE_SECONDS = 30.0
"""How often a plain log hears an update: enough that no CI system takes the job for dead."""

_DEFAULT_COLUMNS = 100
_MARKS = {True: ("✓", "ok"), False: ("✗", "FAILED")}


def moves(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether phases may move on ``stream``: a terminal with a person, not a CI job's."""
    dumb = environment.get("TERM", "") in ("", "dumb")
    return stream.isatty() and not dumb and not environment.get("CI")


def progress(
    stream: TextIO, environment: Mapping[str, str] = os.environ, *, brief: bool = False
) -> Progress:
    """The Progress that suits ``stream``; a ``brief`` one is for logs, with one line a phase."""
    if moves(stream, environment) and not brief:
        return Terminal(console(stream, environment))
    return Plain(stream, brief=brief)


def console(
    stream: TextIO, environment: Mapping[str, str] = os.environ, *, bare: bool = False
) -> Console:
    """A rich console on ``stream``; colours only on a terminal, without NO_COLOR, not ``bare``."""
    terminal = moves(stream, environment) and not bare
    return Console(
        file=stream,
        force_terminal=terminal,
        no_color=not terminal or bool(environment.get("NO_COLOR")),
        # A log has no width; folding a command in the middle makes it useless.
        width=None if terminal else _DEFAULT_COLUMNS,
        highlight=False,
        _environ=environment,
        markup=False,
        emoji=False,
        soft_wrap=not terminal,
    )


class Terminal:
    """A Progress that moves: a spinner, the time so far and the newest update.

    Phases may nest; only the innermost is shown while it runs. Each stays on the screen with its
    seconds when it ends. Safe to use from several threads.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.RLock()
        self._open: list[_Phase] = []
        self._live: Live | None = None

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show that a phase of the work runs while the context is open."""
        phase = _Phase(one_line(name))
        with self._lock:
            self._open.append(phase)
            self._show()
        well = False
        try:
            yield
            well = True
        finally:
            with self._lock:
                self._open.remove(phase)
                self._show()
                style = "green" if well else "red"
                line = Text(f"{_mark(well, self._console.encoding)} ", style=style)
                self._console.print(line.append(phase.closing(), style="default"))

    def update(self, text: str) -> None:
        """Say how far the innermost phase is."""
        with self._lock:
            if self._open:
                self._open[-1].update = one_line(text, 300)

    def ended(self, name: str, seconds: float, *, well: bool) -> None:
        """Print the line with which a phase stays on the screen."""
        with self._lock:
            line = Text(f"{_mark(well, self._console.encoding)} ", "green" if well else "red")
            self._console.print(line.append(_closing(one_line(name), seconds), style="default"))

    def note(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._console.print(Text(f"  {_encodable(printable(text), self._console.encoding)}"))

    def _show(self) -> None:
        """Have the screen follow the innermost open phase, or nothing."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._open:
            spinner = Spinner("dots" if _unicode(self._console.encoding) else "line")
            moving = _Moving(self._open[-1], spinner, self._console.encoding)
            self._live = Live(moving, console=self._console, transient=True, refresh_per_second=8)
            self._live.start()


class Plain:
    """A Progress for logs: a line when a phase starts, unless ``brief``, and one when it ends.

    Updates are dropped except for one each 30 seconds of a phase. Every line is flushed, so that
    a job that hangs shows where.
    """

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        *,
        brief: bool = False,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._brief = brief
        self._lock = threading.RLock()
        self._open: list[_Phase] = []
        self._spoke = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Print a line at the start and at the end of a phase."""
        phase = _Phase(one_line(name), self._clock)
        with self._lock:
            self._open.append(phase)
            self._spoke = self._clock()
            if not self._brief:
                self._print(f"... {phase.name}")
        well = False
        try:
            yield
            well = True
        finally:
            with self._lock:
                self._open.remove(phase)
                self._print(f"{_mark(well, self._stream.encoding)} {phase.closing()}")

    def update(self, text: str) -> None:
        """Print the text if nothing was printed for half a minute."""
        with self._lock:
            if self._open and self._clock() - self._spoke >= _UPDATE_SECONDS:
                self._spoke = self._clock()
                phase = self._open[-1]
                self._print(f"... {phase.name}, {phase.seconds:.0f} s: {one_line(text, 300)}")

    def ended(self, name: str, seconds: float, *, well: bool) -> None:
        """Print the line at the end of a phase."""
        with self._lock:
            self._spoke = self._clock()
            self._print(f"{_mark(well, self._stream.encoding)} {_closing(one_line(name), seconds)}")

    def note(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._print(f"    {printable(text)}")

    def _print(self, text: str) -> None:
        self._stream.write(_encodable(text, self._stream.encoding) + "\n")
        self._stream.flush()


class _Phase:
    """A phase that runs: its name, since when, and the newest word about it."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.update = ""
        self._clock = clock
        self._started = clock()

    @property
    def seconds(self) -> float:
        return self._clock() - self._started

    def closing(self) -> str:
        return _closing(self.name, self.seconds)


def _closing(name: str, seconds: float) -> str:
    return f"{name}  {seconds:.1f} s"


class _Moving:
    """What Live draws: one line, however long the update is."""

    def __init__(self, phase: _Phase, spinner: Spinner, encoding: str) -> None:
        self._phase = phase
        self._spinner = spinner
        self._encoding = encoding

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        turning = self._spinner.render(console.get_time())
        assert isinstance(turning, Text), "a spinner has no text here"
        # What is too long loses its end, and that is the update's.
        yield Text.assemble(
            turning,
            f" {_encodable(self._phase.name, self._encoding)} ",
            (f"{self._phase.seconds:.0f} s", "cyan"),
            (f" {_encodable(self._phase.update, self._encoding)}", "dim"),
            no_wrap=True,
            overflow="ellipsis",
        )


def show(record: RunRecord, console: Console) -> None:
    """Print the closing table, what failed and how to repeat it, and the verdict."""
    if any(outcome.outcome is not Outcome.MISSING for outcome in record.outcomes):
        console.print(_table(record, console))
    for outcome in record.outcomes:
        if outcome.outcome in (Outcome.FAIL, Outcome.ERROR):
            head = f"{outcome.outcome}  {numbered(outcome)}  under {outcome.mmu}"
            _line(console, head, _STYLES[outcome.outcome])
            for line in failure_lines(outcome):
                _line(console, "  " + line.replace("\n", "\n  "))
    for sentence in not_consulted(record):
        _line(console, sentence, "yellow")
    counts, verdict, *reasons = closing_lines(record)
    _line(console, counts)
    for reason in reasons:
        _line(console, reason)
    style = "bold green" if record.verdict.word is Word.PASS else "bold red"
    _line(console, verdict, style)


def show_coverage(coverage: Coverage, console: Console) -> None:
    """Print which hooks and sites were reached by how many tests, and why others were not."""
    if coverage.sites:
        console.print(_rows("hook of 2008", hook_rows(coverage), coverage.modes, console))
        console.print()
        site = f"notifier site of {one_line(coverage.release)}"
        console.print(_rows(site, site_rows(coverage), coverage.modes, console))
        _line(console, coverage_summary(coverage))
    for sentence in notes(coverage):
        _line(console, sentence, "yellow")


def _rows(head: str, rows: Sequence[Row], modes: Sequence[str], console: Console) -> Table:
    """One of the tables of coverage: how many tests of each mode, and the first one's name."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown.add_column(_text(head, console), overflow="fold")
    for mode in modes:
        shown.add_column(_text(mode, console), no_wrap=True, justify="right")
    shown.add_column("reached by", overflow="fold")
    for row in rows:
        more = f" and {len(row.scenarios) - 1} more" if len(row.scenarios) > 1 else ""
        who = row.scenarios[0] + more if row.reached else f"never: {row.reason}"
        where = [Padding(_text(row.detail, console, "dim"), (0, 0, 0, 2))] if row.detail else []
        shown.add_row(
            Group(_text(row.name, console), *where),
            *(Text(str(row.count(mode) or "-")) for mode in modes),
            _text(who, console, "" if row.reached else "yellow"),
        )
    return shown


def _text(text: str, console: Console, style: str = "") -> Text:
    return Text(_encodable(printable(text), console.encoding), style=style)


def show_rows(rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print a table of plain text, whose first row has the titles of the columns."""
    titles, *lines = rows
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        shown.add_column(title, overflow="fold")
    for line in lines:
        shown.add_row(*(_text(cell, console) for cell in line))
    console.print(shown)


def show_matrix(matrix: Matrix, console: Console) -> None:
    """Print what became of each control and who noticed it, and the closing lines."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown.add_column("control", no_wrap=True)
    shown.add_column("fate")
    shown.add_column("by", overflow="fold")
    for row in matrix.rows:
        by = _encodable(one_line(killed_by(row), 300), console.encoding)
        shown.add_row(row.entry.name, Text(row.fate, style=_FATES[row.fate]), Text(by))
    console.print(shown)
    for line in summary(matrix):
        _line(console, line)


def _table(record: RunRecord, console: Console) -> Table:
    """The closing table, without the scenarios of which no test reported, if they are many."""
    contents = table(record)
    silent = sum(row.silent for row in contents.rows)
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown.add_column("scenario", overflow="fold")
    for mode in contents.modes:
        shown.add_column(Text(_encodable(one_line(mode), console.encoding)), no_wrap=True)
    for row in contents.rows:
        if row.silent and silent > _FEW_ROWS:
            continue
        cells = [
            Text(cell.text, style=_STYLES[cell.outcome] if cell.outcome else "dim")
            for cell in row.cells
        ]
        shown.add_row(Text(_encodable(row.scenario, console.encoding)), *cells)
    if silent > _FEW_ROWS:
        shown.add_row(Text(f"and {silent} more", style="dim"), Text("missing", style="magenta"))
    return shown


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(_encodable(text, console.encoding), style=style), soft_wrap=True)


def _mark(well: bool, encoding: str) -> str:
    return _MARKS[well][0 if _unicode(encoding) else 1]


def _unicode(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("-", "").startswith("utf")


def _encodable(text: str, encoding: str | None) -> str:
    """``text`` with what the screen cannot show as escapes, rather than an error in mid-run."""
    encoding = encoding or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)
