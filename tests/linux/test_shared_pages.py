# SPDX-License-Identifier: GPL-2.0-only
"""Guests whose pages are merged, given back, plugged in and out, or shared with others."""

from __future__ import annotations

import pytest
from pressure import MIB, booted, verified

from harness.deadline import Deadline
from harness.guest.settings import merged_pages, merging
from harness.linux_guest.changes import plug, set_balloon, unplug
from harness.linux_guest.home import LinuxGuests
from harness.linux_guest.spec import LinuxGuestSpec
from harness.linux_guest.workload import second_workload, shared_window, touch
from harness.oracle.evidence import Evidence

pytestmark = pytest.mark.linux_guest

WORDS_A_PAGE = 512
PAGES_A_MIB = 256


def test_equal_guests_are_merged_and_part_again(
    linux_guests: LinuxGuests, evidence: Evidence
) -> None:
    spec = LinuxGuestSpec(merge=True, seed=7)
    with booted(linux_guests, spec, spec) as guests:
        one, other = guests
        for guest in guests:
            guest.order("idle")
            guest.order("fill 7")
        with merging(linux_guests.session):
            # Both guests' workloads, less what their kernels or LRU batches have in use.
            least = 2 * spec.workload_mib * PAGES_A_MIB * 9 // 10
            evidence.at_least(
                "merging", "pages merged", least, merged_pages(linux_guests.session, least)
            )
            verified(guests, evidence)
            one.order("run")
            one.await_passes(1)
            evidence.content(other.order("check").visit)
            other.order("run")
            other.await_passes(1)
        verified(guests, evidence)


def test_a_balloon_takes_memory_and_gives_it_back(
    linux_guests: LinuxGuests, evidence: Evidence
) -> None:
    spec = LinuxGuestSpec(workload_mib=24)
    with booted(linux_guests, spec) as (guest,):
        # What was never touched would not be missed.
        touch(guest, 24)
        before = linux_guests.statistics()["anon"]
        set_balloon(guest, spec.memory_mib - 28)
        after = linux_guests.statistics()["anon"]
        evidence.at_most("memory controller", "bytes in use", before - 16 * MIB, after)
        verified([guest], evidence)
        set_balloon(guest, spec.memory_mib)
        touch(guest, 24)
        guest.await_passes(1)
        verified([guest], evidence)


def test_what_a_guest_reports_as_free_is_free(
    linux_guests: LinuxGuests, evidence: Evidence
) -> None:
    with booted(linux_guests, LinuxGuestSpec(workload_mib=24, reporting=True)) as (guest,):
        guest.run(["dd", "if=/dev/zero", "of=/tmp/touched", "bs=1M", "count=30"])
        before = linux_guests.statistics()["anon"]
        guest.run(["rm", "/tmp/touched"])
        deadline = Deadline.after(60 * guest.pace, "Free page reporting")
        most = before - 16 * MIB
        deadline.poll(lambda: linux_guests.statistics()["anon"] <= most, "Nothing is given back.")
        evidence.at_most(
            "memory controller", "bytes in use", most, linux_guests.statistics()["anon"]
        )
        guest.await_passes(1)
        verified([guest], evidence)


def test_memory_comes_and_goes_with_a_dimm(linux_guests: LinuxGuests, evidence: Evidence) -> None:
    with booted(linux_guests, LinuxGuestSpec(pluggable_mib=256)) as (guest,):
        for _ in range(2):
            window = plug(guest, "dimm", 128)
            with second_workload(guest, 24, seed=5) as more:
                guest.await_passes(1)
                evidence.content(more.order("check").visit)
                evidence.sound(window)
                frames = evidence.frames(window)
                evidence.at_least("frames", "pages of the DIMM in use", PAGES_A_MIB, len(frames))
            unplug(guest, "dimm")
            evidence.frames_returned(guest, frames)
        verified([guest], evidence)


def test_what_another_process_punches_or_truncates_is_gone_for_the_guest(
    linux_guests: LinuxGuests, evidence: Evidence
) -> None:
    size = 8
    with booted(linux_guests, LinuxGuestSpec(window_mib=size)) as (guest,):
        window, file = shared_window(guest)
        path = f"/proc/{guest.pid}/fd/{guest.descriptor('/memfd:')}"
        with second_workload(guest, size, 5, file) as shared:
            shared.order("idle")
            evidence.content(shared.order("check").visit)
            evidence.sound(window)
            wrong = 0
            for words in (
                ["fallocate", "--punch-hole", f"--offset={MIB}", f"--length={2 * MIB}", path],
                ["truncate", f"--size={(size - 2) * MIB}", path],
            ):
                guest.on_host(words)
                guest.on_host(["truncate", f"--size={size * MIB}", path])
                evidence.sound(window)
                checked = shared.order("check")
                missing = 2 * PAGES_A_MIB * WORDS_A_PAGE
                gone, wrong = checked.errors - wrong, checked.errors
                evidence.equal("what was taken away, and no more, to be other", [missing], [gone])
                evidence.equal("zeros where the file has a hole", [0], [checked.seen])
                shared.order("fill 6")
            evidence.equal("no more wrong words", [wrong], [shared.order("check").errors])
        guest.await_passes(1)
        verified([guest], evidence)
