# SPDX-License-Identifier: GPL-2.0-only
"""Which places of the primary MMU that call mmu notifiers were reached, and by which tests.

A *site* is a place in the source of the kernel under test that calls a notifier. A *cell* is one
test in one MMU mode. Beside the sites of this kernel stand the hooks of 2008, when notifiers were
born, each with the functions that do its work today (harness/result/hooks.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping

from harness.result import hooks
from harness.result.hooks import Hook
from harness.result.text import Json, one_line, plain

SCHEMA = 1
"""Version of coverage.json."""

MODULES = "modules"
"""Stands for the function of a site outside of vmlinux, where KVM registers itself."""

_PREFIX = "__mmu_notifier_"


@dataclasses.dataclass(frozen=True)
class Site:
    """One place in the source that calls a notifier.

    ``notifier`` is the function called, ``function`` the one whose source has the call, whether or
    not it was inlined into its ``callers`` (innermost first). ``offsets`` are the call
    instructions, in bytes from _text: the compiler may have made several of one call. A site in
    MODULES has none; it stands for all calls of an exported function from outside of vmlinux.
    """

    notifier: str
    function: str
    file: str = ""
    line: int = 0
    callers: tuple[str, ...] = ()
    offsets: tuple[int, ...] = ()

    @property
    def hook(self) -> str:
        """What is called, short: ``invalidate_range_start``."""
        return self.notifier.removeprefix(_PREFIX)

    @property
    def where(self) -> str:
        """File and line of the source, as far as known, and the function that it ended up in."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place} in {self.callers[-1]}" if self.callers else place


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one test reached: how often each site was passed while it ran, zero left out.

    ``hits`` are passes for the memory of a guest, or for a VM as a whole; ``others`` are those for
    other memory of a VMM, which is a process like any other. Only the former reach a site.
    ``problem`` says why a test was not measured.
    """

    id: str
    mmu: str
    scenario: str
    hits: Mapping[Site, int] = dataclasses.field(default_factory=dict)
    others: Mapping[Site, int] = dataclasses.field(default_factory=dict)
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Coverage:
    """All sites of a kernel, and what was measured.

    ``outside`` counts what was passed for guests on watched hosts between the tests.
    ``problems`` are sentences about what could not be consulted.
    """

    release: str
    sites: tuple[Site, ...] = ()
    cells: tuple[Cell, ...] = ()
    outside: Mapping[Site, int] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def modes(self) -> tuple[str, ...]:
        """The MMU modes of the cells, in the order of their first mention."""
        return tuple(dict.fromkeys(cell.mmu for cell in self.cells))

    def reached_by(self, sites: Collection[Site]) -> tuple[Cell, ...]:
        """The cells that passed at least one of these sites."""
        return tuple(cell for cell in self.cells if any(cell.hits.get(site) for site in sites))


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a site or a hook, who reached it, or why nobody did.

    ``name`` is its function and what that calls, ``detail`` where it is.
    """

    name: str
    detail: str
    cells: tuple[Cell, ...]
    reason: str = ""

    @property
    def reached(self) -> bool:
        """Whether any test reached it."""
        return bool(self.cells)

    @property
    def scenarios(self) -> tuple[str, ...]:
        """The scenarios that reached it, in any mode."""
        return tuple(dict.fromkeys(cell.scenario for cell in self.cells))

    def count(self, mode: str) -> int:
        """How many cells of a mode reached it."""
        return sum(cell.mmu == mode for cell in self.cells)


def site_rows(coverage: Coverage) -> tuple[Row, ...]:
    """A row for each site of the kernel, by file and line."""
    ordered = sorted(
        coverage.sites, key=lambda site: (site.file, site.line, site.function, site.notifier)
    )
    return tuple(_site_row(coverage, site) for site in ordered)


def _site_row(coverage: Coverage, site: Site) -> Row:
    cells = coverage.reached_by([site])
    reason = "" if cells else _why_not(coverage, site)
    return Row(f"{site.function}: {site.hook}", site.where, cells, reason)


def hook_rows(coverage: Coverage, of_2008: Iterable[Hook] = hooks.HOOKS) -> tuple[Row, ...]:
    """A row for each hook of the patch of 2008."""
    return tuple(_hook_row(coverage, hook) for hook in of_2008)


def _hook_row(coverage: Coverage, hook: Hook) -> Row:
    name = f"{hook.function}: {hook.call}"
    sites = [
        site for site in coverage.sites if site.function in hook.now and site.hook in hook.notifiers
    ]
    cells = tuple(cell for cell in coverage.reached_by(sites) if hook.within(cell.id))
    today = ", ".join(dict.fromkeys(site.function for site in sites))
    detail = f"{hook.file}; now {today}" if today else hook.file
    if cells:
        return Row(name, detail, cells)
    if hook.gone:
        return Row(name, detail, (), hook.gone)
    if not sites:
        return Row(name, detail, (), "this kernel has no such site")
    return Row(name, detail, (), hook.needs or _why_not(coverage, sites[0]))


def _why_not(coverage: Coverage, site: Site) -> str:
    """Why no test reached a site."""
    if not any(not cell.problem for cell in coverage.cells):
        return "nothing was measured"
    twins = [
        other
        for other in coverage.sites
        if (other.function, other.notifier) == (site.function, site.notifier) and other != site
    ]
    if coverage.reached_by(twins):
        return "another call of the same in this function was reached; this one is a rarer way out"
    reason = hooks.NEEDS.get(site.function, "no test drives it")
    if any(cell.others.get(site) for cell in coverage.cells):
        reason += "; passed for other memory of a VMM"
    return f"{reason}; passed between tests" if coverage.outside.get(site) else reason


def summary(coverage: Coverage) -> str:
    """One sentence about how much was reached."""
    sites = site_rows(coverage)
    old = hook_rows(coverage)
    lost = sum(bool(cell.problem) for cell in coverage.cells)
    more = f"; of {lost} more nothing was measured" if lost else ""
    return (
        f"{sum(row.reached for row in sites)} of {len(sites)} notifier sites of "
        f"{one_line(coverage.release)} and {sum(row.reached for row in old)} of {len(old)} hooks "
        f"of 2008 were reached by {len(coverage.cells) - lost} tests{more}."
    )


def notes(coverage: Coverage) -> tuple[str, ...]:
    """What could not be measured, one sentence each, with how often."""
    counts: dict[str, int] = {}
    for cell in coverage.cells:
        if cell.problem and cell.problem not in coverage.problems:
            counts[cell.problem] = counts.get(cell.problem, 0) + 1
    of_cells = (
        f"{count} test{'s' if count > 1 else ''} not measured: {problem}"
        for problem, count in counts.items()
    )
    return tuple(one_line(note) for note in (*coverage.problems, *of_cells))


def as_json(coverage: Coverage) -> str:
    """coverage.json as text."""
    return json.dumps(document(coverage), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def document(coverage: Coverage) -> Json:
    """coverage.json as plain data, with every cell by its test's id."""
    return plain(
        {
            "schema": SCHEMA,
            "release": coverage.release,
            "summary": summary(coverage),
            "notes": notes(coverage),
            "modes": coverage.modes,
            "hooks_of_2008": [_row(row) for row in hook_rows(coverage)],
            "sites": [_row(row) for row in site_rows(coverage)],
            "cells": [_cell(cell) for cell in coverage.cells],
            "outside": _hits(coverage.outside),
        }
    )


def _row(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "where": row.detail,
        "reached": row.reached,
        "reason": row.reason,
        "reached_by": [cell.id for cell in row.cells],
    }


def _cell(cell: Cell) -> dict[str, object]:
    return {
        "id": cell.id,
        "mmu": cell.mmu,
        "problem": cell.problem,
        "hits": _hits(cell.hits),
        "others": _hits(cell.others),
    }


def _hits(hits: Mapping[Site, int]) -> dict[str, int]:
    """Counts by the name and place of a site, short enough for hundreds of cells."""
    return {f"{site.function}: {site.hook} {site.where}".strip(): hits[site] for site in hits}
