# SPDX-License-Identifier: GPL-2.0-only
"""A guest inside the guest: what a vcpu needs to run the payload one level deeper, by SVM.

The vcpu begins as a hypervisor of one instruction, VMRUN. The guest that it enters sees the same
memory at the same addresses, through nested page tables that the hypervisor owns and KVM shadows.
Of what that guest does, only VMRUN is intercepted, so its exits go to KVM and to the VMM, and
nobody above needs to know that it is one level deeper.

Offsets and bits are those of the AMD64 Architecture Programmer's Manual, volume 2, appendix B.
"""

from __future__ import annotations

import errno
import struct
from pathlib import Path

from harness.probe import kvm, layout

DEVICE = Path("/dev/kvm")

HOST_SAVE_ADDRESS = 0xC0010117
"""MSR_VM_HSAVE_PA: without a host save area there is no VMRUN."""

EFER_SVME = 1 << 12

_SVM_FUNCTION, _SVM_BIT = 0x80000001, 1 << 2
_FEATURES_FUNCTION, _NESTED_PAGING_BIT = 0x8000000A, 1

_SAVED_STATE = 0x400
_CONTROLS = {
    0x010: ("I", 1),  # intercept VMRUN, as is required
    0x040: ("Q", layout.PERMISSIONS_GPA),
    0x048: ("Q", layout.PERMISSIONS_GPA + 4 * layout.PAGE_BYTES),
    0x058: ("I", 1),  # an address space of its own; 0 is the hypervisor's
    0x090: ("Q", 1),  # nested paging
    0x0B0: ("Q", layout.NESTED_TABLES_GPA),
}
_PAT_AFTER_RESET = 0x0007040600070406


def require() -> None:
    """Raise OSError with ENOTSUP unless KVM offers its guests SVM with nested paging."""
    with DEVICE.open("rb") as device:
        offered = kvm.functions(kvm.supported_cpuid(device.fileno()))
    _, _, ecx, _ = offered.get(_SVM_FUNCTION, (0, 0, 0, 0))
    _, _, _, edx = offered.get(_FEATURES_FUNCTION, (0, 0, 0, 0))
    if not (ecx & _SVM_BIT and edx & _NESTED_PAGING_BIT):
        raise OSError(errno.ENOTSUP, "KVM offers its guests no SVM with nested paging")


def control_block(sregs: kvm.Sregs, stack: int) -> bytes:
    """A VMCB for a guest that begins at the payload's entry with the registers of ``sregs``."""
    block = bytearray(layout.PAGE_BYTES)

    def put(offset: int, form: str, *values: int) -> None:
        struct.pack_into(f"<{form}", block, offset, *values)

    for offset, (form, value) in _CONTROLS.items():
        put(offset, form, value)
    for index, name in enumerate(("es", "cs", "ss", "ds")):
        put(_SAVED_STATE + 16 * index, "HHIQ", *_segment(getattr(sregs, name)))
    for offset, value in {
        0x0D0: sregs.efer | EFER_SVME,
        0x148: sregs.cr4,
        0x150: sregs.cr3,
        0x158: sregs.cr0,
        0x160: 0x400,  # dr7 and dr6, as after a reset
        0x168: 0xFFFF0FF0,
        0x170: 2,  # rflags
        0x178: layout.CODE_GPA,
        0x1D8: stack,
        0x268: _PAT_AFTER_RESET,
    }.items():
        put(_SAVED_STATE + offset, "Q", value)
    return bytes(block)


def _segment(segment: kvm.Segment) -> tuple[int, int, int, int]:
    """Selector, attributes, limit and base, as a VMCB has them."""
    attributes = (
        segment.type
        | segment.s << 4
        | segment.dpl << 5
        | segment.present << 7
        | segment.avl << 8
        | segment.l << 9
        | segment.db << 10
        | segment.g << 11
    )
    return segment.selector, attributes, segment.limit, segment.base
