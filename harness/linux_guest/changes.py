# SPDX-License-Identifier: GPL-2.0-only
"""What QEMU does to the memory of a Linux guest that runs.

Balloons, DIMMs, memory that grows and shrinks, migration, copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from harness.deadline import Deadline
from harness.errors import LinuxGuestError
from harness.image import layout
from harness.linux_guest.guest import LinuxGuest, Window
from harness.linux_guest.spec import ELASTIC

_SECONDS = 120.0
_PAGES_PER_MIB = 256
_PAGE_BYTES = 4096


def set_balloon(guest: LinuxGuest, mib: int) -> None:
    """Have the guest's balloon leave it so much memory, and wait until it does."""
    guest.monitor("balloon", {"value": mib << 20})
    deadline = _soon(guest, "The balloon")
    deadline.poll(lambda: _balloon_mib(guest) == mib, "The guest does not give memory back.")


def free_mib(guest: LinuxGuest) -> int:
    """How much of the guest's memory its kernel says is free."""
    return _memory_mib(guest, "MemFree")


def plug(guest: LinuxGuest, name: str, mib: int) -> Window:
    """Plug in more memory, and say where it is once the guest has it; a multiple of 128 MiB."""
    total = _total_mib(guest)
    backend = {"qom-type": "memory-backend-ram", "id": f"{name}-memory", "size": mib << 20}
    guest.monitor("object-add", dict(backend))
    guest.monitor("device_add", {"driver": "pc-dimm", "id": name, "memdev": f"{name}-memory"})
    _await_memory(guest, total + mib)
    return guest.window(int(_memory_device(guest, name)["addr"]), mib * _PAGES_PER_MIB)


def unplug(guest: LinuxGuest, name: str) -> None:
    """Have the guest let go of memory that was plugged in, and unmap it."""
    before = len(guest.qmp.events())
    guest.monitor("device_del", {"id": name})
    guest.qmp.wait_event("DEVICE_DELETED", _soon(guest, f"Unplugging {name}"), before)
    guest.monitor("object-del", {"id": f"{name}-memory"})


def elastic(guest: LinuxGuest) -> Window:
    """Where the memory is that resize() makes grow and shrink, all that there may ever be of it."""
    device = _memory_device(guest, ELASTIC)
    return guest.window(int(device["memaddr"]), int(device["max-size"]) // _PAGE_BYTES)


def resize(guest: LinuxGuest, mib: int) -> None:
    """Have the guest take or give back memory of its virtio-mem device, until it has so much."""
    total = _total_mib(guest)
    more = mib - (int(_memory_device(guest, ELASTIC)["size"]) >> 20)
    path = f"/machine/peripheral/{ELASTIC}"
    guest.monitor("qom-set", {"path": path, "property": "requested-size", "value": mib << 20})
    _soon(guest, "The virtio-mem device").poll(
        lambda: int(_memory_device(guest, ELASTIC)["size"]) == mib << 20,
        f"It does not come to {mib} MiB.",
    )
    if more > 0:
        _await_memory(guest, total + more)


def migrate(source: LinuxGuest, target: LinuxGuest) -> None:
    """Move a running guest to another QEMU, which was made for it, while it works."""
    socket = f"{layout.RUN_DIRECTORY}/{target.name}.migration"
    target.monitor("migrate-incoming", {"uri": f"unix:{socket}"})
    # The workload writes faster than an emulated machine copies, so it may stand still.
    source.monitor("migrate-set-parameters", {"downtime-limit": 5000})
    source.monitor("migrate", {"uri": f"unix:{socket}"})
    _await_migration(source)
    target.await_beat()


@contextlib.contextmanager
def snapshotting(guest: LinuxGuest, path: str) -> Iterator[None]:
    """Write the guest's state as of now to a file of the host, while the context is open.

    QEMU write-protects the memory through userfaultfd meanwhile, and the guest runs on. When the
    context is left, the file is complete.
    """
    capability = {"capability": "background-snapshot", "state": True}
    guest.monitor("migrate-set-capabilities", {"capabilities": [capability]})
    guest.monitor("migrate", {"uri": f"exec:cat >{path}"})
    yield
    _await_migration(guest)


def restore(guest: LinuxGuest, path: str) -> None:
    """Let a guest that was made for it go on from a snapshot."""
    guest.monitor("migrate-incoming", {"uri": f"exec:cat {path}"})
    guest.await_beat()


def _await_migration(guest: LinuxGuest) -> None:
    deadline = _soon(guest, "The migration")
    for _ in deadline.ticks():
        answer = guest.monitor("query-migrate")
        status = answer.get("status") if isinstance(answer, dict) else None
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            raise LinuxGuestError(f"{guest.name} could not be migrated: {answer}")
    raise deadline.error(f"QEMU says: {answer}")


def _await_memory(guest: LinuxGuest, mib: int) -> None:
    """Wait until the guest's kernel has taken memory in, which it does when QEMU has gone on."""
    _soon(guest, "The memory").poll(
        lambda: _total_mib(guest) >= mib, f"The guest does not have {mib} MiB."
    )


def _total_mib(guest: LinuxGuest) -> int:
    """How much memory the guest's kernel says it has."""
    return _memory_mib(guest, "MemTotal")


def _memory_mib(guest: LinuxGuest, name: str) -> int:
    words = guest.run(["grep", f"{name}:", "/proc/meminfo"]).stdout.split()
    return int(words[1]) >> 10


def _memory_device(guest: LinuxGuest, name: str) -> dict[str, Any]:
    """What QEMU says of a device that has memory."""
    devices = guest.monitor("query-memory-devices")
    assert isinstance(devices, list)
    (data,) = [item["data"] for item in devices if item["data"].get("id") == name]
    return dict(data)


def _balloon_mib(guest: LinuxGuest) -> int:
    answer = guest.monitor("query-balloon")
    return int(answer["actual"]) >> 20 if isinstance(answer, dict) else -1


def _soon(guest: LinuxGuest, what: str) -> Deadline:
    return Deadline.after(_SECONDS * guest.pace, f"{what} of {guest.name}")
