# SPDX-License-Identifier: GPL-2.0-only
"""The table of coverage as Markdown."""

from __future__ import annotations

from harness.result.coverage import Cell, Coverage, Site
from harness.result.coverage_markdown import as_markdown
from harness.result.hooks import HOOKS

START = "__mmu_notifier_invalidate_range_start"
FORK = Site(START, "copy_page_range", "mm/memory.c", 1392, offsets=(0x100,))
DEVICE = Site(START, "migrate_vma_collect", "mm/migrate_device.c", 309, offsets=(0x400,))


def cell(name: str, mmu: str, problem: str = "") -> Cell:
    return Cell(f"t::{name}[{mmu}]", mmu, name, {} if problem else {FORK: 2}, problem=problem)


COVERAGE = Coverage(
    "6.12.117",
    (FORK, DEVICE),
    (cell("fork a", "tdp"), cell("fork a", "shadow"), cell("fork b", "tdp")),
)


def rows(text: str, start: str) -> list[list[str]]:
    """The cells of the table whose first head begins so."""
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith(f"| {start}"))
    table = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        table.append([each.strip() for each in line.strip("|").split(" | ")])
    return table


def test_each_site_is_a_row_with_the_cells_of_each_mode() -> None:
    head, _, *body = rows(as_markdown(COVERAGE), "notifier site")
    assert head == [
        "notifier site of 6.12.117", "where", "tdp", "shadow", "reached by, or why not",
    ]  # fmt: skip
    fork, device = body
    assert fork == [
        "`copy_page_range: invalidate_range_start`", "mm/memory.c:1392", "2", "1",
        "fork a and 1 more",
    ]  # fmt: skip
    assert device[2:4] == ["-", "-"]
    assert device[4].startswith("**never**: needs a device")


def test_each_hook_of_2008_is_a_row() -> None:
    _, _, *body = rows(as_markdown(COVERAGE), "hook of 2008")
    assert len(body) == len(HOOKS)


def test_what_was_not_measured_is_said_above() -> None:
    lost = Coverage("6.12", (FORK,), (cell("x", "tdp", "the host is | gone <b>"),))
    text = as_markdown(lost)
    assert "- 1 test not measured: the host is \\| gone &lt;b&gt;" in text
    assert text.splitlines()[0].endswith("of 1 more nothing was measured.")


def test_names_of_a_kernel_are_no_markup() -> None:
    evil = Site(START, "f|`\n<script>", "a|b.c", 1)
    (row,) = rows(as_markdown(Coverage("6", (evil,))), "notifier site")[2:]
    assert "<script>" not in row[0]
    assert row[0].startswith("`f\\|'")
    assert row[1] == "a\\|b.c:1"
