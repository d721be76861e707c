# SPDX-License-Identifier: GPL-2.0-only
"""Ask the oracles on behalf of one test, and keep what each of them said.

Each method is one claim about the kernel. It asks an oracle, records the answer, and raises
Violation when the kernel broke the claim. An oracle that cannot be asked on this host is
recorded as not consulted, with the reason; the claim then stands on the others, and a test for
which nobody could speak does not pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from harness.deadline import Deadline
from harness.errors import KERNEL_LOG, OracleUnavailable, ProbeError, Violation
from harness.guest.observation import Residency, Visit
from harness.guest.probe import ProbeGuest
from harness.guest.process import Charged, ProbeProcess
from harness.machine.host import Host
from harness.machine.mmu import Mmu
from harness.oracle import notifier
from harness.oracle.answers import SHOWN, Answers
from harness.oracle.charges import most_charged
from harness.oracle.outside import (
    INVALIDATIONS,
    REFERENCES,
    TRANSLATIONS,
    Examined,
    Finding,
    Owned,
    Question,
    primary_of,
)
from harness.oracle.registration import mm_references, subscriptions
from harness.oracle.settle import settled
from harness.oracle.sptes import read_sptes
from harness.oracle.structpage import page_states
from harness.probe.layout import PAGE_BYTES, control_pages
from harness.result.outcome import OracleStatus

_SETTLE_SECONDS = 3.0
"""How long something transient may keep a page referenced on a fast machine."""

_SPTE_COUNTERS = {"pages_4k": 1, "pages_2m": 512, "pages_1g": 512 * 512}
"""KVM's counters of leaf sptes, with the pages of 4 KiB that each maps."""

_SHARED = ("memfd", "file-shared", "dax")
_IN_FILES = ("file-shared",)
"""Kinds of memory whose pages are also a file's, and those of which that file is on a disk."""

_LEVELS = {1: "4 KiB", 2: "2 MiB", 3: "1 GiB"}

_VMM_SLACK_BYTES = 4 << 20
"""What the VMM itself may touch in the guest's cgroup after it was entered."""


class Evidence(Answers):
    """What the oracles said in one test on one host."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host

    # Claims about references and translations, seen from outside.

    def no_extra_references(self, guest: Owned) -> None:
        """No page that the guest's memory maps has more or fewer references than it may."""
        self._from_outside(guest, REFERENCES)

    def no_stale_translations(self, guest: Examined) -> None:
        """No spte translates otherwise than, or allows more than, the primary MMU."""
        self._from_outside(guest, TRANSLATIONS)

    def sound(self, guest: Examined) -> None:
        """Both of the above and ended invalidations in one picture: what every scenario asks."""
        self._from_outside(guest, REFERENCES, TRANSLATIONS, INVALIDATIONS)

    def frames(self, guest: Owned, first: int = 0, pages: int | None = None) -> tuple[int, ...]:
        """The frames of a range of the memory now; none when it cannot be read from outside."""
        try:
            with self._host.paused():
                primary = primary_of(self._host.debugger(), guest)
        except OracleUnavailable as error:
            self._not_consulted("frames", error)
            return ()
        last = guest.pages if pages is None else first + pages
        return tuple(int(pfn) for pfn in primary.pfn[first:last][primary.present[first:last]])

    def frames_returned(self, guest: Owned, frames: Sequence[int]) -> None:
        """None of the frames that lost their mapping is held: each is free or in use anew.

        A frame that something still references, but nothing maps or caches, was leaked.
        """
        if not frames:
            return
        program = self._host.debugger()

        def orphans() -> tuple[str, ...]:
            # A page that was unmapped while in a CPU's LRU batch is freed when that is drained.
            guest.session.ask("drain_lru")
            with self._host.paused():
                states = page_states(program, np.array(frames, np.uint64))
            # Anonymous pages carry their mark until they are freed; a new owner rewrites it.
            held = (states.refcount > 0) & states.anon & (states.mapcount == 0) & ~states.swap_cache
            return tuple(f"pfn {int(pfn):#x}" for pfn in states.pfn[held])

        try:
            left = settled(orphans, self._patience(), key=str)
        except OracleUnavailable as error:
            self._not_consulted("frames", error)
            return
        self._judge("frames", "every frame to be given back", left)

    # Claims about sptes, by KVM's own counters.

    def sptes_dropped(self, guest: ProbeGuest, first: int = 0, pages: int | None = None) -> None:
        """KVM's counters allow no spte for the pages of a range any more.

        The counters are the VM's, so they speak only of ranges larger than what else can be
        mapped, the payload's own pages; for smaller ones nothing is claimed. That is a bound and
        no difference, because the primary MMU drops sptes for reasons of its own, too (a split
        VMA, a migrated page).
        """
        count = guest.pages - first if pages is None else pages
        others = control_pages(guest.pages, deeper=self._host.facts.mmu is Mmu.NESTED)
        if count <= others:
            return
        try:
            counters = guest.statistics()["vm"]
        except OSError as error:
            self._not_consulted("spte counters", error)
            return
        self.mapped_at_most(counters, guest.pages - count + others)

    def mapped_at_most(self, counters: Mapping[str, int], most: int) -> None:
        """A VM's counters say that sptes map so many pages of 4 KiB, or fewer."""
        try:
            now = sum(counters[name] * size for name, size in _SPTE_COUNTERS.items())
        except KeyError as error:
            self._not_consulted("spte counters", f"This kernel does not count {error} of a VM.")
            return
        wrong = [] if now <= most else [f"{now}"]
        expected = f"at most {most} pages mapped by sptes"
        self._judge("spte counters", expected, wrong, agreed=f"{now} mapped")

    def mapped_by_sptes(
        self, guest: ProbeGuest, level: int, first: int = 0, pages: int | None = None
    ) -> None:
        """Each page of a range is mapped by an spte of a level: 1 is 4 KiB, 2 is 2 MiB."""
        count = guest.pages - first if pages is None else pages
        try:
            with self._host.paused():
                sptes = read_sptes(
                    self._host.debugger(), guest.pid, guest.vm_fd, guest.gpa, guest.pages
                )
        except OracleUnavailable as error:
            self._not_consulted("spte size", error)
            return
        right = np.zeros(guest.pages, np.bool_)
        right[sptes.page[sptes.level == level]] = True
        missing = first + np.flatnonzero(~right[first : first + count])
        wrong = [f"{len(missing)} pages are not, the first is {missing[0]}"] if len(missing) else []
        self._judge(
            "spte size",
            f"pages {first} to {first + count - 1} mapped by sptes of {_LEVELS[level]}",
            wrong,
            page=int(missing[0]) if len(missing) else None,
        )

    def mapped_large(self, guest: ProbeGuest, first: int = 0, pages: int | None = None) -> None:
        """The primary MMU maps a range by large pages: without, a scenario proves nothing.

        Raises ProbeError when it does not; the kernel may refuse large pages at any time.
        """
        count = guest.pages - first if pages is None else pages
        try:
            with self._host.paused():
                primary = primary_of(self._host.debugger(), guest)
        except OracleUnavailable as error:
            self._not_consulted("page size", error)
            return
        small = first + np.flatnonzero(~primary.large[first : first + count])
        if len(small):
            raise ProbeError(
                f"The host's kernel gave the guest no large page at page {small[0]} "
                f"({len(small)} of {count} pages are small)."
            )
        self._judge("page size", "large pages in the primary MMU", [], agreed=f"{count} pages")

    # Claims about registration.

    def registered(self, guest: Owned, machines: int) -> None:
        """The VMM's memory has as many notifiers as there are VMs on it."""
        try:
            program = self._host.debugger()

            def wrong() -> tuple[str, ...]:
                with self._host.paused():
                    seen = subscriptions(program, guest.pid)
                return () if seen == machines else (f"{seen}",)

            left = settled(wrong, self._patience())
        except OracleUnavailable as error:
            self._not_consulted("registration", error)
            return
        self._judge("registration", f"{machines} notifiers on the VMM's memory", left)

    @contextlib.contextmanager
    def mm_not_held(self, guest: Owned) -> Iterator[None]:
        """When the context is left, the VMM's mm is held by as many as before.

        An idle CPU holds the mm that it ran last, for as long as it runs nothing else; so the
        claim is that no more than one a CPU has been added.
        """
        try:
            program = self._host.debugger()
        except OracleUnavailable as error:
            self._not_consulted("mm references", error)
            yield
            return
        with self._host.paused():
            most = mm_references(program, guest.pid) + guest.session.cpus
        yield

        def wrong() -> tuple[str, ...]:
            with self._host.paused():
                now = mm_references(program, guest.pid)
            return () if now <= most else (f"{now}",)

        left = settled(wrong, self._patience())
        self._judge("mm references", f"at most {most} on the VMM's mm", left)

    # Claims about reclaim.

    def swapped_out(self, guest: ProbeProcess, residency: Residency, hot: range = range(0)) -> None:
        """Every page but the ``hot`` ones is out of memory: in swap, or in its file.

        A swap entry alone proves nothing: reclaim unmaps first and looks at the references
        later, so a pinned page shows as swapped while it stays in memory.
        """
        cold = np.ones(guest.pages, np.bool_)
        cold[hot.start : hot.stop] = False
        total = int(cold.sum())
        where = "its file" if guest.backing in _IN_FILES else "swap"
        # The ptes of memory with a file of its own are empty; where its pages are, the file knows.
        out = ~residency.present if guest.backing in _SHARED else residency.swapped
        there = np.flatnonzero(cold & ~out)
        lingering = np.flatnonzero(cold & out & residency.resident)
        wrong = []
        if len(there):
            wrong.append(f"only {total - len(there)} of {total} pages are in {where}")
        if len(lingering):
            named = ", ".join(str(page) for page in lingering[:SHOWN])
            wrong.append(f"{len(lingering)} pages are in {where} and stay in memory: {named}")
        first = next((int(pages[0]) for pages in (there, lingering) if len(pages)), None)
        expected = f"all {total} cold pages in {where} and none of them in memory"
        self._judge("reclaim", expected, wrong, page=first, agreed=f"{total} in {where}")
        self._memory_controller_agrees(guest, total, len(hot))

    def _memory_controller_agrees(self, guest: ProbeProcess, swapped: int, hot: int) -> None:
        """The memory controller counts the same; its statistics are batched, so they may lag."""
        most = _VMM_SLACK_BYTES + hot * PAGE_BYTES
        # Files take no swap, and merged pages share theirs.
        least = 0 if guest.backing in (*_IN_FILES, "ksm") else swapped * PAGE_BYTES
        kinds = ("anon", "shmem", "swapcached", *(["file"] if guest.backing in _IN_FILES else []))

        def wrong() -> tuple[str, ...]:
            counts = guest.memory_statistics()
            over = {name: counts.get(name, 0) for name in kinds}
            texts = [f"{name} {value}" for name, value in over.items() if value > most]
            if counts["memory.swap.current"] < least:
                texts.append(f"memory.swap.current {counts['memory.swap.current']}")
            return tuple(texts)

        left = settled(wrong, self._patience())
        expected = f"{', '.join(kinds)} at most {most} and swap at least {least} bytes"
        self._judge("memory controller", expected, left)

    def back_in_memory(self, guest: ProbeProcess, residency: Residency) -> None:
        """Every page is in memory again, and none in swap."""
        away = [int(page) for page in np.flatnonzero(residency.swapped | ~residency.resident)]
        wrong = [f"{len(away)} pages are not, the first is {away[0]}"] if away else []
        self._judge("reclaim", "every page back in memory", wrong, page=next(iter(away), None))

    def memory_given_back(self, guest: Charged) -> None:
        """The cgroup of a dead guest is charged for no memory, swap or page table any more."""
        most = most_charged(guest.session, guest.cgroup)

        def charged() -> tuple[str, ...]:
            guest.session.ask("drain_lru")
            counts = guest.memory_statistics()
            return tuple(
                f"{name} {counts[name]}"
                for name, limit in most.items()
                if counts.get(name, 0) > limit
            )

        limits = ", ".join(f"{name} {limit}" for name, limit in most.items())
        left = settled(charged, self._patience())
        self._judge("memory controller", f"charges of at most {limits} bytes", left)

    # Claims about what the guest, its VMM and its children see.

    def content(self, visit: Visit) -> None:
        """The guest finished an operation and found every word as it ought to be."""
        self.done("going over its pages", visit)
        wrong = []
        if visit.bad:
            wrong.append(
                f"{visit.bad} wrong words, the first is word {visit.bad_word} with "
                f"{visit.bad_seen:#x} instead of {visit.bad_expected:#x}"
            )
        page = visit.bad_page if visit.bad else None
        agreed = f"{visit.done} page visits without a wrong word"
        self._judge("content", "every word as it was written", wrong, page=page, agreed=agreed)

    def done(self, what: str, visit: Visit) -> None:
        """The guest was let do something to the end."""
        wrong = []
        if visit.end != "done":
            wrong.append(f"{visit.end} ({visit.how}) at page {visit.current}")
        page = visit.current if wrong else None
        agreed = f"{visit.done} pages visited"
        self._judge("access", f"the guest to get through {what}", wrong, page=page, agreed=agreed)

    def at_least(self, oracle: str, what: str, least: int, seen: int) -> None:
        """A quantity that an oracle measured reached a bound."""
        wrong = [] if seen >= least else [f"{seen}"]
        self._judge(oracle, f"at least {least} {what}", wrong, agreed=f"{seen}")

    def at_most(self, oracle: str, what: str, most: int, seen: int) -> None:
        """A quantity that an oracle measured did not go beyond a bound."""
        wrong = [] if seen <= most else [f"{seen}"]
        self._judge(oracle, f"at most {most} {what}", wrong, agreed=f"{seen}")

    def equal(
        self, what: str, expected: Sequence[int], seen: Sequence[int], first: int = 0
    ) -> None:
        """Words read from consecutive pages, from page ``first`` on, are as expected."""
        wrong = []
        page = None
        for index, (want, have) in enumerate(zip(expected, seen, strict=True)):
            if want != have:
                page = first + index if page is None else page
                wrong.append(f"page {first + index}: {have:#x} instead of {want:#x}")
        self._judge("content", what, wrong, page=page, agreed=f"{len(seen)} words as expected")

    def refused(self, what: str, visit: Visit, page: int) -> None:
        """KVM handed the access to ``page`` to the VMM, instead of letting the guest have it."""
        wrong = []
        if not visit.refused:
            saw = f", and read {visit.words[0]:#x}" if visit.words else ""
            wrong.append(f"the access went through{saw}")
        elif visit.current != page:
            wrong.append(f"page {visit.current} was refused already")
        self._judge("access", f"{what} to be refused", wrong, page=page, agreed=visit.how)

    # Claims about notifier calls.

    @contextlib.contextmanager
    def told(self, guest: ProbeGuest, first: int = 0, pages: int | None = None) -> Iterator[None]:
        """While the context was open, KVM was told to drop each page of the range."""
        count = guest.pages - first if pages is None else pages
        with contextlib.ExitStack() as stack:
            try:
                seen = stack.enter_context(notifier.watch(guest))
            except OracleUnavailable as error:
                self._not_consulted("notifier", error)
                seen = None
            yield
        if seen is None:
            return
        missed = first + np.flatnonzero(~seen.told()[first : first + count])
        if len(missed) and seen.lost:
            self._not_consulted("notifier", f"the trace buffer dropped {seen.lost} events")
            return
        wrong = [f"{len(missed)} pages were not, the first is {missed[0]}"] if len(missed) else []
        self._judge(
            "notifier",
            f"invalidate_range_start for pages {first} to {first + count - 1}",
            wrong,
            page=int(missed[0]) if len(missed) else None,
            agreed=f"{len(seen.ranges)} calls",
        )

    # The kernel's own word.

    def log_is_clean(self) -> None:
        """The kernel did not complain; raises KernelSplat if it did."""
        try:
            self._host.check()
        except Violation as violation:
            self._record(OracleStatus.VIOLATED, KERNEL_LOG, violation.expected, violation.seen)
            raise
        self._judge(KERNEL_LOG, "no complaint of the kernel", [])

    # How the host is looked at.

    def _from_outside(self, guest: Owned, *questions: Question) -> None:
        """Look at the stopped host's memory until nothing is wrong, or something stays wrong."""
        try:
            program = self._host.debugger()
        except OracleUnavailable as error:
            for question in questions:
                self._not_consulted(question.oracle, error)
            return
        unanswered: dict[str, OracleUnavailable] = {}
        looks = 0

        def atomically() -> Sequence[tuple[str, Finding]]:
            nonlocal looks
            if looks:
                # Most looks find nothing to wait for, and need not pay for this.
                guest.session.ask("drain_lru")
            looks += 1
            found: list[tuple[str, Finding]] = []
            with self._host.paused():
                primary = primary_of(program, guest)
                for question in questions:
                    try:
                        answer = question.look(program, guest, primary)
                    except OracleUnavailable as error:
                        unanswered[question.oracle] = error
                        continue
                    found += [(question.oracle, finding) for finding in answer]
            return found

        lasting = settled(atomically, self._patience(), key=lambda found: (found[0], found[1].page))
        for question in questions:
            if question.oracle in unanswered:
                self._not_consulted(question.oracle, unanswered[question.oracle])
                continue
            wrong = [finding for oracle, finding in lasting if oracle == question.oracle]
            page = wrong[0].page if wrong else None
            texts = [str(finding) for finding in wrong]
            seen = f"{guest.pages} pages looked at"
            self._judge(question.oracle, question.expected, texts, page=page, agreed=seen)

    def _patience(self) -> Deadline:
        return Deadline.after(_SETTLE_SECONDS * self._host.facts.pace, "Settling")
