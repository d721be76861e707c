# SPDX-License-Identifier: GPL-2.0-only
"""Pages that the guest keeps touching are young, and reclaim takes the others first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from matrix import on_backings

from harness.errors import OracleUnavailable
from harness.guest.damon import PHYSICAL, VIRTUAL, Damon, damon
from harness.guest.probe import ProbeGuest
from harness.guest.settings import multigenerational
from harness.oracle.evidence import Evidence
from harness.probe.layout import PAGE_BYTES

SEED = 0x5EED
# Reclaim is asked in small steps: one that is to find much at once comes round to a page again
# before a vcpu does.
STEPS = 32
MOST_PRESSES = 60
# Shares of the cold pages. Ageing is a guess of the kernel, so the claim is a rate: hot pages go
# several times more rarely than cold ones. Not from the beginning, when all pages were touched and
# the classic LRU cannot tell: it takes some of each, and learns. From a tenth on, in five runs on a
# good kernel, not one hot page in a hundred went while every other cold one did.
LEARNT = 0.1
ASKED = 0.6
LEAST_COLD = 0.4
FAVOUR = 2
# A page in a CPU's LRU batch takes no mark, and a window may have begun before.
ATTEMPTS = 5
LARGE_PAGES = 512


@pytest.mark.parametrize("lru", ["classic", "multigenerational"])
@on_backings("age")
def test_reclaim_takes_cold_pages_before_hot_ones(
    guest: ProbeGuest, evidence: Evidence, lru: str
) -> None:
    # In the middle, where reclaim comes by after it has taken some of the cold ones.
    hot = range(guest.pages * 3 // 8, guest.pages * 5 // 8)
    cold = guest.pages - len(hot)
    begun: tuple[int, int] | None = None
    # A hot page that goes comes back at the next touch, and with readahead others would, too.
    with (
        multigenerational(guest.session, on=lru == "multigenerational"),
        guest.session.setting("/proc/sys/vm/page-cluster", "0"),
    ):
        evidence.content(guest.fill(SEED))
        with guest.hammering(0, hot.start, len(hot)) as hammer:
            for _ in range(MOST_PRESSES):
                # Each page is touched between two presses, so reclaim can tell hot from cold.
                hammer.await_visits(2 * len(hot))
                hot_gone, cold_gone = _gone(guest, hot)
                if begun is None and cold_gone >= cold * LEARNT:
                    begun = cold_gone, hot_gone
                if cold_gone >= cold * ASKED:
                    break
                guest.press(guest.pages // STEPS)
        evidence.at_least("ageing", f"of {cold} cold pages gone", int(cold * LEAST_COLD), cold_gone)
        if begun is not None:
            most = int((cold_gone - begun[0]) / cold * len(hot) / FAVOUR)
            what = f"times that one of {len(hot)} hot pages was gone"
            evidence.at_most("ageing", what, most, hot_gone - begun[1])
        evidence.content(hammer.stop())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def _gone(guest: ProbeGuest, hot: range) -> tuple[int, int]:
    """How often a hot page went so far, whether or not it is back, and how many others are gone."""
    gone = ~guest.residency().present
    hot_gone = int(gone[hot.start : hot.stop].sum())
    return hot_gone + _returned(guest), int(gone.sum()) - hot_gone


def _returned(guest: ProbeGuest) -> int:
    """How often a page came back to the vcpus so far.

    That is a fault for which KVM mapped a page; the fast ones only give rights back to an spte, as
    where ageing takes them for want of Accessed bits. What was read from swap is less, where a page
    comes back from the swap cache before it was freed (6.1 does that often), and more, where the
    VMM's own pages were swapped; but a kernel before v5.14 tells no more.
    """
    vcpus = [counters for name, counters in guest.statistics().items() if name != "vm"]
    if all("pf_fixed" in counters for counters in vcpus):
        return sum(counters["pf_fixed"] - counters.get("pf_fast", 0) for counters in vcpus)
    return _swapped_in(guest)


@on_backings("idle")
def test_pages_that_nobody_touches_are_idle_and_others_are_not(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    # Of a large page only the first takes the mark, for all of it. The last 2 MiB are for a flush
    # of the TLB, without which a vcpu might touch a page and nothing show it.
    step = LARGE_PAGES if guest.backing == "thp" else 1
    spare = guest.pages - LARGE_PAGES
    evidence.content(guest.fill(SEED))
    for _ in range(ATTEMPTS):
        guest.session.ask("drain_lru")
        guest.mark_idle()
        idle = set(guest.idle())
        if idle.issuperset(range(0, spare, step)):
            break
    untouched = [int(page in idle) for page in range(0, spare, step)]
    evidence.equal("pages that nobody touched to be idle", [1] * len(untouched), untouched)
    guest.flush_tlbs(spare, LARGE_PAGES)
    evidence.content(guest.check(SEED, 0, LARGE_PAGES))
    idle = set(guest.idle())
    seen = [int(page in idle) for page in range(0, spare, step)]
    expected = [int(page >= LARGE_PAGES) for page in range(0, spare, step)]
    evidence.equal("the pages that the guest touched to be idle no more", expected, seen)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@pytest.mark.parametrize(
    ("backing", "kind"),
    [("anon", VIRTUAL), ("thp", VIRTUAL), ("hugetlb", VIRTUAL), ("memfd", VIRTUAL),
     ("thp", PHYSICAL)],
)  # fmt: skip
def test_damon_sees_what_the_guest_uses_and_nothing_when_it_idles(
    guest: ProbeGuest, evidence: Evidence, kind: str
) -> None:
    evidence.content(guest.fill(SEED))
    guest.session.ask("drain_lru")
    regions = [(guest.hva, guest.hva + guest.bytes)]
    if kind == PHYSICAL:
        evidence.mapped_large(guest)
        regions = _stretches(evidence.frames(guest))
    with damon(guest, kind, regions) as watched:
        with guest.hammering() as hammer:
            hammer.await_visits(guest.pages)
            used = _accesses(watched)
        evidence.content(hammer.stop())
        evidence.at_least("DAMON", "samples in which the guest used its memory", 1, used)
        for _ in range(ATTEMPTS):
            idle = _accesses(watched)
            if not idle:
                break
        evidence.at_most("DAMON", "samples in which an idle guest used its memory", 0, idle)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def _accesses(watched: Damon) -> int:
    return sum(region.accesses for region in watched.window())


def _stretches(frames: Sequence[int]) -> list[tuple[int, int]]:
    """The physical addresses of large pages, one after the other, as (start, end)."""
    if not frames:
        raise OracleUnavailable("Where the guest's memory is cannot be read from outside.")
    starts = sorted({frame - frame % LARGE_PAGES for frame in frames})
    return [(start * PAGE_BYTES, (start + LARGE_PAGES) * PAGE_BYTES) for start in starts]


@pytest.mark.parametrize("backing", ["thp"])
def test_large_pages_age_as_one(guest: ProbeGuest, evidence: Evidence) -> None:
    hot, cold = LARGE_PAGES, guest.pages - LARGE_PAGES
    with multigenerational(guest.session, on=True):
        evidence.content(guest.fill(SEED))
        evidence.mapped_large(guest)
        with guest.hammering(0, 0, hot) as hammer:
            for _ in range(MOST_PRESSES):
                hammer.await_visits(2 * hot)
                gone = ~guest.residency().present
                if gone.sum() >= cold // 3:
                    break
                guest.press(cold // 3)
        evidence.at_least("ageing", f"of {cold} cold pages gone", cold // 3, int(gone[hot:].sum()))
        evidence.at_most("ageing", f"of {hot} hot pages gone", 0, int(gone[:hot].sum()))
        evidence.content(hammer.stop())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def _swapped_in(guest: ProbeGuest) -> int:
    """How many pages this host has read from swap so far; nobody else's are there."""
    lines = guest.session.read("/proc/vmstat").splitlines()
    return int(dict(line.split() for line in lines)["pswpin"])
