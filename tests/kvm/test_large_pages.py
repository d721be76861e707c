# SPDX-License-Identifier: GPL-2.0-only
"""Guests on large pages: sptes as large as the pages, which are split and collapsed in time."""

from __future__ import annotations

import pytest
from matrix import on_backings

from harness.errors import OracleUnavailable
from harness.guest.probe import GuestFactory, ProbeGuest
from harness.guest.settings import khugepaged
from harness.oracle.evidence import Evidence

SEED = 0x5EED
NEW = 0x2E
WORD = 7
LARGE, SMALL = 2, 1
TRIES = 3
LARGE_PAGES = 512
"""Pages of 4 KiB in one of 2 MiB."""


@pytest.mark.parametrize("backing", ["thp", "hugetlb"])
def test_large_pages_are_mapped_by_large_sptes(guest: ProbeGuest, evidence: Evidence) -> None:
    evidence.content(guest.fill(SEED))
    evidence.mapped_large(guest)
    evidence.mapped_by_sptes(guest, LARGE)
    evidence.sound(guest)
    evidence.content(guest.check(SEED))


@on_backings("collapse")
def test_collapsed_memory_is_as_before_and_mapped_large(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    frames = evidence.frames(guest)
    with evidence.told(guest):
        evidence.at_least("collapse", "collapses that went well", 1, guest.collapse())
    evidence.no_stale_translations(guest)
    evidence.frames_returned(guest, frames)
    evidence.content(guest.check(SEED))
    evidence.mapped_large(guest)
    evidence.mapped_by_sptes(guest, LARGE)
    evidence.done("writing", guest.write(NEW, 0, guest.pages, word=WORD))
    seen = guest.host_read(0, guest.pages, word=WORD)
    evidence.equal("the VMM to see the guest's write", [NEW] * guest.pages, seen)
    evidence.sound(guest)


@pytest.mark.parametrize("backing", ["memfd"])
def test_small_mappings_of_a_large_page_are_collapsed(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.at_least("collapse", "collapses that went well", 1, guest.collapse())
    guest.remap()
    # Nothing large fits into mappings that end within it. That it is advised against is not enough
    # before commit 2b0f922323cc ("mm: don't install PMD mappings when THPs are disabled by the
    # hw/process/vma") (in v6.12).
    for first in range(0, guest.pages, LARGE_PAGES):
        guest.madvise("dontfork", first + LARGE_PAGES // 2, 1)
    evidence.content(guest.check(SEED))
    if guest.mapped_large():
        raise OracleUnavailable("This kernel maps a file's large pages by large mappings only.")
    guest.madvise("dofork")
    evidence.mapped_by_sptes(guest, SMALL)
    evidence.sound(guest)
    with evidence.told(guest):
        evidence.at_least("collapse", "collapses that went well", 1, guest.collapse())
    evidence.no_stale_translations(guest)
    evidence.content(guest.check(SEED))
    evidence.mapped_by_sptes(guest, LARGE)
    evidence.sound(guest)


@pytest.mark.parametrize("backing", ["anon"])
def test_khugepaged_collapses_what_only_the_guest_uses(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    # Nothing but Accessed bits of sptes tells one half from the other: those of ptes are cleared
    # with the mark, what the kernel remembers of them by the advice, and the last 2 MiB are for a
    # flush of the TLB.
    used, unused, spare = (0, 512), (512, 512), (1536, 512)
    evidence.content(guest.fill(SEED))
    guest.session.ask("drain_lru")
    guest.mark_idle()
    guest.madvise("cold")
    guest.flush_tlbs(*spare)
    # What the advice left in the batches of a CPU's LRU cannot be collapsed.
    guest.session.ask("drain_lru")
    frames = evidence.frames(guest, *used)
    with khugepaged(guest.session) as looked, evidence.told(guest, *used):
        guest.madvise("hugepage", 0, 1024)
        for _ in range(TRIES):
            # Half of what is to be collapsed is enough, and has the kernel ask about the other
            # half, too. A collapse that is given up has dropped the sptes with their bits.
            evidence.content(guest.check(SEED, 0, 256))
            looked()
    evidence.no_stale_translations(guest)
    evidence.frames_returned(guest, frames)
    evidence.content(guest.check(SEED))
    evidence.mapped_by_sptes(guest, LARGE, *used)
    evidence.mapped_by_sptes(guest, SMALL, *unused)
    evidence.sound(guest)


@on_backings("collapse")
def test_a_hammering_guest_loses_no_write_to_collapse(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    with guest.hammering() as hammer:
        hammer.await_visits(guest.pages)
        evidence.at_least("collapse", "collapses that went well", 1, guest.collapse())
        hammer.await_visits(guest.pages)
    evidence.content(hammer.stop())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@pytest.mark.parametrize("backing", ["hugetlb-wide"])
@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_page_table_that_a_child_shared_is_dropped_with_its_sptes(
    probe_guest: GuestFactory, evidence: Evidence, backing: str, vcpus: int
) -> None:
    with probe_guest(vcpus=vcpus, backing=backing) as guest, guest.forked() as child:
        evidence.content(guest.fill(SEED))
        before = child.read(0, guest.pages, word=WORD)
        evidence.mapped_by_sptes(guest, LARGE)
        # A mapping that is split within the 1 GiB that the table is for cannot share it.
        with evidence.told(guest):
            guest.mprotect("read", 512, 512)
        evidence.no_stale_translations(guest)
        evidence.sptes_dropped(guest)
        evidence.content(guest.check(SEED))
        evidence.refused("a write to memory that may only be read", guest.write(NEW, 512), 512)
        guest.mprotect("readwrite", 512, 512)
        evidence.done("writing", guest.write(NEW, 0, guest.pages, word=WORD))
        seen = child.read(0, guest.pages, word=WORD)
        evidence.equal("the child to see it, too", [NEW] * len(before), seen)
        evidence.sound(guest)


@pytest.mark.parametrize("how", ["debugfs", "protection", "mapping", "discard"])
@pytest.mark.parametrize("backing", ["thp"])
def test_a_large_page_that_is_split_leaves_no_large_spte(
    guest: ProbeGuest, evidence: Evidence, how: str
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.mapped_large(guest)
    evidence.mapped_by_sptes(guest, LARGE)
    if how == "debugfs":
        with evidence.told(guest):
            guest.split_large_pages()
    elif how == "protection":
        guest.mprotect("read", 600, 1)
        guest.mprotect("readwrite", 600, 1)
    elif how == "mapping":
        # The one way in which nothing but the size of the mapping changes.
        with evidence.told(guest, 512, 512):
            guest.madvise("dontfork", 600, 1)
    else:
        guest.madvise("dontneed", 600, 1)
    evidence.no_stale_translations(guest)
    hole = how == "discard"
    evidence.content(guest.check(SEED, 0, 600))
    evidence.content(guest.check(SEED, 601 if hole else 600))
    if hole:
        seen = guest.read(600, 1, word=WORD).words
        evidence.equal("the page that was discarded to be zero", [0], seen, 600)
        evidence.done("writing there", guest.write(NEW, 600, word=WORD))
    evidence.mapped_by_sptes(guest, SMALL, 512, 512)
    evidence.sound(guest)
    evidence.swapped_out(guest, guest.reclaim())
    evidence.content(guest.check(SEED, 0, 600))
    evidence.sound(guest)


@pytest.mark.parametrize("how", ["punch", "protection", "reclaim"])
@pytest.mark.parametrize("backing", ["memfd"])
def test_a_large_page_of_a_file_is_split_where_a_part_of_it_changes(
    guest: ProbeGuest, evidence: Evidence, how: str
) -> None:
    # The large mapping of a file's page is not split, but dropped.
    evidence.content(guest.fill(SEED))
    evidence.at_least("collapse", "collapses that went well", 1, guest.collapse())
    evidence.content(guest.check(SEED))
    evidence.mapped_large(guest)
    evidence.mapped_by_sptes(guest, LARGE)
    evidence.sound(guest)
    frames = evidence.frames(guest)
    with evidence.told(guest, 512, 512):
        if how == "punch":
            guest.punch(600, 1)
        elif how == "protection":
            guest.mprotect("read", 600, 1)
        else:
            evidence.swapped_out(guest, guest.reclaim())
    evidence.no_stale_translations(guest)
    if how == "protection":
        evidence.refused("a write to memory that may only be read", guest.write(NEW, 600), 600)
        guest.mprotect("readwrite", 600, 1)
    hole = how == "punch"
    evidence.content(guest.check(SEED, 0, 600))
    evidence.content(guest.check(SEED, 601 if hole else 600))
    if hole:
        seen = guest.read(600, 1, word=WORD).words
        evidence.equal("the page that was punched out to be zero", [0], seen, 600)
    evidence.done("writing", guest.write(NEW, 0, guest.pages, word=WORD))
    seen = tuple(guest.host_read(0, guest.pages, word=WORD))
    evidence.equal("the VMM to see the guest's write", [NEW] * guest.pages, seen)
    evidence.frames_returned(guest, frames)
    evidence.sound(guest)
