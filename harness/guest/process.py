# SPDX-License-Identifier: GPL-2.0-only
"""L0's handle of a process of the probe with memory of its own: how it is asked, and pressed."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any, Protocol

from harness.deadline import Deadline
from harness.errors import OracleUnavailable, ProbeError, Violation
from harness.guest.observation import Residency
from harness.guest.session import GuestLost, Session
from harness.probe import layout

_FRUITLESS = 10
_IDLE_SECONDS = 3.0
"""Attempts at reclaim, and seconds of them, without effect after which no more are made. Both,
because on a starved machine one attempt alone may take seconds."""


_LARGE_IN_SMAPS = ("AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:")


class Charged(Protocol):
    """A guest, or another process, with a memory cgroup of its own."""

    @property
    def session(self) -> Session:
        """The agent on the host."""

    @property
    def cgroup(self) -> str:
        """The directory of that cgroup."""

    def memory_statistics(self) -> dict[str, int]:
        """What the cgroup is charged for."""


class ProbeProcess:
    """A VMM or another process that the agent has started, in a cgroup of its own."""

    def __init__(
        self,
        session: Session,
        name: str,
        facts: Mapping[str, Any],
        cgroup: str,
        backing: str = "anon",
    ) -> None:
        self.session = session
        self.name = name
        self.cgroup = cgroup
        self.backing = backing
        self.pid = int(facts["pid"])
        self.hva = int(facts["hva"])
        self.pages = int(facts["pages"])
        self._path = str(facts["path"])

    @property
    def pace(self) -> float:
        """The host's slowness, by which deadlines are stretched."""
        return self.session.host.facts.pace

    def ask(self, op: str, **arguments: Any) -> Any:
        """One request to the VMM; a VMM that is gone without being asked is a Violation."""
        try:
            return self.session.ask_guest(self.name, op, **arguments)
        except GuestLost as lost:
            raise self._lost(lost, op) from lost

    def wait(self, op: str, seconds: float, **arguments: Any) -> Any:
        """The same for a request that may take as long as its argument ``seconds``."""
        try:
            return self.session.wait_guest(self.name, op, seconds, **arguments)
        except GuestLost as lost:
            raise self._lost(lost, op) from lost

    @property
    def bytes(self) -> int:
        """The size of its memory."""
        return self.pages * layout.PAGE_BYTES

    # What is done to it by others.

    def reclaim(self, hot: range = range(0)) -> Residency:
        """Press the guest's cgroup until nothing but ``hot`` is in memory, or nothing moves.

        ``hot`` are the pages that a vcpu keeps touching meanwhile. Reclaim may legitimately leave
        another page at one attempt (under writeback, referenced since); only several attempts
        without any effect say that it will not go. A page that sits in a CPU's LRU batch cannot
        be isolated, so they are drained each time: reclaim itself puts pages there, when their
        writeback has ended.
        """
        deadline = Deadline.after(60.0 * self.pace, "Reclaim")
        # With readahead, a fault of the VMM on a page of its own brings neighbouring pages of the
        # guest into the swap cache, where they look as if something held them.
        with self.session.setting("/proc/sys/vm/page-cluster", "0"):
            residency = self.residency()
            left, moved, fruitless = residency.outside(hot), deadline.remaining, 0
            # What pages need to grow old is to be looked at, not time.
            for _ in deadline.ticks(0.002, 0.02):
                self.session.ask("drain_lru")
                self._press(left * layout.PAGE_BYTES)
                residency = self.residency()
                before, left = left, residency.outside(hot)
                fruitless += 1
                if left < before:
                    moved, fruitless = deadline.remaining, 0
                idle = moved - deadline.remaining
                if left == 0 or (fruitless >= _FRUITLESS and idle > _IDLE_SECONDS * self.pace):
                    break
        return residency

    def press(self, pages: int) -> None:
        """Ask the kernel once to reclaim so many pages of the guest's cgroup."""
        with self.session.setting("/proc/sys/vm/page-cluster", "0"):
            self._press(pages * layout.PAGE_BYTES)

    def _press(self, size: int) -> None:
        try:
            self.session.ask("reclaim", cgroup=self.cgroup, size=size)
        except FileNotFoundError as error:
            raise OracleUnavailable(
                "The host's kernel has neither memory.reclaim nor memory.high for cgroups."
            ) from error

    def kill(self, signum: int) -> int:
        """Kill the VMM and return its wait status once it is gone."""
        return int(self.session.ask("kill", name=self.name, signum=signum))

    def await_death(self) -> int | None:
        """The wait status of a VMM that dies by itself in time, or None if it lives on."""
        seconds = self.session.patience / 2
        status = self.session.ask("await_death", name=self.name, seconds=seconds)
        return None if status is None else int(status)

    def limit(self, name: str, value: int | str) -> None:
        """Write a limit of the guest's cgroup, as ``memory.max``."""
        self.session.ask("write", path=f"{self.cgroup}/{name}", text=str(value))

    # What can be seen of it on the host.

    def mapped_large(self) -> int:
        """How many bytes of the memory are mapped by large pages, as its smaps file says."""
        lines = self.session.read(f"/proc/{self.pid}/smaps").splitlines()
        large, within = 0, False
        for line in lines:
            name, _, value = line.partition(" ")
            if not name.endswith(":"):
                start, _, _ = name.partition("-")
                within = self.hva <= int(start, 16) < self.hva + self.pages * layout.PAGE_BYTES
            elif within and name in _LARGE_IN_SMAPS:
                large += int(value.split()[0]) << 10
        return large

    def residency(self) -> Residency:
        """Where each page is."""
        return Residency.unpacked(
            self._on_range("pagemap", 0, None), self._on_range("mincore", 0, None)
        )

    def memory_statistics(self) -> dict[str, int]:
        """What the guest's cgroup is charged for; see the function of that name."""
        return memory_statistics(self.session, self.cgroup)

    # How it is asked.

    def _on_range(self, op: str, first: int, pages: int | None, **arguments: Any) -> Any:
        count = self.pages - first if pages is None else pages
        return self.ask(op, first=first, pages=count, **arguments)

    def _lost(self, lost: GuestLost, during: str) -> Violation | ProbeError:
        signum = lost.status & 0x7F
        if signum == signal.SIGKILL and self._killed_for_memory():
            return Violation(
                "reclaim",
                "the memory of the guest to be swapped when its cgroup has no room",
                "the memory controller found nothing that it could reclaim, and killed the VMM",
            )
        if lost.said or not signum or signum == signal.SIGKILL:
            # It ended by its own doing, or was killed from outside, as for want of memory.
            return ProbeError(
                f"The VMM of guest {lost.name} ended during {during} "
                f"(wait status {lost.status}): {lost.said or 'it said nothing'}."
            )
        return Violation(
            "VMM",
            f"the VMM to live through {during}",
            f"it was killed by signal {signum}, as when the kernel cannot give a page back",
        )

    def _killed_for_memory(self) -> bool:
        lines = self.session.read(f"{self.cgroup}/memory.events").splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"]) > 0


def memory_statistics(session: Session, cgroup: str) -> dict[str, int]:
    """memory.stat of a cgroup, with memory.current and memory.swap.current."""
    lines = session.read(f"{cgroup}/memory.stat").splitlines()
    statistics = {name: int(value) for name, value in (line.split() for line in lines)}
    for name in ("memory.current", "memory.swap.current"):
        statistics[name] = int(session.read(f"{cgroup}/{name}"))
    return statistics


def confine(session: Session, cgroup: str, size: int) -> None:
    """Have a cgroup get by with ``size`` bytes from now on, through memory.high.

    What it has more is reclaimed before, because a process far above memory.high is made to wait
    for seconds each time that it wants a page: mem_cgroup_handle_over_high(), read in 6.12.
    """
    excess = int(session.read(f"{cgroup}/memory.current")) - size
    if excess > 0:
        session.ask("reclaim", cgroup=cgroup, size=excess)
    session.ask("write", path=f"{cgroup}/memory.high", text=str(size))
