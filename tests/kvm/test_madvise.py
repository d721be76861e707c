# SPDX-License-Identifier: GPL-2.0-only
"""Advice about memory, the VMM's own and another process's, is taken without harm to the guest."""

from __future__ import annotations

import pytest
from matrix import on_backings

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED
ATTEMPTS = 10
BY_ITSELF, BY_ANOTHER = "by-itself", "by-another"


@pytest.mark.parametrize("who", [BY_ITSELF, BY_ANOTHER])
@on_backings("page out")
def test_memory_that_is_advised_out_comes_back_as_it_was(
    guest: ProbeGuest, evidence: Evidence, who: str
) -> None:
    evidence.content(guest.fill(SEED))
    with evidence.told(guest):
        for _ in range(ATTEMPTS):
            # A page may be kept at one attempt: it is in a CPU's LRU batch, or just written back.
            guest.session.ask("drain_lru")
            _advise(guest, "pageout", who)
            mapped = int(guest.residency().present.sum())
            if not mapped:
                break
    evidence.at_most("reclaim", "pages mapped still", 0, mapped)
    # What was still being written when the advice came is freed by whoever reclaims next.
    evidence.swapped_out(guest, guest.reclaim())
    evidence.no_stale_translations(guest)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@pytest.mark.parametrize("who", [BY_ITSELF, BY_ANOTHER])
def test_memory_that_is_advised_cold_goes_first(
    guest: ProbeGuest, evidence: Evidence, who: str
) -> None:
    evidence.content(guest.fill(SEED))
    _advise(guest, "cold", who)
    evidence.sound(guest)
    evidence.content(guest.check(SEED))
    evidence.swapped_out(guest, guest.reclaim())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def _advise(guest: ProbeGuest, advice: str, who: str) -> None:
    if who == BY_ITSELF:
        guest.madvise(advice)
    else:
        guest.advised_by_another(advice)
