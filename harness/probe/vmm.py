# SPDX-License-Identifier: GPL-2.0-only
"""The process that is a probe guest's VMM: it serves requests on its memory and vcpus."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.probe import layout
from harness.probe.memory import Memory
from harness.probe.vm import MEMORY_SLOT, VirtualMachine

Handler = Callable[..., Any]


class ChildKilled(Exception):
    """A forked child ended in the middle of a request, as when the kernel kills it by SIGBUS."""


def serve(connection: socket.socket, handlers: dict[str, Handler]) -> None:
    """Answer JSON lines until the peer hangs up.

    A request is {"op": NAME, ...arguments}; the answer is {"ok": VALUE} or {"error": {...}}.
    """
    with connection.makefile("rwb") as stream:
        for line in stream:
            stream.write(json.dumps(answer(handlers, json.loads(line))).encode() + b"\n")
            stream.flush()


def answer(handlers: dict[str, Handler], request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request; errors become data, because the peer is another machine."""
    try:
        handler = handlers[request.pop("op")]
        return {"ok": handler(**request)}
    except OSError as error:
        return {"error": {"kind": "OSError", "errno": error.errno, "text": str(error)}}
    except Exception as error:  # a VMM that dies would look like the kernel's doing
        return {"error": {"kind": type(error).__name__, "errno": None, "text": str(error)}}


def memory_handlers(memory: Memory) -> dict[str, Handler]:
    """The requests that a VMM and its forked children have in common."""
    names = ("madvise", "mprotect", "munmap", "remap", "peek", "poke", "pagemap", "mincore")
    return {name: getattr(memory, name) for name in names}


def run_vmm(connection: socket.socket, cgroup: str, pages: int, vcpus: int, payload: bytes) -> None:
    """Be a VMM: build the machine, enter the cgroup, map the memory, serve, and never return.

    The machine is built before the cgroup is entered, so that only the guest's memory and what
    the kernel needs to map it is charged there: charges stay where a page was first touched.
    """
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    machine = VirtualMachine(vcpus, payload)
    (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))
    memory = Memory(pages)
    machine.set_slot(MEMORY_SLOT, layout.MEMORY_GPA, memory.hva, pages * layout.PAGE_BYTES)
    serve(connection, Vmm(machine, memory).handlers())
    os._exit(0)


class Vmm:
    """A machine, its memory, and the children forked off it."""

    def __init__(self, machine: VirtualMachine, memory: Memory) -> None:
        self._machine = machine
        self._memory = memory
        self._children: dict[str, tuple[int, socket.socket]] = {}

    def handlers(self) -> dict[str, Handler]:
        """All requests that a VMM answers, by name."""
        return {
            **memory_handlers(self._memory),
            "describe": self.describe,
            "order": self.order,
            "report": self.report,
            "progress": self.progress,
            "stop": self.stop,
            "kick": self.kick,
            "list": self._machine.list_words,
            "statistics": self.statistics,
            "set_slot": self.set_slot,
            "discard_under": self.discard_under,
            "fork": self.fork,
            "child": self.child,
            "end_child": self.end_child,
        }

    def describe(self) -> dict[str, int]:
        """Where things are: process id, address and number of pages, gpa."""
        return {
            "pid": os.getpid(),
            "vm_fd": self._machine.fd,
            "hva": self._memory.hva,
            "pages": self._memory.pages,
            "gpa": layout.MEMORY_GPA,
            "vcpus": len(self._machine.vcpus),
        }

    def order(self, vcpu: int, orders: dict[str, int]) -> None:
        """Begin an operation on a vcpu; see Vcpu.order and payload.h. ``gpa`` is filled in."""
        gpa = layout.MEMORY_GPA + orders["first"] * layout.PAGE_BYTES
        self._machine.vcpus[vcpu].order({**orders, "gpa": gpa})

    def report(self, vcpu: int, seconds: float) -> dict[str, Any] | None:
        """Wait for the end of a vcpu's operation; see Vcpu.report."""
        return self._machine.vcpus[vcpu].report(seconds)

    def progress(self, vcpu: int) -> dict[str, int]:
        """A vcpu's counters as they stand."""
        return self._machine.vcpus[vcpu].progress()

    def stop(self, vcpu: int) -> None:
        """Ask the payload to end HAMMER."""
        self._machine.vcpus[vcpu].mailbox.stop = 1

    def kick(self, vcpu: int) -> None:
        """Force a vcpu out of KVM_RUN."""
        self._machine.vcpus[vcpu].kick()

    def statistics(self) -> dict[str, dict[str, int]]:
        """KVM's counters of the VM and of each vcpu."""
        vcpus = {str(vcpu.index): vcpu.statistics.read() for vcpu in self._machine.vcpus}
        return {"vm": self._machine.statistics.read(), **vcpus}

    def set_slot(self, size_pages: int, hva_page: int = 0) -> None:
        """Give the memory's memslot a new size (0 deletes it) and a new first page."""
        hva = self._memory.hva + hva_page * layout.PAGE_BYTES
        size = size_pages * layout.PAGE_BYTES
        self._machine.set_slot(MEMORY_SLOT, layout.MEMORY_GPA, hva, size)

    def discard_under(self, vcpu: int, page: int, rounds: int, seconds: float) -> dict[str, int]:
        """Discard the one page that a vcpu hammers, again and again, and see where writes go.

        Done here because what comes after madvise(2) must come at once. A visit that began after
        the discard has stored to the page when two more have begun; the new page cannot be zero
        then. Returns how many ``rounds`` were played within ``seconds``, and in how many of them
        the writes were ``lost``: still going to the page that was discarded.
        """
        mailbox = self._machine.vcpus[vcpu].mailbox
        until = time.monotonic() + seconds
        played = lost = 0
        while played < rounds and time.monotonic() < until:
            self._memory.madvise(page, 1, "dontneed")
            start = mailbox.done
            while mailbox.done < start + 3 and time.monotonic() < until:
                pass
            if mailbox.done >= start + 3:
                played += 1
                lost += self._memory.peek(page, 1, vcpu)[0] == 0
        return {"rounds": played, "lost": lost}

    def fork(self, name: str) -> int:
        """Fork a child that shares the memory copy-on-write and answers under ``name``."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            # A sibling ends when its connection is closed, which it is not while we have it too.
            for _, connection in self._children.values():
                connection.close()
            serve(theirs, memory_handlers(self._memory))
            os._exit(0)
        theirs.close()
        self._children[name] = (pid, ours)
        return pid

    def child(self, name: str, request: dict[str, Any]) -> Any:
        """Pass a request on to a forked child."""
        _, connection = self._children[name]
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
        except (BrokenPipeError, ConnectionResetError):
            line = b""
        if not line:
            status = self.end_child(name)
            raise ChildKilled(f"the forked child ended with wait status {status}")
        reply = json.loads(line)
        if "error" in reply:
            error = reply["error"]
            raise OSError(error["errno"], f"in the forked child: {error['text']}")
        return reply["ok"]

    def end_child(self, name: str) -> int:
        """Let a forked child exit, and return its wait status."""
        pid, connection = self._children.pop(name)
        connection.close()
        return os.waitpid(pid, 0)[1]
