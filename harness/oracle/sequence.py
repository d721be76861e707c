# SPDX-License-Identifier: GPL-2.0-only
"""KVM's count of invalidations that have ended, by which a fault sees that one overtook it."""

from __future__ import annotations

import contextlib
from typing import Any

from drgn.helpers.linux.mm import follow_phys

from harness.errors import OracleUnavailable
from harness.guest.probe import ProbeGuest
from harness.oracle.sptes import virtual_machine

_NAMES = ("mmu_invalidate_seq", "mmu_notifier_seq")
"""What KVM calls it, and called it before commit 20ec3ebd707c ("KVM: Rename mmu_notifier_* to
mmu_invalidate_*") (in v6.0)."""


def invalidations_counted(guest: ProbeGuest) -> int:
    """How many of the guest's VM have ended; raises as preset_sequence()."""
    host = guest.session.host
    program = host.debugger()
    with host.paused():
        return int(_count(virtual_machine(program, guest.pid, guest.vm_fd)))


def preset_sequence(guest: ProbeGuest, value: int) -> None:
    """Give the count of those that have ended a value, to see it pass one that takes years.

    Raises OracleUnavailable where the host's memory cannot be looked at or written, or the count
    has a name that nobody knows.
    """
    host = guest.session.host
    program = host.debugger()
    with host.paused():
        count = _count(virtual_machine(program, guest.pid, guest.vm_fd))
        kernel = program["init_mm"].address_of_()
        place = int(follow_phys(kernel, count.address_of_()))
    host.write_physical(place, (value % (1 << 64)).to_bytes(8, "little"))


def _count(kvm: Any) -> Any:
    for name in _NAMES:
        with contextlib.suppress(AttributeError):
            return getattr(kvm, name)
    raise OracleUnavailable(f"KVM's count of invalidations is none of {', '.join(_NAMES)}.")
