# SPDX-License-Identifier: GPL-2.0-only
"""Guests can be swapped: all of their memory goes out, comes back as it was, and is not pinned."""

from __future__ import annotations

import contextlib

import pytest
from matrix import backings, on_backings

from harness.guest.probe import GuestFactory, ProbeGuest
from harness.guest.settings import no_swap
from harness.oracle.evidence import Evidence

SEED = 0x5EED
CYCLES = 3
HOT_SHARE = 8


def test_an_idle_guest_is_swapped_out_whole_and_back(
    large_guest: ProbeGuest, evidence: Evidence
) -> None:
    guest = large_guest
    evidence.content(guest.fill(SEED))
    for cycle in range(CYCLES):
        evidence.sound(guest)
        # Once is enough for the notifier, whose 16,384 events take as long to read as the reclaim.
        with evidence.told(guest) if cycle == 0 else contextlib.nullcontext():
            residency = guest.reclaim()
        evidence.swapped_out(guest, residency)
        evidence.sptes_dropped(guest)
        evidence.no_stale_translations(guest)
        evidence.content(guest.check(SEED))
    evidence.sound(guest)


@on_backings("reclaim")
def test_every_kind_of_memory_goes_out_whole_and_back(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    with evidence.told(guest):
        residency = guest.reclaim()
    evidence.swapped_out(guest, residency)
    evidence.sptes_dropped(guest)
    evidence.no_stale_translations(guest)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def test_what_a_guest_only_read_is_swapped_out_whole_and_back(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    written = [SEED] * guest.pages
    guest.host_write(SEED, 0, guest.pages, word=5)
    evidence.equal("what the VMM wrote", written, guest.read(0, guest.pages, word=5).words)
    evidence.sound(guest)
    evidence.swapped_out(guest, guest.reclaim())
    evidence.no_stale_translations(guest)
    evidence.equal("what the VMM wrote", written, guest.read(0, guest.pages, word=5).words)
    evidence.sound(guest)


@pytest.mark.parametrize("backing", ["memfd", "file-shared"])
def test_what_a_guest_wrote_where_it_had_read_goes_out_and_back(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    # The read may map a page so that it can be written, too; then the spte alone knows of the
    # write, and has to say so before reclaim takes the page for one that nobody changed.
    zeros = guest.read(0, guest.pages, word=5).words
    evidence.equal("untouched memory", [0] * guest.pages, zeros)
    evidence.sound(guest)
    evidence.done("writing", guest.write(SEED, 0, guest.pages, word=5))
    evidence.swapped_out(guest, guest.reclaim())
    evidence.no_stale_translations(guest)
    seen = guest.read(0, guest.pages, word=5).words
    evidence.equal("what the guest wrote", [SEED] * guest.pages, seen)
    evidence.sound(guest)


@pytest.mark.parametrize(
    ("backing", "vcpus"), [*((name, 1) for name in backings("hot reclaim")), ("anon", 2)]
)
def test_every_kind_of_memory_goes_out_around_hammering_vcpus(
    probe_guest: GuestFactory, evidence: Evidence, backing: str, vcpus: int
) -> None:
    with probe_guest(vcpus=vcpus, backing=backing) as guest:
        evidence.content(guest.fill(SEED))
        hot = range(guest.pages // HOT_SHARE)
        with contextlib.ExitStack() as stack:
            hammers = [
                stack.enter_context(guest.hammering(vcpu, hot.start, len(hot)))
                for vcpu in range(vcpus)
            ]
            hammers[-1].await_visits(len(hot))
            residency = guest.reclaim(hot)
            evidence.swapped_out(guest, residency, hot)
            hammers[-1].await_visits(len(hot))
        for hammer in hammers:
            evidence.content(hammer.stop())
        evidence.sound(guest)
        evidence.swapped_out(guest, guest.reclaim())
        evidence.content(guest.check(SEED))
        evidence.sound(guest)


def test_a_guest_gets_by_with_half_of_its_memory(guest: ProbeGuest, evidence: Evidence) -> None:
    # Beyond memory.high a process waits for reclaim; beyond memory.max it would be killed when
    # the disk is slow, which is no promise of this kind broken.
    guest.limit("memory.high", guest.bytes // 2)
    evidence.content(guest.fill(SEED))
    with guest.hammering() as hammer:
        hammer.await_visits(guest.pages)
    evidence.content(hammer.stop())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)
    guest.limit("memory.high", "max")
    evidence.swapped_out(guest, guest.reclaim())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@on_backings("squeeze")
def test_a_lower_limit_drives_a_guest_out(guest: ProbeGuest, evidence: Evidence) -> None:
    # Another way into reclaim than memory.reclaim: whoever lowers the limit reclaims directly.
    most = guest.pages // 8
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    left = guest.squeeze(most)
    evidence.at_most("reclaim", "pages in memory under a lower memory.max", most, left)
    evidence.no_stale_translations(guest)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@pytest.mark.parametrize("backing", ["anon", "memfd"])
def test_swapoff_brings_everything_back_to_a_running_guest(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    evidence.swapped_out(guest, guest.reclaim())
    hot = range(guest.pages // 4)
    with guest.hammering(0, hot.start, len(hot)) as hammer:
        hammer.await_visits(len(hot))
        with no_swap(guest.session):
            evidence.back_in_memory(guest, guest.residency())
            hammer.await_visits(len(hot))
            evidence.no_stale_translations(guest)
    evidence.content(hammer.stop())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)
