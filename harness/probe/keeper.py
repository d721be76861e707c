# SPDX-License-Identifier: GPL-2.0-only
"""A VM that nobody uses, which keeps the kernel from patching its own code at each guest.

KVM has static keys that are on while there is a VM (the scheduler's preempt notifiers) and a vcpu
without a local APIC in the kernel. A kernel with CONFIG_JUMP_LABEL rewrites the code around them
when the first one comes and when the last one goes, on all CPUs and under their feet, which QEMU
7.2's emulation gets wrong (see docs/emulation.md). With one VM that stays it happens once a host.
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
    """Fork a process that has a VM with one vcpu, and that dies with this one; its id.

    A host on which there can be no VM is left as it is: guests will say so.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    with contextlib.suppress(BaseException):  # it must not return into its parent's work
        checked(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
        machine = _machine()
        while machine and os.getppid() == parent:
            signal.pause()
    os._exit(0)


def _machine() -> tuple[int, ...]:
    """The descriptors that keep the VM and its vcpu."""
    device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    vm = kvm.ioctl_number(device, kvm.CREATE_VM)
    return device, vm, kvm.ioctl_number(vm, kvm.CREATE_VCPU, 0)
