# SPDX-License-Identifier: GPL-2.0-only
"""Read struct page in bulk from outside the kernel."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator

import drgn
import numpy as np
import numpy.typing as npt
from drgn.helpers.linux.mm import compound_order, page_to_pfn, pfn_to_page
from drgn.helpers.linux.xarray import xa_for_each

from harness.errors import OracleUnavailable

Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_GAP_PAGES = 4096
"""Reading a gap of this many struct pages costs less than a read of its own."""

_PAGE_BYTES = 4096
_MAPPING_ANON = 1
_COMPOUND = 1
_MASKS = np.uint64(0xFFFF_FFFF_0000_0000)
"""Where no struct page is, because the kernel's text and modules are."""

_SINGLE_REFERENCE = "linear_hugepage_index"
"""A function of kernels whose page cache has one reference on a hugetlb page, not one for each of
its small pages. It went with commit a08c7193e4f1 ("mm/filemap: remove hugetlb special casing in
filemap.c") (in v6.7)."""

_WORD_MASK = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class PageStates:
    """What the kernel keeps about each frame; arrays of one element a frame, in the order asked.

    A page of a large folio is represented by the folio, where references are counted: ``head`` is
    the frame of its first page, ``if_cached`` how many references a cache has that it is in, one
    for each of its pages, and ``mapcount`` the sum over all of them. For a small folio these are
    the frame itself, 1, and the mappings of the frame.
    ``device`` marks frames of a device that files are mapped from directly (DAX), and
    ``reserved`` those whose references nobody counts, such as the zero pages.
    """

    pfn: Words
    head: Words
    if_cached: Counts
    refcount: Counts
    mapcount: Counts
    anon: Flags
    swap_cache: Flags
    page_cache: Flags
    private: Flags
    device: Flags
    reserved: Flags


def page_states(program: drgn.Program, pfns: Words) -> PageStates:
    """The states of the frames ``pfns``.

    Raises OracleUnavailable where large pages are among them that cannot be understood.
    """
    layout = _Layout.of(program)
    rows = _rows(program, layout, pfns)
    compound = _word(rows, layout.compound_head)
    tail = (compound & np.uint64(_COMPOUND)) != 0
    head = pfns.astype(np.uint64)
    head[tail] = _heads(layout, pfns[tail], compound[tail] - np.uint64(_COMPOUND))
    if tail.any():
        rows = rows.copy()
        rows[tail] = _rows(program, layout, head[tail])
    if_cached = np.ones(len(pfns), np.int64)
    # Stored as one less, so that "unmapped" is -1.
    mapcount = _number(rows, layout.mapcount) + 1
    large = tail | _flag(layout, rows, "PG_head")
    for folio in np.unique(head[large]):
        members = large & (head == folio)
        if_cached[members], mapcount[members] = _large_folio(program, layout, int(folio))
    device = _of_a_device(program, layout, rows, pfns)
    return _states(layout, rows, pfns, head, if_cached, mapcount, device)


def _heads(layout: _Layout, tails: Words, told: Words) -> Words:
    """The frames of the folios that ``tails`` belong to, by what their struct pages tell of it.

    That is the address of the first one's or, in kernels with CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP
    as in 7.2, a mask that makes it out of the tail's own.
    """
    base, size = np.uint64(layout.base), np.uint64(layout.size)
    own = base + tails.astype(np.uint64) * size
    return (np.where(told >= _MASKS, own & told, told) - base) // size


def _large_folio(program: drgn.Program, layout: _Layout, head: int) -> tuple[int, int]:
    """The references of a cache on a large folio, and how many page table entries map any of it.

    Raises OracleUnavailable where the kernel counts in a way that is not known here.
    """
    try:
        page = drgn.Object(program, "struct page *", value=layout.base + head * layout.size)
        pages = 1 << int(compound_order(page))
        mappings = _mappings(program, layout, page, np.uint64(head), pages)
        once = layout.hugetlb_cached_once and _is_hugetlb(program, layout, page, head)
    except (AttributeError, LookupError) as error:
        raise OracleUnavailable(
            f"The mappings of large pages are counted otherwise in this kernel: {error}."
        ) from error
    return 1 if once else pages, mappings


def _is_hugetlb(program: drgn.Program, layout: _Layout, page: drgn.Object, head: int) -> bool:
    """Whether a large folio is a hugetlb page, in a kernel that has _SINGLE_REFERENCE."""
    if "PG_hugetlb" in layout.bits:  # v6.6
        second = _rows(program, layout, np.array([head + 1], np.uint64))
        return bool(_flag(layout, second, "PG_hugetlb")[0])
    kind = program.constant("HUGETLB_PAGE_DTOR").value_()
    folio = _folio(page)
    try:
        return bool(page[1].compound_dtor.value_() == kind)
    except AttributeError:  # v6.3 to v6.5
        return folio is not None and bool(folio._folio_dtor.value_() == kind)


def _mappings(
    program: drgn.Program, layout: _Layout, page: drgn.Object, head: np.uint64, pages: int
) -> int:
    """How many page table entries map any of ``pages`` pages from ``page`` on, a large folio."""
    folio = _folio(page)
    # Since commit 05c5323b2a34 ("mm: track mapcount of large folios in single value") (in v6.10).
    if (total := _count(folio, "_large_mapcount")) is not None:
        return total
    # Before, mappings of the whole were counted apart from those of single pages.
    rows = _rows(program, layout, head + np.arange(pages, dtype=np.uint64))
    single = int((_number(rows, layout.mapcount) + 1).sum())
    if (whole := _count(folio, "_entire_mapcount")) is not None:
        return whole + single
    # Up to v6.1 those of the whole were in the counts of single pages as well: always in a file's,
    # and once in anonymous ones while there are both kinds. So total_mapcount() has it in 5.10.
    if (whole := _count(folio, "_total_mapcount")) is None:
        whole = int(page[1].compound_mapcount.counter) + 1
    if _word(rows, layout.mapping)[0] & np.uint64(_MAPPING_ANON):
        return whole + single - int(_flag(layout, rows, "PG_double_map")[1]) * pages
    # Of hugetlb, whose pages are in a file as well, nobody maps parts, and they are not counted.
    return whole + single - (whole * pages if single else 0)


def _folio(page: drgn.Object) -> drgn.Object | None:
    """The folio that begins with a page, or None where there are no folios yet (before v5.16)."""
    try:
        return drgn.cast("struct folio *", page)
    except LookupError:
        return None


def _count(folio: drgn.Object | None, name: str) -> int | None:
    """A count that is stored as one less, or None where the kernel has none of this name."""
    if folio is None:
        return None
    try:
        return int(getattr(folio, name).counter) + 1
    except AttributeError:
        return None


def _of_a_device(
    program: drgn.Program, layout: _Layout, rows: npt.NDArray[np.uint8], pfns: Words
) -> Flags:
    """Which frames are a DAX device's: those in a range that its driver mapped as such.

    A kernel that has no such ranges, or keeps them otherwise, is taken to have no such frames.
    """
    found = np.zeros(len(pfns), np.bool_)
    if not _flag(layout, rows, "PG_reserved").any():
        return found
    try:
        kind = program.constant("MEMORY_DEVICE_FS_DAX").value_()
        for _, entry in xa_for_each(program["pgmap_array"].address_of_()):
            pagemap = drgn.cast("struct dev_pagemap *", entry)
            if pagemap.type.value_() == kind:
                first, last = (
                    np.uint64(int(edge) // _PAGE_BYTES)
                    for edge in (pagemap.range.start, pagemap.range.end)
                )
                found |= (pfns >= first) & (pfns <= last)
    except (AttributeError, LookupError):
        return np.zeros(len(pfns), np.bool_)
    return found


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
    huge_zero: int | None
    hugetlb_cached_once: bool

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
            compound_head=_offset(page, "compound_head", "compound_info"),
            bits=values,
            huge_zero=_huge_zero(program),
            hugetlb_cached_once=_has_function(program, _SINGLE_REFERENCE),
        )


def _offset(kind: drgn.Type, *names: str) -> int:
    """Where a member is that has one of these names, the last of which is that of today."""
    for name in names[:-1]:
        with contextlib.suppress(LookupError):
            return int(drgn.offsetof(kind, name))
    return int(drgn.offsetof(kind, names[-1]))


def _has_function(program: drgn.Program, name: str) -> bool:
    try:
        program.function(name)
    except LookupError:
        return False
    return True


def _huge_zero(program: drgn.Program) -> int | None:
    """The first frame of the huge zero page, or None where there is none yet."""
    pfn = _variable(program, "huge_zero_pfn")
    if pfn is not None:
        return pfn
    # Older kernels have its struct page only.
    try:
        page = program["huge_zero_page"]
    except KeyError:
        return None
    return int(page_to_pfn(page)) if page else None


def _variable(program: drgn.Program, name: str) -> int | None:
    try:
        return int(program[name])
    except KeyError:
        return None


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


def _flag(layout: _Layout, rows: npt.NDArray[np.uint8], name: str) -> Flags:
    flags = _word(rows, layout.flags)
    return np.asarray(((flags >> np.uint64(layout.bits[name])) & np.uint64(1)) != 0, np.bool_)


def _states(
    layout: _Layout,
    rows: npt.NDArray[np.uint8],
    pfns: Words,
    head: Words,
    if_cached: Counts,
    mapcount: Counts,
    device: Flags,
) -> PageStates:
    mapping = _word(rows, layout.mapping)
    anon = (mapping & np.uint64(_MAPPING_ANON)) != 0
    # Frames of devices are reserved as well, but whoever takes a reference is counted.
    reserved = _flag(layout, rows, "PG_reserved") & ~device
    if layout.huge_zero is not None:
        # Its mappings are counted for each mm, not for each page table entry.
        reserved |= head == np.uint64(layout.huge_zero & _WORD_MASK)
    return PageStates(
        pfn=pfns,
        head=head,
        if_cached=if_cached,
        refcount=_number(rows, layout.refcount),
        mapcount=mapcount,
        anon=anon,
        # The bit means swap cache only on swap-backed pages.
        swap_cache=_flag(layout, rows, "PG_swapbacked")
        & _flag(layout, rows, "PG_swapcache")
        & ((mapping == 0) | anon),
        page_cache=(mapping != 0) & ~anon,
        private=_flag(layout, rows, "PG_private"),
        device=device,
        reserved=reserved,
    )
