# SPDX-License-Identifier: GPL-2.0-only
"""The count of invalidations may pass any number; vcpus go on.

Stands for commit 82d811ff5665 ("KVM: x86/mmu: Fix an sign-extension bug with mmu_seq that hangs
vCPUs") (in v6.1.50): after 2^31 invalidations every vcpu retried for ever.
"""

from __future__ import annotations

import pytest

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence
from harness.oracle.sequence import preset_sequence

SEED = 0x5EED
ROUNDS = 30
PAGE = 600


@pytest.mark.parametrize("bits", [31, 32, 63, 64])
def test_vcpus_go_on_when_the_count_of_invalidations_passes_a_power_of_two(
    guest: ProbeGuest, evidence: Evidence, bits: int
) -> None:
    evidence.content(guest.fill(SEED))
    preset_sequence(guest, (1 << bits) - ROUNDS // 2)
    with guest.hammering(0, PAGE, 1, patient=True) as hammer:
        hammer.await_visits(1)
        played, lost = guest.race("discard", 0, PAGE, ROUNDS)
        evidence.at_least("progress", f"rounds of {ROUNDS}", ROUNDS, played)
    evidence.at_least("content", "rounds without a stray write", played, played - lost)
    evidence.content(guest.check(SEED, PAGE + 1))
    evidence.sound(guest)
