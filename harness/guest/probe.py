# SPDX-License-Identifier: GPL-2.0-only
"""L0's handle of a probe guest: what a scenario does to a guest and its memory.

Methods do and report; they do not judge. Pages are indices into the guest's memory, and a range
is a first page with a number of pages; by default all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from harness.deadline import Deadline
from harness.errors import OracleUnavailable, ProbeError, Violation
from harness.guest.observation import Residency, Visit
from harness.guest.session import GuestLost, Session
from harness.probe import layout

_VISIT_SECONDS = 30.0
"""How long a vcpu may take for one pass over 64 MiB on a fast machine."""

_RACE_SECONDS = 15.0
"""How long the rounds of a race may take; less than an answer may."""

_REFERENCE_PAGES = 16384

_COLLAPSE_SECONDS = 5.0

_FRUITLESS = 10
_IDLE_SECONDS = 3.0
"""Attempts at reclaim, and seconds of them, without effect after which no more are made. Both,
because on a starved machine one attempt alone may take seconds."""


class GuestFactory(Protocol):
    """What tests call to have a guest of their own; the context ends it."""

    def __call__(
        self, pages: int = ..., vcpus: int = ..., backing: str = ...
    ) -> contextlib.AbstractContextManager[ProbeGuest]:
        """A guest with ``pages`` pages of 4 KiB on memory of the kind ``backing``."""


class Child:
    """A process forked off a guest's VMM, which has its memory copy-on-write."""

    def __init__(self, guest: ProbeGuest, name: str, pid: int) -> None:
        self._guest = guest
        self._name = name
        self.pid = pid

    def ask(self, op: str, **arguments: Any) -> Any:
        """One of the memory requests of the probe, on the child's memory."""
        request = {"op": op, **arguments}
        return self._guest.ask("child", name=self._name, request=request)

    def read(self, first: int = 0, pages: int = 1, word: int = 0) -> list[int]:
        """Load a word of each page with the child's CPU."""
        return list(self.ask("peek", first=first, pages=pages, word=word))

    def write(self, value: int, first: int = 0, pages: int = 1, word: int = 0) -> None:
        """Store a word into each page with the child's CPU."""
        self.ask("poke", first=first, pages=pages, word=word, value=value)


class Hammer:
    """A vcpu that goes over the memory until it is stopped."""

    def __init__(self, guest: ProbeGuest, vcpu: int) -> None:
        self._guest = guest
        self._vcpu = vcpu
        self.visit: Visit | None = None

    def await_visits(self, visits: int) -> None:
        """Wait until that many more pages have been visited.

        Raises Violation when the vcpu does not get there: a guest that makes no progress.
        """
        self._await("done", visits, f"to visit {visits} more pages")

    def await_refusal(self) -> None:
        """Wait until the vcpu, hammering patiently, has been refused an access anew."""
        self._await("refusals", 1, "to be refused an access")

    def _await(self, counter: str, more: int, what: str) -> None:
        start = self._progress()[counter]
        patience = _VISIT_SECONDS * self._guest.pace * max(1.0, more / _REFERENCE_PAGES)
        deadline = Deadline.after(patience, "The hammering vcpu")
        for _ in deadline.ticks():
            if self._progress()[counter] - start >= more:
                return
        progress = self._progress()
        raise Violation(
            "progress",
            f"vcpu {self._vcpu} {what} within {patience:.0f} s",
            f"{progress['done']} page visits in all, now at page {progress['current']}",
            progress["current"],
        )

    def _progress(self) -> dict[str, int]:
        return dict(self._guest.ask("progress", vcpu=self._vcpu))

    def stop(self) -> Visit:
        """Stop, and return what the vcpu saw since it began."""
        if self.visit is None:
            self._guest.ask("stop", vcpu=self._vcpu)
            self.visit = self._guest.finish(self._vcpu, "hammering")
        return self.visit


class ProbeGuest:
    """A probe guest on a host."""

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
        self.vm_fd = int(facts["vm_fd"])
        self._statistics_fd = int(facts["statistics_fd"])
        self.hva = int(facts["hva"])
        self.gpa = int(facts["gpa"])
        self.pages = int(facts["pages"])
        self.vcpus = int(facts["vcpus"])

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

    @property
    def bytes(self) -> int:
        """The size of the guest's memory."""
        return self.pages * layout.PAGE_BYTES

    # What the guest does.

    def fill(self, seed: int, first: int = 0, pages: int | None = None, step: int = 64) -> Visit:
        """Have vcpu 0 write the pattern of ``seed`` into every ``step``-th word of each page."""
        return self._carry_out(0, layout.OP_FILL, first, pages, seed=seed, step=step)

    def check(
        self, seed: int, first: int = 0, pages: int | None = None, step: int = 64, vcpu: int = 0
    ) -> Visit:
        """Have a vcpu compare each page with the pattern of ``seed``; ``step`` as for fill."""
        return self._carry_out(vcpu, layout.OP_CHECK, first, pages, seed=seed, step=step)

    def read(self, first: int = 0, pages: int = 1, word: int = 0, vcpu: int = 0) -> Visit:
        """Have a vcpu load one word of each page; the values are ``words`` of the result."""
        visit = self._carry_out(vcpu, layout.OP_READ, first, pages, word=word)
        if visit.end != "done":
            return visit
        words = self.ask("list", vcpu=vcpu, count=pages)
        return dataclasses.replace(visit, words=tuple(words))

    def write(
        self, value: int, first: int = 0, pages: int = 1, word: int = 0, vcpu: int = 0
    ) -> Visit:
        """Have a vcpu store ``value`` into one word of each page."""
        return self._carry_out(vcpu, layout.OP_WRITE, first, pages, word=word, seed=value)

    @contextlib.contextmanager
    def hammering(
        self,
        vcpu: int = 0,
        first: int = 0,
        pages: int | None = None,
        *,
        writing: bool = True,
        patient: bool = False,
        alias: bool = False,
    ) -> Iterator[Hammer]:
        """A vcpu that goes over the pages without end while the context is open.

        Each visit compares the vcpu's own word with what it last wrote there, and ``writing``
        then increments it. The memory must have been filled before. ``patient`` tries a refused
        access again until it is granted, instead of ending. Through the ``alias``, a memslot that
        comes and goes, a vcpu goes on also while there is none; what it read then is nothing.
        """
        orders = self._orders(layout.OP_HAMMER, first, pages, word=vcpu, seed=int(writing))
        manners = {"patient": int(patient), "alias": int(alias), "homeless": int(alias)}
        hammer = self._hammer(vcpu, {**orders, **manners})
        try:
            yield hammer
        except BaseException:
            # What failed matters more than what the vcpu would still say.
            with contextlib.suppress(Exception):
                hammer.stop()
            raise
        else:
            hammer.stop()

    def hammer_unattended(self, vcpu: int = 0) -> Hammer:
        """A vcpu that writes to all pages until the VMM dies."""
        return self._hammer(vcpu, self._orders(layout.OP_HAMMER, 0, None, word=vcpu, seed=1))

    def _hammer(self, vcpu: int, orders: dict[str, int]) -> Hammer:
        self.ask("order", vcpu=vcpu, orders=orders)
        return Hammer(self, vcpu)

    # What is done to the guest's memory by its VMM.

    def madvise(self, advice: str, first: int = 0, pages: int | None = None) -> None:
        """Call madvise(2) on a range of the memory."""
        self._on_range("madvise", first, pages, advice=advice)

    def collapse(self) -> int:
        """Collapse the memory into large pages with MADV_COLLAPSE; whether it went well, as 0 or 1.

        The kernel says EAGAIN or EBUSY for what may succeed a moment later; a page with a
        reference too many never does. Raises OracleUnavailable before commit 7d8faaf15545
        ("mm/madvise: introduce MADV_COLLAPSE sync hugepage collapse") (in v6.1).
        """
        self.madvise("hugepage")
        for _ in Deadline.after(_COLLAPSE_SECONDS * self.pace, "Collapsing").ticks():
            try:
                with _lacking("MADV_COLLAPSE, which came with v6.1"):
                    self.madvise("collapse")
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EBUSY):
                    raise
                self.session.ask("drain_lru")
                continue
            return 1
        return 0

    def split_large_pages(self) -> None:
        """Have the kernel split all large pages of the memory, through debugfs.

        Raises OracleUnavailable before commit fa6c02315f74 ("mm: huge_memory: a new debugfs
        interface for splitting THP tests") (in v5.13).
        """
        span = f"{self.pid},{self.hva:#x},{self.hva + self.bytes:#x}"
        with _lacking("/sys/kernel/debug/split_huge_pages for one process"):
            self.session.ask("write", path="/sys/kernel/debug/split_huge_pages", text=span)

    def mprotect(self, protection: str, first: int = 0, pages: int | None = None) -> None:
        """Call mprotect(2) with ``none``, ``read`` or ``readwrite``."""
        self._on_range("mprotect", first, pages, protection=protection)

    def munmap(self, first: int = 0, pages: int | None = None) -> None:
        """Call munmap(2)."""
        self._on_range("munmap", first, pages)

    def remap(self, first: int = 0, pages: int | None = None) -> None:
        """Map fresh anonymous memory over a range."""
        self._on_range("remap", first, pages)

    def host_read(self, first: int = 0, pages: int = 1, word: int = 0) -> list[int]:
        """Load a word of each page with the VMM's CPU, through the primary MMU."""
        return list(self._on_range("peek", first, pages, word=word))

    def host_write(self, value: int, first: int = 0, pages: int = 1, word: int = 0) -> None:
        """Store a word into each page with the VMM's CPU, through the primary MMU."""
        self._on_range("poke", first, pages, word=word, value=value)

    def replace(self, first: int = 0, pages: int | None = None) -> None:
        """Map fresh anonymous memory over a range, whatever the backing is."""
        self._on_range("replace", first, pages)

    def move_away(self, first: int = 0, pages: int | None = None, *, leaving: bool = False) -> int:
        """Move a range to another address with mremap(2), which is returned.

        A hole is left, or with ``leaving`` a mapping without pages. Raises OracleUnavailable before
        commit e346b3813067 ("mm/mremap: add MREMAP_DONTUNMAP to mremap()") (in v5.7).
        """
        with _lacking("MREMAP_DONTUNMAP") if leaving else contextlib.nullcontext():
            return int(self._on_range("move", first, pages, leaving=leaving))

    def move_back(self, address: int, first: int = 0, pages: int | None = None) -> None:
        """Move a range that was moved away back to where it was."""
        self._on_range("move_back", first, pages, source=address)

    def follow(self, address: int) -> None:
        """Let the memslot follow memory that was moved as a whole."""
        self.ask("follow", address=address)
        self.hva = address

    def resize(self, old: int, new: int) -> None:
        """Shrink or grow the first ``old`` pages of the memory to ``new``, where they are."""
        self.ask("resize", old=old, new=new)

    def remap_file_pages(self, first: int, pages: int, source: int) -> None:
        """Show the file from page ``source`` on in a range, with remap_file_pages(2)."""
        self._on_range("remap_file_pages", first, pages, source=source)

    def truncate(self, pages: int) -> None:
        """Give the file below the memory the size of so many pages."""
        self.ask("truncate", pages=pages)

    def punch(self, first: int = 0, pages: int | None = None) -> None:
        """Punch a hole into the file below the memory."""
        self._on_range("punch", first, pages)

    def allocate(self, first: int = 0, pages: int | None = None) -> None:
        """Have room in the file below the memory, with fallocate(2)."""
        self._on_range("allocate", first, pages)

    def msync(self, first: int = 0, pages: int | None = None) -> None:
        """Call msync(2) with MS_SYNC."""
        self._on_range("msync", first, pages)

    def fsync(self) -> None:
        """Call fsync(2) on the file below the memory."""
        self.ask("fsync")

    def stored(self, first: int = 0, pages: int | None = None, word: int = 0) -> list[int]:
        """A word of each page as it is on the disk, past the page cache."""
        return list(self._on_range("stored", first, pages, word=word))

    def race(self, kind: str, vcpu: int, page: int, rounds: int) -> tuple[int, int]:
        """Do something to the page that a vcpu hammers alone, ``rounds`` times; see probe/race.py.

        Returns how many rounds there was time for, and in how many of them a write of the vcpu
        went where it may not go any more.
        """
        seconds = _RACE_SECONDS * self.pace
        played = self.ask("race", kind=kind, vcpu=vcpu, page=page, rounds=rounds, seconds=seconds)
        return int(played["rounds"]), int(played["lost"])

    @contextlib.contextmanager
    def aliased(self) -> Iterator[None]:
        """A second memslot on the same memory comes, moves and goes while the context is open.

        Raises ProbeError when it never came and went.
        """
        self.ask("begin_aliasing")
        yield
        if not self.ask("end_aliasing"):
            raise ProbeError("No memslot came and went while the context was open.")

    @contextlib.contextmanager
    def write_protected(self, first: int = 0, pages: int | None = None) -> Iterator[None]:
        """A range is write-protected through userfaultfd; see ``faults``.

        Raises OracleUnavailable on a kernel that cannot do that to memory of this kind.
        """
        features = ["write-protect"]
        if self.backing in ("hugetlb", "memfd"):
            features.append("write-protect-files")
        with _lacking("userfaultfd write protection of this memory"):
            self._on_range("protect_by_userfault", first, pages, features=features)
        yield
        self.ask("end_protection")

    def faults(self) -> list[int]:
        """The pages of the write-protected range at which somebody waited, from its start."""
        return list(self.ask("faults"))

    def move_by_userfault(self, first: int, pages: int) -> int:
        """Move pages out of the memory with UFFDIO_MOVE; returns the address where they are."""
        with _lacking("UFFDIO_MOVE, which came with v6.8"):
            return int(self._on_range("move_by_userfault", first, pages))

    # What is done to it by others.

    def move_to_node(self, node: int) -> dict[str, Any]:
        """Another process moves all pages to a node: how many were ``left``, the ``places``."""
        return dict(
            self.session.ask(
                "move_pages", pid=self.pid, address=self.hva, pages=self.pages, node=node
            )
        )

    def migrate(self, old: int, new: int) -> int:
        """Another process migrates all pages from one node to another; how many it could not."""
        return int(self.session.ask("migrate_pages", pid=self.pid, old=old, new=new))

    def advised_by_another(self, advice: str) -> int:
        """Another process advises on all of the memory; how many bytes were advised on."""
        with _lacking("process_madvise of this advice"):
            return int(
                self.session.ask(
                    "advise", pid=self.pid, address=self.hva, size=self.bytes, advice=advice
                )
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[], dict[str, int]]]:
        """Another process has the VM open, too, while the context is open.

        Yields what asks it for KVM's counters of the VM, also when the VMM is gone.
        """
        self.session.ask(
            "hold_vm", name=self.name, vm_fd=self.vm_fd, statistics_fd=self._statistics_fd
        )
        yield lambda: dict(self.session.ask("held_statistics", name=self.name))
        self.session.ask("let_go", name=self.name)

    def await_death(self) -> int | None:
        """The wait status of a VMM that dies by itself in time, or None if it lives on."""
        seconds = self.session.patience / 2
        status = self.session.ask("await_death", name=self.name, seconds=seconds)
        return None if status is None else int(status)

    def limit(self, name: str, value: int | str) -> None:
        """Write a limit of the guest's cgroup, as ``memory.max``."""
        self.session.ask("write", path=f"{self.cgroup}/{name}", text=str(value))

    @contextlib.contextmanager
    def forked(self) -> Iterator[Child]:
        """A child of the VMM that shares the memory copy-on-write while the context is open."""
        name = self.session.new_name("child")
        yield Child(self, name, self.ask("fork", name=name))
        self.ask("end_child", name=name)

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
            for _ in deadline.ticks():
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
                "The host's kernel has no memory.reclaim, which came with v5.19."
            ) from error

    def kill(self, signum: int) -> int:
        """Kill the VMM and return its wait status once it is gone."""
        return int(self.session.ask("kill", name=self.name, signum=signum))

    # What can be seen of it on the host.

    def residency(self) -> Residency:
        """Where each page is."""
        return Residency.unpacked(
            self._on_range("pagemap", 0, None), self._on_range("mincore", 0, None)
        )

    def statistics(self) -> dict[str, dict[str, int]]:
        """KVM's counters: ``vm`` and one key a vcpu."""
        return dict(self.ask("statistics"))

    def memory_statistics(self) -> dict[str, int]:
        """memory.stat of the guest's cgroup, with memory.current and memory.swap.current."""
        lines = self.session.read(f"{self.cgroup}/memory.stat").splitlines()
        statistics = {name: int(value) for name, value in (line.split() for line in lines)}
        for name in ("memory.current", "memory.swap.current"):
            statistics[name] = int(self.session.read(f"{self.cgroup}/{name}"))
        return statistics

    def finish(self, vcpu: int, what: str) -> Visit:
        """Wait for the end of a vcpu's operation.

        Raises Violation when the vcpu neither ends nor can be kicked out of the kernel.
        """
        seconds = _VISIT_SECONDS * self.pace * max(1.0, self.pages / _REFERENCE_PAGES)
        report = self._wait(vcpu, seconds)
        if report is None:
            progress = self.ask("progress", vcpu=vcpu)
            self.ask("kick", vcpu=vcpu)
            kicked = self._wait(vcpu, seconds)
            raise Violation(
                "progress",
                f"vcpu {vcpu} to end {what} within {seconds:.0f} s",
                f"{progress['done']} page visits, at page {progress['current']}; "
                + ("it left the kernel when kicked" if kicked else "it cannot be kicked out"),
                progress["current"],
            )
        fields = {field.name for field in dataclasses.fields(Visit)} - {"words", "how"}
        visit = Visit(how=report.get("how", ""), **{name: report[name] for name in fields})
        if visit.end == "crashed":
            raise Violation(
                "guest execution",
                f"the guest to go on while {what}",
                f"vcpu {vcpu} crashed ({visit.how}) after {visit.done} page visits",
                visit.current,
            )
        return visit

    def _killed_for_memory(self) -> bool:
        lines = self.session.read(f"{self.cgroup}/memory.events").splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"]) > 0

    def _wait(self, vcpu: int, seconds: float) -> dict[str, Any] | None:
        try:
            report: dict[str, Any] | None = self.session.wait_guest(
                self.name, "report", seconds, vcpu=vcpu
            )
        except GuestLost as lost:
            raise self._lost(lost, "a vcpu ran") from lost
        return report

    def _carry_out(self, vcpu: int, op: int, first: int, pages: int | None, **orders: int) -> Visit:
        self.ask("order", vcpu=vcpu, orders=self._orders(op, first, pages, **orders))
        return self.finish(vcpu, f"operation {op}")

    def _orders(self, op: int, first: int, pages: int | None, **orders: int) -> dict[str, int]:
        count = self.pages - first if pages is None else pages
        if first < 0 or count < 1 or first + count > self.pages:
            raise ProbeError(f"Pages {first}+{count} are not within the guest's {self.pages}.")
        return {"op": op, "first": first, "pages": count, **orders}

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


@contextlib.contextmanager
def _lacking(what: str) -> Iterator[None]:
    """An argument that the kernel does not know is something that it lacks."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        raise OracleUnavailable(f"The host's kernel has no {what} ({error}).") from error


@contextlib.contextmanager
def probe_guest(
    session: Session, pages: int = 2048, vcpus: int = 1, backing: str = "anon"
) -> Iterator[ProbeGuest]:
    """A new probe guest with ``pages`` pages of 4 KiB, ended when the context closes.

    ``backing`` is a name from harness/probe/backing.py.
    """
    name = session.new_name("guest")
    # Half of our own patience, so that a VMM that hangs is told apart from an agent that does.
    seconds = session.patience / 2
    answer = session.ask(
        "create", name=name, pages=pages, vcpus=vcpus, seconds=seconds, backing=backing
    )
    try:
        if "ok" not in answer:
            said = answer.get("died", answer)
            raise ProbeError(f"The host could not start a probe guest: {said}.")
        yield ProbeGuest(session, name, answer["ok"], answer["cgroup"], backing)
    except BaseException:
        # What failed matters more than whether the guest can still be ended: one that hangs in
        # the kernel cannot, and that is the kernel's failure.
        with contextlib.suppress(Exception):
            session.ask("close", name=name)
        raise
    session.ask("close", name=name)
