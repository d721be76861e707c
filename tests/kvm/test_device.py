# SPDX-License-Identifier: GPL-2.0-only
"""Pages of a guest go to a device with memory of its own, as to a GPU, and come back when used."""

from __future__ import annotations

import pytest

from harness.guest.probe import GuestFactory, ProbeGuest
from harness.guest.settings import device_memory
from harness.oracle.evidence import Evidence

SEED = 0x5EED
PRIVATE, EXCLUSIVE = "private", "exclusive"
ATTEMPTS = 5


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("how", [PRIVATE, EXCLUSIVE])
def test_pages_that_a_device_took_are_back_when_the_guest_uses_them(
    probe_guest: GuestFactory, evidence: Evidence, how: str, vcpus: int
) -> None:
    with probe_guest(vcpus=vcpus) as guest, device_memory(guest.session), guest.mirrored():
        evidence.content(guest.fill(SEED))
        evidence.sound(guest)
        with evidence.told(guest):
            _give_all(guest, evidence, how)
        evidence.no_stale_translations(guest)
        evidence.sptes_dropped(guest)
        evidence.content(guest.check(SEED))
        evidence.sound(guest)


def test_memory_that_nobody_touched_can_begin_on_a_device(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    zeros = [0] * guest.pages
    with device_memory(guest.session), guest.mirrored():
        # The guest's sptes are of the zero page.
        evidence.equal("untouched memory", zeros, guest.read(0, guest.pages).words)
        with evidence.told(guest):
            _give_all(guest, evidence, PRIVATE)
        evidence.no_stale_translations(guest)
        evidence.equal("memory back from the device", zeros, guest.read(0, guest.pages).words)
        evidence.sound(guest)


def _give_all(guest: ProbeGuest, evidence: Evidence, how: str) -> None:
    """Have the device take all pages; one that something else references it cannot take."""
    most = 0
    for _ in range(ATTEMPTS):
        guest.session.ask("drain_lru")
        most = max(most, guest.give_to_device(how))
        if most == guest.pages:
            break
    evidence.at_least("migration", "pages taken by the device", guest.pages, most)
