# SPDX-License-Identifier: GPL-2.0-only
"""Creating VMs by the dozen, under signals and without memory, and forking without memory."""

from __future__ import annotations

import collections
import errno
import itertools
import os
import signal
import threading
from collections.abc import Callable

from harness.probe import kvm

_MOST_FAULTS = 5000
_NO_TYPE = 0xFFFF
"""A machine type that x86 does not have, which is found out in the middle of the creation."""


def storm(count: int, rounds: int) -> int:
    """Create ``count`` VMs on this process's memory and close them, ``rounds`` times over."""
    kvm_fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    created = 0
    try:
        for _ in range(rounds):
            machines = [kvm.ioctl_number(kvm_fd, kvm.CREATE_VM) for _ in range(count)]
            created += len(machines)
            for machine in machines:
                os.close(machine)
    finally:
        os.close(kvm_fd)
    return created


def refused(attempts: int) -> dict[str, int]:
    """Try to create VMs of a type that there is not; how often which errno, or "ok"."""
    kvm_fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        return dict(collections.Counter(_create(kvm_fd, _NO_TYPE) for _ in range(attempts)))
    finally:
        os.close(kvm_fd)


def under_signals(attempts: int) -> dict[str, int]:
    """Try to create VMs while signals rain on this thread; how often which errno, or "ok"."""
    kvm_fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        return in_a_rain_of_signals(lambda: _create(kvm_fd), attempts)
    finally:
        os.close(kvm_fd)


def without_memory() -> dict[str, int]:
    """Create a VM with the first allocation failing, then the second, until none fails.

    Returns how often which errno came, or "ok" where KVM could do without.
    """
    kvm_fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        return with_each_allocation_failing(lambda: _create(kvm_fd))
    finally:
        os.close(kvm_fd)


def in_a_rain_of_signals(attempt: Callable[[], str], attempts: int) -> dict[str, int]:
    """Attempt something while signals rain on this thread; how often it ended in which way."""
    target = threading.get_ident()
    over = threading.Event()

    def rain() -> None:
        while not over.is_set():
            signal.pthread_kill(target, signal.SIGUSR1)

    thread = threading.Thread(target=rain, daemon=True)
    thread.start()
    try:
        return dict(collections.Counter(attempt() for _ in range(attempts)))
    finally:
        over.set()
        thread.join()


def with_each_allocation_failing(attempt: Callable[[], str], times: int = 1) -> dict[str, int]:
    """Attempt something with the first allocation failing, then the second, until none fails.

    Each is made to fail so many ``times``. Returns how often it ended in which way. Needs
    CONFIG_FAULT_INJECTION with fail-nth: commit e41d58185f14 ("fault-inject: support systematic
    fault injection") (in v4.13).
    """
    return _with_failures(attempt, 1, times)


def forks_without_memory() -> dict[str, int]:
    """Fork this process with each third allocation failing in turn, until none fails.

    Returns how often which errno came, or "ok" where the kernel could do without. Page tables are
    allocated in a row, so some of each mapping are among the third.
    """
    return _with_failures(_fork, 3)


def _with_failures(attempt: Callable[[], str], step: int, times: int = 1) -> dict[str, int]:
    """How attempts end of which each ``step``-th allocation fails, from the first on."""
    ends: collections.Counter[str] = collections.Counter()
    knob = os.open("/proc/thread-self/fail-nth", os.O_RDWR | os.O_CLOEXEC)
    try:
        numbers = range(1, _MOST_FAULTS, step)
        for number in itertools.chain.from_iterable([each] * times for each in numbers):
            os.pwrite(knob, str(number).encode(), 0)
            end = attempt()
            # It counts down, and stands at 0 once it has made an allocation fail.
            left = int(os.pread(knob, 16, 0))
            os.pwrite(knob, b"0", 0)
            if left:
                return dict(ends)
            ends[end] += 1
    finally:
        os.close(knob)
    raise RuntimeError(f"it has not gone well after {_MOST_FAULTS} failures")


def _fork() -> str:
    try:
        pid = os.fork()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "ok"


def _create(kvm_fd: int, kind: int = 0) -> str:
    return ended(lambda: os.close(kvm.ioctl_number(kvm_fd, kvm.CREATE_VM, kind)))


def ended(action: Callable[[], object]) -> str:
    """Do something; "ok", or the name of the errno that came of it."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return "ok"
