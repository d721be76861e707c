# SPDX-License-Identifier: GPL-2.0-only
"""What happens to a file happens to the guest whose memory it is, and the other way round."""

from __future__ import annotations

import pytest
from matrix import on_backings

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED
NEW = 0x2E
WORD = 7


@on_backings("truncate")
def test_memory_beyond_the_end_of_its_file_is_out_of_reach(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    half = guest.pages // 2
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    with evidence.told(guest, half, half):
        guest.truncate(half)
    evidence.no_stale_translations(guest)
    evidence.sptes_dropped(guest, half, half)
    for page in (half, guest.pages - 1):
        evidence.refused("a read beyond the end of the file", guest.read(page), page)
        evidence.refused("a write beyond the end of the file", guest.write(NEW, page), page)
    evidence.content(guest.check(SEED, pages=half))
    guest.truncate(guest.pages)
    seen = guest.read(half, half, word=WORD).words
    evidence.equal("a file that grew to read as zero", [0] * half, seen, half)
    evidence.done("writing to it", guest.write(NEW, half, half, word=WORD))
    seen = tuple(guest.host_read(half, half, word=WORD))
    evidence.equal("the VMM to see the guest's write", [NEW] * half, seen, half)
    evidence.sound(guest)


@pytest.mark.parametrize(("first", "pages"), [(0, 2048), (512, 512), (1000, 3)])
@pytest.mark.parametrize("how", ["fallocate", "madvise"])
@on_backings("punch")
def test_a_hole_in_a_file_reads_as_zero(
    guest: ProbeGuest, evidence: Evidence, how: str, first: int, pages: int
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    with evidence.told(guest, first, pages):
        if how == "fallocate":
            guest.punch(first, pages)
        else:
            guest.madvise("remove", first, pages)
    evidence.no_stale_translations(guest)
    evidence.sptes_dropped(guest, first, pages)
    seen = guest.read(first, pages, word=WORD).words
    evidence.equal("a hole to read as zero", [0] * pages, seen, first)
    evidence.sound(guest)
    guest.allocate(first, pages)
    evidence.done("writing where the hole was", guest.write(NEW, first, pages, word=WORD))
    seen_by_host = guest.host_read(first, pages, word=WORD)
    evidence.equal("the VMM to see the guest's write", [NEW] * pages, seen_by_host, first)
    if pages < guest.pages:
        evidence.content(guest.check(SEED, pages=first))
    evidence.sound(guest)


@pytest.mark.parametrize("backing", ["hugetlb-shared"])
@pytest.mark.parametrize("how", ["punch", "truncate"])
def test_large_pages_that_leave_a_hugetlb_file_are_gone(
    guest: ProbeGuest, evidence: Evidence, how: str
) -> None:
    half = guest.pages // 2
    evidence.content(guest.fill(SEED))
    evidence.no_stale_translations(guest)
    with evidence.told(guest, half, half):
        if how == "punch":
            guest.punch(half, half)
        else:
            guest.truncate(half)
            guest.truncate(guest.pages)
    evidence.no_stale_translations(guest)
    evidence.sptes_dropped(guest, half, half)
    seen = guest.read(half, half, word=WORD).words
    evidence.equal("the file to read as zero", [0] * half, seen, half)
    evidence.done("writing there", guest.write(NEW, half, half, word=WORD))
    seen = tuple(guest.host_read(half, half, word=WORD))
    evidence.equal("the VMM to see the guest's write", [NEW] * half, seen, half)
    evidence.content(guest.check(SEED, pages=half))


@pytest.mark.parametrize("backing", ["file-private"])
def test_a_hole_in_a_file_leaves_private_copies_alone(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    guest.punch()
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@pytest.mark.parametrize("how", ["msync", "fsync"])
@on_backings("write back")
def test_each_sync_brings_what_the_guest_wrote_to_the_disk(
    guest: ProbeGuest, evidence: Evidence, how: str
) -> None:
    evidence.content(guest.fill(SEED))
    for value in (NEW, NEW + 1, NEW + 2):
        evidence.done("writing", guest.write(value, 0, guest.pages, word=WORD))
        # Writing back takes the right to write away, or the next write would go unnoticed.
        with evidence.told(guest):
            getattr(guest, how)()
        evidence.no_stale_translations(guest)
        stored = guest.stored(word=WORD)
        evidence.equal("the disk to have the guest's write", [value] * guest.pages, stored)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)
