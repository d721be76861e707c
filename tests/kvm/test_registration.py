# SPDX-License-Identifier: GPL-2.0-only
"""Each VM is notified of its VMM's memory from its creation to its end, and no longer."""

from __future__ import annotations

from harness.errors import OracleUnavailable
from harness.guest.probe import ProbeGuest
from harness.guest.settings import failing_allocations
from harness.oracle.evidence import Evidence

SEED = 0x5EED
MACHINES = 16
ROUNDS = 4
ATTEMPTS = 50


def test_many_vms_on_one_process_come_and_go(guest: ProbeGuest, evidence: Evidence) -> None:
    evidence.content(guest.fill(SEED))
    evidence.registered(guest, 1)
    with evidence.mm_not_held(guest):
        created = guest.ask("vm_storm", count=MACHINES, rounds=ROUNDS)
    evidence.at_least("registration", "VMs created", MACHINES * ROUNDS, created)
    evidence.registered(guest, 1)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def test_a_vm_that_cannot_be_created_leaves_nothing_behind(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    with evidence.mm_not_held(guest):
        ends = guest.ask("vms_refused", attempts=ATTEMPTS)
    evidence.equal("EINVAL each time", [ATTEMPTS], [ends.get("EINVAL", 0)])
    evidence.registered(guest, 1)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def test_a_vm_is_created_or_cleanly_not_whenever_a_signal_comes(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    with evidence.mm_not_held(guest):
        ends = guest.ask("vms_under_signals", attempts=ATTEMPTS)
    strange = {name: count for name, count in ends.items() if name not in ("ok", "EINTR")}
    evidence.equal("success or EINTR", [], sorted(strange.values()))
    if not ends.get("EINTR"):
        raise OracleUnavailable("No signal came while KVM registered its notifier.")
    evidence.registered(guest, 1)
    evidence.at_least(
        "registration", "VMs created after", 1, guest.ask("vm_storm", count=1, rounds=1)
    )
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def test_a_vm_is_created_or_cleanly_not_when_any_allocation_fails(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    with failing_allocations(guest.session), evidence.mm_not_held(guest):
        ends = guest.ask("vms_without_memory")
    strange = {name: count for name, count in ends.items() if name not in ("ok", "ENOMEM")}
    evidence.equal("success or ENOMEM", [], sorted(strange.values()))
    evidence.at_least("registration", "failures for want of memory", 1, ends.get("ENOMEM", 0))
    evidence.registered(guest, 1)
    evidence.at_least(
        "registration", "VMs created after", 1, guest.ask("vm_storm", count=1, rounds=1)
    )
    evidence.content(guest.check(SEED))
    evidence.sound(guest)
