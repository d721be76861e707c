# SPDX-License-Identifier: GPL-2.0-only
"""What the scenarios with Linux guests have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from harness.guest.session import Session
from harness.linux_guest.guest import LinuxGuest
from harness.linux_guest.home import LinuxGuests
from harness.linux_guest.spec import LinuxGuestSpec
from harness.oracle.evidence import Evidence

MIB = 1 << 20


@contextlib.contextmanager
def booted(guests: LinuxGuests, *specs: LinuxGuestSpec) -> Iterator[tuple[LinuxGuest, ...]]:
    """A guest for each description."""
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(guests.guest(spec)) for spec in specs)


@contextlib.contextmanager
def limited(guests: LinuxGuests, mib: int) -> Iterator[None]:
    """All guests together have so much memory while the context is open.

    Beyond memory.high a process waits for reclaim; beyond memory.max it would be killed when the
    disk is slow, which is no promise of this kind broken.
    """
    guests.limit("memory.high", mib * MIB)
    yield
    guests.limit("memory.high", "max")


def verified(guests: Sequence[LinuxGuest], evidence: Evidence) -> None:
    """Each guest compares all of its workload once more; nothing is wrong, in it or around it."""
    for guest in guests:
        evidence.content(guest.order("check").visit)
    for guest in guests:
        evidence.sound(guest)
        guest.watch()


def swapped(session: Session) -> tuple[int, int]:
    """How many pages the host has written to swap, and how many it has read, since its boot."""
    lines = dict(line.split() for line in session.read("/proc/vmstat").splitlines())
    return int(lines["pswpout"]), int(lines["pswpin"])
