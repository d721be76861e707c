# SPDX-License-Identifier: GPL-2.0-only
"""VMs that nobody uses, which keep the kernel from patching its own code at each guest.

KVM has static keys that are on while there is a VM (the scheduler's preempt notifiers), a vcpu
without a local APIC in the kernel, and a vcpu whose APIC has not been enabled by software yet, as
each guest of QEMU's in the first second of its boot (apic_sw_disabled, read in 6.12). A kernel with
CONFIG_JUMP_LABEL rewrites the code around them when the first one comes and when the last one goes,
on all CPUs and under their feet, which QEMU's emulation gets wrong (see docs/emulation.md). With
VMs that stay it happens once a host.
"""

from __future__ import annotations

import contextlib
import os
import signal

from harness.probe import kvm
from harness.probe.system import checked, libc

_DEVICE = "/dev/kvm"
_PR_SET_PDEATHSIG = 1


def keep_a_vm() -> int:
    """Fork a process that has two VMs with one vcpu each, and that dies with this one; its id.

    A host on which there can be no VM is left as it is: guests will say so.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    with contextlib.suppress(BaseException):  # it must not return into its parent's work
        checked(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        machines = _machine(device, apic=False), _machine(device, apic=True)
        while machines and os.getppid() == parent:
            signal.pause()
    os._exit(0)


def _machine(device: int, *, apic: bool) -> tuple[int, ...]:
    """The descriptors that keep a VM and its vcpu, which has an APIC in the kernel or has none."""
    vm = kvm.ioctl_number(device, kvm.CREATE_VM)
    if apic:
        kvm.ioctl_number(vm, kvm.CREATE_IRQCHIP)
    return vm, kvm.ioctl_number(vm, kvm.CREATE_VCPU, 0)
