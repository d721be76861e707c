# SPDX-License-Identifier: GPL-2.0-only
"""A walk of page tables that were built by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_memory import LARGE, PRESENT, WRITABLE, FakeProgram

from harness.errors import ProbeError
from harness.oracle import pagetables
from harness.oracle.pagetables import PrimaryMap, primary_map, task_mm

NX = 1 << 63
PROT_NONE = 1 << 8
"""_PAGE_PROTNONE: set where the present bit is not."""

ROOT, PDPT, PD, PT_A, PT_B = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
HVA = 0x7F12_3400_0000
"""2 MiB aligned, as guests' memory is."""

LARGE_PFN = 0x80000
INDEX = {level: HVA >> (12 + 9 * level) & 511 for level in range(5)}


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> FakeProgram:
    mm = SimpleNamespace(pgd=ROOT)
    known = {70: SimpleNamespace(mm=mm), 71: SimpleNamespace(mm=None)}
    monkeypatch.setattr(pagetables, "virt_to_phys", lambda _, address: address)
    monkeypatch.setattr(pagetables, "find_task", lambda _, pid: known.get(pid))
    return FakeProgram()


def below(address: int) -> int:
    """An entry that points to a table."""
    return address | PRESENT | WRITABLE | 1 << 2


def upper_tables(program: FakeProgram) -> None:
    """Everything down to the two page tables from HVA on; the third 2 MiB are one large page."""
    program.table(ROOT, {INDEX[3]: below(PDPT)})
    program.table(PDPT, {INDEX[2]: below(PD)})
    large = LARGE_PFN << 12 | PRESENT | WRITABLE | LARGE | NX
    program.table(
        PD, {INDEX[1]: below(PT_A), INDEX[1] + 1: below(PT_B), INDEX[1] + 2: large}
    )  # fmt: skip
    program.table(PT_A, {})
    program.table(PT_B, {})


def walked(program: FakeProgram, pages: int, first: int = 0) -> PrimaryMap:
    return primary_map(program, 70, HVA + first * 4096, pages)


def test_small_pages_and_holes(program: FakeProgram) -> None:
    upper_tables(program)
    swapped = 0x1234 << 12 | 1 << 1  # no present bit: what else it says is not for the hardware
    program.table(
        PT_A,
        {
            0: 0x111 << 12 | PRESENT | WRITABLE | NX,
            1: 0x222 << 12 | PRESENT,
            3: swapped,
            4: 0x444 << 12 | PROT_NONE,
            511: 0x555 << 12 | PRESENT | WRITABLE,
        },
    )
    pat = 1 << 7  # the bit that says "large" one level up
    program.table(PT_B, {0: 0x666 << 12 | PRESENT | pat})
    seen = walked(program, 513)
    assert np.flatnonzero(seen.present).tolist() == [0, 1, 511, 512]
    assert np.flatnonzero(seen.writable).tolist() == [0, 511]
    assert seen.pfn[[0, 1, 511, 512]].tolist() == [0x111, 0x222, 0x555, 0x666]
    assert seen.entry[2] == 0
    assert seen.entry[3] == swapped
    assert not seen.large.any()


def test_a_large_page_is_each_of_its_pages(program: FakeProgram) -> None:
    upper_tables(program)
    seen = walked(program, 512, first=1024)
    assert seen.present.all()
    assert seen.writable.all()
    assert seen.large.all()
    assert seen.pfn.tolist() == list(range(LARGE_PFN, LARGE_PFN + 512))


def test_a_part_of_a_large_page_after_a_part_of_a_table(program: FakeProgram) -> None:
    upper_tables(program)
    program.table(PT_B, {511: 0x777 << 12 | PRESENT})
    seen = walked(program, 4, first=1022)
    assert seen.present.tolist() == [False, True, True, True]
    assert seen.pfn[1:].tolist() == [0x777, LARGE_PFN, LARGE_PFN + 1]
    assert seen.large.tolist() == [False, False, True, True]


def test_bit_12_of_a_large_entry_is_no_part_of_the_frame(program: FakeProgram) -> None:
    upper_tables(program)
    pat = 1 << 12
    program.table(PD, {INDEX[1]: LARGE_PFN << 12 | pat | PRESENT | LARGE})
    seen = walked(program, 2)
    assert seen.pfn.tolist() == [LARGE_PFN, LARGE_PFN + 1]
    assert not seen.writable.any()


def test_a_page_of_one_gibibyte(program: FakeProgram) -> None:
    program.table(ROOT, {INDEX[3]: below(PDPT)})
    program.table(PDPT, {INDEX[2]: 0x40000 << 12 | PRESENT | LARGE})
    within = (HVA >> 12) & 0x3FFFF
    seen = walked(program, 3)
    assert seen.pfn.tolist() == [0x40000 + within + page for page in range(3)]
    assert seen.large.all()


@pytest.mark.parametrize("level", [3, 2, 1])
def test_a_hole_at_any_level_maps_nothing(program: FakeProgram, level: int) -> None:
    upper_tables(program)
    program.table(PT_A, {0: 0x111 << 12 | PRESENT})
    table = {3: ROOT, 2: PDPT, 1: PD}[level]
    program.table(table, {INDEX[level]: 0})
    seen = walked(program, 2)
    assert not seen.present.any()
    assert not seen.entry.any()
    assert not seen.large.any()


def test_a_table_that_is_not_present_is_not_followed(program: FakeProgram) -> None:
    upper_tables(program)
    # A huge page that is being migrated: the address bits are a swap entry's.
    program.table(PD, {INDEX[1]: 0xDEAD << 12 | LARGE})
    seen = walked(program, 2)
    assert not seen.present.any()
    assert not seen.large.any(), "nor is it a mapping"


def test_a_range_may_begin_anywhere_and_cross_every_boundary(program: FakeProgram) -> None:
    other_pdpt, other_pd, other_pt = 0x6000, 0x7000, 0x8000
    end = 1 << 39
    hva = end - 4096
    program.table(ROOT, {0: below(PDPT), 1: below(other_pdpt)})
    program.table(PDPT, {511: below(PD)})
    program.table(PD, {511: below(PT_A)})
    program.table(PT_A, {511: 0x11 << 12 | PRESENT})
    program.table(other_pdpt, {0: below(other_pd)})
    program.table(other_pd, {0: below(other_pt)})
    program.table(other_pt, {0: 0x22 << 12 | PRESENT})
    seen = primary_map(program, 70, hva, 2)
    assert seen.pfn.tolist() == [0x11, 0x22]


def test_five_levels_where_the_kernel_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for enabled, expected in ((1, 0x999), (0, 0x111)):
        variable = SimpleNamespace(value_=lambda enabled=enabled: enabled)
        program = FakeProgram(__pgtable_l5_enabled=variable)
        mm = SimpleNamespace(pgd=0x9000 if enabled else ROOT)
        task = SimpleNamespace(mm=mm)
        monkeypatch.setattr(pagetables, "virt_to_phys", lambda _, address: address)
        monkeypatch.setattr(pagetables, "find_task", lambda *_, task=task: task)
        upper_tables(program)
        program.table(0x9000, {INDEX[4]: below(ROOT)})
        program.table(PT_A, {0: expected << 12 | PRESENT})
        assert walked(program, 1).pfn.tolist() == [expected]


def test_each_table_is_read_once(program: FakeProgram) -> None:
    upper_tables(program)
    walked(program, 1536)
    assert sorted(address for address, _, _ in program.reads) == [ROOT, PDPT, PD, PT_A, PT_B]
    assert all(physical for _, _, physical in program.reads)


@pytest.mark.parametrize("pid", [71, 72])
def test_a_process_without_memory_is_an_error_of_the_probe(program: FakeProgram, pid: int) -> None:
    with pytest.raises(ProbeError, match=f"no process {pid}"):
        task_mm(program, pid)


@pytest.mark.parametrize(
    ("level", "address", "pfn"),
    [
        (0, 0x7000_0000_3000, 0x80000),
        (1, 0x7000_0000_3000, 0x80003),
        (1, 0x7000_001F_F000, 0x801FF),
        (2, 0x7000_3FFF_F000, 0xBFFFF),
    ],
)
def test_frames_inside_large_mappings(level: int, address: int, pfn: int) -> None:
    def one(value: int, kind: Any = np.uint64) -> Any:
        return np.array([value], kind)

    entry = one(LARGE_PFN << 12 | PRESENT)
    assert pagetables._pfns(entry, one(level, np.int64), one(address)).tolist() == [pfn]
