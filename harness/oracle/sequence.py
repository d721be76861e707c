# SPDX-License-Identifier: GPL-2.0-only
"""Set KVM's count of invalidations from outside, to see it pass a number that takes years."""

from __future__ import annotations

from drgn.helpers.linux.mm import follow_phys

from harness.errors import OracleUnavailable
from harness.guest.probe import ProbeGuest
from harness.oracle.sptes import virtual_machine


def preset_sequence(guest: ProbeGuest, value: int) -> None:
    """Give the VM's ``mmu_invalidate_seq`` a value, by which vcpus see that they must retry.

    Raises OracleUnavailable where the host's memory cannot be written, or the count has another
    name: commit 20ec3ebd707c ("KVM: Rename mmu_notifier_* to mmu_invalidate_*") (in v6.0).
    """
    host = guest.session.host
    program = host.debugger()
    with host.paused():
        kvm = virtual_machine(program, guest.pid, guest.vm_fd)
        try:
            count = kvm.mmu_invalidate_seq
        except AttributeError as error:
            raise OracleUnavailable(
                f"KVM's count of invalidations is not known by that name: {error}."
            ) from error
        kernel = program["init_mm"].address_of_()
        place = int(follow_phys(kernel, count.address_of_()))
    host.write_physical(place, (value % (1 << 64)).to_bytes(8, "little"))
