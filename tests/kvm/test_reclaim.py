# SPDX-License-Identifier: GPL-2.0-only
"""Guests can be swapped: all of their memory goes out, comes back as it was, and is not pinned."""

from __future__ import annotations

import contextlib

import pytest

from harness.guest.probe import GuestFactory, ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED
CYCLES = 3


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


@pytest.mark.parametrize(("vcpus", "pages", "parts"), [(1, 16384, 4), (2, 4096, 2)])
def test_a_guest_is_swapped_around_hammering_vcpus(
    probe_guest: GuestFactory, evidence: Evidence, vcpus: int, pages: int, parts: int
) -> None:
    with probe_guest(pages, vcpus) as guest:
        evidence.content(guest.fill(SEED))
        for part in range(parts):  # each page is hot once, and cold the other times
            hot = range(part * pages // parts, (part + 1) * pages // parts)
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
