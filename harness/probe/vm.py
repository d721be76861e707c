# SPDX-License-Identifier: GPL-2.0-only
"""A virtual machine whose only software is the payload, and vcpus that obey orders."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import queue
import signal
import struct
import threading
import time
from typing import Any

from harness.probe import kvm, layout, nested
from harness.probe.backing import keep_small, map_anonymous

_TSS_GPA = 0xFFFBD000
_CODE_SEGMENT = {"type": 11, "present": 1, "s": 1, "l": 1, "g": 1, "limit": 0xFFFFFFFF}
_DATA_SEGMENT = {"type": 3, "present": 1, "s": 1, "db": 1, "g": 1, "limit": 0xFFFFFFFF}
_CR0 = 0x80050033  # PG AM WP NE ET MP PE
_CR4_PAE = 0x20
_EFER = 0x500  # LME LMA
_KERNEL_PAGE, _USER_PAGE = 0x3, 0x7  # present, writable, and for users
_LARGE_PAGE = 0x80
_CONTROL_SLOT = 0
MEMORY_SLOT = 1
ALIAS_SLOT = 2
FIRST_FREE_SLOT = 3

_MANNERS = frozenset({"patient", "homeless"})
"""Orders for the VMM about its vcpu, which are no mailbox fields."""


class VirtualMachine:
    """A VM with a control memslot of its own; the memory under test is put in by set_slot.

    With ``deeper`` its vcpus run the payload in a guest inside the guest; see nested.require().
    """

    def __init__(self, vcpus: int, payload: bytes, *, deeper: bool = False) -> None:
        self.payload = payload
        self.deeper = deeper
        if not 1 <= vcpus <= layout.MOST_VCPUS:
            raise ValueError(f"a probe guest has 1 to {layout.MOST_VCPUS} vcpus, not {vcpus}")
        self.kvm_fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self.fd = kvm.ioctl_number(self.kvm_fd, kvm.CREATE_VM)
        kvm.ioctl_number(self.fd, kvm.SET_TSS_ADDR, _TSS_GPA)
        self.control = map_anonymous(layout.CONTROL_BYTES)
        keep_small(self.control, layout.CONTROL_BYTES)
        self._identity_map(layout.PAGE_TABLES_GPA, _KERNEL_PAGE)
        if deeper:
            # The processor walks nested page tables with the rights of a user.
            self._identity_map(layout.NESTED_TABLES_GPA, _USER_PAGE)
        ctypes.memmove(self.control + layout.CODE_GPA, payload, len(payload))
        self.show_control()
        self.statistics = kvm.Statistics.of(self.fd)
        self.vcpus = [Vcpu(self, index) for index in range(vcpus)]

    def set_slot(self, slot: int, gpa: int, hva: int, size: int, flags: int = 0) -> None:
        """Create, move, change the flags of or (with a size of 0) delete a memslot."""
        region = kvm.MemoryRegion(slot, flags, gpa, size, hva)
        kvm.ioctl(self.fd, kvm.SET_USER_MEMORY_REGION, ctypes.addressof(region))

    def show_control(self, address_space: int = 0) -> None:
        """Create the control memslot in an address space: 0, or kvm.SECOND_ADDRESS_SPACE."""
        slot = _CONTROL_SLOT + address_space
        self.set_slot(slot, layout.CONTROL_GPA, self.control, layout.CONTROL_BYTES)

    def map_again(self) -> None:
        """Have the guest's page tables map the memory at layout.MAPPED_AGAIN, too.

        For users, so that shadow pages of the one mapping cannot serve the other.
        """
        pml4 = layout.PAGE_TABLES_GPA
        pdpt = pml4 + layout.PAGE_BYTES
        directory = pdpt + (1 + layout.MAPPED_GIB) * layout.PAGE_BYTES
        self._point(pml4, 0, pdpt | _USER_PAGE)
        self._point(pdpt, layout.MAPPED_AGAIN >> 30, directory | _USER_PAGE)
        self._fill_directory(directory, layout.MEMORY_GPA, _USER_PAGE)

    def update_clocks(self) -> None:
        """Have KVM write the time anew, wherever a vcpu wants it, when that next runs."""
        clock = kvm.ClockData()
        kvm.ioctl(self.fd, kvm.GET_CLOCK, ctypes.addressof(clock))
        # Of what was read only the time is valid input.
        clock = kvm.ClockData(clock=clock.clock)
        kvm.ioctl(self.fd, kvm.SET_CLOCK, ctypes.addressof(clock))

    def list_words(self, vcpu: int, count: int) -> list[int]:
        """The first ``count`` answers of a vcpu's last READ."""
        address = self.control + layout.LIST_GPA + vcpu * layout.LIST_BYTES
        return (ctypes.c_uint64 * count).from_address(address)[:]

    def _identity_map(self, tables: int, flags: int) -> None:
        """Write page tables of the guest's own: identity, 2 MiB pages."""
        pdpt = tables + layout.PAGE_BYTES
        self._point(tables, 0, pdpt | flags)
        for gib in range(layout.MAPPED_GIB):
            directory = pdpt + (1 + gib) * layout.PAGE_BYTES
            self._point(pdpt, gib, directory | flags)
            self._fill_directory(directory, gib << 30, flags)

    def _fill_directory(self, directory: int, gpa: int, flags: int) -> None:
        for index in range(512):
            page = gpa + index * layout.LARGE_PAGE_BYTES
            self._point(directory, index, page | flags | _LARGE_PAGE)

    def _point(self, table: int, index: int, entry: int) -> None:
        struct.pack_into("<Q", self._bytes(table), index * 8, entry)

    def _bytes(self, gpa: int) -> ctypes.Array[ctypes.c_char]:
        return (ctypes.c_char * layout.PAGE_BYTES).from_address(self.control + gpa)


class Vcpu:
    """One vcpu with a thread of its own, which sits in KVM_RUN while an order is carried out."""

    def __init__(self, machine: VirtualMachine, index: int) -> None:
        self.index = index
        self.fd = kvm.ioctl_number(machine.fd, kvm.CREATE_VCPU, index)
        self.statistics = kvm.Statistics.of(self.fd)
        size = kvm.ioctl_number(machine.kvm_fd, kvm.GET_VCPU_MMAP_SIZE)
        self._map = mmap.mmap(self.fd, size, mmap.MAP_SHARED)
        self._run = kvm.Run.from_buffer(self._map)
        address = machine.control + layout.MAILBOX_GPA + index * layout.PAGE_BYTES
        self.mailbox = layout.Mailbox.from_address(address)
        # From v6.12 on KVM_SET_SREGS refuses long mode unless the vcpu's CPUID offers it.
        cpuid = kvm.supported_cpuid(machine.kvm_fd)
        kvm.ioctl(self.fd, kvm.SET_CPUID2, ctypes.addressof(cpuid))
        sregs = self._set_sregs(machine.deeper)
        if machine.deeper:
            self._begin_deeper(machine, sregs)
        else:
            self._restart()
        self._orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reports: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._kicked = False
        self._refusals = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def order(self, orders: dict[str, Any]) -> None:
        """Begin an operation: mailbox fields, and manners of the vcpu.

        ``patient`` tries refused accesses again. ``homeless`` goes on where there is no memslot:
        what is read there is nothing, and what is written is lost.
        """
        self._kicked = False
        # A kick that came after the end of the operation before is not meant for this one.
        self._run.immediate_exit = 0
        self._refusals = 0
        ctypes.memset(ctypes.addressof(self.mailbox), 0, ctypes.sizeof(self.mailbox))
        for name, value in orders.items():
            if name not in _MANNERS:
                setattr(self.mailbox, name, value)
        self._orders.put(orders)

    def manage_system(self) -> None:
        """Put the vcpu, which does nothing at present, into system management mode for good.

        It goes on where it was, and sees the memslots of the second address space. Raises OSError
        with EINVAL when KVM was built without that mode.
        """
        events = kvm.VcpuEvents(flags=kvm.EVENTS_HAVE_SMM, smm=1)
        kvm.ioctl(self.fd, kvm.SET_VCPU_EVENTS, ctypes.addressof(events))

    def want_clock(self, gpa: int) -> None:
        """Ask KVM to keep the time at a gpa, as a guest does by writing an MSR."""
        self._set_msr(kvm.SYSTEM_TIME, gpa | 1)

    def progress(self) -> dict[str, int]:
        """The mailbox as it stands, and the refusals so far; may be asked at any time."""
        names = [name for name, *_ in self.mailbox._fields_]
        counters = {name: getattr(self.mailbox, name) for name in names}
        return {**counters, "refusals": self._refusals}

    def report(self, seconds: float) -> dict[str, Any] | None:
        """How the operation ended, or None if it has not after ``seconds``.

        ``end`` is ``done``, ``refused`` (with ``how``), ``crashed`` (with ``how``) or ``kicked``.
        """
        try:
            return self._reports.get(timeout=seconds)
        except queue.Empty:
            return None

    def kick(self) -> None:
        """Make KVM_RUN return, whatever the vcpu is doing."""
        self._kicked = True
        self._run.immediate_exit = 1
        if self._thread.ident is not None:
            signal.pthread_kill(self._thread.ident, signal.SIGUSR1)

    def _serve(self) -> None:
        while True:
            orders = self._orders.get()
            try:
                end = self._carry_out(bool(orders.get("patient")), bool(orders.get("homeless")))
            except OSError as error:
                end = {"end": "crashed", "how": f"KVM_RUN: {error.strerror}"}
            if end["end"] != "done":
                self._abandon()
            self._reports.put({**end, **self.progress()})

    @property
    def refusals(self) -> int:
        """How often a patient vcpu was refused an access in the present operation."""
        return self._refusals

    def _carry_out(self, patient: bool, homeless: bool) -> dict[str, Any]:
        while (end := self._enter(patient, homeless)) is None:
            if self._kicked:
                return {"end": "kicked"}
        return end

    def _enter(self, patient: bool, homeless: bool) -> dict[str, Any] | None:
        """Let the guest run to its next exit; how the operation ended, or None if it goes on."""
        try:
            kvm.ioctl_number(self.fd, kvm.RUN)
        except OSError as error:
            if error.errno == errno.EINTR:
                return None
            if not kvm.refused(error):
                raise
            return self._refused("EFAULT", patient)
        reason = self._run.exit_reason
        if reason == kvm.EXIT_IO:
            port = self._run.exit[0] >> 16 & 0xFFFF
            if port == layout.LEFT_PORT:
                return {"end": "crashed", "how": "its hypervisor got it back"}
            return {"end": "done"}
        if reason == kvm.EXIT_MMIO and not homeless:
            # Which an access that KVM had to emulate ends in, instead of EFAULT. It may not be
            # completed, which would be a read of nothing; an operation that goes on begins anew.
            if patient:
                self._abandon()
            return self._refused("KVM_EXIT_MMIO", patient)
        if reason == kvm.EXIT_MMIO:
            return None
        return {"end": "crashed", "how": f"KVM_EXIT_{kvm.EXIT_NAMES.get(reason, str(reason))}"}

    def _refused(self, how: str, patient: bool) -> dict[str, Any] | None:
        """The end of an operation that was refused an access, or None if it is tried again."""
        if not patient:
            return {"end": "refused", "how": how}
        self._refusals += 1
        # Nothing announces that the VMM's memory became accessible again.
        time.sleep(0.001)
        return None

    def _abandon(self) -> None:
        """Leave an operation in the middle: complete a pending exit, then start over."""
        self._run.immediate_exit = 1
        with contextlib.suppress(OSError):  # EINTR is what immediate_exit asks for
            kvm.ioctl_number(self.fd, kvm.RUN)
        self._run.immediate_exit = 0
        self._restart()

    def _restart(self) -> None:
        """Put the vcpu at the payload's entry with its number in rdi, however deep it is."""
        self._set_regs(layout.CODE_GPA)

    def _begin_deeper(self, machine: VirtualMachine, sregs: kvm.Sregs) -> None:
        """Put the vcpu before the VMRUN that enters the payload, and lay out what that needs."""
        own = self.index * layout.PAGE_BYTES
        block = nested.control_block(sregs, self._stack)
        ctypes.memmove(machine.control + layout.VMCB_GPA + own, block, len(block))
        self._set_msr(nested.HOST_SAVE_ADDRESS, layout.HOST_SAVE_GPA + own)
        self._set_regs(layout.NESTED_ENTRY_GPA, layout.VMCB_GPA + own)

    @property
    def _stack(self) -> int:
        return layout.STACK_TOP_GPA + (self.index + 1) * layout.PAGE_BYTES - 8

    def _set_regs(self, rip: int, rax: int = 0) -> None:
        regs = kvm.Regs(rip=rip, rsp=self._stack, rdi=self.index, rax=rax, rflags=2)
        kvm.ioctl(self.fd, kvm.SET_REGS, ctypes.addressof(regs))

    def _set_msr(self, index: int, data: int) -> None:
        """Set an MSR; raises OSError with EINVAL for one that KVM does not know."""
        msrs = kvm.Msrs(nmsrs=1, index=index, data=data)
        # It returns how many it set.
        if kvm.ioctl(self.fd, kvm.SET_MSRS, ctypes.addressof(msrs)) != 1:
            raise OSError(errno.EINVAL, f"KVM does not take MSR {index:#x}")

    def _set_sregs(self, deeper: bool) -> kvm.Sregs:
        sregs = kvm.Sregs()
        kvm.ioctl(self.fd, kvm.GET_SREGS, ctypes.addressof(sregs))
        for name, values in (
            ("cs", _CODE_SEGMENT),
            *((n, _DATA_SEGMENT) for n in ("ds", "es", "ss")),
        ):
            segment = getattr(sregs, name)
            for field, value in values.items():
                setattr(segment, field, value)
            segment.selector = 0x8 if name == "cs" else 0x10
        sregs.cr0 = _CR0
        sregs.cr3 = layout.PAGE_TABLES_GPA
        sregs.cr4 = _CR4_PAE
        sregs.efer = _EFER | (nested.EFER_SVME if deeper else 0)
        kvm.ioctl(self.fd, kvm.SET_SREGS, ctypes.addressof(sregs))
        return sregs
