# SPDX-License-Identifier: GPL-2.0-only
"""Creating VMs by the dozen, under signals and without memory, and forking without memory."""

from __future__ import annotations

import collections
import errno
import itertools
import os
import signal
import time
from collections.abc import Callable
from typing import TypeVar

from harness.probe import kvm

Made = TypeVar("Made")

_MOST_FAULTS = 5000
_UNDISTURBED = 3
_LONGER = 1.25
_LEAST_SECONDS = 1e-6
"""A timer of nothing is none."""

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
    """Try to create VMs with a signal at some moment of it; how often which errno, or "ok"."""
    kvm_fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        return whenever_a_signal_comes(
            lambda: kvm.ioctl_number(kvm_fd, kvm.CREATE_VM), os.close, attempts
        )
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


def whenever_a_signal_comes(
    make: Callable[[], Made], undo: Callable[[Made], object], attempts: int
) -> dict[str, int]:
    """Make something with a signal at another moment of it each time; how often it ended how.

    The moments are spread over somewhat longer than it takes when no signal comes, which is found
    out first, by attempts that count as well. Wants the main thread: that gets signals.
    """
    signal.signal(signal.SIGALRM, lambda *_: None)
    ends: collections.Counter[str] = collections.Counter()

    def attempt(moment: float) -> float:
        made: list[Made] = []
        began = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, moment)
        try:
            end = ended(lambda: made.append(make()))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.monotonic() - began
        ends[end] += 1
        for each in made:
            undo(each)
        return seconds

    alone = min(attempt(0) for _ in range(_UNDISTURBED))
    for number in range(1, attempts + 1):
        attempt(max(alone * _LONGER * number / attempts, _LEAST_SECONDS))
    return dict(ends)


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
