# SPDX-License-Identifier: GPL-2.0-only
"""Any number of notifiers on one process's memory; a registration that fails leaves nothing."""

from __future__ import annotations

import pytest

from harness.errors import OracleUnavailable
from harness.guest.settings import failing_allocations
from harness.guest.user import NotifierUser
from harness.oracle.secondary import SecondaryEvidence

pytestmark = pytest.mark.secondary_mmu

OLD = 0x0D
NEW = 0x2E
ATTEMPTS = 50
# More than CPUs, each of which may hold an mm that it ran.
INTERRUPTED = FAILURES = 16
KINDS = ("tlb", "remote")


def change(user: NotifierUser) -> None:
    """Things of which notifiers are told: protection, fork, copies, and pages that go."""
    user.host_write(OLD, 0, user.pages)
    user.mprotect("read")
    user.mprotect("readwrite")
    with user.forked():
        user.host_write(NEW, 0, user.pages)
    user.madvise("dontneed")


@pytest.mark.parametrize("count", [2, 8])
def test_all_notifiers_of_a_process_are_told_the_same_in_the_same_order(
    user: NotifierUser, evidence: SecondaryEvidence, count: int
) -> None:
    devices = [user.attached() for _ in range(count)]
    evidence.registered(user, count)
    change(user)
    told = [evidence.well_told(device) for device in devices]
    evidence.told_of(user, told[0])
    evidence.same_calls(told)


@pytest.mark.parametrize("count", [2, 8])
def test_who_is_detached_is_told_nothing_and_the_others_all(
    user: NotifierUser, evidence: SecondaryEvidence, count: int
) -> None:
    devices = [user.attached() for _ in range(count)]
    for device in devices[::2]:
        device.detach()
    evidence.registered(user, count - len(devices[::2]))
    for device in devices:
        device.callbacks()
    before = [device.state()["starts"] for device in devices]
    change(user)
    for device, starts in zip(devices[::2], before[::2], strict=True):
        evidence.counted("starts since it was detached", starts, device.state()["starts"])
        evidence.counted("releases", 1, device.state()["releases"])
    told = [evidence.well_told(device) for device in devices[1::2]]
    evidence.told_of(user, told[0])
    evidence.same_calls(told)


def test_each_of_eight_devices_sees_what_the_others_write(
    user: NotifierUser, evidence: SecondaryEvidence
) -> None:
    devices = [user.attached() for _ in range(8)]
    for number, device in enumerate(devices):
        evidence.granted("writing", device.store(number, number, 8))
    user.mprotect("read")
    for device in devices:
        seen = evidence.granted("reading", device.load(0, 8))
        evidence.equal("what was written first to each page", list(range(8)), seen)
        evidence.denied("writing", device.store(NEW, 3, 1), 0)
    evidence.no_extra_references(user)


@pytest.mark.parametrize("kind", KINDS)
def test_a_registration_that_a_signal_interrupts_leaves_nothing(
    user: NotifierUser, evidence: SecondaryEvidence, kind: str
) -> None:
    # mm_take_all_locks() looks for signals at each mapping that it locks.
    device = user.device()
    with evidence.mm_not_held(user):
        ends = [
            device.ask("attach_ends", kind=kind, flags=["signalled"]) for _ in range(INTERRUPTED)
        ]
    evidence.counted("registrations interrupted", len(ends), ends.count("EINTR"))
    evidence.registered(user, 0)
    change(user)
    evidence.counted("starts told", 0, device.state()["starts"])
    device.attach()
    change(user)
    evidence.told_of(user, evidence.well_told(device))


def test_a_registration_succeeds_or_fails_cleanly_whenever_a_signal_comes(
    user: NotifierUser, evidence: SecondaryEvidence
) -> None:
    # An interval is registered without mm_take_all_locks(), but for the first of a process.
    device = user.device()
    with evidence.mm_not_held(user):
        ends = device.ask("attach_under_signals", kind="tlb", attempts=ATTEMPTS)
    strange = {name: count for name, count in ends.items() if name not in ("ok", "EINTR")}
    evidence.equal("success or EINTR", [], sorted(strange.values()))
    if not ends.get("EINTR"):
        raise OracleUnavailable("No signal came while the module registered its notifier.")
    evidence.registered(user, 0)
    device.attach()
    device.callbacks()
    change(user)
    evidence.told_of(user, evidence.well_told(device))


@pytest.mark.parametrize("kind", KINDS)
def test_a_registration_without_memory_fails_cleanly(
    user: NotifierUser, evidence: SecondaryEvidence, kind: str
) -> None:
    device = user.device()
    with failing_allocations(user.session), evidence.mm_not_held(user):
        ends = device.ask("attach_without_memory", kind=kind, times=FAILURES)
    strange = {name: count for name, count in ends.items() if name not in ("ok", "ENOMEM")}
    evidence.equal("success or ENOMEM", [], sorted(strange.values()))
    evidence.at_least("registration", "failures for want of memory", 1, ends.get("ENOMEM", 0))
    evidence.registered(user, 0)
    device.attach()
    device.callbacks()
    change(user)
    evidence.told_of(user, evidence.well_told(device))
