# SPDX-License-Identifier: GPL-2.0-only
"""Pages that the guest keeps touching are young: reclaim takes the others first."""

from __future__ import annotations

import pytest
from matrix import on_backings

from harness.guest.probe import ProbeGuest
from harness.guest.settings import multigenerational
from harness.oracle.evidence import Evidence

SEED = 0x5EED
# The classic LRU looks at each page once or twice before it takes any.
MOST_PRESSES = 20
# Shares of the cold pages. Ageing is a guess of the kernel, so the claim is a rate: hot pages go
# several times more rarely than cold ones.
ASKED = 0.6
LEAST_COLD = 0.4
FAVOUR = 2


@pytest.mark.parametrize("lru", ["classic", "multigenerational"])
@on_backings("age")
def test_reclaim_takes_cold_pages_before_hot_ones(
    guest: ProbeGuest, evidence: Evidence, lru: str
) -> None:
    hot = range(guest.pages // 4)
    cold = guest.pages - len(hot)
    wanted = int(cold * ASKED)
    # A hot page that goes comes back at the next touch, and with readahead others would, too.
    with (
        multigenerational(guest.session, on=lru == "multigenerational"),
        guest.session.setting("/proc/sys/vm/page-cluster", "0"),
    ):
        evidence.content(guest.fill(SEED))
        returned = -_swapped_in(guest)
        with guest.hammering(0, hot.start, len(hot)) as hammer:
            for _ in range(MOST_PRESSES):
                # Each page is touched between two presses, so reclaim can tell hot from cold.
                hammer.await_visits(2 * len(hot))
                gone = ~guest.residency().present
                left = wanted - int(gone.sum())
                if left <= 0:
                    break
                guest.press(left)
        returned += _swapped_in(guest)
        hot_gone = int(gone[hot.start : hot.stop].sum())
        cold_gone = int(gone.sum()) - hot_gone
        evidence.at_least("ageing", f"of {cold} cold pages gone", int(cold * LEAST_COLD), cold_gone)
        # In a group as small as this the classic LRU comes round to a page again before a vcpu
        # does, so of it only the cold pages are claimed.
        if lru == "multigenerational":
            most = int(cold_gone / cold * len(hot) / FAVOUR)
            what = f"times that one of {len(hot)} hot pages was gone"
            evidence.at_most("ageing", what, most, hot_gone + returned)
        evidence.content(hammer.stop())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def _swapped_in(guest: ProbeGuest) -> int:
    """How many pages this host has read from swap so far; nobody else's are there."""
    lines = guest.session.read("/proc/vmstat").splitlines()
    return int(dict(line.split() for line in lines)["pswpin"])
