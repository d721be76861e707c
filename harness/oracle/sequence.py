# SPDX-License-Identifier: GPL-2.0-only
"""KVM's count of invalidations, by which a fault sees that one overtook it: read, and set."""

from __future__ import annotations

from typing import Any

from drgn.helpers.linux.mm import follow_phys

from harness.errors import OracleUnavailable
from harness.guest.probe import ProbeGuest
from harness.oracle.sptes import virtual_machine


def invalidations_counted(guest: ProbeGuest) -> int:
    """The count of the guest's VM as it stands; raises as preset_sequence()."""
    host = guest.session.host
    program = host.debugger()
    with host.paused():
        return int(_count(virtual_machine(program, guest.pid, guest.vm_fd)))


def preset_sequence(guest: ProbeGuest, value: int) -> None:
    """Give the count of the guest's VM a value, to see it pass a number that takes years.

    Raises OracleUnavailable where the host's memory cannot be looked at or written, or the count
    has another name: commit 20ec3ebd707c ("KVM: Rename mmu_notifier_* to mmu_invalidate_*") (in
    v6.0).
    """
    host = guest.session.host
    program = host.debugger()
    with host.paused():
        count = _count(virtual_machine(program, guest.pid, guest.vm_fd))
        kernel = program["init_mm"].address_of_()
        place = int(follow_phys(kernel, count.address_of_()))
    host.write_physical(place, (value % (1 << 64)).to_bytes(8, "little"))


def _count(kvm: Any) -> Any:
    try:
        return kvm.mmu_invalidate_seq
    except AttributeError as error:
        raise OracleUnavailable(
            f"KVM's count of invalidations is not known by that name: {error}."
        ) from error
