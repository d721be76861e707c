# SPDX-License-Identifier: GPL-2.0-only
"""Read all of a VM's sptes from outside the kernel, in each MMU mode."""

from __future__ import annotations

import dataclasses

import drgn
import numpy as np
import numpy.typing as npt
from drgn.helpers.linux.fs import fget
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import virt_to_phys
from drgn.helpers.linux.pid import find_task

from harness.errors import OracleUnavailable, ProbeError
from harness.oracle.pagetables import PAGE_SHIFT, PFN_MASK, TABLE_BYTES, PrimaryMap, read_table

Words = npt.NDArray[np.uint64]

# arch/x86/kvm/mmu/spte.h: bit 11 marks every present spte, on EPT and NPT alike, since commit
# edea7c4fc215 ("KVM: x86/mmu: Use a dedicated bit to track shadow/MMU-present SPTEs") (in v5.13).
_MMU_PRESENT = np.uint64(1 << 11)
# Before that, an spte was present if it allowed any access, unless it was marked as one of MMIO,
# and bit 11 said that KVM itself had no objection to writes.
_ACCESS = np.uint64(0b111)
_MMIO = np.uint64(0b11 << 52)
_SINCE_MARKED = "shadow_mmu_writable_mask"
"""A variable of KVM that came right after the mark: bit 11 had to be vacated for it."""

_WRITABLE = np.uint64(1 << 1)
_LARGE = np.uint64(1 << 7)
_INDEX_BITS = 9


@dataclasses.dataclass(frozen=True)
class Sptes:
    """The leaf sptes of a VM that map pages of its memory; arrays of one element an spte page.

    A large spte stands once for each page that it maps. ``page`` is the index into the guest's
    memory, ``level`` 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB.
    """

    page: npt.NDArray[np.int64]
    pfn: Words
    writable: npt.NDArray[np.bool_]
    level: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Stale:
    """An spte that allows what the primary MMU does not."""

    page: int
    pfn: int
    primary: str

    def __str__(self) -> str:
        return f"page {self.page}: an spte maps pfn {self.pfn:#x}, the primary MMU {self.primary}"


def stale(sptes: Sptes, primary: PrimaryMap) -> tuple[Stale, ...]:
    """The sptes that translate differently from, or allow more than, the primary MMU."""
    there = primary.present[sptes.page]
    same = there & (primary.pfn[sptes.page] == sptes.pfn)
    wider = same & sptes.writable & ~primary.writable[sptes.page]
    # It may agree today and not tomorrow, when one of the small pages is exchanged.
    larger = same & (sptes.level > 1) & ~primary.large[sptes.page]
    found = []
    for index in np.flatnonzero(~same | wider | larger):
        page = int(sptes.page[index])
        if not there[index]:
            what = "maps nothing there"
        elif not same[index]:
            what = f"maps pfn {int(primary.pfn[page]):#x}"
        elif wider[index]:
            what = "maps it read-only while the spte is writable"
        else:
            what = "maps it by a small page while the spte is large"
        found.append(Stale(page, int(sptes.pfn[index]), what))
    return tuple(found)


def read_sptes(program: drgn.Program, pid: int, vm_fd: int, gpa: int, pages: int) -> Sptes:
    """All leaf sptes of a VM for ``pages`` pages from ``gpa`` on.

    The TDP MMU's tables are walked from its roots; the shadow pages of the other modes stand in
    a list. Raises OracleUnavailable where the kernel keeps them in a way that is not known here.
    """
    kvm = virtual_machine(program, pid, vm_fd)
    tables: list[tuple[Words, Words, int]] = []
    reader = _Reader(program)
    try:
        roots = kvm.arch.tdp_mmu_roots
        # A VM that does not use the TDP MMU never initializes the list.
        if roots.next:
            for root in list_for_each_entry("struct kvm_mmu_page", roots.address_of_(), "link"):
                _walk(reader, _spt(program, root), int(root.role.level), 0, tables)
        for shadow in list_for_each_entry(
            "struct kvm_mmu_page", kvm.arch.active_mmu_pages.address_of_(), "link"
        ):
            tables.append(_shadow_table(reader, shadow))
    except (LookupError, AttributeError) as error:
        raise OracleUnavailable(
            f"KVM's page tables look different in this kernel: {error}."
        ) from error
    return _leaves(tables, gpa >> PAGE_SHIFT, pages)


def virtual_machine(program: drgn.Program, pid: int, vm_fd: int) -> drgn.Object:
    """The struct kvm behind a descriptor of a process."""
    file = fget(find_task(program, pid), vm_fd)
    if not file:
        raise ProbeError(f"Process {pid} of the host has no open file {vm_fd}.")
    try:
        return drgn.cast("struct kvm *", file.private_data)
    except LookupError as error:
        raise OracleUnavailable("There is no debug information for the kvm module.") from error


def _spt(program: drgn.Program, page: drgn.Object) -> int:
    return int(virt_to_phys(program, page.spt))


class _Reader:
    """Reads tables of sptes, in which present ones have the mark of today in every kernel."""

    def __init__(self, program: drgn.Program) -> None:
        self.program = program
        self._marked = _has_variable(program, _SINCE_MARKED)

    def table(self, address: int) -> Words:
        """The 512 entries at a physical address; what is not present is 0 in old kernels."""
        entries = read_table(self.program, address)
        if self._marked:
            return entries
        present = ((entries & _ACCESS) != 0) & ((entries & _MMIO) != _MMIO)
        return np.where(present, entries | _MMU_PRESENT, np.uint64(0))


def _has_variable(program: drgn.Program, name: str) -> bool:
    try:
        program[name]
    except KeyError:
        return False
    return True


def _walk(
    reader: _Reader, table: int, level: int, gfn: int, tables: list[tuple[Words, Words, int]]
) -> None:
    """Collect the tables below and including the one at a physical address, gfn by gfn."""
    entries = reader.table(table)
    gfns = np.uint64(gfn) + (
        np.arange(512, dtype=np.uint64) << np.uint64(_INDEX_BITS * (level - 1))
    )
    tables.append((entries, gfns, level))
    if level == 1:
        return
    inner = ((entries & _MMU_PRESENT) != 0) & ((entries & _LARGE) == 0)
    for index in np.flatnonzero(inner):
        _walk(reader, int(entries[index] & PFN_MASK), level - 1, int(gfns[index]), tables)


def _shadow_table(reader: _Reader, page: drgn.Object) -> tuple[Words, Words, int]:
    """A shadow page's entries and their gfns, as kvm_mmu_page_get_gfn() computes them."""
    level = int(page.role.level)
    entries = reader.table(_spt(reader.program, page))
    # The gfns came with their access rights in commit 6a97575d5cac ("KVM: x86/mmu: Cache the access
    # bits of shadowed translations") (in v6.0).
    try:
        shadowed, shift = page.shadowed_translation, PAGE_SHIFT
    except AttributeError:
        shadowed, shift = page.gfns, 0
    if shadowed:
        raw = reader.program.read(shadowed.value_(), TABLE_BYTES)
        return entries, np.frombuffer(raw, np.uint64) >> np.uint64(shift), level
    steps = np.arange(512, dtype=np.uint64) << np.uint64(_INDEX_BITS * (level - 1))
    return entries, np.uint64(page.gfn.value_()) + steps, level


def _leaves(tables: list[tuple[Words, Words, int]], first: int, pages: int) -> Sptes:
    """The leaf sptes of the range, large ones spread out."""
    page, pfn, writable, levels = [], [], [], []
    for entries, gfns, level in tables:
        leaf = (entries & _MMU_PRESENT) != 0
        if level > 1:
            leaf &= (entries & _LARGE) != 0
        if not leaf.any():
            continue
        span = np.arange(1 << (_INDEX_BITS * (level - 1)), dtype=np.uint64)
        base = (entries[leaf] & PFN_MASK) >> np.uint64(PAGE_SHIFT) & ~np.uint64(len(span) - 1)
        page.append((gfns[leaf][:, None] + span).ravel().astype(np.int64) - first)
        pfn.append((base[:, None] + span).ravel())
        writable.append(np.repeat((entries[leaf] & _WRITABLE) != 0, len(span)))
        levels.append(np.full(int(leaf.sum()) * len(span), level, np.int64))
    if not page:
        none = np.empty(0, np.int64)
        return Sptes(none, none.astype(np.uint64), none.astype(np.bool_), none)
    everywhere = np.concatenate(page)
    within = (everywhere >= 0) & (everywhere < pages)
    return Sptes(
        everywhere[within],
        np.concatenate(pfn)[within],
        np.concatenate(writable)[within],
        np.concatenate(levels)[within],
    )
