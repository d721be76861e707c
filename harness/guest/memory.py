# SPDX-License-Identifier: GPL-2.0-only
"""L0's handle of a guest's memory: what its VMM and other processes of the host do to it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Any

from harness.deadline import Deadline
from harness.errors import OracleUnavailable, ProbeError
from harness.guest.hammer import Child
from harness.guest.observation import Residency
from harness.guest.process import ProbeProcess
from harness.guest.session import undone
from harness.probe import layout

_RACE_SECONDS = 60.0
_ALIASING_SECONDS = 20.0
"""How long the rounds of a race may take on a fast machine; most are over in two."""

_COLLAPSE_SECONDS = 5.0

_WITH_A_FILE = ("hugetlb", "hugetlb-shared", "hugetlb-wide", "memfd")
"""Kinds of memory that userfaultfd protects as it does files."""

_UPROBES = "/sys/kernel/tracing/uprobe_events"
_GROUP = "mmu_harness"

_SQUEEZE_STEP = 64
_SQUEEZE_FRUITLESS = 20


class GuestMemory(ProbeProcess):
    """The memory of a guest, with the VMM process that it belongs to."""

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
                with lacking("MADV_COLLAPSE, which came with v6.1"):
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
        with lacking("/sys/kernel/debug/split_huge_pages for one process"):
            self.session.ask("write", path="/sys/kernel/debug/split_huge_pages", text=span)

    def mprotect(self, protection: str, first: int = 0, pages: int | None = None) -> None:
        """Call mprotect(2) with ``none``, ``read`` or ``readwrite``."""
        self._on_range("mprotect", first, pages, protection=protection)

    def munmap(self, first: int = 0, pages: int | None = None) -> None:
        """Call munmap(2)."""
        self._on_range("munmap", first, pages)

    def remap(self, first: int = 0, pages: int | None = None) -> None:
        """Map the backing over a range anew: zeros, or what its file has there."""
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
        with lacking("MREMAP_DONTUNMAP") if leaving else contextlib.nullcontext():
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
        """A word of each page as its disk has it now, whatever the page cache has."""
        return list(self._on_range("stored", first, pages, word=word))

    def race(self, kind: str, vcpu: int, page: int, rounds: int) -> tuple[int, int]:
        """Do something to the page that a vcpu hammers alone, ``rounds`` times; see probe/race.py.

        Returns how many rounds there was time for, and in how many of them a write of the vcpu
        went where it may not go any more.
        """
        seconds = _RACE_SECONDS * self.pace
        played = self.wait("race", seconds, kind=kind, vcpu=vcpu, page=page, rounds=rounds)
        return int(played["rounds"]), int(played["lost"])

    @contextlib.contextmanager
    def aliased(self, *, own: bool = False, rounds: int = 1) -> Iterator[None]:
        """A second memslot on the same memory comes, moves and goes while the context is open.

        That ends when it has done so for as many ``rounds``.

        With ``own`` it shows memory that nothing else shows, and whose protection is changed
        without end meanwhile. Raises ProbeError when it did not come and go so often.
        """
        self.ask("begin_aliasing", own=own)
        yield
        seconds = _ALIASING_SECONDS * self.pace
        if (seen := self.wait("end_aliasing", seconds, least=rounds)) < rounds:
            raise ProbeError(f"A memslot came and went {seen} times in {seconds:.0f} s.")

    @contextlib.contextmanager
    def forked(self) -> Iterator[Child]:
        """A child of the VMM that shares the memory copy-on-write while the context is open."""
        name = self.session.new_name("child")
        yield Child(self, name, self.ask("fork", name=name))
        self.ask("end_child", name=name)

    @contextlib.contextmanager
    def write_protected(self, first: int = 0, pages: int | None = None) -> Iterator[None]:
        """A range is write-protected through userfaultfd; see ``faults``.

        The VMM itself cannot write there meanwhile: host_write() raises ProbeError. Raises
        OracleUnavailable on a kernel that cannot do that to memory of this kind.
        """
        features = ["write-protect"]
        if self.backing in _WITH_A_FILE:
            features.append("write-protect-files")
        with lacking("userfaultfd write protection of this memory"):
            self._on_range("protect_by_userfault", first, pages, features=features)
        yield
        self.ask("end_protection")

    def faults(self) -> list[int]:
        """The pages of the write-protected range at which somebody waited, from its start."""
        return list(self.ask("faults"))

    @contextlib.contextmanager
    def tracked(self) -> Iterator[Callable[[], list[int]]]:
        """Writes to all of the memory are followed while the context is open.

        Yields what tells the pages written to since it was last asked. Raises OracleUnavailable
        on a kernel that has no PAGEMAP_SCAN for memory of this kind.
        """
        features = ["write-protect", "write-protect-async", "write-protect-unpopulated"]
        if self.backing in _WITH_A_FILE:
            features.append("write-protect-files")
        with lacking("write tracking of this memory (PAGEMAP_SCAN), which came with v6.7"):
            self._on_range("track_writes", 0, None, features=features)
        yield lambda: list(self.ask("written"))
        self.ask("end_tracking")

    def mark_idle(self, first: int = 0, pages: int | None = None) -> None:
        """Mark pages idle, as if nobody had touched them lately.

        Large pages are marked by their first. Raises OracleUnavailable where the host's kernel has
        no idle page tracking.
        """
        try:
            self._on_range("mark_idle", first, pages)
        except FileNotFoundError as error:
            raise OracleUnavailable("The host's kernel has no idle page tracking.") from error

    def idle(self, first: int = 0, pages: int | None = None) -> list[int]:
        """The pages of a range that were marked idle and that nobody has touched since."""
        return list(self._on_range("idle", first, pages))

    def flush_tlbs(self, first: int, pages: int) -> None:
        """Have KVM drop the sptes of a range, for which it flushes all of the vcpus' TLBs.

        An Accessed bit is set when a translation is loaded; one that a vcpu has already sets none.
        """
        self.mprotect("read", first, pages)
        self.mprotect("readwrite", first, pages)

    @contextlib.contextmanager
    def mirrored(self) -> Iterator[None]:
        """A device with memory of its own mirrors this memory while the context is open.

        See harness/probe/mirror.py; device_memory() of the settings has the device there. What it
        has taken should be back before the context ends.
        """
        self.ask("begin_mirroring")
        yield
        self.ask("end_mirroring")

    def give_to_device(self, how: str, first: int = 0, pages: int | None = None) -> int:
        """Have that device take pages for itself, ``private`` or ``exclusive``; how many it got."""
        return int(self._on_range("give_to_device", first, pages, how=how))

    def move_by_userfault(self, first: int, pages: int) -> int:
        """Move pages out of the memory with UFFDIO_MOVE; returns the address where they are."""
        with lacking("UFFDIO_MOVE, which came with v6.8"):
            return int(self._on_range("move_by_userfault", first, pages))

    # What is done to it by others.

    @contextlib.contextmanager
    def breakpoint(self, page: int) -> Iterator[None]:
        """A breakpoint is on the first instruction of a page of the file below (uprobes).

        The memory must be a private mapping that may not be written to; what it is set in is a
        copy that the kernel makes. Raises OracleUnavailable on a kernel without uprobe events.
        """
        if not self.session.ask("exists", path=_UPROBES):
            raise OracleUnavailable("The host's kernel has no uprobe events (UPROBE_EVENTS).")
        where = f"{self._path}:{page * layout.PAGE_BYTES:#x}"
        self.session.ask("write", path=_UPROBES, text=f"p:{_GROUP}/{self.name} {where}\n")
        with undone(lambda: self.session.ask("write", path=_UPROBES, text="")):
            path = f"/sys/kernel/tracing/events/{_GROUP}/{self.name}/enable"
            with self.session.setting(path, "1"):
                yield

    def squeeze(self, pages: int) -> int:
        """Lower memory.max of the guest's cgroup until so many pages of it are in memory, or fewer.

        In small steps, and with a VMM that nobody may kill for it, because a disk that is slow is
        no reason to die. Returns how many pages are in memory when that went no further; the limit
        is then lifted. A private file's own pages, charged to the same cgroup, may all go first.
        """
        self.session.ask("write", path=f"/proc/{self.pid}/oom_score_adj", text="-1000")
        deadline = Deadline.after(60.0 * self.pace, "Lowering memory.max")
        left, charged, fruitless = self._in_memory(), self._charged(), 0
        with self.session.setting("/proc/sys/vm/page-cluster", "0"):
            for _ in deadline.ticks(0.0, 0.02):
                if left <= pages or fruitless == _SQUEEZE_FRUITLESS:
                    break
                self.session.ask("drain_lru")
                # More with each step in vain, or reclaim is content with the VMM's own pages, which
                # come back at once, and a last page of the guest that is active stays.
                step = min(_SQUEEZE_STEP, left - pages + fruitless)
                self.limit("memory.max", charged - step * layout.PAGE_BYTES)
                before, left = left, self._in_memory()
                least, charged = charged, min(charged, self._charged())
                fruitless = 0 if left < before or charged < least else fruitless + 1
        self.limit("memory.max", "max")
        return left

    def _charged(self) -> int:
        return int(self.session.read(f"{self.cgroup}/memory.current"))

    def _in_memory(self) -> int:
        residency = Residency.unpacked(
            self._on_range("pagemap", 0, None), self._on_range("mincore", 0, None)
        )
        return residency.outside(range(0))

    def kill_and_reap(self) -> dict[str, int]:
        """Kill the VMM and have its memory reaped before it can exit; needs held().

        Returns KVM's counters of the VM in between. Raises OracleUnavailable before v5.15, and
        ProbeError when the VMM was faster.
        """
        try:
            with lacking("process_mrelease, which came with v5.15"):
                return dict(self.session.ask("kill_and_reap", name=self.name))
        except ProcessLookupError as error:
            raise ProbeError("The VMM exited before its memory could be reaped.") from error

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
        with lacking("process_madvise of this advice"):
            return int(
                self.session.ask(
                    "advise", pid=self.pid, address=self.hva, size=self.bytes, advice=advice
                )
            )


@contextlib.contextmanager
def lacking(what: str) -> Iterator[None]:
    """An argument that the kernel does not know is something that it lacks."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        raise OracleUnavailable(f"The host's kernel has no {what} ({error}).") from error
