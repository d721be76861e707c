# SPDX-License-Identifier: GPL-2.0-only
"""The process that L0 talks to: JSON lines on standard input and output, one at a time.

A request with a ``guest`` goes to that guest's VMM; the others are about the host itself. An
answer that does not come in time is said to be late instead of waited for, so that the host's
silence and a guest's silence can be told apart.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.resources
import io
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from harness.probe import nested, pmem, user, vmm
from harness.probe.backing import ADVICE, BACKINGS
from harness.probe.cpus import gather
from harness.probe.device import Device
from harness.probe.keeper import keep_a_vm
from harness.probe.kvm import Statistics
from harness.probe.layout import PAGE_BYTES
from harness.probe.race import migrate
from harness.probe.serving import Handler, answer
from harness.probe.system import call, checked, libc

_CGROUPS = Path("/sys/fs/cgroup")

_FILES = Path("/var/tmp")  # noqa: S108 - on the host's disk, unlike /tmp, and nobody else is there


class Guest:
    """A VMM process, or one of another ``kind``, and the agent's end of its connection."""

    def __init__(
        self,
        cgroup: Path,
        pages: int,
        vcpus: int,
        backing: str,
        path: Path | None,
        kind: str = "vmm",
    ) -> None:
        payload = importlib.resources.files("harness.probe").joinpath("payload.bin").read_bytes()
        self.cgroup = cgroup
        self._path = path
        cgroup.mkdir()
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            # Only the socket may tell the VMM to end; the agent's own input is not its business.
            os.setsid()
            ours.close()
            try:
                file = str(path or "")
                if kind == "user":
                    user.run_user(theirs, str(cgroup), pages, backing, file)
                else:
                    vmm.run_vmm(
                        theirs, str(cgroup), pages, vcpus, payload, backing, file, kind == "nested"
                    )
            except BaseException as error:
                # Whatever it is, it must not return into the agent's loop.
                theirs.sendall(json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())
            os._exit(1)
        theirs.close()
        self._connection = ours
        self._received = b""
        self._status: int | None = None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Pass a request on; the answer says ``late`` or ``died`` when there is none."""
        try:
            self._connection.sendall(json.dumps(request).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            return self._died()
        return self.answer(seconds)

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next answer within ``seconds``."""
        until = time.monotonic() + seconds
        while b"\n" not in self._received:
            ready, _, _ = select.select(
                [self._connection], [], [], max(0, until - time.monotonic())
            )
            if not ready:
                return {"late": self._where()}
            try:
                chunk = self._connection.recv(1 << 20)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                return self._died()
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def kill(self, signum: int) -> int:
        """Send a signal to the VMM and return its wait status once it is gone."""
        os.kill(self.pid, signum)
        self._status = os.waitpid(self.pid, 0)[1]
        return self._status

    def await_death(self, seconds: float) -> int | None:
        """The wait status of a VMM that dies within ``seconds`` by itself, or None."""
        with contextlib.closing(call_fd("pidfd_open", self.pid, 0)) as death:
            if not select.select([death], [], [], seconds)[0]:
                return None
        self._status = os.waitpid(self.pid, 0)[1]
        return self._status

    def close(self) -> None:
        """End the VMM if it lives; its cgroup goes once the kernel lets go of it, and its file."""
        self._connection.close()
        if self._status is None:
            self.kill(signal.SIGKILL)
        _end_group(self.cgroup)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _died(self) -> dict[str, Any]:
        said = self._received.decode(errors="replace")
        if self._status is None:
            # The connection closes a moment before the process is gone.
            self._status = os.waitpid(self.pid, 0)[1]
        return {"died": {"status": self._status, "said": said}}

    def _where(self) -> str:
        """Where the VMM's threads sleep in the kernel, for the report of a stall."""
        lines = []
        for task in sorted(Path(f"/proc/{self.pid}/task").iterdir()):
            for name in ("wchan", "stack"):
                try:
                    lines.append(f"{task.name} {name}: {(task / name).read_text().strip()}")
                except OSError as error:
                    lines.append(f"{task.name} {name}: {error.strerror}")
        return "\n".join(lines)


def _end_group(cgroup: Path) -> None:
    """Kill what is left in a cgroup and remove it."""
    kill = cgroup / "cgroup.kill"
    if kill.exists():
        kill.write_text("1")
    for _ in range(200):
        try:
            return cgroup.rmdir()
        except FileNotFoundError:
            return None
        except OSError:
            time.sleep(0.01)  # a killed process leaves its cgroup only once it is gone
    raise OSError(f"the cgroup {cgroup} could not be removed")


class Agent:
    """The guests of this host, and what can be asked of the host itself."""

    def __init__(self) -> None:
        self._guests: dict[str, Guest] = {}
        self._held: dict[str, tuple[int, Statistics]] = {}
        self._devices: dict[str, Device] = {}
        self._handlers: dict[str, Handler] = {
            "all": self.all,
            "create": self.create,
            "close": self.close,
            "kill": self.kill,
            "kill_and_reap": self.kill_and_reap,
            "read": self.read,
            "write": self.write,
            "exists": lambda path: Path(path).exists(),
            "make_directory": lambda path: Path(path).mkdir(),
            "drain_lru": drain_lru,
            "reclaim": self.reclaim,
            "await_death": self.await_death,
            "hold_vm": self.hold_vm,
            "held_statistics": self.held_statistics,
            "let_go": self.let_go,
            "hold_device": self.hold_device,
            "held_device": self.held_device,
            "drop_device": self.drop_device,
            "move_pages": move_pages,
            "migrate_pages": migrate_pages,
            "advise": advise,
            "swapon": lambda path: checked(libc.swapon(path.encode(), 0)),
            "swapoff": lambda path: checked(libc.swapoff(path.encode())),
        }

    def serve(self, requests: BinaryIO, answers: BinaryIO) -> None:
        """Answer until the input ends, then end all guests."""
        try:
            for line in requests:
                request = json.loads(line)
                answers.write(json.dumps(self._answer(request)).encode() + b"\n")
                answers.flush()
        finally:
            for name in list(self._guests):
                self.close(name)

    def all(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Carry out requests in order up to the first that fails; their answers."""
        answers = []
        for request in requests:
            answers.append(answer(self._handlers, request))
            if "error" in answers[-1]:
                break
        return answers

    def create(
        self,
        name: str,
        pages: int,
        vcpus: int,
        seconds: float,
        backing: str = "anon",
        kind: str = "vmm",
    ) -> dict[str, Any]:
        """Start a guest in a memory cgroup of its own and return where it is.

        ``kind`` is ``vmm``, ``nested`` for one whose vcpus run a guest inside the guest, or
        ``user`` for a process with secondary MMUs that are not KVM. Raises OSError with ENOTSUP
        where KVM has no nested guests of the kind that the probe knows.
        """
        if kind == "nested":
            nested.require()
        path = None
        if BACKINGS[backing].file in ("disk", "dax"):
            directory = _FILES if BACKINGS[backing].file == "disk" else pmem.directory()
            path = directory / f"mmu-{name}"
        guest = Guest(_CGROUPS / f"mmu-{name}", pages, vcpus, backing, path, kind)
        self._guests[name] = guest
        return {"cgroup": str(guest.cgroup), **guest.ask({"op": "describe"}, seconds)}

    def close(self, name: str) -> None:
        """End a guest, however it is doing."""
        self._guests.pop(name).close()

    def kill(self, name: str, signum: int) -> int:
        """Send a signal to a guest's VMM; returns the wait status. The guest must be closed yet."""
        return self._guests[name].kill(signum)

    def kill_and_reap(self, name: str) -> dict[str, int]:
        """Kill a guest's VMM and reap its memory, as the OOM reaper does, before it can exit.

        KVM's counters in between are returned; hold_vm() must have the VM. The VMM cannot run,
        because its threads have the one CPU on which this runs and does not wait for anything.
        process_mrelease(2) came with commit 884a7e5964e0 ("mm: introduce process_mrelease system
        call") (in v5.15). Raises OSError with ESRCH if the VMM was faster.
        """
        pid = self._guests[name].pid
        cpus = os.sched_getaffinity(0)
        cpu = {min(cpus)}
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cpu)
        with contextlib.closing(call_fd("pidfd_open", pid, 0)) as process:
            os.sched_setaffinity(0, cpu)
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            try:
                os.kill(pid, signal.SIGKILL)
                call("process_mrelease", process.fileno(), 0)
                return self.held_statistics(name)
            finally:
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
                os.sched_setaffinity(0, cpus)

    def await_death(self, name: str, seconds: float) -> int | None:
        """Wait until a guest's VMM dies by itself; its wait status, or None if it lives on."""
        return self._guests[name].await_death(seconds)

    def hold_vm(self, name: str, vm_fd: int, statistics_fd: int | None) -> None:
        """Have the VM of a guest here, too, so that it outlives its VMM.

        All but its counters is denied to processes with another mm than the VMM's; a kernel
        without counters has no descriptor for them.
        """
        wanted = [vm_fd, *([] if statistics_fd is None else [statistics_fd])]
        with contextlib.closing(call_fd("pidfd_open", self._guests[name].pid, 0)) as process:
            vm, *counters = [call("pidfd_getfd", process.fileno(), fd, 0) for fd in wanted]
        self._held[name] = vm, Statistics(counters[0] if counters else None)

    def held_statistics(self, name: str) -> dict[str, int]:
        """KVM's counters of a VM that hold_vm() has."""
        return self._held[name][1].read()

    def let_go(self, name: str) -> None:
        """Close the VM that hold_vm() has; the last one to do so destroys it."""
        fd, statistics = self._held.pop(name)
        statistics.close()
        os.close(fd)

    def hold_device(self, name: str, user: str, fd: int) -> int:
        """Have a secondary MMU of a user here, too, so that it can be asked when that cannot.

        Its descriptor is returned, which the VMMs of guests that are made from now on have, too.
        """
        with contextlib.closing(call_fd("pidfd_open", self._guests[user].pid, 0)) as process:
            self._devices[name] = Device(call("pidfd_getfd", process.fileno(), fd, 0))
        return self._devices[name].fd

    def held_device(self, name: str, what: str) -> Any:
        """Ask it for its ``state`` or ``records``, or have it ``let_go``."""
        device = self._devices[name]
        return {"state": device.state, "records": device.records, "let_go": device.let_go}[what]()

    def drop_device(self, name: str) -> None:
        """Close what hold_device() has."""
        self._devices.pop(name).close()

    def read(self, path: str) -> str:
        """The text of a file of the host."""
        return Path(path).read_text(errors="replace")

    def write(self, path: str, text: str) -> None:
        """Write a control file of the host in one write(2)."""
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def reclaim(self, cgroup: str, size: int) -> bool:
        """Ask the kernel to reclaim ``size`` bytes of a cgroup; whether it could reclaim all.

        memory.reclaim appeared with commit 94968384dde1 ("memcg: introduce per-memcg reclaim
        interface") (in v5.19). Before, a limit does it, which is for as long as it is written:
        lowering memory.high reclaims what is above it before the write returns.
        """
        with contextlib.suppress(FileNotFoundError):
            try:
                self.write(f"{cgroup}/memory.reclaim", str(size))
            except BlockingIOError:  # EAGAIN: less than asked for was reclaimed
                return False
            return True
        current, high = f"{cgroup}/memory.current", f"{cgroup}/memory.high"
        wanted = max(0, int(self.read(current)) - size)
        try:
            self.write(high, str(wanted))
            return int(self.read(current)) <= wanted
        finally:
            self.write(high, "max")

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request.pop("guest", None)
        if name is None:
            return answer(self._handlers, request)
        seconds = request.pop("within")
        if name not in self._guests:
            return {"error": {"kind": "KeyError", "errno": None, "text": f"no guest {name}"}}
        return self._guests[name].ask(request, seconds)


def drain_lru() -> None:
    """Have every CPU give back the page references that its LRU batches hold.

    move_pages(2) does that before it looks at the first page, on all CPUs: do_pages_move() begins
    with lru_cache_disable(), read in 6.1 and 6.12. So it is called with no pages to move.
    """
    word = (ctypes.c_long * 1)()
    call("move_pages", 0, 0, word, word, word, 0)


def move_pages(pid: int, address: int, pages: int, node: int) -> dict[str, Any]:
    """Move a process's pages to a node: how many were ``left``, and the ``places`` of all.

    A place is a node, or a negative error number where there is no page.
    """
    left, places = migrate([address + n * PAGE_BYTES for n in range(pages)], node, pid)
    return {"left": left, "places": places}


def migrate_pages(pid: int, old: int, new: int) -> int:
    """Move all pages of a process from one node to another; how many could not be moved."""
    masks = [(ctypes.c_ulong * 1)(1 << node) for node in (old, new)]
    return call("migrate_pages", pid, 8 * ctypes.sizeof(ctypes.c_ulong), *masks)


def advise(pid: int, address: int, size: int, advice: str) -> int:
    """Call process_madvise(2) on another process; how many bytes were advised on."""
    vector = (ctypes.c_ulong * 2)(address, size)
    with contextlib.closing(call_fd("pidfd_open", pid, 0)) as process:
        return call("process_madvise", process.fileno(), vector, 1, ADVICE[advice], 0)


def call_fd(name: str, *arguments: int) -> io.FileIO:
    """The descriptor that a system call returns, as an object that closes it."""
    return io.FileIO(call(name, *arguments), closefd=True)


def main() -> None:
    """Greet, then serve."""
    answers = sys.stdout.buffer
    nonce = sys.argv[1]
    gather()
    keep_a_vm()
    answers.write(json.dumps({"hello": nonce, "cpus": os.cpu_count()}).encode() + b"\n")
    answers.flush()
    Agent().serve(sys.stdin.buffer, answers)
