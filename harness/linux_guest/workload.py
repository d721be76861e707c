# SPDX-License-Identifier: GPL-2.0-only
"""More that runs in a Linux guest: further workloads, and writes to its disk."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from harness.errors import LinuxGuestError
from harness.linux_guest.beats import Counters
from harness.linux_guest.guest import LinuxGuest, Window

_START = """
mkfifo "$3" "$4"
/sbin/workload "$1" "$2" "$3" "$4" more $5 >/dev/null 2>&1 &
echo $!
"""

# A PCI device is switched on by whoever maps its memory; ivshmem is 1af4:1110.
_FIND_WINDOW = """
for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/device")" = 0x1110 ] || continue
    echo 1 >"$device/enable"
    sed -n 3p "$device/resource"
    echo "$device/resource2_wc"
done
"""

_TOUCH = 'dd if=/dev/zero of=/tmp/touched bs=1M count="$1" && rm /tmp/touched'

_WRITE = "while dd if=/dev/zero of=/dev/vda bs=1M conv=fsync; do :; done >/dev/null 2>&1 &"

_PAGE_BYTES = 4096

_WINDOW_FILES = {"memfd": "/memfd:", "file": r".*\.window$"}
"""How the file is called to which a descriptor of QEMU leads."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """A further workload in a guest; orders are as for the guest's own."""

    guest: LinuxGuest
    pid: int
    orders: str
    answers: str

    def order(self, order: str) -> Counters:
        """Have it do something, and return its counters once that is done."""
        return self.guest.order(order, self.orders, self.answers)


@contextlib.contextmanager
def second_workload(guest: LinuxGuest, mib: int, seed: int, file: str = "") -> Iterator[Workload]:
    """A further workload while the context is open, on memory of its own or that of a file."""
    orders, answers = f"/run/more-{seed}.orders", f"/run/more-{seed}.answers"
    words = ["sh", "-c", _START, "sh", str(mib), str(seed), orders, answers, file]
    started = guest.run(words).stdout
    if not started.strip().isdigit():
        raise LinuxGuestError(f"No second workload was started in {guest.name}.")
    yield Workload(guest, int(started), orders, answers)
    guest.run(["sh", "-c", 'kill -KILL "$1"; rm "$2" "$3"', "sh", started.strip(), orders, answers])


@dataclasses.dataclass(frozen=True)
class Shared:
    """Memory that a guest shares with others: what oracles see of it, and its files.

    ``inside`` is the file in the guest that maps it, ``outside`` the one in the host.
    """

    window: Window
    inside: str
    outside: str


def shared_window(guest: LinuxGuest) -> Shared:
    """The memory that a guest shares through a PCI device.

    Raises LinuxGuestError when the guest has none.
    """
    found = guest.run(["sh", "-c", _FIND_WINDOW]).stdout.split()
    if len(found) != 4:
        raise LinuxGuestError(f"{guest.name} finds no device with shared memory.")
    first, last = int(found[0], 16), int(found[1], 16)
    window = guest.window(first, (last + 1 - first) // _PAGE_BYTES)
    number = guest.descriptor(_WINDOW_FILES[guest.spec.window])
    return Shared(window, found[3], f"/proc/{guest.pid}/fd/{number}")


def touch(guest: LinuxGuest, mib: int) -> None:
    """Have a guest use so much of its memory for a moment, as for a file."""
    guest.run(["sh", "-c", _TOUCH, "sh", str(mib)])


def write_to_disk(guest: LinuxGuest) -> None:
    """Have a guest write all of its disk, again and again until the guest ends."""
    guest.run(["sh", "-c", _WRITE])
