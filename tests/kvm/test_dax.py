# SPDX-License-Identifier: GPL-2.0-only
"""Files that are mapped straight from a device (DAX), where execution in place (XIP) once was."""

from __future__ import annotations

import pytest

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED
NEW = 0x2E
WORD = 7
LARGE, SMALL = 2, 1

pytestmark = pytest.mark.parametrize("backing", ["dax"])


@pytest.mark.parametrize("writer", ["guest", "vmm"])
def test_a_hole_that_the_guest_read_is_seen_filled(
    guest: ProbeGuest, evidence: Evidence, writer: str
) -> None:
    zeros, written = [0] * guest.pages, [NEW] * guest.pages
    guest.punch()
    # All of it is the zero page, until somebody writes and the device has to have room for it.
    evidence.equal("a hole to read as zero", zeros, guest.read(0, guest.pages, word=WORD).words)
    evidence.sound(guest)
    with evidence.told(guest):
        if writer == "guest":
            evidence.done("writing", guest.write(NEW, 0, guest.pages, word=WORD))
        else:
            guest.host_write(NEW, 0, guest.pages, word=WORD)
    evidence.no_stale_translations(guest)
    seen = guest.read(0, guest.pages, word=WORD).words
    evidence.equal("the guest to see what was written", written, seen)
    seen_by_host = guest.host_read(0, guest.pages, word=WORD)
    evidence.equal("the VMM to see what was written", written, seen_by_host)
    evidence.sound(guest)


def test_large_pages_of_a_device_are_mapped_large_and_synchronized(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    guest.madvise("hugepage")
    evidence.content(guest.fill(SEED))
    evidence.mapped_large(guest)
    evidence.mapped_by_sptes(guest, LARGE)
    evidence.sound(guest)
    for value in (NEW, NEW + 1):
        evidence.done("writing", guest.write(value, 0, guest.pages, word=WORD))
        with evidence.told(guest):
            guest.msync()
        evidence.no_stale_translations(guest)
        stored = guest.stored(word=WORD)
        evidence.equal("the device to have the guest's write", [value] * guest.pages, stored)
    with evidence.told(guest):
        guest.punch()
    evidence.no_stale_translations(guest)
    seen = guest.read(0, guest.pages, word=WORD).words
    evidence.equal("a hole to read as zero", [0] * guest.pages, seen)
    evidence.sound(guest)


def test_a_device_can_have_its_pages_back_while_the_guest_runs(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    # Truncation waits until nobody but the device holds a page: a pinned one would stop it.
    half = guest.pages // 2
    evidence.content(guest.fill(SEED))
    with guest.hammering(0, 0, half) as hammer:
        hammer.await_visits(half)
        with evidence.told(guest, half, half):
            guest.truncate(half)
        hammer.await_visits(half)
    evidence.content(hammer.stop())
    evidence.refused("a read beyond the end of the file", guest.read(half), half)
    evidence.sound(guest)
