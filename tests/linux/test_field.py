# SPDX-License-Identifier: GPL-2.0-only
"""The recipe from the field: what people do who find that their guests die under swap."""

from __future__ import annotations

import pytest
from pressure import booted, limited, swapped, verified

from harness.guest.settings import merging, no_swap
from harness.linux_guest.guest import watch_for
from harness.linux_guest.home import LinuxGuests
from harness.linux_guest.spec import LinuxGuestSpec
from harness.linux_guest.workload import write_to_disk
from harness.oracle.evidence import Evidence

pytestmark = pytest.mark.linux_guest

STORM_SECONDS = 10.0


def test_three_guests_swap_merge_and_write_to_disks_and_then_there_is_no_swap(
    linux_guests: LinuxGuests, evidence: Evidence
) -> None:
    specs = [
        LinuxGuestSpec(seed=5, merge=True, disk_mib=disk, workload_mib=40) for disk in (64, 64, 0)
    ]
    session = linux_guests.session
    with booted(linux_guests, *specs) as guests, merging(session):
        for guest in guests[:2]:
            write_to_disk(guest)
        out, _ = swapped(session)
        with limited(linux_guests, 3 * 128 // 2):
            watch_for(guests, STORM_SECONDS)
            # Now swap is full: nothing goes out but in exchange for what came in.
            full = session.read(f"{linux_guests.cgroup}/memory.swap.current")
            linux_guests.limit("memory.swap.max", full.strip())
        watch_for(guests, STORM_SECONDS / 2)
        evidence.at_least("reclaim", "pages swapped out", 1024, swapped(session)[0] - out)
        with no_swap(session):
            for guest in guests:
                guest.await_passes(1)
            verified(guests, evidence)
        linux_guests.limit("memory.swap.max", "max")
