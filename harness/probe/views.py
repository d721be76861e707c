# SPDX-License-Identifier: GPL-2.0-only
"""Ways to show the same memory to guests beside the usual one, which is one memslot of one VM.

What the primary MMU takes away has to go from all of them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

from harness.probe import kvm, layout
from harness.probe.memory import Memory
from harness.probe.vm import ALIAS_SLOT, FIRST_FREE_SLOT, MEMORY_SLOT, Vcpu, VirtualMachine


@dataclasses.dataclass(frozen=True)
class View:
    """Where a view is: the VM, the gpa of the memory's first page, and the guest's own address."""

    vm_fd: int
    gpa: int = layout.MEMORY_GPA
    address: int = layout.MEMORY_GPA


Opened = tuple[View, Sequence[tuple[VirtualMachine, Vcpu]]]
"""A view, and the machines and vcpus that came with it."""


def alias(machine: VirtualMachine, memory: Memory) -> Opened:
    """A second memslot shows the memory at another gpa."""
    machine.set_slot(ALIAS_SLOT, layout.ALIAS_GPA, memory.hva, memory.pages * layout.PAGE_BYTES)
    return View(machine.fd, layout.ALIAS_GPA, layout.ALIAS_GPA), ()


def read_only(machine: VirtualMachine, memory: Memory) -> Opened:
    """A second memslot that the guest may not write to shows the memory at another gpa."""
    size = memory.pages * layout.PAGE_BYTES
    machine.set_slot(ALIAS_SLOT, layout.ALIAS_GPA, memory.hva, size, kvm.MEM_READONLY)
    return View(machine.fd, layout.ALIAS_GPA, layout.ALIAS_GPA), ()


def logged(machine: VirtualMachine, memory: Memory) -> Opened:
    """The memslot is one whose dirty pages are logged, as during a live migration."""
    size = memory.pages * layout.PAGE_BYTES
    machine.set_slot(MEMORY_SLOT, layout.MEMORY_GPA, memory.hva, size, kvm.MEM_LOG_DIRTY_PAGES)
    return View(machine.fd), ()


def second_mapping(machine: VirtualMachine, memory: Memory) -> Opened:
    """The guest's own page tables have the memory twice, and KVM two sptes if it shadows them."""
    machine.map_again()
    return View(machine.fd, address=layout.MAPPED_AGAIN), ()


def pieces(machine: VirtualMachine, memory: Memory) -> Opened:
    """Four memslots, of which one has a single page, take the place of the one."""
    quarter = memory.pages // 4
    bounds = (0, quarter, quarter + 1, 2 * quarter, memory.pages)
    machine.set_slot(MEMORY_SLOT, layout.MEMORY_GPA, memory.hva, 0)
    for slot, (first, end) in enumerate(itertools.pairwise(bounds), FIRST_FREE_SLOT):
        at = first * layout.PAGE_BYTES
        size = (end - first) * layout.PAGE_BYTES
        machine.set_slot(slot, layout.MEMORY_GPA + at, memory.hva + at, size)
    return View(machine.fd), ()


def management_mode(machine: VirtualMachine, memory: Memory) -> Opened:
    """The first vcpu is in system management mode, and sees memslots of its own."""
    space = kvm.SECOND_ADDRESS_SPACE
    size = memory.pages * layout.PAGE_BYTES
    machine.show_control(space)
    machine.set_slot(MEMORY_SLOT + space, layout.MEMORY_GPA, memory.hva, size)
    machine.vcpus[0].manage_system()
    return View(machine.fd), ()


def second_vm(machine: VirtualMachine, memory: Memory) -> Opened:
    """Another VM of the same VMM shows the memory to a vcpu of its own."""
    other = VirtualMachine(1, machine.payload, deeper=machine.deeper)
    other.set_slot(MEMORY_SLOT, layout.MEMORY_GPA, memory.hva, memory.pages * layout.PAGE_BYTES)
    return View(other.fd), [(other, vcpu) for vcpu in other.vcpus]


KINDS: Mapping[str, Callable[[VirtualMachine, Memory], Opened]] = {
    "alias": alias,
    "read-only": read_only,
    "logged": logged,
    "second-mapping": second_mapping,
    "pieces": pieces,
    "management-mode": management_mode,
    "second-vm": second_vm,
}
"""Each opens a view of the memory that stays until the VMM ends."""
