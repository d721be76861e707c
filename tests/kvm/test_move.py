# SPDX-License-Identifier: GPL-2.0-only
"""What mremap moves or cuts off is gone from where it was, also for the guest."""

from __future__ import annotations

import pytest
from matrix import SHARED, on_backings

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED
NEW = 0x2E
WORD = 7


@on_backings("move")
def test_moved_memory_is_out_of_reach_until_the_memslot_follows(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    with evidence.told(guest):
        address = guest.move_away()
    evidence.no_stale_translations(guest)
    evidence.sptes_dropped(guest)
    for page in (0, guest.pages - 1):
        evidence.refused("a read of moved memory", guest.read(page), page)
        evidence.refused("a write to moved memory", guest.write(NEW, page), page)
    guest.follow(address)
    evidence.content(guest.check(SEED))
    evidence.done("writing where the memory is now", guest.write(NEW, 0, guest.pages, word=WORD))
    seen = guest.host_read(0, guest.pages, word=WORD)
    evidence.equal("the VMM to see the guest's write", [NEW] * guest.pages, seen)
    evidence.sound(guest)


@pytest.mark.parametrize("backing", ["anon", "thp"])
def test_memory_that_was_moved_out_of_its_mapping_reads_as_zero(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    with evidence.told(guest):
        guest.move_away(leaving=True)
    evidence.no_stale_translations(guest)
    evidence.sptes_dropped(guest)
    seen = guest.read(0, guest.pages, word=WORD).words
    evidence.equal("a mapping without its pages to be zero", [0] * guest.pages, seen)
    evidence.done("writing there", guest.write(NEW, 0, guest.pages, word=WORD))
    evidence.sound(guest)


@pytest.mark.parametrize(("first", "pages"), [(512, 512), (1000, 3), (2047, 1)])
@pytest.mark.parametrize("backing", ["anon", "memfd"])
def test_a_moved_range_is_out_of_reach_until_it_is_back(
    guest: ProbeGuest, evidence: Evidence, first: int, pages: int
) -> None:
    evidence.content(guest.fill(SEED))
    with evidence.told(guest, first, pages):
        address = guest.move_away(first, pages)
    evidence.no_stale_translations(guest)
    for page in {first, first + pages - 1}:
        evidence.refused("a read of moved memory", guest.read(page), page)
    guest.move_back(address, first, pages)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@on_backings("shrink")
def test_memory_that_is_cut_off_is_gone_and_comes_back_as_new(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    half = guest.pages // 2
    evidence.content(guest.fill(SEED))
    before = guest.host_read(half, half, word=WORD)
    frames = evidence.frames(guest, half, half)
    with evidence.told(guest, half, half):
        guest.resize(guest.pages, half)
    evidence.no_stale_translations(guest)
    evidence.sptes_dropped(guest, half, half)
    evidence.frames_returned(guest, frames)
    for page in (half, guest.pages - 1):
        evidence.refused("a read of memory that was cut off", guest.read(page), page)
    evidence.content(guest.check(SEED, pages=half))
    if guest.backing != "hugetlb":  # mremap does not grow hugetlb memory
        guest.resize(half, guest.pages)
        seen = guest.read(half, half, word=WORD).words
        now = before if guest.backing in SHARED else [0] * half
        evidence.equal("memory as it was before anybody wrote to it", now, seen, half)
    evidence.content(guest.check(SEED, pages=half))
    evidence.no_stale_translations(guest)


@pytest.mark.parametrize("backing", ["memfd"])
def test_the_guest_sees_pages_of_a_file_that_were_rearranged(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    for page in range(guest.pages):
        if page in (0, 600, 1600):
            guest.host_write(page, page, 1, word=WORD)
    with evidence.told(guest, 512, 512):
        guest.remap_file_pages(512, 512, source=1536)
    evidence.no_stale_translations(guest)
    seen = guest.read(576, 1, word=WORD).words
    evidence.equal("page 64 of the range to be the file's page 1600", [1600], seen, 576)
    evidence.done("writing to a rearranged page", guest.write(NEW, 576, word=WORD))
    there = guest.host_read(1600, 1, word=WORD)
    evidence.equal("the write to be in the file's page", [NEW], there, 1600)
    evidence.sound(guest)
