# SPDX-License-Identifier: GPL-2.0-only
"""Guests that are migrated, photographed, collapsed and compacted while they work."""

from __future__ import annotations

import dataclasses

import pytest
from pressure import booted, limited, verified

from harness.guest.settings import large_pages, settings
from harness.linux_guest.changes import migrate, restore, snapshotting
from harness.linux_guest.guest import watch_for
from harness.linux_guest.home import LinuxGuests
from harness.linux_guest.spec import LinuxGuestSpec
from harness.oracle.evidence import Evidence

pytestmark = pytest.mark.linux_guest

ROUNDS = 2


@pytest.mark.parametrize("backing", ["anon", "memfd"])
def test_a_guest_moves_to_another_qemu_while_it_works(
    linux_guests: LinuxGuests, evidence: Evidence, backing: str
) -> None:
    spec = LinuxGuestSpec(workload_mib=24, backing=backing)
    with booted(linux_guests, spec, dataclasses.replace(spec, incoming=True)) as (source, target):
        passes = source.await_passes(1).passes
        migrate(source, target)
        evidence.at_least("content", "passes done before", passes, target.counters.passes)
        frames = evidence.frames(source)
        source.kill()
        if backing == "anon":
            evidence.frames_returned(target, frames)
        target.await_passes(1)
        verified([target], evidence)


def test_a_snapshot_in_the_background_is_of_one_moment(
    linux_guests: LinuxGuests, evidence: Evidence
) -> None:
    spec = LinuxGuestSpec(workload_mib=24)
    path = "/var/tmp/mmu-linux-guest/snapshot"
    with booted(linux_guests, spec, dataclasses.replace(spec, incoming=True)) as (guest, copy):
        guest.await_passes(1)
        with snapshotting(guest, path):
            guest.await_passes(2)
            # Each page costs the running guest an interrupt, which takes long under emulation.
            guest.order("idle")
        guest.order("run")
        guest.await_passes(1)
        verified([guest], evidence)
        # Whoever goes on from the snapshot finds each page as it was at its moment.
        restore(copy, path)
        verified([copy], evidence)


def test_large_pages_come_and_go_below_a_guest(
    linux_guests: LinuxGuests, evidence: Evidence
) -> None:
    spec = LinuxGuestSpec()
    session = linux_guests.session
    with booted(linux_guests, spec) as guests:
        (guest,) = guests
        for enabled in ("never", "always") * ROUNDS:
            with large_pages(session, enabled):
                with limited(linux_guests, spec.memory_mib // 2):
                    watch_for(guests, 2)
                if enabled == "always":
                    evidence.at_least("collapse", "large pages made", 1, guest.collapse())
                session.ask("write", path="/proc/sys/vm/compact_memory", text="1")
                guest.await_passes(1)
                verified(guests, evidence)


def test_a_guest_on_hugetlb_memory_works(linux_guests: LinuxGuests, evidence: Evidence) -> None:
    spec = LinuxGuestSpec(memory_mib=96, workload_mib=20, backing="hugetlb")
    pool = {"/proc/sys/vm/nr_hugepages": "64"}
    with (
        settings(linux_guests.session, pool, "hugetlb"),
        booted(linux_guests, spec) as (guest,),
    ):
        guest.await_passes(2)
        verified([guest], evidence)
