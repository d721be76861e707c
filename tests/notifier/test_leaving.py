# SPDX-License-Identifier: GPL-2.0-only
"""Memory that ends releases its notifiers first, whoever else lets go of them, and when."""

from __future__ import annotations

import signal

import pytest

from harness.guest.user import NotifierUser, UserFactory, What
from harness.oracle.secondary import SecondaryEvidence

pytestmark = pytest.mark.secondary_mmu

OLD = 0x0D
ROUNDS = 40
LEAST_ROUNDS = 10
FEW_PAGES = 32


@pytest.mark.parametrize("count", [1, 2])
def test_release_comes_before_the_memory_of_a_killed_process_goes(
    user: NotifierUser, evidence: SecondaryEvidence, count: int
) -> None:
    devices = [user.attached() for _ in range(count)]
    for device in devices:
        evidence.granted("writing", device.store(OLD))
    frames = evidence.frames(user)
    with devices[0].held() as held:
        user.kill(signal.SIGKILL)
        # It may have been told of the VMM's last changes before.
        calls = evidence.well_told(held)
        state = held.state()
        evidence.counted("releases", 1, state["releases"])
        evidence.counted("pages left in the TLB", 0, state["entries"])
        evidence.counted("release as the last call", What.RELEASE, calls[-1].what if calls else 0)
    evidence.memory_given_back(user)
    evidence.frames_returned(user, frames)


def test_detaching_releases_once_and_the_end_of_the_memory_no_more(
    user: NotifierUser, evidence: SecondaryEvidence
) -> None:
    device = user.attached()
    evidence.granted("writing", device.store(OLD))
    with device.held() as held:
        device.detach()
        evidence.counted("releases", 1, held.state()["releases"])
        user.kill(signal.SIGKILL)
        state = held.state()
        evidence.counted("releases", 1, state["releases"])
        evidence.counted("calls after the release", 0, state["after_release"])
        evidence.well_told(held)
    evidence.memory_given_back(user)


WAYS = ("exit-first", "detach-first", "both", "close", "attaching")


@pytest.mark.parametrize("way", WAYS)
def test_each_registration_is_released_however_it_ends(
    notifier_user: UserFactory, evidence: SecondaryEvidence, way: str
) -> None:
    with notifier_user(FEW_PAGES) as user:
        sums = user.leave(way, ROUNDS)
        evidence.at_least("race", "rounds", LEAST_ROUNDS, sums["rounds"])
        evidence.at_least("registration", "registrations", sums["rounds"], sums["attached"])
        evidence.at_least("callbacks", "releases", sums["attached"], sums["releases"])
        # Where both come at once, each may find that the other has not released yet, and does.
        most = 2 * sums["attached"] if way == "both" else sums["attached"]
        evidence.at_most("callbacks", "releases", most, sums["releases"])
        for counter in ("ends_too_many", "late"):
            evidence.counted(counter.replace("_", " "), 0, sums[counter])
        # Who detaches in the middle of an invalidation does not hear of its end.
        if way in ("exit-first", "close"):
            evidence.counted("starts without an end", 0, sums["in_progress"])
            evidence.counted("calls after a release", 0, sums["after_release"])
