# SPDX-License-Identifier: GPL-2.0-only
"""A process that uses secondary MMUs without KVM: memory, devices attached to it, children.

It answers the same requests on its memory as a VMM does. Devices have names; a child that is forked
off has those that its parent had at that time, and may attach them to its own memory.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from harness.probe import layout, leaving, registration
from harness.probe.cpus import enter
from harness.probe.device import Device, Refused
from harness.probe.hammering import Hammering
from harness.probe.memory import Memory
from harness.probe.serving import Children, Handler, serve
from harness.probe.vmm import memory_handlers


def run_user(
    connection: socket.socket, cgroup: str, pages: int, backing: str = "anon", path: str = ""
) -> None:
    """Be a user: enter the cgroup, map the memory, serve, and never return."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    enter(cgroup)
    serve(connection, User(Memory(pages, backing, path)).handlers())
    os._exit(0)


class User:
    """Memory with secondary MMUs on it."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._devices: dict[str, Device] = {}
        self._windows: dict[str, mmap.mmap] = {}
        self._hammering: Hammering | None = None
        self.children = Children(self._common)

    def handlers(self) -> dict[str, Handler]:
        """All requests that a user answers, by name."""
        return {**self._common(), **self.children.requests(), "describe": self.describe}

    def _common(self) -> dict[str, Handler]:
        """The requests that its children answer, too."""
        names = (
            "open_device", "device_fd", "attach", "attach_ends", "attach_without_memory",
            "attach_under_signals", "detach", "close_device", "load", "store", "records", "state",
            "stall", "let_go", "write_on", "open_window", "peek_window", "poke_window",
            "begin_hammering", "hammered", "end_hammering", "play", "leave",
        )  # fmt: skip
        return {**memory_handlers(self._memory), **{name: getattr(self, name) for name in names}}

    def describe(self) -> dict[str, Any]:
        """Where things are: process id, address and number of pages, the file below."""
        memory = self._memory
        return {
            "pid": os.getpid(),
            "hva": memory.hva,
            "pages": memory.pages,
            "path": memory.path,
        }

    # Devices.

    def open_device(self, name: str) -> int:
        """Open one more secondary MMU; its descriptor."""
        self._devices[name] = Device()
        return self._devices[name].fd

    def device_fd(self, name: str) -> int:
        """The descriptor of a device."""
        return self._devices[name].fd

    def attach(self, name: str, kind: str, flags: list[str]) -> None:
        """Attach a device to the memory of this process, as a ``kind`` of device.KINDS."""
        address, size = self._memory.span(0, self._memory.pages)
        self._devices[name].attach(kind, flags, address, size)

    def attach_ends(self, name: str, kind: str, flags: list[str]) -> str:
        """Try that; "ok", with the device detached again, or the name of the errno."""
        end = registration.ended(lambda: self.attach(name, kind, flags))
        if end == "ok":
            self.detach(name)
        return end

    def attach_without_memory(self, name: str, kind: str, times: int) -> dict[str, int]:
        """Try it with the first allocation failing, then the second; how often it ended how."""
        return registration.with_each_allocation_failing(
            lambda: self.attach_ends(name, kind, []), times
        )

    def attach_under_signals(self, name: str, kind: str, attempts: int) -> dict[str, int]:
        """Try it with a signal at some moment of it; how often it ended how."""
        return registration.whenever_a_signal_comes(
            lambda: self.attach(name, kind, []), lambda _: self.detach(name), attempts
        )

    def detach(self, name: str) -> None:
        """Take a device off the memory."""
        self._devices[name].detach()

    def close_device(self, name: str) -> None:
        """Close this process's descriptor of a device."""
        self._devices.pop(name).close()

    def load(self, name: str, first: int, pages: int, word: int) -> dict[str, Any]:
        """Read a word of each page by a device: ``words``, or ``refused`` with the errno."""
        address, _ = self._memory.span(first, pages)
        return _granted(lambda: self._devices[name].load(address, pages, word))

    def store(self, name: str, first: int, pages: int, word: int, value: int) -> dict[str, Any]:
        """Write a word of each page by a device; as load()."""
        address, _ = self._memory.span(first, pages)
        return _granted(lambda: self._devices[name].store(address, pages, word, value))

    def records(self, name: str) -> list[list[int]]:
        """What a device recorded of its callbacks since the last time; see device.Record."""
        return self._devices[name].records()

    def state(self, name: str) -> dict[str, int]:
        """The counters of a device; see device.State."""
        return self._devices[name].state()

    # What goes on while other requests are answered.

    def stall(self, name: str) -> None:
        """Have a thread of this process sleep where not even SIGKILL reaches it, until let_go()."""
        device = self._devices[name]
        _in_background(device.stall)
        while not device.state()["stalled"]:
            time.sleep(0)

    def let_go(self, name: str) -> None:
        """Wake the thread that stalls, in whatever process it is."""
        self._devices[name].let_go()

    def write_on(self, value: int, word: int) -> None:
        """Have a thread write to all of the memory by the CPU, and answer at once."""
        _in_background(lambda: self._memory.poke(0, self._memory.pages, word, value))

    def begin_hammering(self, name: str, word: int) -> None:
        """Have a thread write to all of the memory by a device, over and over."""
        self._hammering = Hammering(self._devices[name], self._memory, word)

    def hammered(self) -> int:
        """How many rounds of that are done."""
        return 0 if self._hammering is None else self._hammering.rounds

    def end_hammering(self) -> int:
        """End that; how many rounds it was. Raises what ended it before."""
        hammering, self._hammering = self._hammering, None
        return 0 if hammering is None else hammering.end()

    def play(self, kind: str, rounds: int, seconds: float) -> dict[str, int]:
        """Rounds of an operation against the thread that hammers; see Hammering.play."""
        if self._hammering is None:
            raise RuntimeError("nothing hammers the memory")
        return self._hammering.play(kind, rounds, seconds)

    def leave(self, way: str, rounds: int, seconds: float) -> dict[str, int]:
        """Children attach and end, over and over; see leaving.play."""
        return leaving.play(way, self._memory, rounds, seconds)

    # The memory of another process, as a device shows it.

    def open_window(self, name: str, *, writable: bool = True) -> None:
        """Map what a device is attached to, which is the memory of another process."""
        address, size = self._memory.span(0, self._memory.pages)
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        fd = self._devices[name].fd
        self._windows[name] = mmap.mmap(fd, size, mmap.MAP_SHARED, prot, offset=address)

    def peek_window(self, name: str, first: int, pages: int, word: int) -> list[int]:
        """A word of each page, read through the window."""
        words = memoryview(self._windows[name]).cast("Q")
        step = layout.PAGE_WORDS
        return words[first * step + word : (first + pages) * step : step].tolist()

    def poke_window(self, name: str, first: int, pages: int, word: int, value: int) -> None:
        """Write a word of each page through the window."""
        words = memoryview(self._windows[name]).cast("Q")
        for page in range(first, first + pages):
            words[page * layout.PAGE_WORDS + word] = value


def _granted(access: Callable[[], list[int] | None]) -> dict[str, Any]:
    try:
        return {"words": access() or []}
    except Refused as refused:
        return {"refused": refused.errno, "done": refused.done}


def _in_background(action: Callable[[], object]) -> None:
    threading.Thread(target=action, daemon=True).start()
