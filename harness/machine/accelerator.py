# SPDX-License-Identifier: GPL-2.0-only
"""Chooses between nested KVM and emulation, by asking the kernel of L0 what it really offers."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from harness.errors import MachineUnfitError, UsageError

REQUESTS: Final = ("auto", "kvm", "tcg")

_DEVICE = Path("/dev/kvm")

_KVM_GET_SUPPORTED_CPUID = 0xC008AE05
"""_IOWR(0xAE, 0x05, struct kvm_cpuid2), include/uapi/linux/kvm.h."""

_HEADER = struct.Struct("<II")
_ENTRY = struct.Struct("<10I")
"""struct kvm_cpuid2 and struct kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx."""

_MOST_ENTRIES = 4096

_VMX = (0x1, 5)
_SVM = (0x80000001, 2)
"""Leaf, and bit in ecx."""


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """How QEMU runs the host: ``name`` is kvm or tcg, ``reason`` a sentence for people."""

    name: str
    reason: str

    @property
    def cpu(self) -> str:
        """QEMU's CPU model that offers nested virtualization under this accelerator."""
        return "host" if self.name == "kvm" else "max"


def choose(requested: str, device: Path = _DEVICE) -> Accelerator:
    """The accelerator to use for ``auto``, ``kvm`` or ``tcg``.

    Raises UsageError for any other word, and MachineUnfitError when kvm is asked for on a
    machine that has no nested virtualization.
    """
    if requested not in REQUESTS:
        raise UsageError(
            f"There is no accelerator {requested!r}; choose one of {', '.join(REQUESTS)}."
        )
    if requested == "tcg":
        return Accelerator("tcg", "TCG with emulated SVM, because that was asked for.")
    able, why = nested_kvm(device)
    if able:
        return Accelerator("kvm", f"Nested KVM: {why}.")
    if requested == "kvm":
        raise MachineUnfitError(
            f"This machine cannot run hosts under KVM: {why}. Use --accel tcg, or a machine with "
            "nested virtualization."
        )
    return Accelerator("tcg", f"TCG with emulated SVM, because {why}.")


def nested_kvm(device: Path = _DEVICE) -> tuple[bool, str]:
    """Whether KVM's CPU model here has VMX or SVM, and why (part of a sentence).

    A /dev/kvm that opens proves nothing: the model it offers may lack both.
    """
    try:
        handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return False, _why_closed(device, error)
    try:
        leaves = _supported_cpuid(handle)
    except OSError as error:
        return False, f"{device} does not tell its CPU model ({error.strerror})"
    finally:
        os.close(handle)
    if leaves.get(_SVM[0], 0) >> _SVM[1] & 1:
        return True, f"{device} offers a CPU model with SVM"
    if leaves.get(_VMX[0], 0) >> _VMX[1] & 1:
        return True, f"{device} offers a CPU model with VMX"
    return False, f"{device} offers a CPU model with neither VMX nor SVM"


def _why_closed(device: Path, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"there is no {device}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"this user may not open {device} (join the group kvm)"
    return f"{device} cannot be opened ({error.strerror})"


def _supported_cpuid(handle: int) -> dict[int, int]:
    """The ecx of each leaf that KVM can offer to a guest."""
    count = 64
    while True:
        buffer = bytearray(_HEADER.size + count * _ENTRY.size)
        _HEADER.pack_into(buffer, 0, count, 0)
        try:
            fcntl.ioctl(handle, _KVM_GET_SUPPORTED_CPUID, buffer)
        except OSError as error:
            if error.errno != errno.E2BIG or count >= _MOST_ENTRIES:
                raise
            count *= 2
            continue
        return parse_cpuid(bytes(buffer))


def parse_cpuid(buffer: bytes) -> dict[int, int]:
    """The ecx of each leaf in a struct kvm_cpuid2; the first index of a leaf counts."""
    count, _ = _HEADER.unpack_from(buffer)
    leaves: dict[int, int] = {}
    for position in range(count):
        entry = _ENTRY.unpack_from(buffer, _HEADER.size + position * _ENTRY.size)
        leaves.setdefault(entry[0], entry[5])
    return leaves
