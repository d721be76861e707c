# SPDX-License-Identifier: GPL-2.0-only
"""What the primary MMU takes away is gone the moment it says so, also for a vcpu in full run."""

from __future__ import annotations

import signal

import pytest

from harness.guest.probe import GuestFactory
from harness.oracle.evidence import Evidence
from harness.probe.race import SPAN

SEED = 0x5EED
PAGE = 600
# A range that takes longer to drop than a thread may run while others wait.
LARGE, HOT, TIMES = 8192, 16, 3
# How often each is done to a page; a fork or a write to the disk takes longer than a discard.
ROUNDS = {
    "discard": 200, "discard-all": 10, "discard-ahead": 80, "punch": 200, "protect": 100,
    "fork": 30, "move": 100, "migrate": 100, "pageout": 50,
}  # fmt: skip
# After these the vcpu finds other content than it left, which is the point.
_STARTS_ANEW = ("discard", "discard-all", "discard-ahead", "punch")
_BACKINGS = {"punch": "memfd"}


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("kind", ROUNDS)
def test_no_write_goes_where_it_may_not_go_any_more(
    probe_guest: GuestFactory, evidence: Evidence, kind: str, vcpus: int
) -> None:
    with probe_guest(vcpus=vcpus, backing=_BACKINGS.get(kind, "anon")) as guest:
        evidence.content(guest.fill(SEED))
        with guest.hammering(vcpus - 1, PAGE, _span(kind), patient=True) as hammer:
            hammer.await_visits(1)
            played, lost = guest.race(kind, vcpus - 1, PAGE, ROUNDS[kind])
            evidence.at_least("progress", f"rounds of {ROUNDS[kind]}", ROUNDS[kind], played)
        evidence.at_least("content", "rounds without a stray write", played, played - lost)
        if kind not in _STARTS_ANEW:
            evidence.content(hammer.stop())
        evidence.sound(guest)


@pytest.mark.parametrize("kind", ["discard-ahead", "fork", "migrate"])
def test_a_race_leaves_no_page_behind(
    probe_guest: GuestFactory, evidence: Evidence, kind: str
) -> None:
    # A fault that found its page gone has to give back what it had got hold of. Nobody maps that
    # page any more, so it shows only when everything else is gone.
    with probe_guest(vcpus=2) as guest:
        evidence.content(guest.fill(SEED))
        with guest.hammering(0, PAGE, _span(kind), patient=True) as hammer:
            hammer.await_visits(1)
            played, _ = guest.race(kind, 0, PAGE, ROUNDS[kind])
            evidence.at_least("progress", f"rounds of {ROUNDS[kind]}", ROUNDS[kind], played)
        evidence.sound(guest)
        guest.kill(signal.SIGKILL)
        evidence.memory_given_back(guest)


@pytest.mark.parametrize("kind", ROUNDS)
def test_a_memslot_that_comes_and_goes_disturbs_nothing(
    probe_guest: GuestFactory, evidence: Evidence, kind: str
) -> None:
    rounds = ROUNDS[kind] // 2
    with probe_guest(vcpus=2, backing=_BACKINGS.get(kind, "anon")) as guest:
        evidence.content(guest.fill(SEED))
        with (
            guest.aliased(),
            guest.hammering(0, PAGE, _span(kind), patient=True) as hammer,
            guest.hammering(1, PAGE - 8, 16, writing=False, patient=True, alias=True) as other,
        ):
            hammer.await_visits(1)
            played, lost = guest.race(kind, 0, PAGE, rounds)
            evidence.at_least("progress", f"rounds of {rounds}", rounds, played)
            other.await_visits(1)
        evidence.at_least("content", "rounds without a stray write", played, played - lost)
        if kind not in _STARTS_ANEW:
            evidence.content(hammer.stop())
        evidence.sound(guest)


def test_a_range_is_dropped_whole_although_kvm_gives_way_in_it(
    probe_guest: GuestFactory, evidence: Evidence
) -> None:
    # More threads than CPUs, so that the one that invalidates is asked to give way.
    with probe_guest(pages=LARGE, vcpus=2) as guest:
        for _ in range(TIMES):
            evidence.content(guest.fill(SEED))
            with guest.hammering(0, 0, HOT) as one, guest.hammering(1, 0, HOT) as other:
                one.await_visits(HOT)
                other.await_visits(HOT)
                guest.madvise("dontneed", HOT, LARGE - HOT)
            evidence.no_stale_translations(guest)
            evidence.sptes_dropped(guest, HOT, LARGE - HOT)
            evidence.content(one.stop())
            evidence.content(other.stop())
        evidence.sound(guest)


def _span(kind: str) -> int:
    """How many pages the vcpu hammers."""
    return SPAN if kind == "discard-ahead" else 1
