# SPDX-License-Identifier: GPL-2.0-only
"""Read from outside whether each invalidation that KVM was told of has ended.

One that was begun and never ended keeps vcpus from ever mapping pages again, and memslots from
being changed, but shows only when somebody tries.
"""

from __future__ import annotations

import dataclasses

import drgn

from harness.errors import OracleUnavailable
from harness.oracle.sptes import virtual_machine

_IN_PROGRESS = ("mmu_invalidate_in_progress", "mmu_notifier_count")
"""What keeps pages from being mapped; the older name is the one before commit 20ec3ebd707c ("KVM:
Rename mmu_notifier_* to mmu_invalidate_*") (in v6.0)."""

_ACTIVE = "mn_active_invalidate_count"
"""What keeps memslots from being changed, since commit 52ac8b358b0c ("KVM: Block memslot updates
across range_start() and range_end()") (in v5.15)."""


@dataclasses.dataclass(frozen=True)
class Unended:
    """A count of KVM's that is not 0 while nobody changes the memory; ``page`` is always None."""

    name: str
    count: int
    page: None = None

    def __str__(self) -> str:
        return f"{self.name} is {self.count}"


def unended(program: drgn.Program, pid: int, vm_fd: int) -> tuple[Unended, ...]:
    """What a VM still waits for, or has been told the end of once too often.

    Raises OracleUnavailable where the counts are not known.
    """
    kvm = virtual_machine(program, pid, vm_fd)
    members = {member.name for member in kvm.type_.type.members}
    names = [name for name in (*_IN_PROGRESS, _ACTIVE) if name in members]
    if not set(names) & set(_IN_PROGRESS):
        raise OracleUnavailable("KVM counts invalidations under another name in this kernel.")
    counts = ((name, int(kvm.member_(name).value_())) for name in names)
    return tuple(Unended(name, count) for name, count in counts if count)
