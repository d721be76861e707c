# SPDX-License-Identifier: GPL-2.0-only
"""An invalidation costs a few TLB flushes, however many sptes it drops, and one at least."""

from __future__ import annotations

import pytest

from harness.errors import OracleUnavailable
from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED
# One flush for the range, and one for each time that KVM gives way to others in between.
MOST_FLUSHES = 64
# One in each 2 MiB, of which a split VMA may invalidate all.
FIRSTS = (100, 600, 1100, 1600)


@pytest.mark.parametrize("how", ["munmap", "dontneed", "mprotect"])
def test_dropping_many_sptes_takes_few_flushes(
    guest: ProbeGuest, evidence: Evidence, how: str
) -> None:
    # A vcpu that runs meanwhile, or there would be no TLB to flush; not on what is dropped.
    last = guest.pages - 1
    evidence.content(guest.fill(SEED))
    with guest.hammering(0, last, 1) as hammer:
        hammer.await_visits(1)
        before = _flushes(guest)
        _drop(guest, how, 0, last)
        flushes = _flushes(guest) - before
    evidence.content(hammer.stop())
    evidence.sptes_dropped(guest, 0, last)
    evidence.no_stale_translations(guest)
    evidence.at_most("TLB flushes", f"for {last} pages", MOST_FLUSHES, flushes)
    evidence.at_least("TLB flushes", f"for {last} pages", 1, flushes)


@pytest.mark.parametrize("how", ["munmap", "dontneed", "mprotect"])
@pytest.mark.parametrize("pages", [1, 8])
def test_dropping_few_sptes_takes_a_flush_each_time(
    guest: ProbeGuest, evidence: Evidence, how: str, pages: int
) -> None:
    # So few that KVM does not give way to others in between, for which it flushes as well.
    last = guest.pages - 1
    evidence.content(guest.fill(SEED))
    with guest.hammering(0, last, 1) as hammer:
        hammer.await_visits(1)
        before = _flushes(guest)
        for first in FIRSTS:
            _drop(guest, how, first, pages)
        flushes = _flushes(guest) - before
    evidence.content(hammer.stop())
    evidence.no_stale_translations(guest)
    evidence.at_least("TLB flushes", f"for {len(FIRSTS)} ranges", len(FIRSTS), flushes)


def _drop(guest: ProbeGuest, how: str, first: int, pages: int) -> None:
    if how == "munmap":
        guest.munmap(first, pages)
    elif how == "dontneed":
        guest.madvise("dontneed", first, pages)
    else:
        guest.mprotect("none", first, pages)


def _flushes(guest: ProbeGuest) -> int:
    """How many were asked for: of one that finds no vcpu running, nothing else is counted.
    Older kernels have no counter of requests; theirs is of the flushes that were carried out.
    """
    counters = guest.statistics()["vm"]
    for name in ("remote_tlb_flush_requests", "remote_tlb_flush"):
        if name in counters:
            return counters[name]
    raise OracleUnavailable("The host's KVM does not tell how often it flushed TLBs.")
