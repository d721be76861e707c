# SPDX-License-Identifier: GPL-2.0-only
"""Read struct page in bulk from outside the kernel."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import drgn
import numpy as np
import numpy.typing as npt
from drgn.helpers.linux.mm import pfn_to_page

Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_GAP_PAGES = 4096
"""Reading a gap of this many struct pages costs less than a read of its own."""

_MAPPING_ANON = 1
_COMPOUND = 1


@dataclasses.dataclass(frozen=True)
class PageStates:
    """What the kernel keeps about each frame; arrays of one element a frame, in the order asked.

    A tail page of a large folio is represented by its head, where the folio's references are
    counted; ``large`` marks those and heads alike. ``mapcount`` counts the mappings of the frame
    itself and is only meaningful where not ``large``. ``reserved`` marks frames whose references
    nobody counts, such as the zero page.
    """

    pfn: Words
    refcount: Counts
    mapcount: Counts
    anon: Flags
    swap_cache: Flags
    page_cache: Flags
    private: Flags
    large: Flags
    reserved: Flags


def page_states(program: drgn.Program, pfns: Words) -> PageStates:
    """The states of the frames ``pfns``."""
    layout = _Layout.of(program)
    raw = _rows(program, layout, pfns)
    compound = _word(raw, layout.compound_head)
    tail = (compound & np.uint64(_COMPOUND)) != 0
    if tail.any():
        heads = (compound[tail] - np.uint64(_COMPOUND) - np.uint64(layout.base)) // np.uint64(
            layout.size
        )
        raw = raw.copy()
        raw[tail] = _rows(program, layout, heads)
    return _states(layout, raw, pfns, tail)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where struct page and its fields are in this very kernel."""

    base: int
    size: int
    flags: int
    refcount: int
    mapcount: int
    mapping: int
    compound_head: int
    bits: dict[str, int]

    @classmethod
    def of(cls, program: drgn.Program) -> _Layout:
        page = program.type("struct page")
        # PG_swapcache shares its bit with others and is defined as an alias in the same enum.
        values = {
            enumerator.name: enumerator.value
            for enumerator in program.type("enum pageflags").enumerators or ()
        }
        return cls(
            base=pfn_to_page(program, 0).value_(),
            size=page.size or 0,
            flags=drgn.offsetof(page, "flags"),
            refcount=drgn.offsetof(page, "_refcount"),
            mapcount=drgn.offsetof(page, "_mapcount"),
            mapping=drgn.offsetof(page, "mapping"),
            compound_head=drgn.offsetof(page, "compound_head"),
            bits=values,
        )


def _rows(program: drgn.Program, layout: _Layout, pfns: Words) -> npt.NDArray[np.uint8]:
    """The raw struct pages of ``pfns``, one a row."""
    rows = np.empty((len(pfns), layout.size), np.uint8)
    order = np.argsort(pfns)
    for chunk in _chunks(pfns[order]):
        members = order[chunk]
        first, last = int(pfns[members[0]]), int(pfns[members[-1]])
        data = program.read(layout.base + first * layout.size, (last - first + 1) * layout.size)
        table = np.frombuffer(data, np.uint8).reshape(-1, layout.size)
        rows[members] = table[(pfns[members] - np.uint64(first)).astype(np.int64)]
    return rows


def _chunks(ordered: Words) -> Iterator[slice]:
    """Slices of ascending frame numbers without a gap that is worth a read of its own."""
    if len(ordered) == 0:
        return
    breaks = np.flatnonzero(np.diff(ordered) > _GAP_PAGES) + 1
    edges = [0, *breaks.tolist(), len(ordered)]
    for begin, end in itertools.pairwise(edges):
        yield slice(begin, end)


def _word(rows: npt.NDArray[np.uint8], offset: int) -> Words:
    return np.ascontiguousarray(rows[:, offset : offset + 8]).view(np.uint64)[:, 0]


def _number(rows: npt.NDArray[np.uint8], offset: int) -> Counts:
    column = np.ascontiguousarray(rows[:, offset : offset + 4]).view(np.int32)[:, 0]
    return column.astype(np.int64)


def _states(layout: _Layout, rows: npt.NDArray[np.uint8], pfns: Words, tail: Flags) -> PageStates:
    flags = _word(rows, layout.flags)
    mapping = _word(rows, layout.mapping)

    def flag(name: str) -> Flags:
        return np.asarray(((flags >> np.uint64(layout.bits[name])) & np.uint64(1)) != 0, np.bool_)

    anon = (mapping & np.uint64(_MAPPING_ANON)) != 0
    return PageStates(
        pfn=pfns,
        refcount=_number(rows, layout.refcount),
        # Stored as one less, so that "unmapped" is -1.
        mapcount=_number(rows, layout.mapcount) + 1,
        anon=anon,
        # The bit means swap cache only on swap-backed pages.
        swap_cache=flag("PG_swapbacked") & flag("PG_swapcache") & anon,
        page_cache=(mapping != 0) & ~anon,
        private=flag("PG_private"),
        large=tail | flag("PG_head"),
        reserved=flag("PG_reserved"),
    )
