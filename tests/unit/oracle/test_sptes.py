# SPDX-License-Identifier: GPL-2.0-only
"""Sptes against the primary MMU, and how they are found in KVM's tables."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_memory import LARGE, MMU_PRESENT, PRESENT, WRITABLE, FakeProgram

from harness.errors import OracleUnavailable, ProbeError
from harness.oracle import sptes as module
from harness.oracle.pagetables import PrimaryMap
from harness.oracle.sptes import Sptes, Stale, read_sptes, stale

SPTE = MMU_PRESENT | PRESENT
GPA = 1 << 30
FIRST_GFN = GPA >> 12
PAGES = 2048


def primary(*entries: tuple[int, int] | None, large: bool = False) -> PrimaryMap:
    """What the primary MMU maps: a frame and the permissions, or nothing."""
    words = [0 if entry is None else entry[0] << 12 | entry[1] for entry in entries]
    entry = np.array(words, np.uint64)
    pfn = (entry >> np.uint64(12)) & np.uint64(0xFFFFFFFF)
    return PrimaryMap(entry, pfn, np.full(len(entry), large))


def mapped(*leaves: tuple[int, int, bool], level: int = 1) -> Sptes:
    """Sptes as page, frame and whether they are writable."""
    return Sptes(
        np.array([page for page, _, _ in leaves], np.int64),
        np.array([pfn for _, pfn, _ in leaves], np.uint64),
        np.array([writable for _, _, writable in leaves], np.bool_),
        np.full(len(leaves), level, np.int64),
    )


RO, RW = PRESENT, PRESENT | WRITABLE


@pytest.mark.parametrize(
    ("pte", "spte", "wrong"),
    [
        ((0x11, RW), (0x11, True), None),
        ((0x11, RO), (0x11, False), None),
        # KVM may allow less: the guest's next write tells it.
        ((0x11, RW), (0x11, False), None),
        ((0x11, RO), (0x11, True), "maps it read-only while the spte is writable"),
        ((0x12, RW), (0x11, True), "maps pfn 0x12"),
        ((0x12, RO), (0x11, False), "maps pfn 0x12"),
        (None, (0x11, True), "maps nothing there"),
        (None, (0x11, False), "maps nothing there"),
        # Not present although the frame is in it, as with PROT_NONE.
        ((0x11, 1 << 8), (0x11, False), "maps nothing there"),
        (None, (0, False), "maps nothing there"),
    ],
)
def test_an_spte_may_not_allow_more_than_the_primary_mmu(
    pte: tuple[int, int] | None, spte: tuple[int, bool], wrong: str | None
) -> None:
    neighbour = (0x99, RW)
    pfn, writable = spte
    found = stale(
        mapped((0, 0x99, True), (1, pfn, writable), (2, 0x99, True)),
        primary(neighbour, pte, neighbour),
    )
    assert found == (() if wrong is None else (Stale(1, pfn, wrong),))
    if found:
        assert str(found[0]) == f"page 1: an spte maps pfn {pfn:#x}, the primary MMU {wrong}"


SMALL = "maps it by a small page while the spte is large"


@pytest.mark.parametrize(
    ("level", "large", "wrong"),
    [
        (1, False, None),
        # KVM may map less at a time than the primary MMU does, but not more.
        (1, True, None),
        (2, True, None),
        (3, True, None),
        (2, False, SMALL),
        (3, False, SMALL),
    ],
)
def test_an_spte_may_not_be_larger_than_the_page(
    level: int, wrong: str | None, *, large: bool
) -> None:
    found = stale(mapped((0, 0x11, True), level=level), primary((0x11, RW), large=large))
    assert found == (() if wrong is None else (Stale(0, 0x11, wrong),))


@pytest.mark.parametrize(
    ("pte", "wrong"),
    [
        (None, "maps nothing there"),
        ((0x12, RW), "maps pfn 0x12"),
        ((0x11, RO), "maps it read-only while the spte is writable"),
    ],
)
def test_of_a_large_spte_the_worst_is_said(pte: tuple[int, int] | None, wrong: str) -> None:
    found = stale(mapped((0, 0x11, True), level=2), primary(pte))
    assert found == (Stale(0, 0x11, wrong),)


def test_what_no_spte_maps_is_not_stale() -> None:
    assert stale(mapped(), primary((0x11, RW), None)) == ()


def test_two_sptes_of_one_page_are_judged_each() -> None:
    # Shadow paging may map a page more than once.
    found = stale(mapped((0, 0x11, True), (0, 0x12, True)), primary((0x11, RW)))
    assert [each.pfn for each in found] == [0x12]


# Leaves.


def table(entries: dict[int, int], first_gfn: int, level: int) -> tuple[Any, Any, int]:
    words = np.zeros(512, np.uint64)
    for index, entry in entries.items():
        words[index] = entry
    steps = np.arange(512, dtype=np.uint64) << np.uint64(9 * (level - 1))
    return words, np.uint64(first_gfn) + steps, level


def leaves(*tables: tuple[Any, Any, int], pages: int = PAGES) -> list[tuple[int, int, bool, int]]:
    found = module._leaves(list(tables), FIRST_GFN, pages)
    columns = (found.page, found.pfn, found.writable, found.level)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def test_no_table_has_no_leaves() -> None:
    assert leaves() == []
    assert leaves(table({}, FIRST_GFN, 1)) == []


def test_small_leaves_of_the_range() -> None:
    entries = {0: 0x11 << 12 | SPTE, 5: 0x22 << 12 | SPTE | WRITABLE, 511: 0x33 << 12 | SPTE}
    assert leaves(table(entries, FIRST_GFN, 1)) == [
        (0, 0x11, False, 1),
        (5, 0x22, True, 1),
        (511, 0x33, False, 1),
    ]


def test_an_entry_without_kvms_mark_is_no_spte() -> None:
    # A removed spte, an MMIO spte: present to nobody.
    assert leaves(table({0: 0x11 << 12 | PRESENT | WRITABLE}, FIRST_GFN, 1)) == []


def test_a_table_is_no_leaf() -> None:
    assert leaves(table({0: 0x11 << 12 | SPTE | WRITABLE}, FIRST_GFN, 2)) == []


def test_a_large_spte_stands_for_each_of_its_pages() -> None:
    entries = {1: 0x200 << 12 | SPTE | WRITABLE | LARGE}
    found = leaves(table(entries, FIRST_GFN, 2))
    assert found == [(512 + page, 0x200 + page, True, 2) for page in range(512)]


def test_a_large_bit_at_the_last_level_is_something_else() -> None:
    # There bit 7 is PAT.
    assert leaves(table({0: 0x11 << 12 | SPTE | LARGE}, FIRST_GFN, 1)) == [(0, 0x11, False, 1)]


def test_a_huge_spte_is_cut_to_the_range() -> None:
    found = leaves(table({1: 0x40000 << 12 | SPTE | LARGE}, 0, 3), pages=3)
    assert found == [(page, 0x40000 + page, False, 3) for page in range(3)]


def test_what_maps_other_memory_is_left_out() -> None:
    before = table({511: 0x11 << 12 | SPTE}, FIRST_GFN - 512, 1)
    after = table({0: 0x22 << 12 | SPTE}, FIRST_GFN + PAGES, 1)
    last = table({511: 0x33 << 12 | SPTE}, FIRST_GFN + PAGES - 512, 1)
    assert leaves(before, after, last) == [(PAGES - 1, 0x33, False, 1)]


def test_bits_above_the_address_are_no_part_of_the_frame() -> None:
    assert leaves(table({0: 0x11 << 12 | SPTE | 0xFFF << 52}, FIRST_GFN, 1)) == [
        (0, 0x11, False, 1)
    ]


# A whole VM.


class Number:
    """A drgn object that is a number."""

    def __init__(self, value: int) -> None:
        self.value = value

    def value_(self) -> int:
        return self.value

    def __bool__(self) -> bool:
        return bool(self.value)

    def __int__(self) -> int:
        return self.value


class ListHead:
    """A list_head; one that was never initialized has no next."""

    def __init__(self, members: list[Any] | None) -> None:
        self.members = members
        self.next = Number(0 if members is None else 1)

    def address_of_(self) -> ListHead:
        return self


def shadow(spt: int, level: int, gfn: int = 0, translation: int = 0) -> Any:
    return SimpleNamespace(
        spt=spt,
        role=SimpleNamespace(level=Number(level)),
        gfn=Number(gfn),
        shadowed_translation=Number(translation),
    )


def members(_: str, head: ListHead, __: str) -> list[Any]:
    assert head.members is not None, "a list that was never initialized is not walked"
    return head.members


@pytest.fixture
def vm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    arch = SimpleNamespace(tdp_mmu_roots=ListHead(None), active_mmu_pages=ListHead([]))
    monkeypatch.setattr(module, "virt_to_phys", lambda _, address: address)
    monkeypatch.setattr(module, "list_for_each_entry", members)
    monkeypatch.setattr(module, "virtual_machine", lambda *_: SimpleNamespace(arch=arch))
    return arch


class Kvm(FakeProgram):
    """A host whose KVM marks the sptes that are present, as all do since v5.13."""

    def __init__(self) -> None:
        super().__init__(shadow_mmu_writable_mask=object())


def read(program: FakeProgram) -> list[tuple[int, int, bool, int]]:
    found = read_sptes(program, 70, 9, GPA, PAGES)
    columns = (found.page, found.pfn, found.writable, found.level)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def test_the_tdp_mmu_is_walked_from_its_roots(vm: SimpleNamespace) -> None:
    program = Kvm()
    program.table(0x1000, {0: 0x2000 | SPTE})
    program.table(0x2000, {1: 0x3000 | SPTE, 3: 0x40000 << 12 | SPTE | LARGE})
    program.table(0x3000, {0: 0x4000 | SPTE, 1: 0x80000 << 12 | SPTE | WRITABLE | LARGE, 2: 0x5000})
    program.table(0x4000, {7: 0x77 << 12 | SPTE | WRITABLE})
    vm.tdp_mmu_roots = ListHead([shadow(0x1000, level=4)])
    large = [(512 + page, 0x80000 + page, True, 2) for page in range(512)]
    assert read(program) == [(7, 0x77, True, 1), *large]
    assert len(program.reads) == 4, "what is not present is not followed"


def test_every_root_counts(vm: SimpleNamespace) -> None:
    program = Kvm()
    for root, pfn in ((0x1000, 0x11), (0x5000, 0x22)):
        tables = [root, *(root + 0x1000 * step for step in (1, 2, 3))]
        program.table(tables[0], {0: tables[1] | SPTE})
        program.table(tables[1], {1: tables[2] | SPTE})
        program.table(tables[2], {0: tables[3] | SPTE})
        program.table(tables[3], {0: pfn << 12 | SPTE})
    vm.tdp_mmu_roots = ListHead([shadow(0x1000, level=4), shadow(0x5000, level=4)])
    assert read(program) == [(0, 0x11, False, 1), (0, 0x22, False, 1)]


def test_shadow_pages_say_which_frames_of_the_guest_they_map(vm: SimpleNamespace) -> None:
    program = Kvm()
    program.table(0x1000, {3: 0x33 << 12 | SPTE})
    program.table(0x2000, {1: 0x80000 << 12 | SPTE | LARGE, 2: 0x1000 | SPTE})
    vm.active_mmu_pages = ListHead(
        [shadow(0x1000, level=1, gfn=FIRST_GFN + 512), shadow(0x2000, level=2, gfn=FIRST_GFN)]
    )
    found = read(program)
    assert found[-1] == (1023, 0x801FF, False, 2)
    assert [each for each in found if each[3] == 1] == [(515, 0x33, False, 1)]
    assert len(found) == 513


def test_shadowed_translations_come_from_the_guests_own_tables(vm: SimpleNamespace) -> None:
    program = Kvm()
    program.table(0x1000, {0: 0x33 << 12 | SPTE, 1: 0x44 << 12 | SPTE})
    gfns = np.zeros(512, np.uint64)
    # The low bits are the access rights.
    gfns[0], gfns[1] = (FIRST_GFN + 9) << 12 | 7, (FIRST_GFN + 4) << 12 | 3
    program.virtual[0xFFFF_8880_0000_0000] = gfns.tobytes()
    vm.active_mmu_pages = ListHead([shadow(0x1000, level=1, translation=0xFFFF_8880_0000_0000)])
    assert read(program) == [(4, 0x44, False, 1), (9, 0x33, False, 1)]


def test_before_there_was_a_mark_what_allows_access_is_present(vm: SimpleNamespace) -> None:
    program = FakeProgram()
    writable_to_kvm = 1 << 11
    program.table(0x1000, {0: 0x2000 | RW | writable_to_kvm})
    program.table(0x2000, {1: 0x3000 | RW | writable_to_kvm})
    program.table(0x3000, {0: 0x4000 | RW | writable_to_kvm, 1: 0x80000 << 12 | RO | LARGE})
    program.table(
        0x4000,
        {
            1: 0x11 << 12 | RO,
            2: 0x22 << 12 | RW | writable_to_kvm,
            # Executable only, as EPT has it.
            3: 0x33 << 12 | 0b100,
            # Of MMIO, which has no frame; and nothing, but for a bit of software's.
            4: 0x44 << 12 | RW | 3 << 52,
            5: 0x55 << 12 | writable_to_kvm,
        },
    )
    vm.tdp_mmu_roots = ListHead([shadow(0x1000, level=4)])
    large = [(512 + page, 0x80000 + page, False, 2) for page in range(512)]
    assert read(program) == [(1, 0x11, False, 1), (2, 0x22, True, 1), (3, 0x33, False, 1), *large]


def test_gfns_of_shadow_pages_without_access_rights(vm: SimpleNamespace) -> None:
    program = FakeProgram()
    program.table(0x1000, {0: 0x33 << 12 | RO, 1: 0x44 << 12 | RW})
    gfns = np.zeros(512, np.uint64)
    gfns[0], gfns[1] = FIRST_GFN + 9, FIRST_GFN + 4
    program.virtual[0xFFFF_8880_0000_0000] = gfns.tobytes()
    old = shadow(0x1000, level=1)
    del old.shadowed_translation
    old.gfns = Number(0xFFFF_8880_0000_0000)
    vm.active_mmu_pages = ListHead([old])
    assert read(program) == [(4, 0x44, True, 1), (9, 0x33, False, 1)]


def test_shadow_pages_without_any_gfns_cannot_be_understood(vm: SimpleNamespace) -> None:
    program = Kvm()
    program.table(0x1000, {0: 0x33 << 12 | SPTE})
    strange = shadow(0x1000, level=1)
    del strange.shadowed_translation
    vm.active_mmu_pages = ListHead([strange])
    with pytest.raises(OracleUnavailable, match="look different in this kernel"):
        read(program)


@pytest.mark.parametrize("missing", ["tdp_mmu_roots", "active_mmu_pages"])
def test_a_kernel_that_keeps_them_otherwise_cannot_be_asked(
    vm: SimpleNamespace, missing: str
) -> None:
    delattr(vm, missing)
    with pytest.raises(OracleUnavailable, match=f"look different in this kernel.*{missing}"):
        read(Kvm())


def test_a_vm_that_is_not_open_is_an_error_of_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_task", lambda *_: object())
    monkeypatch.setattr(module, "fget", lambda *_: None)
    with pytest.raises(ProbeError, match="Process 70 of the host has no open file 9"):
        read(Kvm())


def test_a_kvm_without_debug_information_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_type(*_: object) -> None:
        raise LookupError("could not find 'struct kvm'")

    monkeypatch.setattr(module, "find_task", lambda *_: object())
    monkeypatch.setattr(module, "fget", lambda *_: SimpleNamespace(private_data=1))
    monkeypatch.setattr("drgn.cast", no_type)
    with pytest.raises(OracleUnavailable, match="debug information for the kvm module"):
        read(Kvm())
