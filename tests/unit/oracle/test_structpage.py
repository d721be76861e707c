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

from harness.oracle import structpage
from harness.oracle.structpage import PageStates, page_states

BASE = 0xFFFF_EA00_0000_0000
SIZE = 64
OFFSETS = {"flags": 0, "compound_head": 8, "mapping": 24, "_mapcount": 48, "_refcount": 52}
BITS = {
    "PG_locked": 0, "PG_swapcache": 10, "PG_reserved": 12, "PG_private": 13,
    "PG_head": 16, "PG_swapbacked": 18,
}  # fmt: skip
ANON = 0xFFFF_8880_0000_1001
FILE = 0xFFFF_8880_0000_2000


@dataclasses.dataclass(frozen=True)
class Frame:
    """A struct page; ``mapcount`` is stored as one less, as the kernel does."""

    refcount: int = 1
    mapcount: int = 1
    mapping: int = ANON
    flags: tuple[str, ...] = ()
    head: int | None = None

    def packed(self) -> bytes:
        raw = bytearray(SIZE)
        struct.pack_into("<Q", raw, 0, sum(1 << BITS[name] for name in self.flags))
        head = 0 if self.head is None else (BASE + self.head * SIZE) | 1
        struct.pack_into("<Q", raw, 8, head)
        struct.pack_into("<Q", raw, 24, self.mapping)
        struct.pack_into("<ii", raw, 48, self.mapcount - 1, self.refcount)
        return bytes(raw)


class Memmap:
    """A program whose memory is an array of struct pages; frames not named are free."""

    def __init__(self, frames: dict[int, Frame]) -> None:
        self.frames = frames
        self.reads: list[tuple[int, int]] = []
        self._types = {
            "struct page": SimpleNamespace(size=SIZE),
            "enum pageflags": SimpleNamespace(
                enumerators=[SimpleNamespace(name=name, value=bit) for name, bit in BITS.items()]
            ),
        }

    def type(self, name: str) -> Any:
        return self._types[name]

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
    monkeypatch.setattr(drgn, "offsetof", lambda _, name: OFFSETS[name])


def states(frames: dict[int, Frame], *pfns: int) -> tuple[PageStates, Memmap]:
    program = Memmap(frames)
    asked = np.array(pfns or tuple(frames), np.uint64)
    return page_states(program, asked), program


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


FLAGS = ("anon", "swap_cache", "page_cache", "private", "large", "reserved")


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
        (Frame(flags=("PG_head",)), {"anon", "large"}),
        (Frame(flags=("PG_locked",)), {"anon"}),
    ],
)
def test_flags_mean_what_the_kernel_means(frame: Frame, expected: set[str]) -> None:
    seen = only(frame)
    assert {name for name in FLAGS if getattr(seen, name)[0]} == expected


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
    seen, _ = states(frames, 0x203, 0x300, 0x200)
    assert seen.pfn.tolist() == [0x203, 0x300, 0x200]
    assert seen.refcount.tolist() == [9, 2, 9]
    assert seen.large.tolist() == [True, False, True]
    assert seen.page_cache.tolist() == [True, False, True]
    assert seen.private.tolist() == [True, False, True]


def test_no_frame_is_no_read() -> None:
    seen, program = states({}, *())
    assert len(seen.pfn) == len(seen.refcount) == 0
    assert program.reads == []
