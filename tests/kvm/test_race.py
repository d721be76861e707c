# SPDX-License-Identifier: GPL-2.0-only
"""What the primary MMU takes away is gone the moment it says so, also for a vcpu in full run."""

from __future__ import annotations

import pytest

from harness.guest.probe import GuestFactory
from harness.oracle.evidence import Evidence

SEED = 0x5EED
ROUNDS = 200


@pytest.mark.parametrize("vcpus", [1, 2])
def test_no_write_goes_to_a_page_that_was_discarded_under_a_vcpu(
    probe_guest: GuestFactory, evidence: Evidence, vcpus: int
) -> None:
    page = 600
    with probe_guest(vcpus=vcpus) as guest:
        evidence.content(guest.fill(SEED))
        with guest.hammering(vcpus - 1, page, 1) as hammer:
            hammer.await_visits(1)
            played, lost = guest.discard_under(vcpus - 1, page, ROUNDS)
        evidence.at_least("progress", f"rounds of {ROUNDS}", ROUNDS, played)
        evidence.at_least("content", "rounds without a lost write", played, played - lost)
        evidence.sound(guest)
