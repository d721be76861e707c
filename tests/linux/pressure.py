# SPDX-License-Identifier: GPL-2.0-only
"""What the scenarios with Linux guests have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from harness.deadline import Deadline
from harness.guest.session import Session
from harness.linux_guest.guest import LinuxGuest
from harness.linux_guest.home import LinuxGuests
from harness.linux_guest.spec import LinuxGuestSpec
from harness.oracle.evidence import Evidence

MIB = 1 << 20
RECLAIM_SECONDS = 10.0

# A direct read has what the disk has, but for pages that are dirty, which it writes first.
COMPARE = """
dd if="$1" of="$2" iflag=direct bs=1M 2>&1 &&
[ "$(stat -L -c %s "$1")" = "$(stat -c %s "$2")" ] &&
cmp -l "$2" "$1" | wc -l
"""


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
    guests.confine(mib * MIB)
    yield
    guests.limit("memory.high", "max")


def verified(guests: Sequence[LinuxGuest], evidence: Evidence) -> None:
    """Each guest compares all of its workload once more; nothing is wrong, in it or around it."""
    for guest in guests:
        evidence.content(guest.order("check").visit)
    audited(guests, evidence)


def audited(guests: Sequence[LinuxGuest], evidence: Evidence) -> None:
    """Nothing is wrong around any guest, nor with what it has compared by itself so far."""
    for guest in guests:
        evidence.sound(guest)
        guest.watch()


def swapped(session: Session) -> tuple[int, int]:
    """How many pages the host has written to swap, and how many it has read, since its boot."""
    lines = dict(line.split() for line in session.read("/proc/vmstat").splitlines())
    return int(lines["pswpout"]), int(lines["pswpin"])


def bytes_not_on_disk(guest: LinuxGuest, path: str) -> int:
    """How many bytes of a file of the host are otherwise on its disk than in memory."""
    copy = f"/run/{guest.name}.copy"
    said = guest.on_host(["sh", "-c", COMPARE, "sh", path, copy]).stdout
    guest.on_host(["rm", copy])
    return int(said.split()[-1])


def left_to_file(guest: LinuxGuest, wanted: int) -> int:
    """Press a guest whose memory is a file; how much of it is in the file alone now, in bytes."""
    before = guest.memory_statistics()["file"]
    for _ in Deadline.after(RECLAIM_SECONDS * guest.pace, "Reclaim").ticks():
        guest.session.ask("reclaim", cgroup=guest.cgroup, size=wanted)
        left = before - guest.memory_statistics()["file"]
        if left >= wanted:
            break
    return left
