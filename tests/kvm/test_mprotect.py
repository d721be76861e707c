# SPDX-License-Identifier: GPL-2.0-only
"""mprotect on the VMM's memory binds the guest too, and lets it go on afterwards."""

from __future__ import annotations

from matrix import on_backings, on_ranges

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED
NEW = 0x2E
WORD = 7


@on_ranges("protect")
def test_a_read_only_range_is_read_but_not_written(
    guest: ProbeGuest, evidence: Evidence, first: int, pages: int
) -> None:
    evidence.content(guest.fill(SEED))
    before = guest.host_read(first, pages, word=WORD)
    evidence.sound(guest)
    with evidence.told(guest, first, pages):
        guest.mprotect("read", first, pages)
    evidence.sound(guest)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)  # the range is mapped by read-only sptes now
    for page in {first, first + pages - 1}:
        evidence.refused("a write to read-only memory", guest.write(NEW, page, word=WORD), page)
    after = guest.host_read(first, pages, word=WORD)
    evidence.equal("read-only memory to stay as it was", before, after, first)
    evidence.no_stale_translations(guest)
    guest.mprotect("readwrite", first, pages)
    evidence.done("writing again", guest.write(NEW, first, pages, word=WORD))
    after = guest.host_read(first, pages, word=WORD)
    evidence.equal("the VMM to see the guest's write", [NEW] * pages, after, first)
    evidence.sound(guest)


@on_ranges("protect")
def test_an_inaccessible_range_is_not_even_read(
    guest: ProbeGuest, evidence: Evidence, first: int, pages: int
) -> None:
    evidence.content(guest.fill(SEED))
    with evidence.told(guest, first, pages):
        guest.mprotect("none", first, pages)
    evidence.sptes_dropped(guest, first, pages)
    evidence.no_stale_translations(guest)
    for page in {first, first + pages - 1}:
        evidence.refused("a read of inaccessible memory", guest.read(page), page)
        evidence.refused("a write to inaccessible memory", guest.write(NEW, page), page)
    guest.mprotect("readwrite", first, pages)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@on_backings("protect")
def test_a_hammering_guest_waits_for_write_access_and_goes_on(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    with guest.hammering(patient=True) as hammer:
        hammer.await_visits(guest.pages)
        for _ in range(3):
            guest.mprotect("read")
            hammer.await_refusal()
            guest.mprotect("readwrite")
            hammer.await_visits(guest.pages)
    evidence.content(hammer.stop())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)
