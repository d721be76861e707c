# SPDX-License-Identifier: GPL-2.0-only
"""Guests with more memory than there is go on, lose nothing, and pin nothing."""

from __future__ import annotations

import pytest
from pressure import MIB, audited, booted, limited, swapped, verified

from harness.guest.settings import no_swap
from harness.linux_guest.guest import watch_for
from harness.linux_guest.home import LinuxGuests
from harness.linux_guest.spec import LinuxGuestSpec
from harness.oracle.evidence import Evidence

pytestmark = pytest.mark.linux_guest

STORM_SECONDS = 8.0
ROUNDS = 2
LEAST_SWAPPED = 1024


@pytest.mark.parametrize(("count", "memory", "workload"), [(2, 128, 48), (4, 96, 20)])
def test_guests_get_by_with_half_of_their_memory_and_then_without_swap(
    linux_guests: LinuxGuests, evidence: Evidence, count: int, memory: int, workload: int
) -> None:
    specs = [
        LinuxGuestSpec(memory_mib=memory, workload_mib=workload, seed=number)
        for number in range(1, count + 1)
    ]
    session = linux_guests.session
    with booted(linux_guests, *specs) as guests:
        verified(guests, evidence)
        for _ in range(ROUNDS):
            out, back = swapped(session)
            with limited(linux_guests, count * memory // 2):
                watch_for(guests, STORM_SECONDS)
                audited(guests, evidence)
            now_out, now_back = swapped(session)
            evidence.at_least("reclaim", "pages swapped out", LEAST_SWAPPED, now_out - out)
            evidence.at_least("reclaim", "pages swapped in", LEAST_SWAPPED, now_back - back)
            with no_swap(session):
                left = session.read(f"{linux_guests.cgroup}/memory.swap.current")
                evidence.at_most("memory controller", "bytes in swap", 0, int(left))
                for guest in guests:
                    guest.await_passes(1)
                verified(guests, evidence)


def test_a_killed_guest_gives_all_back_and_the_other_does_not_notice(
    linux_guests: LinuxGuests, evidence: Evidence
) -> None:
    specs = [LinuxGuestSpec(seed=number) for number in (1, 2)]
    with booted(linux_guests, *specs) as (victim, other), limited(linux_guests, 128):
        watch_for([victim, other], STORM_SECONDS / 2)
        frames = evidence.frames(victim)
        victim.kill()
        evidence.memory_given_back(victim)
        evidence.frames_returned(other, frames)
        other.await_passes(2)
        verified([other], evidence)


def test_a_guest_that_the_oom_killer_ends_gives_all_back_and_the_others_do_not_notice(
    linux_guests: LinuxGuests, evidence: Evidence
) -> None:
    large, small = LinuxGuestSpec(), LinuxGuestSpec(memory_mib=96, workload_mib=20, seed=2)
    too_little = (large.workload_mib - 8) * MIB
    with booted(linux_guests, large, small, small) as (victim, *others):
        victim.confine(too_little)
        watch_for([victim, *others], STORM_SECONDS / 2)
        frames = evidence.frames(victim)
        # What it needs next has no room any more, neither in memory nor in swap.
        victim.limit("memory.swap.max", 0)
        victim.limit("memory.max", too_little)
        victim.limit("memory.high", "max")
        victim.await_end()
        evidence.equal("the OOM killer to end one process", [1], [victim.oom_kills()])
        evidence.memory_given_back(victim)
        evidence.frames_returned(others[0], frames)
        for other in others:
            other.await_passes(1)
        verified(others, evidence)
