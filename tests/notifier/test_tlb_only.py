# SPDX-License-Identifier: GPL-2.0-only
"""A device with a TLB and no page tables never uses a page that is not the process's any more."""

from __future__ import annotations

import pytest

from harness.guest.user import NotifierUser, UserFactory
from harness.oracle.secondary import SecondaryEvidence

pytestmark = pytest.mark.secondary_mmu

ROUNDS = 25
LEAST_ROUNDS = 8
# A page that is written to swap is free only some time later.
PRESSES = 12
WORD = 5
# What is done to more pages takes longer. Of migration a device is told page by page, and there is
# room for so many records.
PAGES, FEW_PAGES = 512, 128


@pytest.mark.parametrize("kind", ["discard", "protect", "fork", "migrate", "move"])
def test_no_write_goes_where_the_page_was(
    notifier_user: UserFactory, evidence: SecondaryEvidence, kind: str
) -> None:
    with notifier_user(FEW_PAGES if kind == "migrate" else PAGES) as user:
        device = user.attached()
        with device.hammering(WORD):
            rounds, lost = device.play(kind, ROUNDS)
            evidence.at_most("secondary TLB", "writes to pages that were gone", 0, lost)
            evidence.at_least("race", "rounds", LEAST_ROUNDS, rounds)
        evidence.well_told(device)
        evidence.no_extra_references(user)


def test_no_write_is_lost_to_reclaim(user: NotifierUser, evidence: SecondaryEvidence) -> None:
    device = user.attached()
    before = _pages_swapped_out(user)
    with device.hammering(WORD):
        for _ in range(PRESSES):
            user.press(user.pages // 2)
    gone = _pages_swapped_out(user) - before
    evidence.at_least("reclaim", "pages written to swap", user.pages // 8, gone)
    seen = evidence.granted("reading", device.load(word=WORD))
    evidence.equal("the last round in each page", [seen[0]] * user.pages, seen)
    by_cpu = user.host_read(0, user.pages, word=WORD)
    evidence.equal("the CPU to see what the device sees", list(seen), by_cpu)
    evidence.well_told(device)
    evidence.no_extra_references(user)


def test_a_miss_faults_the_page_in_and_keeps_no_reference(
    user: NotifierUser, evidence: SecondaryEvidence
) -> None:
    device = user.attached()
    seen = evidence.granted("reading memory that nobody touched", device.load())
    evidence.equal("zeros", [0] * user.pages, seen)
    evidence.granted("writing", device.store(1))
    state = device.state()
    evidence.at_least("secondary TLB", "misses", 2 * user.pages, state["misses"])
    evidence.counted("pages in the TLB", user.pages, state["entries"])
    evidence.equal("the CPU to see it", [1] * user.pages, user.host_read(0, user.pages))
    evidence.no_extra_references(user)


def _pages_swapped_out(user: NotifierUser) -> int:
    """How many pages the host has written to swap since its boot."""
    lines = user.session.read("/proc/vmstat").splitlines()
    return int(dict(line.split() for line in lines)["pswpout"])
