# SPDX-License-Identifier: GPL-2.0-only
"""Each invalidation is counted, for the faults that it overtakes; whatever the count, vcpus go on.

A fault that got hold of a page before an invalidation, and maps it after its end, has nothing but
the count to tell it. The moment in between is a few instructions without a place to sleep, which no
guest can be made to fall into; so it is the count that is looked at.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence
from harness.oracle.sequence import invalidations_counted, preset_sequence

SEED = 0x5EED
ROUNDS = 30
PAGE = 600


def _fork(guest: ProbeGuest) -> None:
    with guest.forked():
        pass


CHANGES: dict[str, Callable[[ProbeGuest], object]] = {
    "discard": lambda guest: guest.madvise("dontneed", PAGE, 1),
    "protect": lambda guest: guest.mprotect("read", PAGE, 1),
    "fork": _fork,
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_invalidation_is_counted_for_the_faults_that_it_overtakes(
    guest: ProbeGuest, evidence: Evidence, change: str
) -> None:
    evidence.content(guest.fill(SEED))
    for _ in range(2):
        # The second finds no spte any more, and a fault may be under way all the same.
        before = invalidations_counted(guest)
        CHANGES[change](guest)
        counted = invalidations_counted(guest) - before
        evidence.at_least("sequence", "invalidations counted", 1, counted)
        guest.mprotect("readwrite", PAGE, 1)
    evidence.sound(guest)


@pytest.mark.parametrize("bits", [31, 32, 63, 64])
def test_vcpus_go_on_when_the_count_of_invalidations_passes_a_power_of_two(
    guest: ProbeGuest, evidence: Evidence, bits: int
) -> None:
    # commit 82d811ff5665 ("KVM: x86/mmu: Fix an sign-extension bug with mmu_seq that hangs vCPUs")
    # (in v6.1.50): after 2^31 invalidations every vcpu retried for ever.
    evidence.content(guest.fill(SEED))
    preset_sequence(guest, (1 << bits) - ROUNDS // 2)
    with guest.hammering(0, PAGE, 1, patient=True) as hammer:
        hammer.await_visits(1)
        played, lost = guest.race("discard", 0, PAGE, ROUNDS)
        evidence.at_least("progress", f"rounds of {ROUNDS}", ROUNDS, played)
    evidence.at_least("content", "rounds without a stray write", played, played - lost)
    evidence.content(guest.check(SEED, PAGE + 1))
    evidence.sound(guest)
