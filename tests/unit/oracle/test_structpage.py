# SPDX-License-Identifier: GPL-2.0-only
"""struct pages that were written by hand, read in bulk."""

from __future__ import annotations

import dataclasses
import struct
from types import SimpleNamespace
from typing import Any

import drgn
import numpy as np
import pytest

from harness.errors import OracleUnavailable
from harness.oracle import structpage
from harness.oracle.structpage import PageStates, page_states

BASE = 0xFFFF_EA00_0000_0000
SIZE = 64
OFFSETS = {"flags": 0, "compound_head": 8, "mapping": 24, "_mapcount": 48, "_refcount": 52}
BITS = {
    "PG_locked": 0, "PG_swapcache": 10, "PG_reserved": 12, "PG_private": 13,
    "PG_head": 16, "PG_swapbacked": 18, "PG_double_map": 8,
}  # fmt: skip
FS_DAX, PRIVATE = 2, 1
HUGETLB = 2
ANON = 0xFFFF_8880_0000_1001
FILE = 0xFFFF_8880_0000_2000


@dataclasses.dataclass(frozen=True)
class Frame:
    """A struct page; ``mapcount`` is stored as one less, as the kernel does.

    A tail tells its ``head``, as an address or, if it knows its ``order``, as a mask.
    """

    refcount: int = 1
    mapcount: int = 1
    mapping: int = ANON
    flags: tuple[str, ...] = ()
    head: int | None = None
    order: int | None = None

    def packed(self) -> bytes:
        raw = bytearray(SIZE)
        struct.pack_into("<Q", raw, 0, sum(1 << BITS[name] for name in self.flags))
        head = 0 if self.head is None else (BASE + self.head * SIZE) | 1
        if self.order is not None:
            head = ((1 << 64) - (SIZE << self.order)) | 1
        struct.pack_into("<Q", raw, 8, head)
        struct.pack_into("<Q", raw, 24, self.mapping)
        struct.pack_into("<ii", raw, 48, self.mapcount - 1, self.refcount)
        return bytes(raw)


@dataclasses.dataclass(frozen=True)
class Folio:
    """What a large folio keeps about all of its pages; counts are stored as one less.

    Kernels before v6.10 have no ``mapcount`` of the whole, and keep what maps all of it at once
    in ``entire``, which up to v6.1 had another name, here ``total``, and before there were folios
    was a field of the second page, here ``compound``.
    """

    order: int
    mapcount: int | None = None
    entire: int | None = None
    total: int | None = None
    compound: int | None = None

    def __getitem__(self, index: int) -> SimpleNamespace:
        assert index == 1
        if self.compound is None:
            raise AttributeError("'struct page' has no member 'compound_mapcount'")
        return SimpleNamespace(compound_mapcount=SimpleNamespace(counter=self.compound - 1))

    def __getattr__(self, name: str) -> SimpleNamespace:
        fields = {
            "_large_mapcount": "mapcount", "_entire_mapcount": "entire", "_total_mapcount": "total",
        }  # fmt: skip
        count = getattr(self, fields[name]) if name in fields else None
        if count is None:
            raise AttributeError(f"'struct folio' has no member '{name}'")
        return SimpleNamespace(counter=count - 1)


class Memmap:
    """A program whose memory is an array of struct pages; frames not named are free.

    ``folios`` are the large ones by the frames of their heads.
    """

    def __init__(
        self,
        frames: dict[int, Frame],
        folios: dict[int, Folio] | None = None,
        **variables: Any,
    ) -> None:
        self.frames = frames
        self.folios = folios or {}
        self.variables = variables
        self.reads: list[tuple[int, int]] = []
        self.functions: set[str] = set()
        self._types = {
            "struct page": SimpleNamespace(size=SIZE),
            "enum pageflags": SimpleNamespace(
                enumerators=[SimpleNamespace(name=name, value=bit) for name, bit in BITS.items()]
            ),
        }

    def type(self, name: str) -> Any:
        return self._types[name]

    def constant(self, name: str) -> Any:
        return number({"MEMORY_DEVICE_FS_DAX": FS_DAX, "HUGETLB_PAGE_DTOR": HUGETLB}[name])

    def function(self, name: str) -> Any:
        if name not in self.functions:
            raise LookupError(f"could not find '{name}'")

    def __getitem__(self, name: str) -> Any:
        return self.variables[name]

    def folio(self, kind: str, value: int) -> Folio:
        assert kind == "struct page *"
        pfn, rest = divmod(value - BASE, SIZE)
        assert rest == 0
        return self.folios[pfn]

    def read(self, address: int, size: int) -> bytes:
        first, rest = divmod(address - BASE, SIZE)
        count, more = divmod(size, SIZE)
        assert rest == more == 0, "whole struct pages are read"
        self.reads.append((first, count))
        free = Frame(0, 0, 0)
        return b"".join(self.frames.get(pfn, free).packed() for pfn in range(first, first + count))


@pytest.fixture(autouse=True)
def layout(monkeypatch: pytest.MonkeyPatch) -> None:
    base = SimpleNamespace(value_=lambda: BASE)
    monkeypatch.setattr(structpage, "pfn_to_page", lambda _, pfn: base)
    monkeypatch.setattr(structpage, "compound_order", lambda folio: folio.order)
    monkeypatch.setattr(drgn, "offsetof", lambda _, name: OFFSETS[name])
    monkeypatch.setattr(drgn, "Object", lambda program, kind, value: program.folio(kind, value))
    monkeypatch.setattr(drgn, "cast", lambda _, value: value)
    monkeypatch.setattr(structpage, "page_to_pfn", lambda page: page.value_())


def states(
    frames: dict[int, Frame],
    *pfns: int,
    folios: dict[int, Folio] | None = None,
    **variables: Any,
) -> tuple[PageStates, Memmap]:
    program = Memmap(frames, folios, **variables)
    asked = np.array(pfns or tuple(frames), np.uint64)
    return page_states(program, asked), program


class Number:
    """An integer or a pointer of the kernel."""

    def __init__(self, value: int) -> None:
        self._value = value

    def value_(self) -> int:
        return self._value

    def __int__(self) -> int:
        return self._value

    def __bool__(self) -> bool:
        return self._value != 0


def number(value: int) -> Any:
    """An integer of the kernel."""
    return Number(value)


def pagemap(first: int, last: int, kind: int) -> Any:
    """A struct dev_pagemap: whose the frames from ``first`` to ``last`` are."""
    span = SimpleNamespace(start=first * 4096, end=(last + 1) * 4096 - 1)
    return SimpleNamespace(type=number(kind), range=span)


def only(frame: Frame) -> PageStates:
    return states({0x100: frame})[0]


def test_counts_are_as_stored() -> None:
    seen = only(Frame(refcount=7, mapcount=3))
    assert (seen.refcount.tolist(), seen.mapcount.tolist()) == ([7], [3])
    assert seen.pfn.tolist() == [0x100]


def test_a_page_that_nothing_maps_has_no_mapcount() -> None:
    assert only(Frame(mapcount=0)).mapcount.tolist() == [0]


def test_counts_may_be_negative() -> None:
    # What a reference too few looks like.
    seen = only(Frame(refcount=-1, mapcount=-2))
    assert (seen.refcount.tolist(), seen.mapcount.tolist()) == ([-1], [-2])


FLAGS = ("anon", "swap_cache", "page_cache", "private", "reserved")


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (Frame(), {"anon"}),
        (Frame(mapping=FILE), {"page_cache"}),
        (Frame(mapping=0), set()),
        (Frame(flags=("PG_swapbacked", "PG_swapcache")), {"anon", "swap_cache"}),
        # The bit of the swap cache means something else on pages that are not swap-backed.
        (Frame(flags=("PG_swapcache",)), {"anon"}),
        (Frame(flags=("PG_swapbacked",)), {"anon"}),
        (Frame(mapping=FILE, flags=("PG_private",)), {"page_cache", "private"}),
        (Frame(mapping=0, flags=("PG_reserved",)), {"reserved"}),
        (Frame(flags=("PG_locked",)), {"anon"}),
    ],
)
def test_flags_mean_what_the_kernel_means(frame: Frame, expected: set[str]) -> None:
    seen = only(frame)
    assert {name for name in FLAGS if getattr(seen, name)[0]} == expected


def test_frames_of_a_dax_device_are_no_reserved_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [pagemap(0x300, 0x3FF, PRIVATE), pagemap(0x401, 0x4FF, FS_DAX)]
    monkeypatch.setattr(structpage, "xa_for_each", lambda array: enumerate(array))
    array: Any = SimpleNamespace(address_of_=lambda: maps)
    frames = {
        pfn: Frame(mapcount=0, mapping=FILE, flags=("PG_reserved",))
        for pfn in (0x1, 0x300, 0x400, 0x401, 0x4FF, 0x500)
    }
    frames[0x402] = Frame(mapcount=0, mapping=FILE)
    seen, _ = states(frames, pgmap_array=array)
    assert [hex(pfn) for pfn in seen.pfn[seen.device]] == ["0x401", "0x4ff", "0x402"]
    assert [hex(pfn) for pfn in seen.pfn[seen.reserved]] == ["0x1", "0x300", "0x400", "0x500"]


@pytest.mark.parametrize("problem", ["no array", "no range"])
def test_a_kernel_that_keeps_devices_otherwise_has_none(
    monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    monkeypatch.setattr(structpage, "xa_for_each", lambda array: enumerate(array))
    maps: Any = SimpleNamespace(address_of_=lambda: [SimpleNamespace(type=number(FS_DAX))])
    variables = {"pgmap_array": maps} if problem == "no range" else {}
    seen, _ = states({0x400: Frame(flags=("PG_reserved",))}, **variables)
    assert seen.reserved.tolist() == [True]
    assert not seen.device.any()


def test_frames_come_back_in_the_order_asked() -> None:
    frames = {pfn: Frame(refcount=pfn) for pfn in (3, 900, 17, 5)}
    seen, _ = states(frames, 900, 3, 17, 5, 3)
    assert seen.pfn.tolist() == [900, 3, 17, 5, 3]
    assert seen.refcount.tolist() == [900, 3, 17, 5, 3]


def test_neighbours_are_read_together_and_distant_frames_apart() -> None:
    far = 1 << 20
    frames = {pfn: Frame(refcount=pfn & 0xFFFF) for pfn in (*range(100, 200), far, far + 50)}
    seen, program = states(frames)
    assert seen.refcount.tolist() == [*range(100, 200), 0, 50]
    assert program.reads == [(100, 100), (far, 51)]


@pytest.mark.parametrize("gap", [0, 1])
def test_a_gap_is_read_over_as_long_as_that_is_cheap(gap: int) -> None:
    last = 10 + structpage._GAP_PAGES + gap
    _, program = states({10: Frame(), last: Frame()})
    assert len(program.reads) == 1 + gap


def test_a_tail_is_represented_by_its_head() -> None:
    frames = {
        0x200: Frame(refcount=9, mapping=FILE, flags=("PG_head", "PG_private")),
        0x203: Frame(refcount=0, mapcount=0, mapping=0, head=0x200),
        0x300: Frame(refcount=2),
    }
    seen, _ = states(frames, 0x203, 0x300, 0x200, folios={0x200: Folio(order=2, mapcount=3)})
    assert seen.pfn.tolist() == [0x203, 0x300, 0x200]
    assert seen.head.tolist() == [0x200, 0x300, 0x200]
    assert seen.if_cached.tolist() == [4, 1, 4]
    assert seen.refcount.tolist() == [9, 2, 9]
    assert seen.mapcount.tolist() == [3, 1, 3]
    assert seen.page_cache.tolist() == [True, False, True]
    assert seen.private.tolist() == [True, False, True]


def test_large_folios_are_told_apart() -> None:
    tails = {pfn: Frame(0, 0, 0, head=pfn & ~7) for pfn in (*range(0x101, 0x108), 0x10A)}
    heads = {pfn: Frame(refcount=pfn, flags=("PG_head",)) for pfn in (0x100, 0x108)}
    folios = {0x100: Folio(order=3, mapcount=8), 0x108: Folio(order=9, mapcount=0)}
    seen, _ = states({**tails, **heads}, 0x10A, 0x101, 0x108, 0x107, folios=folios)
    assert seen.head.tolist() == [0x108, 0x100, 0x108, 0x100]
    assert seen.if_cached.tolist() == [512, 8, 512, 8]
    assert seen.mapcount.tolist() == [0, 8, 0, 8]
    assert seen.refcount.tolist() == [0x108, 0x100, 0x108, 0x100]


def test_a_tail_may_tell_a_mask_instead_of_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = {name: offset for name, offset in OFFSETS.items() if name != "compound_head"}
    offsets["compound_info"] = OFFSETS["compound_head"]

    def offset(_: object, name: str) -> int:
        if name not in offsets:
            raise LookupError(f"'struct page' has no member '{name}'")
        return offsets[name]

    monkeypatch.setattr(drgn, "offsetof", offset)
    for mask in (True, False):
        frames = {pfn: Frame(0, 0, 0, head=0x400, order=9 if mask else None)
                  for pfn in (0x401, 0x5FF)}  # fmt: skip
        frames[0x400] = Frame(refcount=3, flags=("PG_head",))
        seen, _ = states(frames, folios={0x400: Folio(order=9, mapcount=1)})
        assert seen.head.tolist() == [0x400] * 3
        assert seen.refcount.tolist() == [3] * 3


def test_the_frames_that_were_asked_for_stay_as_they_are() -> None:
    asked = np.array([0x201], np.uint64)
    frames = {0x200: Frame(flags=("PG_head",)), 0x201: Frame(0, 0, 0, head=0x200)}
    program: Any = Memmap(frames, {0x200: Folio(order=1, mapcount=1)})
    seen = page_states(program, asked)
    assert asked.tolist() == seen.pfn.tolist() == [0x201]
    assert seen.head.tolist() == [0x200]


@pytest.mark.parametrize(
    ("entire", "single", "mapcount"),
    [(0, {}, 0), (1, {}, 1), (2, {}, 2), (0, {0: 1, 3: 2}, 3), (1, {1: 1}, 2)],
)
def test_before_there_was_one_count_those_of_whole_and_parts_are_added(
    entire: int, single: dict[int, int], mapcount: int
) -> None:
    frames = {
        0x200 + page: Frame(
            refcount=5 if page == 0 else 0,
            mapcount=single.get(page, 0),
            flags=("PG_head",) if page == 0 else (),
            head=None if page == 0 else 0x200,
        )
        for page in range(4)
    }
    # A page behind the folio, whose count is none of its business.
    frames[0x204] = Frame(mapcount=9)
    seen, _ = states(frames, 0x202, 0x204, folios={0x200: Folio(order=2, entire=entire)})
    assert seen.mapcount.tolist() == [mapcount, 9]


def parts(
    single: dict[int, int], mapping: int = ANON, second: tuple[str, ...] = ()
) -> dict[int, Frame]:
    """The struct pages of a folio of four, with the counts of single pages and second flags."""
    return {
        0x200 + page: Frame(
            refcount=5 if page == 0 else 0,
            mapcount=single.get(page, 0),
            mapping=mapping if page == 0 else 0,
            flags=("PG_head",) if page == 0 else second if page == 1 else (),
            head=None if page == 0 else 0x200,
        )
        for page in range(4)
    }


ALL = dict.fromkeys(range(4), 1)


@pytest.mark.parametrize(
    ("frames", "whole", "mapcount"),
    [
        pytest.param(parts({}), 1, 1, id="anonymous, as a whole"),
        pytest.param(parts({0: 1, 2: 1}), 0, 2, id="anonymous, two pages"),
        # By one process as a whole and by another page by page: each has the other's, too.
        pytest.param(
            parts(dict.fromkeys(range(4), 2), second=("PG_double_map",)), 1, 5, id="anonymous, both"
        ),
        pytest.param(parts(ALL, FILE), 1, 1, id="of a file, as a whole"),
        pytest.param(parts({0: 3, 1: 2, 2: 2, 3: 2}, FILE), 2, 3, id="of a file, both"),
        pytest.param(parts({0: 1}, FILE), 0, 1, id="of a file, one page"),
        pytest.param(parts({}, FILE), 0, 0, id="of a file, not at all"),
        pytest.param(parts({}, FILE), 2, 2, id="of hugetlb"),
    ],
)
@pytest.mark.parametrize("folios", [True, False])
def test_up_to_6_1_counts_of_the_whole_are_in_those_of_its_parts(
    frames: dict[int, Frame],
    whole: int,
    mapcount: int,
    folios: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not folios:
        monkeypatch.setattr(drgn, "cast", no_folio)
    folio = Folio(order=2, total=whole) if folios else Folio(order=2, compound=whole)
    seen, _ = states(frames, 0x202, folios={0x200: folio})
    assert seen.mapcount.tolist() == [mapcount]


def no_folio(kind: str, value: Any) -> Any:
    """A cast in a kernel from before there were folios."""
    if kind == "struct folio *":
        raise LookupError("could not find 'struct folio'")
    return value


@pytest.mark.parametrize("since", ["5.10", "6.3", "6.6", "6.7"])
@pytest.mark.parametrize("hugetlb", [True, False])
def test_the_cache_has_one_reference_on_a_hugetlb_page_up_to_6_6(
    since: str, hugetlb: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = number(HUGETLB if hugetlb else 1)
    folio: Any = SimpleNamespace(order=2, _large_mapcount=SimpleNamespace(counter=0))
    second: tuple[str, ...] = ()
    if since == "5.10":
        folio = Paged(folio, SimpleNamespace(compound_dtor=kind))
    elif since == "6.3":
        folio._folio_dtor = kind
        folio = Paged(folio, SimpleNamespace())
    elif since == "6.6":
        monkeypatch.setitem(BITS, "PG_hugetlb", 9)
        second = ("PG_hugetlb",) if hugetlb else ()
    program: Any = Memmap(parts({}, FILE, second), {0x200: folio})
    if since != "6.7":
        program.functions.add("linear_hugepage_index")
    seen = page_states(program, np.array([0x201], np.uint64))
    assert seen.if_cached.tolist() == [1 if hugetlb and since != "6.7" else 4]


class Paged:
    """A folio whose second struct page is looked at, too."""

    def __init__(self, folio: Any, second: Any) -> None:
        self._folio, self._second = folio, second

    def __getattr__(self, name: str) -> Any:
        return getattr(self._folio, name)

    def __getitem__(self, index: int) -> Any:
        assert index == 1
        return self._second


@pytest.mark.parametrize("problem", ["no count", "no folio"])
def test_a_kernel_that_counts_otherwise_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    if problem == "no folio":
        monkeypatch.setattr(drgn, "cast", no_folio)
    with pytest.raises(OracleUnavailable, match=r"counted otherwise in this kernel: .*mapcount"):
        states(parts({}), 0x200, folios={0x200: Folio(order=2)})
    # Small pages are as ever.
    assert states({0x100: Frame()})[0].mapcount.tolist() == [1]


def test_the_references_of_the_huge_zero_page_are_counted_by_nobody() -> None:
    frames = {
        0x200: Frame(refcount=7, flags=("PG_head",)),
        0x201: Frame(0, 0, 0, head=0x200),
        0x400: Frame(refcount=7, flags=("PG_head",)),
    }
    folios = {pfn: Folio(order=9, mapcount=1) for pfn in (0x200, 0x400)}
    seen, _ = states(frames, folios=folios, huge_zero_pfn=0x200)
    assert seen.reserved.tolist() == [True, True, False]
    # Before it is first used, its frame is -1.
    seen, _ = states(frames, folios=folios, huge_zero_pfn=-1)
    assert not seen.reserved.any()
    seen, _ = states(frames, folios=folios)
    assert not seen.reserved.any()
    # Older kernels have a pointer to its struct page instead.
    seen, _ = states(frames, folios=folios, huge_zero_page=number(0x200))
    assert seen.reserved.tolist() == [True, True, False]
    seen, _ = states(frames, folios=folios, huge_zero_page=number(0))
    assert not seen.reserved.any()


def test_no_frame_is_no_read() -> None:
    seen, program = states({}, *())
    assert len(seen.pfn) == len(seen.refcount) == 0
    assert program.reads == []
