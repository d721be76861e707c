# SPDX-License-Identifier: GPL-2.0-only
"""Read the primary MMU's page tables of a process from outside the kernel, in bulk."""

from __future__ import annotations

import dataclasses

import drgn
import numpy as np
import numpy.typing as npt
from drgn.helpers.linux.mm import virt_to_phys
from drgn.helpers.linux.pid import find_task

from harness.errors import ProbeError

Words = npt.NDArray[np.uint64]

PAGE_SHIFT = 12
TABLE_BYTES = 4096
PRESENT = np.uint64(1 << 0)
WRITABLE = np.uint64(1 << 1)
LARGE = np.uint64(1 << 7)
PFN_MASK = np.uint64(0x000F_FFFF_FFFF_F000)

_INDEX_BITS = 9


@dataclasses.dataclass(frozen=True)
class PrimaryMap:
    """What the primary MMU maps at each page of a range; arrays of one element a page.

    ``entry`` is the pte, or 0 where there is none; for a page of a large mapping it is the
    large entry, and ``large`` is set. ``pfn`` is meaningful where ``present``.
    """

    entry: Words
    pfn: Words
    large: npt.NDArray[np.bool_]

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether the page is mapped. PROT_NONE ptes are not present to the hardware."""
        return np.asarray((self.entry & PRESENT) != 0, np.bool_)

    @property
    def writable(self) -> npt.NDArray[np.bool_]:
        """Whether the CPU may write through the pte."""
        return np.asarray(self.present & ((self.entry & WRITABLE) != 0), np.bool_)


def read_table(program: drgn.Program, address: int) -> Words:
    """The 512 entries of the page table at a physical address."""
    return np.frombuffer(program.read(address, TABLE_BYTES, physical=True), np.uint64)


def task_mm(program: drgn.Program, pid: int) -> drgn.Object:
    """The mm_struct of a process; raises ProbeError when there is no such process."""
    task = find_task(program, pid)
    if not task or not task.mm:
        raise ProbeError(f"The host's kernel knows no process {pid} with memory of its own.")
    return task.mm


def primary_map(program: drgn.Program, pid: int, hva: int, pages: int) -> PrimaryMap:
    """Walk the page tables of ``pid`` for ``pages`` pages from ``hva`` on.

    The walk is the hardware's: Intel SDM volume 3A, 4.5 and AMD APM volume 2, 5.3.
    """
    mm = task_mm(program, pid)
    five = "__pgtable_l5_enabled" in _variables(program)
    top = 4 if five else 3
    addresses = np.uint64(hva) + (np.arange(pages, dtype=np.uint64) << np.uint64(PAGE_SHIFT))
    root = _physical(program, mm.pgd)
    tables = np.full(pages, root, np.uint64)
    entry = np.zeros(pages, np.uint64)
    level_of = np.zeros(pages, np.int64)
    walking = np.ones(pages, np.bool_)
    for level in range(top, -1, -1):
        index = (addresses >> np.uint64(PAGE_SHIFT + _INDEX_BITS * level)) & np.uint64(511)
        for table in np.unique(tables[walking]):
            here = walking & (tables == table)
            entry[here] = read_table(program, int(table))[index[here].astype(np.int64)]
        level_of[walking] = level
        present = (entry & PRESENT) != 0
        walking &= present & (((entry & LARGE) == 0) if level else False)
        tables[walking] = entry[walking] & PFN_MASK
    leaf = np.where((level_of > 0) & ((entry & LARGE) == 0), np.uint64(0), entry)
    large = (level_of > 0) & ((leaf & PRESENT) != 0)
    return PrimaryMap(entry=leaf, pfn=_pfns(leaf, level_of, addresses), large=large)


def _pfns(leaf: Words, level: npt.NDArray[np.int64], addresses: Words) -> Words:
    """The frame of each page, also inside large mappings; PAT of a large entry is masked off."""
    within = (np.uint64(1) << (_INDEX_BITS * level).astype(np.uint64)) - np.uint64(1)
    base = ((leaf & PFN_MASK) >> np.uint64(PAGE_SHIFT)) & ~within
    return base + ((addresses >> np.uint64(PAGE_SHIFT)) & within)


def _physical(program: drgn.Program, address: drgn.Object) -> int:
    """The physical address of memory in the kernel's direct map."""
    return int(virt_to_phys(program, address))


def _variables(program: drgn.Program) -> frozenset[str]:
    name = "__pgtable_l5_enabled"
    try:
        return frozenset({name}) if program[name].value_() else frozenset()
    except KeyError:
        return frozenset()
