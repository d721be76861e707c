# SPDX-License-Identifier: GPL-2.0-only
"""The process that is a probe guest's VMM: it serves requests on its memory and vcpus."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
from typing import Any

from harness.probe import ageing, layout, registration, userfault, views
from harness.probe.aliasing import Aliasing
from harness.probe.backing import map_anonymous
from harness.probe.cpus import enter
from harness.probe.memory import Memory
from harness.probe.mirror import Mirror
from harness.probe.race import Race
from harness.probe.serving import Children, Handler, serve
from harness.probe.userfault import WriteProtection, WriteTracking
from harness.probe.vm import MEMORY_SLOT, Vcpu, VirtualMachine


def memory_handlers(memory: Memory) -> dict[str, Handler]:
    """The requests that a VMM and its forked children have in common."""
    names = (
        "madvise", "mprotect", "munmap", "remap", "replace", "move", "move_back", "resize",
        "remap_file_pages", "truncate", "punch", "allocate", "msync", "fsync", "stored",
        "peek", "poke", "pagemap", "mincore",
    )  # fmt: skip
    return {name: getattr(memory, name) for name in names}


def run_vmm(
    connection: socket.socket,
    cgroup: str,
    pages: int,
    vcpus: int,
    payload: bytes,
    backing: str = "anon",
    path: str = "",
    deeper: bool = False,
) -> None:
    """Be a VMM: build the machine, enter the cgroup, map the memory, serve, and never return.

    The machine is built before the cgroup is entered, so that only the guest's memory and what
    the kernel needs to map it is charged there: charges stay where a page was first touched.
    """
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    machine = VirtualMachine(vcpus, payload, deeper=deeper)
    enter(cgroup)
    memory = Memory(pages, backing, path)
    machine.set_slot(MEMORY_SLOT, layout.MEMORY_GPA, memory.hva, pages * layout.PAGE_BYTES)
    serve(connection, Vmm(machine, memory).handlers())
    os._exit(0)


class Vmm:
    """A machine, its memory, and the children forked off it."""

    def __init__(self, machine: VirtualMachine, memory: Memory) -> None:
        self._machine = machine
        self._memory = memory
        self._vcpus = [(machine, vcpu) for vcpu in machine.vcpus]
        self.children = Children(lambda: memory_handlers(self._memory))
        self._aliasing: Aliasing | None = None
        self._protection: WriteProtection | None = None
        self._protected = range(0)
        self._tracking: WriteTracking | None = None
        self._mirror: Mirror | None = None

    def handlers(self) -> dict[str, Handler]:
        """All requests that a VMM answers, by name."""
        return {
            **memory_handlers(self._memory),
            "poke": self.poke,
            "describe": self.describe,
            "order": self.order,
            "report": self.report,
            "progress": self.progress,
            "stop": self.stop,
            "kick": self.kick,
            "list": self.list_words,
            "statistics": self.statistics,
            "set_slot": self.set_slot,
            "show_window": self._memory.show_window,
            "follow": self.follow,
            "open_view": self.open_view,
            "keep_clock": self.keep_clock,
            "update_clock": self.update_clock,
            "race": self.race,
            "begin_aliasing": self.begin_aliasing,
            "end_aliasing": self.end_aliasing,
            "protect_by_userfault": self.protect_by_userfault,
            "faults": self.faults,
            "end_protection": self.end_protection,
            "move_by_userfault": self.move_by_userfault,
            "track_writes": self.track_writes,
            "written": self.written,
            "end_tracking": self.end_tracking,
            "mark_idle": self.mark_idle,
            "idle": self.idle,
            "begin_mirroring": self.begin_mirroring,
            "give_to_device": self.give_to_device,
            "end_mirroring": self.end_mirroring,
            "vm_storm": registration.storm,
            "vms_refused": registration.refused,
            "vms_under_signals": registration.under_signals,
            "vms_without_memory": registration.without_memory,
            "forks_without_memory": registration.forks_without_memory,
            **self.children.requests(),
        }

    def poke(self, first: int, pages: int, word: int, value: int) -> None:
        """Store into the memory; see Memory.poke.

        A store that waits for userfaultfd would do so with the interpreter's lock in its hands,
        without which nobody can let it go on.
        """
        if set(self._protected).intersection(range(first, first + pages)):
            raise RuntimeError(
                f"pages {first}+{pages} are write-protected through userfaultfd, and the VMM, "
                "which would have to let its own write go on, would wait for ever; have the "
                "guest or a forked child write"
            )
        self._memory.poke(first, pages, word, value)

    def describe(self) -> dict[str, Any]:
        """Where things are: process id, address and number of pages, gpa, the file below."""
        return {
            "pid": os.getpid(),
            "vm_fd": self._machine.fd,
            "statistics_fd": self._machine.statistics.fd,
            "hva": self._memory.hva,
            "pages": self._memory.pages,
            "gpa": layout.MEMORY_GPA,
            "vcpus": len(self._vcpus),
            "path": self._memory.path,
        }

    def open_view(self, kind: str) -> dict[str, int]:
        """Show the memory in a second way, or by other memslots, from now on; see views.py."""
        view, more = views.KINDS[kind](self._machine, self._memory)
        self._vcpus += more
        vcpu = len(self._vcpus) - 1 if more else 0
        return {**dataclasses.asdict(view), "vcpu": vcpu}

    def keep_clock(self, vcpu: int, page: int) -> None:
        """Have KVM keep a vcpu's clock in a page of the memory."""
        self._vcpu(vcpu).want_clock(layout.MEMORY_GPA + page * layout.PAGE_BYTES)

    def update_clock(self) -> None:
        """Have KVM write the time anew when the vcpu next runs."""
        self._machine.update_clocks()

    def list_words(self, vcpu: int, count: int) -> list[int]:
        """The answers of a vcpu's last READ."""
        machine, there = self._vcpus[vcpu]
        return machine.list_words(there.index, count)

    def order(self, vcpu: int, orders: dict[str, int]) -> None:
        """Begin an operation on a vcpu; see Vcpu.order and payload.h. ``gpa`` is filled in."""
        base = orders.pop("address", layout.MEMORY_GPA)
        gpa = base + orders["first"] * layout.PAGE_BYTES
        self._vcpu(vcpu).order({**orders, "gpa": gpa})

    def report(self, vcpu: int, seconds: float) -> dict[str, Any] | None:
        """Wait for the end of a vcpu's operation; see Vcpu.report."""
        return self._vcpu(vcpu).report(seconds)

    def progress(self, vcpu: int) -> dict[str, int]:
        """A vcpu's counters as they stand."""
        return self._vcpu(vcpu).progress()

    def stop(self, vcpu: int) -> None:
        """Ask the payload to end HAMMER."""
        self._vcpu(vcpu).mailbox.stop = 1

    def kick(self, vcpu: int) -> None:
        """Force a vcpu out of KVM_RUN."""
        self._vcpu(vcpu).kick()

    def statistics(self) -> dict[str, dict[str, int]]:
        """KVM's counters of the VM and of each vcpu."""
        vcpus = {str(vcpu.index): vcpu.statistics.read() for vcpu in self._machine.vcpus}
        return {"vm": self._machine.statistics.read(), **vcpus}

    def set_slot(self, size_pages: int, hva_page: int = 0) -> None:
        """Give the memory's memslot a new size (0 deletes it) and a new first page."""
        hva = self._memory.hva + hva_page * layout.PAGE_BYTES
        size = size_pages * layout.PAGE_BYTES
        self._machine.set_slot(MEMORY_SLOT, layout.MEMORY_GPA, hva, size)

    def follow(self, address: int) -> None:
        """Have the memslot show the memory where it was moved to."""
        self._memory.follow(address)
        self.set_slot(0)
        self.set_slot(self._memory.pages)

    def race(self, kind: str, vcpu: int, page: int, rounds: int, seconds: float) -> dict[str, int]:
        """Play rounds of an operation against the vcpu that hammers a page; see Race.play."""
        contender = self._vcpu(vcpu)
        return Race(self._memory, contender, page, seconds).play(kind, rounds)

    def begin_aliasing(self, own: bool = False) -> None:
        """Create, move and delete a second memslot, until told to end; see Aliasing."""
        self._aliasing = Aliasing(self._machine, self._memory, own=own)

    def end_aliasing(self, least: int = 1, seconds: float = 0.0) -> int:
        """End that, with the slot deleted; how many rounds there were. See Aliasing.end."""
        aliasing, self._aliasing = self._aliasing, None
        if aliasing is None:
            raise RuntimeError("no memslot comes and goes")
        return aliasing.end(least, seconds)

    def protect_by_userfault(self, first: int, pages: int, features: list[str]) -> None:
        """Write-protect a range through userfaultfd; who writes waits until let go on."""
        address, size = self._memory.span(first, pages)
        page_bytes = self._memory.page_bytes
        self._protection = WriteProtection(address, size, tuple(features), page_bytes)
        self._protected = range(first, first + pages)

    def faults(self) -> list[int]:
        """The pages of the write-protected range on which somebody waited, from its start."""
        return list(self._protection.faults) if self._protection else []

    def end_protection(self) -> None:
        """Let everybody write again."""
        protection, self._protection = self._protection, None
        self._protected = range(0)
        if protection is not None:
            protection.close()

    def move_by_userfault(self, first: int, pages: int) -> int:
        """Move pages out of the memory with UFFDIO_MOVE; returns the address where they are."""
        address, size = self._memory.span(first, pages)
        target = map_anonymous(size)
        moved = userfault.move(target, address, size)
        if moved != size:
            raise RuntimeError(f"only {moved} of {size} bytes were moved")
        return target

    def track_writes(self, first: int, pages: int, features: list[str]) -> None:
        """Follow the writes to a range from now on; see WriteTracking."""
        self._tracking = WriteTracking(*self._memory.span(first, pages), tuple(features))
        self._tracking.written()

    def written(self) -> list[int]:
        """The pages of the range written to since the last time, from its start."""
        return self._tracking.written() if self._tracking else []

    def end_tracking(self) -> None:
        """Follow the writes no more."""
        tracking, self._tracking = self._tracking, None
        if tracking is not None:
            tracking.close()

    def mark_idle(self, first: int, pages: int) -> None:
        """Mark the pages of a range idle; see ageing.mark_idle."""
        ageing.mark_idle([frame for frame in self._memory.frames(first, pages) if frame])

    def idle(self, first: int, pages: int) -> list[int]:
        """The pages of a range that are there, were marked idle, and not touched since."""
        frames = self._memory.frames(first, pages)
        there = [first + index for index, frame in enumerate(frames) if frame]
        marked = ageing.idle([frame for frame in frames if frame])
        return [page for page, idle in zip(there, marked, strict=True) if idle]

    def begin_mirroring(self) -> None:
        """Have a device mirror our memory; see Mirror."""
        self._mirror = Mirror()

    def give_to_device(self, first: int, pages: int, how: str) -> int:
        """Have the device take pages; see Mirror.take."""
        if self._mirror is None:
            raise RuntimeError("no device mirrors the memory")
        address, _ = self._memory.span(first, pages)
        return self._mirror.take(address, pages, how)

    def end_mirroring(self) -> None:
        """Let go of the device."""
        mirror, self._mirror = self._mirror, None
        if mirror is not None:
            mirror.close()

    def _vcpu(self, vcpu: int) -> Vcpu:
        return self._vcpus[vcpu][1]
