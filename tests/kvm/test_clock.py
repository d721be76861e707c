# SPDX-License-Identifier: GPL-2.0-only
"""What KVM itself writes into a guest's memory goes where the primary MMU says."""

from __future__ import annotations

import pytest

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED
PAGE = 600
# struct pvclock_vcpu_time_info: the fourth word has the factor of the TSC, which is never zero.
FACTOR = 3


@pytest.mark.parametrize("how", ["dontneed", "munmap", "migrate"])
def test_the_clock_page_of_a_guest_follows_its_memory(
    guest: ProbeGuest, evidence: Evidence, how: str
) -> None:
    evidence.content(guest.fill(SEED))
    guest.keep_clock(PAGE)
    _run(guest, evidence)
    before = guest.host_read(PAGE, word=FACTOR)
    evidence.at_least("clock", "in the page, a factor", 1, before[0])
    evidence.sound(guest)
    frames = evidence.frames(guest, PAGE, 1)
    if how == "dontneed":
        guest.madvise("dontneed", PAGE, 1)
    elif how == "munmap":
        guest.munmap(PAGE, 1)
        guest.replace(PAGE, 1)
    else:
        for node in (1, 0):
            guest.move_to_node(node)
        guest.host_write(0, PAGE, word=FACTOR)
    evidence.frames_returned(guest, frames if how != "migrate" else ())
    _run(guest, evidence)
    evidence.equal("the time in the new page", before, guest.host_read(PAGE, word=FACTOR), PAGE)
    evidence.sound(guest)


def _run(guest: ProbeGuest, evidence: Evidence) -> None:
    """Have KVM write the time, which it does before a vcpu enters the guest."""
    guest.update_clock()
    evidence.content(guest.check(SEED, pages=PAGE))
