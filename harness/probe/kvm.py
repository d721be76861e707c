# SPDX-License-Identifier: GPL-2.0-only
"""The part of the KVM API that the probe needs, through ctypes on /dev/kvm.

Numbers and structures are those of include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h,
which are ABI.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from harness.probe.system import checked, libc

_KVMIO = 0xAE


def _io(number: int) -> int:
    return (_KVMIO << 8) | number


def _ior(number: int, size: int) -> int:
    return (2 << 30) | (size << 16) | _io(number)


def _iow(number: int, size: int) -> int:
    return (1 << 30) | (size << 16) | _io(number)


class MemoryRegion(ctypes.Structure):
    """struct kvm_userspace_memory_region; a size of 0 deletes the slot."""

    _fields_ = (
        ("slot", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("guest_phys_addr", ctypes.c_uint64),
        ("memory_size", ctypes.c_uint64),
        ("userspace_addr", ctypes.c_uint64),
    )


class Regs(ctypes.Structure):
    """struct kvm_regs."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
            "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
        )
    )  # fmt: skip


class Segment(ctypes.Structure):
    """struct kvm_segment."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("selector", ctypes.c_uint16),
        *((name, ctypes.c_uint8) for name in
          ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable", "padding")),
    )  # fmt: skip


class Dtable(ctypes.Structure):
    """struct kvm_dtable."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint16),
        ("padding", ctypes.c_uint16 * 3),
    )


class Sregs(ctypes.Structure):
    """struct kvm_sregs."""

    _fields_ = (
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", Dtable),
        ("idt", Dtable),
        *((name, ctypes.c_uint64)
          for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", ctypes.c_uint64 * 4),
    )  # fmt: skip


class VcpuEvents(ctypes.Structure):
    """struct kvm_vcpu_events, of which the probe sets the part on system management mode."""

    _fields_ = (
        ("head", ctypes.c_uint8 * 20),
        ("flags", ctypes.c_uint32),
        ("smm", ctypes.c_uint8),
        ("tail", ctypes.c_uint8 * 39),
    )


class Msrs(ctypes.Structure):
    """struct kvm_msrs with one entry."""

    _fields_ = (
        ("nmsrs", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("index", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("data", ctypes.c_uint64),
    )


class ClockData(ctypes.Structure):
    """struct kvm_clock_data."""

    _fields_ = (("clock", ctypes.c_uint64), ("rest", ctypes.c_uint8 * 40))


class Run(ctypes.Structure):
    """The head of struct kvm_run, up to the part of the exit union that the probe reads."""

    _fields_ = (
        ("request_interrupt_window", ctypes.c_uint8),
        ("immediate_exit", ctypes.c_uint8),
        ("padding1", ctypes.c_uint8 * 6),
        ("exit_reason", ctypes.c_uint32),
        ("ready_for_interrupt_injection", ctypes.c_uint8),
        ("if_flag", ctypes.c_uint8),
        ("flags", ctypes.c_uint16),
        ("cr8", ctypes.c_uint64),
        ("apic_base", ctypes.c_uint64),
        # Of the union only the first words are read: for KVM_EXIT_IO bits 16 to 31 of word 0 are
        # the port, for KVM_EXIT_MMIO it is phys_addr, for KVM_EXIT_MEMORY_FAULT word 1 the gpa.
        ("exit", ctypes.c_uint64 * 4),
    )


_MOST_CPUID_ENTRIES = 256
_CPUID_BYTES = 8 + 40 * _MOST_CPUID_ENTRIES

GET_API_VERSION = _io(0x00)
CREATE_VM = _io(0x01)
CHECK_EXTENSION = _io(0x03)
GET_VCPU_MMAP_SIZE = _io(0x04)
GET_SUPPORTED_CPUID = _ior(0x05, 8) | _iow(0x05, 8)
CREATE_VCPU = _io(0x41)
CREATE_IRQCHIP = _io(0x60)
SET_USER_MEMORY_REGION = _iow(0x46, ctypes.sizeof(MemoryRegion))
SET_TSS_ADDR = _io(0x47)
SET_CLOCK = _iow(0x7B, ctypes.sizeof(ClockData))
GET_CLOCK = _ior(0x7C, ctypes.sizeof(ClockData))
RUN = _io(0x80)
SET_REGS = _iow(0x82, ctypes.sizeof(Regs))
GET_SREGS = _ior(0x83, ctypes.sizeof(Sregs))
SET_SREGS = _iow(0x84, ctypes.sizeof(Sregs))
SET_MSRS = _iow(0x89, 8)
SET_CPUID2 = _iow(0x90, 8)
SET_VCPU_EVENTS = _iow(0xA0, ctypes.sizeof(VcpuEvents))
GET_STATS_FD = _io(0xCE)

EVENTS_HAVE_SMM = 8
"""KVM_VCPUEVENT_VALID_SMM: the field on system management mode counts."""

SYSTEM_TIME = 0x4B564D01
"""MSR_KVM_SYSTEM_TIME_NEW: where the guest wants its clock, and in bit 0 whether."""

MEM_LOG_DIRTY_PAGES = 1
MEM_READONLY = 2
"""Flags of a memslot."""

SECOND_ADDRESS_SPACE = 1 << 16
"""Added to a memslot's number: what vcpus in system management mode see."""

EXIT_IO = 2
EXIT_MMIO = 6
EXIT_SHUTDOWN = 8
EXIT_NAMES = {
    0: "UNKNOWN", 1: "EXCEPTION", 2: "IO", 5: "HLT", 6: "MMIO", 8: "SHUTDOWN", 9: "FAIL_ENTRY",
    10: "INTR", 17: "INTERNAL_ERROR", 24: "SYSTEM_EVENT", 39: "MEMORY_FAULT",
}  # fmt: skip


def ioctl(fd: int, request: int, argument: object = None) -> int:
    """Call ioctl(2) with the GIL released; raises OSError."""
    return checked(libc.ioctl(fd, request, argument))


def ioctl_number(fd: int, request: int, argument: int = 0) -> int:
    """Like ioctl, for requests whose argument is a number instead of a pointer."""
    return ioctl(fd, request, ctypes.c_void_p(argument))


def supported_cpuid(kvm_fd: int) -> ctypes.Array[ctypes.c_char]:
    """struct kvm_cpuid2 with everything that KVM can offer, ready for SET_CPUID2."""
    buffer = ctypes.create_string_buffer(_CPUID_BYTES)
    struct.pack_into("<I", buffer, 0, _MOST_CPUID_ENTRIES)
    ioctl(kvm_fd, GET_SUPPORTED_CPUID, ctypes.addressof(buffer))
    return buffer


def functions(cpuid: ctypes.Array[ctypes.c_char]) -> dict[int, tuple[int, int, int, int]]:
    """What struct kvm_cpuid2 offers: eax, ebx, ecx and edx of each function, the last subleaf."""
    (count,) = struct.unpack_from("<I", cpuid, 0)
    entries = (struct.unpack_from("<7I", cpuid, 8 + 40 * index) for index in range(count))
    return {function: (a, b, c, d) for function, _, _, a, b, c, d in entries}


class Statistics:
    """The counters of a VM or a vcpu, by name, read without disturbing it.

    ``fd`` is what KVM_GET_STATS_FD returned; any process may read from it. Opened before the vcpu
    first runs, because a vcpu's ioctls wait until it leaves KVM_RUN. It is None, and there are no
    counters, before commit fcfe1baeddbf ("KVM: stats: Support binary stats retrieval for a VM")
    (in v5.14). Histograms (more than one value) are left out.
    """

    def __init__(self, fd: int | None) -> None:
        self.fd = fd
        self._offsets: dict[str, int] = {}
        self._data_bytes = 0
        if fd is not None:
            self._describe(fd)

    def _describe(self, fd: int) -> None:
        _, name_bytes, count, _, at, self._at_data = struct.unpack("<6I", os.pread(fd, 24, 0))
        size = 16 + name_bytes
        descriptors = os.pread(fd, size * count, at)
        for start in range(0, len(descriptors), size):
            _, _, values, offset, _ = struct.unpack_from("<IhHII", descriptors, start)
            self._data_bytes = max(self._data_bytes, offset + 8 * values)
            if values == 1:
                name = descriptors[start + 16 : start + size].split(b"\0", 1)[0].decode()
                self._offsets[name] = offset

    @classmethod
    def of(cls, fd: int) -> Statistics:
        """The counters of the VM or vcpu behind a descriptor."""
        try:
            return cls(ioctl_number(fd, GET_STATS_FD))
        except OSError as error:
            # What a vcpu does not know, it calls an invalid argument.
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            return cls(None)

    def close(self) -> None:
        """Close the descriptor, which holds the VM."""
        if self.fd is not None:
            os.close(self.fd)

    def read(self) -> dict[str, int]:
        """The counters as they stand."""
        if self.fd is None:
            return {}
        data = os.pread(self.fd, self._data_bytes, self._at_data)
        return {
            name: struct.unpack_from("<Q", data, offset)[0]
            for name, offset in self._offsets.items()
        }


def refused(error: OSError) -> bool:
    """Whether KVM_RUN failed because the primary MMU refuses the access (EFAULT)."""
    return error.errno == errno.EFAULT
