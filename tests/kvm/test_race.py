# SPDX-License-Identifier: GPL-2.0-only
"""What the primary MMU takes away is gone the moment it says so, also for a vcpu in full run."""

from __future__ import annotations

import pytest

from harness.guest.probe import GuestFactory
from harness.oracle.evidence import Evidence

SEED = 0x5EED
PAGE = 600
# How often each is done to a page; a fork or a write to the disk takes longer than a discard.
ROUNDS = {
    "discard": 200, "discard-all": 10, "punch": 200, "protect": 100, "fork": 30, "move": 100,
    "migrate": 100, "pageout": 50,
}  # fmt: skip
# After these the vcpu finds other content than it left, which is the point.
_STARTS_ANEW = ("discard", "discard-all", "punch")
_BACKINGS = {"punch": "memfd"}


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("kind", ROUNDS)
def test_no_write_goes_where_it_may_not_go_any_more(
    probe_guest: GuestFactory, evidence: Evidence, kind: str, vcpus: int
) -> None:
    with probe_guest(vcpus=vcpus, backing=_BACKINGS.get(kind, "anon")) as guest:
        evidence.content(guest.fill(SEED))
        with guest.hammering(vcpus - 1, PAGE, 1, patient=True) as hammer:
            hammer.await_visits(1)
            played, lost = guest.race(kind, vcpus - 1, PAGE, ROUNDS[kind])
        evidence.at_least("progress", f"rounds of {ROUNDS[kind]}", ROUNDS[kind], played)
        evidence.at_least("content", "rounds without a stray write", played, played - lost)
        if kind not in _STARTS_ANEW:
            evidence.content(hammer.stop())
        evidence.sound(guest)


@pytest.mark.parametrize("kind", ROUNDS)
def test_a_memslot_that_comes_and_goes_disturbs_nothing(
    probe_guest: GuestFactory, evidence: Evidence, kind: str
) -> None:
    rounds = ROUNDS[kind] // 2
    with probe_guest(vcpus=2, backing=_BACKINGS.get(kind, "anon")) as guest:
        evidence.content(guest.fill(SEED))
        with (
            guest.aliased(),
            guest.hammering(0, PAGE, 1, patient=True) as hammer,
            guest.hammering(1, PAGE - 8, 16, writing=False, patient=True, alias=True) as other,
        ):
            hammer.await_visits(1)
            played, lost = guest.race(kind, 0, PAGE, rounds)
            other.await_visits(1)
        evidence.at_least("progress", f"rounds of {rounds}", rounds, played)
        evidence.at_least("content", "rounds without a stray write", played, played - lost)
        if kind not in _STARTS_ANEW:
            evidence.content(hammer.stop())
        evidence.sound(guest)
