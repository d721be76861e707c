# SPDX-License-Identifier: GPL-2.0-only
"""Whoever follows the writes to a guest's memory sees all of them, those of the guest included."""

from __future__ import annotations

from matrix import on_backings

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED
NEW = 0x2E
WORD = 7
LARGE_PAGES = 512


@on_backings("write-protect")
def test_the_guest_waits_where_userfaultfd_protects(guest: ProbeGuest, evidence: Evidence) -> None:
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    with evidence.told(guest), guest.write_protected():
        evidence.no_stale_translations(guest)
        evidence.content(guest.check(SEED))
        evidence.equal("no fault of a reader", [], guest.faults())
        written = [0, 700, guest.pages - 1]
        for page in written:
            evidence.done("writing once it may", guest.write(NEW, page, word=WORD))
        # A page of hugetlb memory is protected as a whole, and may be reported by any address.
        size = LARGE_PAGES if guest.backing == "hugetlb" else 1
        faults = sorted({page // size for page in guest.faults()})
        evidence.equal(
            "a fault for each page written to", [page // size for page in written], faults
        )
        seen = [guest.host_read(page, word=WORD)[0] for page in written]
        evidence.equal("the VMM to see the guest's writes", [NEW] * len(written), seen)
    evidence.done("writing", guest.write(NEW, 0, guest.pages, word=WORD))
    evidence.sound(guest)


@on_backings("track writes")
def test_the_guests_writes_are_found_without_anybody_waiting(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    size = LARGE_PAGES if guest.backing in ("thp", "hugetlb") else 1
    with guest.tracked() as written:
        evidence.no_stale_translations(guest)
        for round_ in range(2):
            evidence.content(guest.check(SEED))
            pages = [round_, 700 + round_ * LARGE_PAGES, guest.pages - 1]
            for page in pages:
                evidence.done("writing", guest.write(NEW, page, word=WORD))
            with evidence.told(guest):
                found = sorted({page // size for page in written()})
            expected = [page // size for page in pages]
            evidence.equal("the pages written to, and no other", expected, found)
            evidence.no_stale_translations(guest)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@on_backings("userfault move")
def test_pages_that_userfaultfd_moves_are_gone(guest: ProbeGuest, evidence: Evidence) -> None:
    first, pages = LARGE_PAGES, LARGE_PAGES
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    with evidence.told(guest, first, pages):
        guest.move_by_userfault(first, pages)
    evidence.no_stale_translations(guest)
    evidence.sptes_dropped(guest, first, pages)
    seen = guest.read(first, pages, word=WORD).words
    evidence.equal("memory whose pages are gone to be zero", [0] * pages, seen, first)
    evidence.done("writing there", guest.write(NEW, first, pages, word=WORD))
    evidence.content(guest.check(SEED, pages=first))
    evidence.sound(guest)


@on_backings("soft-dirty")
def test_soft_dirty_bits_say_which_pages_the_guest_wrote(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    with evidence.told(guest):
        guest.session.ask("write", path=f"/proc/{guest.pid}/clear_refs", text="4")
    evidence.no_stale_translations(guest)
    # On a large page the bit is one for all of it.
    size = LARGE_PAGES if guest.backing == "thp" else 1
    written = [0, 700, guest.pages - 1]
    for page in written:
        evidence.done("writing", guest.write(NEW, page, word=WORD))
    dirty = {int(page) // size for page in guest.residency().soft_dirty.nonzero()[0]}
    expected = [page // size for page in written]
    evidence.equal("the pages written to, and no other", expected, sorted(dirty))
    evidence.sound(guest)
