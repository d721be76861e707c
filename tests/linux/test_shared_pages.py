# SPDX-License-Identifier: GPL-2.0-only
"""Guests whose pages are merged, given back, plugged in and out, or shared with others."""

from __future__ import annotations

import pytest
from pressure import MIB, booted, bytes_not_on_disk, left_to_file, verified

from harness.deadline import Deadline
from harness.guest.settings import merged_pages, merging
from harness.linux_guest.changes import elastic, plug, resize, set_balloon, unplug
from harness.linux_guest.guest import LinuxGuest
from harness.linux_guest.home import LinuxGuests
from harness.linux_guest.spec import LinuxGuestSpec
from harness.linux_guest.workload import second_workload, shared_window, touch
from harness.oracle.evidence import Evidence

pytestmark = pytest.mark.linux_guest

WORDS_A_PAGE = 512
PAGES_A_MIB = 256
MEMORY_FILE = r".*\.memory$"


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


def more_in_use(guest: LinuxGuest, evidence: Evidence, before: int) -> None:
    """The guest uses memory that it was given, or a scenario proves nothing."""
    more = guest.memory_statistics()["anon"] - before
    evidence.at_least("memory controller", "bytes more in use", 16 * MIB, more)


def test_memory_comes_and_goes_with_a_dimm(linux_guests: LinuxGuests, evidence: Evidence) -> None:
    with booted(linux_guests, LinuxGuestSpec(pluggable_mib=256)) as (guest,):
        for _ in range(2):
            window = plug(guest, "dimm", 128)
            before = guest.memory_statistics()["anon"]
            with second_workload(guest, 24, seed=5) as more:
                guest.await_passes(1)
                evidence.content(more.order("check").visit)
                evidence.sound(window)
                more_in_use(guest, evidence, before)
                frames = evidence.frames(window)
            unplug(guest, "dimm")
            evidence.frames_returned(guest, frames)
        verified([guest], evidence)


def test_memory_grows_and_shrinks_while_it_is_used(
    linux_guests: LinuxGuests, evidence: Evidence
) -> None:
    with booted(linux_guests, LinuxGuestSpec(elastic_mib=256)) as (guest,):
        window = elastic(guest)
        for _ in range(2):
            resize(guest, 128)
            before = guest.memory_statistics()["anon"]
            with second_workload(guest, 24, seed=5) as more:
                evidence.content(more.order("check").visit)
                evidence.sound(window)
                more_in_use(guest, evidence, before)
                frames = evidence.frames(window)
                # What is used has to move together first.
                resize(guest, 64)
                evidence.content(more.order("check").visit)
                evidence.sound(window)
            resize(guest, 0)
            if frames:
                left = len(evidence.frames(window))
                evidence.at_most("frames", "pages left where there is no memory", 0, left)
            evidence.frames_returned(guest, frames)
        guest.await_passes(1)
        verified([guest], evidence)


@pytest.mark.parametrize("kind", ["memfd", "file"])
def test_what_another_process_punches_or_truncates_is_gone_for_the_guest(
    linux_guests: LinuxGuests, evidence: Evidence, kind: str
) -> None:
    size = 8
    with booted(linux_guests, LinuxGuestSpec(window_mib=size, window=kind)) as (guest,):
        shared = shared_window(guest)
        with second_workload(guest, size, 5, shared.inside) as worker:
            worker.order("idle")
            evidence.content(worker.order("check").visit)
            evidence.sound(shared.window)
            wrong = 0
            for words in (
                ["fallocate", "--punch-hole", f"--offset={MIB}", f"--length={2 * MIB}"],
                ["truncate", f"--size={(size - 2) * MIB}"],
            ):
                guest.on_host([*words, shared.outside])
                guest.on_host(["truncate", f"--size={size * MIB}", shared.outside])
                evidence.sound(shared.window)
                checked = worker.order("check")
                missing = 2 * PAGES_A_MIB * WORDS_A_PAGE
                gone, wrong = checked.errors - wrong, checked.errors
                evidence.equal("what was taken away, and no more, to be other", [missing], [gone])
                evidence.equal("zeros where the file has a hole", [0], [checked.seen])
                worker.order("fill 6")
            evidence.equal("no more wrong words", [wrong], [worker.order("check").errors])
        guest.await_passes(1)
        verified([guest], evidence)


def test_what_a_guest_has_in_files_is_on_the_disk_after_each_sync(
    linux_guests: LinuxGuests, evidence: Evidence
) -> None:
    spec = LinuxGuestSpec(workload_mib=24, backing="file", window_mib=8, window="file")
    with booted(linux_guests, spec) as (guest,):
        shared = shared_window(guest)
        memory = f"/proc/{guest.pid}/fd/{guest.descriptor(MEMORY_FILE)}"
        with second_workload(guest, spec.window_mib, 5, shared.inside) as worker:
            worker.order("idle")
            for seed in (6, 7, 8):
                worker.order(f"fill {seed}")
                # The guest works on in the one, and has finished with the other.
                guest.on_host(["sync", memory, shared.outside])
                evidence.sound(shared.window)
                differing = bytes_not_on_disk(guest, shared.outside)
                evidence.equal("the disk to have what the guest wrote", [0], [differing])
            evidence.content(worker.order("check").visit)
        verified([guest], evidence)
        guest.order("idle")
        guest.on_host(["sync", memory])
        least = 16 * MIB
        evidence.at_least("reclaim", "bytes left to the file", least, left_to_file(guest, least))
        guest.order("run")
        guest.await_passes(1)
        verified([guest], evidence)
