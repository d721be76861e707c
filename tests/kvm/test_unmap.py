# SPDX-License-Identifier: GPL-2.0-only
"""What the VMM unmaps or discards, the guest can reach no more."""

from __future__ import annotations

import pytest
from matrix import SHARED, on_backings, on_ranges

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED
NEW = 0x2E
OLD = 0x0D
WORD = 7


@on_ranges("unmap")
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
    guest.replace(first, pages)
    seen = guest.read(first, pages, word=WORD).words
    evidence.equal("what was mapped there instead, which is zero", [0] * pages, seen, first)
    evidence.done("writing to the new mapping", guest.write(NEW, first, pages, word=WORD))
    seen_by_host = guest.host_read(first, pages, word=WORD)
    evidence.equal("the VMM to see the guest's write", [NEW] * pages, seen_by_host, first)
    evidence.sound(guest)


@on_ranges("discard")
def test_discarded_memory_is_as_new(
    guest: ProbeGuest, evidence: Evidence, first: int, pages: int
) -> None:
    guest.write(OLD, 0, guest.pages, word=WORD)
    evidence.content(guest.fill(SEED))
    before = guest.host_read(first, pages, word=WORD)
    evidence.sound(guest)
    frames = evidence.frames(guest, first, pages)
    with evidence.told(guest, first, pages):
        guest.madvise("dontneed", first, pages)
    evidence.no_stale_translations(guest)
    evidence.sptes_dropped(guest, first, pages)
    evidence.frames_returned(guest, frames)
    seen = guest.read(first, pages, word=WORD).words
    # A shared file has the content still; of private memory it was the only copy.
    now = before if guest.backing in SHARED else [0] * pages
    evidence.equal("memory as it was before anybody wrote to it", now, seen, first)
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


@pytest.mark.parametrize("first", ["written", "read"])
@on_backings("free")
def test_freed_memory_that_is_written_again_is_kept(
    guest: ProbeGuest, evidence: Evidence, first: str
) -> None:
    half = guest.pages // 2
    guest.write(OLD, 0, guest.pages, word=WORD)
    evidence.sound(guest)
    with evidence.told(guest):
        guest.madvise("free")
    if first == "read":
        # Which may map the page so that it can be written; then the spte alone knows of the write.
        guest.read(0, half, word=WORD)
    evidence.done("writing to freed memory", guest.write(NEW, 0, half, word=WORD))
    evidence.sound(guest)
    guest.reclaim()
    evidence.no_stale_translations(guest)
    kept = guest.read(0, half, word=WORD).words
    evidence.equal("what was written after MADV_FREE", [NEW] * half, kept)
    rest = guest.read(half, half, word=WORD).words
    lost = [word if word in (0, OLD) else 0 for word in rest]
    evidence.equal("the other pages as they were, or zero", lost, rest, half)
    evidence.sound(guest)
