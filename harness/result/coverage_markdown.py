# SPDX-License-Identifier: GPL-2.0-only
"""coverage.md: which tests reached which notifier sites, for people to read and keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.result.coverage import Coverage, Row, hook_rows, notes, site_rows, summary
from harness.result.text import one_line

_ESCAPED = str.maketrans({"|": "\\|", "<": "&lt;", ">": "&gt;", "`": "'"})


def as_markdown(coverage: Coverage) -> str:
    """The two tables, of the hooks of 2008 and of this kernel's sites, under a sentence."""
    site = f"notifier site of {one_line(coverage.release)}"
    lines = [summary(coverage), ""]
    lines += [f"- {_cell(note)}" for note in notes(coverage)]
    lines += [""] if lines[-1] else []
    for head, rows in (("hook of 2008", hook_rows(coverage)), (site, site_rows(coverage))):
        lines += [*_table(head, rows, coverage.modes), ""]
    return "\n".join(lines)


def _table(head: str, rows: Sequence[Row], modes: Sequence[str]) -> Iterator[str]:
    columns = [head, "where", *modes, "reached by, or why not"]
    yield _line(columns)
    yield _line(["---", "---", *["--:"] * len(modes), "---"])
    for row in rows:
        more = f" and {len(row.scenarios) - 1} more" if len(row.scenarios) > 1 else ""
        who = row.scenarios[0] + more if row.reached else f"**never**: {row.reason}"
        counts = [str(row.count(mode) or "-") for mode in modes]
        yield _line([f"`{_cell(row.name)}`", _cell(row.detail), *counts, _cell(who)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Text of a machine under test as one cell, in which nothing is markup but our own stars."""
    return one_line(text).translate(_ESCAPED)
