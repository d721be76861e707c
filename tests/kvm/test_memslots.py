# SPDX-License-Identifier: GPL-2.0-only
"""What the primary MMU takes away is gone from each memslot, mapping and VM that showed it."""

from __future__ import annotations

import pytest

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED
OLD = 0x0D
NEW = 0x2E
WORD = 7
# The memslots of the view in pieces have their borders at pages 512, 513 and 1024, and the range
# begins and ends inside of one.
FIRST, PAGES = 100, 1500
# Each has three changes, of which about one in so many meets an invalidation in its middle.
ROUNDS = 60


@pytest.mark.parametrize(
    "view",
    ["alias", "read-only", "logged", "pieces", "second-mapping", "management-mode", "second-vm"],
)
def test_discarded_memory_is_as_new_in_every_view_of_it(
    guest: ProbeGuest, evidence: Evidence, view: str
) -> None:
    evidence.content(guest.fill(SEED))
    through = guest.open_view(view)
    evidence.content(guest.check(SEED, view=through))
    evidence.sound(guest)
    with evidence.told(guest, FIRST, PAGES):
        guest.madvise("dontneed", FIRST, PAGES)
    evidence.no_stale_translations(guest)
    seen = guest.read(FIRST, PAGES, word=WORD, view=through).words
    evidence.equal("discarded memory to be zero", [0] * PAGES, seen, FIRST)
    guest.host_write(OLD, FIRST, PAGES, word=WORD)
    evidence.no_stale_translations(guest)
    seen = guest.read(FIRST, PAGES, word=WORD, view=through).words
    evidence.equal("the guest to see the VMM's write", [OLD] * PAGES, seen, FIRST)
    if view == "read-only":
        written = guest.write(NEW, FIRST, word=WORD, view=through)
        evidence.refused("a write through a memslot for reading", written, FIRST)
    else:
        written = guest.write(NEW, FIRST, PAGES, word=WORD, view=through)
        evidence.done("writing to discarded memory", written)
        seen_by_host = guest.host_read(FIRST, PAGES, word=WORD)
        evidence.equal("the VMM to see the guest's write", [NEW] * PAGES, seen_by_host, FIRST)
    evidence.content(guest.check(SEED, pages=FIRST, view=through))
    evidence.sound(guest)


def test_a_memslot_may_go_in_the_middle_of_an_invalidation(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    # Its beginning and its end must agree on whether the VM is concerned. Otherwise one too many is
    # under way for ever, and the next fault waits for its end.
    half = guest.pages // 2
    evidence.content(guest.fill(SEED))
    with guest.hammering(0, 0, half) as hammer, guest.aliased(own=True, rounds=ROUNDS):
        hammer.await_visits(half)
    evidence.content(hammer.stop())
    evidence.sound(guest)
    guest.madvise("dontneed", half, half)
    seen = guest.read(half, half, word=WORD).words
    evidence.equal("discarded memory to be zero", [0] * half, seen, half)
    evidence.content(guest.check(SEED, pages=half))
    evidence.sound(guest)
