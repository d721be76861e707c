# SPDX-License-Identifier: GPL-2.0-only
"""KSM merges the equal pages of a guest, and whoever writes to one gets a page of its own."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator

import pytest

from harness.guest.probe import GuestFactory, ProbeGuest
from harness.guest.settings import merged_meanwhile, merged_pages, merging
from harness.oracle.evidence import Evidence

pytestmark = pytest.mark.parametrize("backing", ["ksm"])

SEED = 0x5EED
HOT = 64
READERS = 2
ROUNDS = 3
NEW = 0x2E
WORD = 7
# A few may be in a CPU's LRU batch at each look, or differ because somebody looks at them.
MOST_APART = 32


def _same(guest: ProbeGuest) -> int:
    """What all pages of a guest hold, and those of no other guest of the host.

    A page that was merged for a guest before may still be about, in the LRU batch of a CPU. KSM
    would merge these with it, and they would be charged where that was: to a cgroup that is gone.
    """
    return zlib.crc32(guest.name.encode())


@contextlib.contextmanager
def _merged(guest: ProbeGuest, evidence: Evidence) -> Iterator[None]:
    """All pages of the guest are equal, and KSM has merged them while the context is open."""
    guest.write(_same(guest), 0, guest.pages, word=WORD)
    evidence.sound(guest)
    with merging(guest.session):
        with evidence.told(guest, 0, guest.pages):
            guest.madvise("mergeable")
            # KSM refuses pages with references that it cannot explain.
            merged = merged_pages(guest.session, guest.pages)
        evidence.at_least("merging", "pages merged", guest.pages - MOST_APART, merged)
        evidence.sound(guest)
        yield
        guest.madvise("unmergeable")


def test_merged_pages_read_as_before(guest: ProbeGuest, evidence: Evidence) -> None:
    with _merged(guest, evidence):
        seen = guest.read(0, guest.pages, word=WORD).words
        evidence.equal("merged pages as they were", [_same(guest)] * guest.pages, seen)
        evidence.sound(guest)


@pytest.mark.parametrize("writer", ["guest", "vmm"])
def test_a_write_to_a_merged_page_is_seen_there_and_nowhere_else(
    guest: ProbeGuest, evidence: Evidence, writer: str
) -> None:
    half = guest.pages // 2
    with _merged(guest, evidence):
        guest.read(0, guest.pages, word=WORD)
        if writer == "guest":
            evidence.done("writing", guest.write(NEW, 0, half, word=WORD))
        else:
            guest.host_write(NEW, 0, half, word=WORD)
        evidence.no_stale_translations(guest)
        expected = [NEW] * half + [_same(guest)] * (guest.pages - half)
        seen = guest.read(0, guest.pages, word=WORD).words
        evidence.equal("the guest to see the write in its page alone", expected, seen)
        seen_by_host = guest.host_read(0, guest.pages, word=WORD)
        evidence.equal("the VMM to see the same", expected, seen_by_host)
        evidence.sound(guest)


def test_memory_that_is_unmerged_is_as_before(guest: ProbeGuest, evidence: Evidence) -> None:
    with _merged(guest, evidence), evidence.told(guest):
        guest.madvise("unmergeable")
        evidence.no_stale_translations(guest)
    evidence.done("writing", guest.write(NEW, 0, 1, word=WORD))
    seen = guest.read(0, guest.pages, word=WORD).words
    evidence.equal("each page by itself", [NEW] + [_same(guest)] * (guest.pages - 1), seen)
    evidence.sound(guest)


def test_merged_memory_goes_out_and_back(guest: ProbeGuest, evidence: Evidence) -> None:
    with _merged(guest, evidence):
        evidence.swapped_out(guest, guest.reclaim())
        evidence.no_stale_translations(guest)
        seen = guest.read(0, guest.pages, word=WORD).words
        evidence.equal("merged pages as they were", [_same(guest)] * guest.pages, seen)
        evidence.sound(guest)


def test_a_hammering_guest_loses_no_write_to_merging(guest: ProbeGuest, evidence: Evidence) -> None:
    # The pages of the hammer change all the time, so KSM tries them in vain, or merges them for
    # a moment; the others stay merged.
    evidence.content(guest.fill(SEED, 0, HOT))
    guest.write(_same(guest), HOT, guest.pages - HOT, word=WORD)
    with merging(guest.session), guest.hammering(0, 0, HOT) as hammer:
        guest.madvise("mergeable")
        least = guest.pages - HOT - MOST_APART
        merged = merged_pages(guest.session, least)
        evidence.at_least("merging", "pages merged", least, merged)
        hammer.await_visits(8 * HOT)
        evidence.no_stale_translations(guest)
    evidence.content(hammer.stop())
    evidence.content(guest.check(SEED, 0, HOT))
    evidence.sound(guest)


def test_reading_vcpus_follow_to_the_page_that_is_merged(
    probe_guest: GuestFactory, evidence: Evidence, backing: str
) -> None:
    # KSM takes a page's write access away and replaces it a moment later. On a busy host it is
    # preempted in between now and then, and who maps the page then needs the second notification.
    with probe_guest(vcpus=READERS, backing=backing) as guest:
        share = guest.pages // READERS
        for _ in range(ROUNDS):
            guest.write(_same(guest), 0, guest.pages, word=WORD)
            with merging(guest.session), contextlib.ExitStack() as stack:
                hammers = [
                    stack.enter_context(guest.hammering(vcpu, vcpu * share, share, writing=False))
                    for vcpu in range(READERS)
                ]
                guest.madvise("mergeable")
                least = guest.pages - MOST_APART
                merged = merged_meanwhile(guest.session, least)
                # While anything is invalidated, a vcpu that faults tries again and again, and
                # leaves KSM, which is nicer, hardly a CPU to come to an end: before commit
                # 4a42d848db95 ("KVM: x86/mmu: Consider the hva in mmu_notifier retry") (in v5.12).
                # A page that is held would not be merged however long that takes.
                least = 1 if merged.goes_on else least
                evidence.at_least("merging", "pages merged", least, merged.pages)
                evidence.no_stale_translations(guest)
            for hammer in hammers:
                evidence.content(hammer.stop())
            guest.madvise("unmergeable")
        evidence.sound(guest)
