# SPDX-License-Identifier: GPL-2.0-only
"""A VMM that dies with sptes present gives all of its memory back."""

from __future__ import annotations

import signal

import pytest
from matrix import on_backings

from harness.guest.probe import GuestFactory, ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED


@on_backings("exit")
def test_a_killed_vmm_gives_all_memory_back(guest: ProbeGuest, evidence: Evidence) -> None:
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    frames = evidence.frames(guest)
    guest.kill(signal.SIGKILL)
    evidence.memory_given_back(guest)
    evidence.frames_returned(guest, frames)


@on_backings("exit")
def test_a_vmm_killed_while_its_guest_runs_gives_all_memory_back(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    frames = evidence.frames(guest)
    guest.hammer_unattended().await_visits(1)
    guest.kill(signal.SIGKILL)
    evidence.memory_given_back(guest)
    evidence.frames_returned(guest, frames)


def test_a_vmm_killed_with_half_its_memory_swapped_gives_it_back(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.swapped_out(guest, guest.reclaim())
    evidence.content(guest.check(SEED, pages=guest.pages // 2))
    evidence.sound(guest)
    frames = evidence.frames(guest)
    guest.kill(signal.SIGKILL)
    evidence.memory_given_back(guest)
    evidence.frames_returned(guest, frames)


@on_backings("exit")
def test_memory_is_given_back_although_another_process_holds_the_vm(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    frames = evidence.frames(guest)
    with guest.held() as counters:
        guest.kill(signal.SIGKILL)
        evidence.mapped_at_most(counters(), 0)
        evidence.frames_returned(guest, frames)
    # As long as it lives, a VM may keep the page that is the root of its page tables.
    evidence.memory_given_back(guest)


@pytest.mark.parametrize(
    ("backing", "vcpus"), [("anon", 1), ("thp", 1), ("file-private", 1), ("anon", 2)]
)
def test_memory_that_is_reaped_before_the_vmm_exits_leaves_no_spte(
    probe_guest: GuestFactory, evidence: Evidence, backing: str, vcpus: int
) -> None:
    with probe_guest(vcpus=vcpus, backing=backing) as guest:
        evidence.content(guest.fill(SEED))
        evidence.sound(guest)
        frames = evidence.frames(guest)
        with guest.held():
            evidence.mapped_at_most(guest.kill_and_reap(), 0)
            status = guest.await_death()
            evidence.equal("the VMM to die of it", [signal.SIGKILL], [status or 0])
            evidence.frames_returned(guest, frames)
        evidence.memory_given_back(guest)


def test_a_vmm_that_the_oom_killer_ends_gives_all_memory_back(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED, pages=guest.pages // 4))
    evidence.sound(guest)
    frames = evidence.frames(guest)
    guest.limit("memory.swap.max", 0)
    guest.limit("memory.max", guest.bytes // 2)
    guest.hammer_unattended()
    status = guest.await_death()
    evidence.equal("the OOM killer to end the VMM", [signal.SIGKILL], [status or 0])
    evidence.memory_given_back(guest)
    evidence.frames_returned(guest, frames)
