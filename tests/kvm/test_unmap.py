# SPDX-License-Identifier: GPL-2.0-only
"""What the VMM unmaps or discards, the guest can reach no more."""

from __future__ import annotations

from ranges import in_each_range

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED
NEW = 0x2E
WORD = 7


@in_each_range
def test_unmapped_memory_is_out_of_reach(
    guest: ProbeGuest, evidence: Evidence, first: int, pages: int
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    frames = evidence.frames(guest, first, pages)
    with evidence.told(guest, first, pages):
        guest.munmap(first, pages)
    evidence.no_stale_translations(guest)
    evidence.sptes_dropped(guest, first, pages)
    evidence.frames_returned(guest, frames)
    for page in {first, first + pages - 1}:
        evidence.refused("a read of unmapped memory", guest.read(page), page)
        evidence.refused("a write to unmapped memory", guest.write(NEW, page), page)
    guest.remap(first, pages)
    seen = guest.read(first, pages, word=WORD).words
    evidence.equal("the new mapping, which is zero", [0] * pages, seen, first)
    evidence.done("writing to the new mapping", guest.write(NEW, first, pages, word=WORD))
    seen_by_host = guest.host_read(first, pages, word=WORD)
    evidence.equal("the VMM to see the guest's write", [NEW] * pages, seen_by_host, first)
    evidence.sound(guest)


@in_each_range
def test_discarded_memory_reads_as_zero(
    guest: ProbeGuest, evidence: Evidence, first: int, pages: int
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    frames = evidence.frames(guest, first, pages)
    with evidence.told(guest, first, pages):
        guest.madvise("dontneed", first, pages)
    evidence.no_stale_translations(guest)
    evidence.sptes_dropped(guest, first, pages)
    evidence.frames_returned(guest, frames)
    seen = guest.read(first, pages, word=WORD).words
    evidence.equal("discarded memory to be zero", [0] * pages, seen, first)
    # A read of discarded memory maps the zero page; only a later write may give it a page.
    evidence.no_stale_translations(guest)
    evidence.done("writing to discarded memory", guest.write(NEW, first, pages, word=WORD))
    seen_by_host = guest.host_read(first, pages, word=WORD)
    evidence.equal("the VMM to see the guest's write", [NEW] * pages, seen_by_host, first)
    evidence.sound(guest)
    if pages < guest.pages:
        evidence.content(
            guest.check(SEED, pages=first) if first else guest.check(SEED, first + pages)
        )
