# SPDX-License-Identifier: GPL-2.0-only
"""A secondary MMU without KVM is told of each change, in pairs, before it loses a page.

The device has a TLB and no page tables: what it used once stays in the TLB without a reference, and
nothing but the notifier takes it out. So a change that nobody told of shows in what it reads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from harness.guest.settings import merged_pages, merging, multigenerational, no_swap
from harness.guest.user import Device, NotifierUser, UserFactory
from harness.oracle.secondary import SecondaryEvidence

pytestmark = pytest.mark.secondary_mmu

OLD = 0x0D
NEW = 0x2E
WORD = 7
PART = 3
LARGE = 512
NODES = 2
ATTEMPTS = 5
# A few pages may be in a CPU's LRU batch at each look of KSM.
MOST_APART = 32


@pytest.fixture
def device(user: NotifierUser, evidence: SecondaryEvidence) -> Device:
    """A device that has written to every page, so that it has each in its TLB."""
    return used(user, evidence)


def used(user: NotifierUser, evidence: SecondaryEvidence) -> Device:
    """The same for any user."""
    device = user.attached()
    evidence.granted("writing", device.store(OLD, word=WORD))
    evidence.counted("pages in the TLB", user.pages, device.state()["entries"])
    evidence.no_extra_references(user)
    device.callbacks()
    return device


@contextlib.contextmanager
def announced(
    user: NotifierUser,
    device: Device,
    evidence: SecondaryEvidence,
    first: int = 0,
    pages: int | None = None,
) -> Iterator[None]:
    """While the context is open, the device is told of each page of the range, and well."""
    yield
    evidence.told_of(user, evidence.well_told(device), first, pages)


def same(user: NotifierUser, device: Device, evidence: SecondaryEvidence, word: int) -> None:
    """Every page has this word, for the CPU and for the device."""
    expected = [word] * user.pages
    evidence.equal("the CPU to see it", expected, user.host_read(0, user.pages, WORD))
    seen = evidence.granted("reading", device.load(word=WORD))
    evidence.equal("the device to see what the CPU sees", expected, seen)


def test_unmapped_memory_is_out_of_reach(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    frames = evidence.frames(user)
    with announced(user, device, evidence):
        user.munmap()
    evidence.denied("reading", device.load(word=WORD), 0)
    evidence.denied("writing", device.store(NEW, word=WORD), 0)
    evidence.frames_returned(user, frames)


def test_unmapped_pages_in_the_middle_are_out_of_reach_alone(
    notifier_user: UserFactory, evidence: SecondaryEvidence
) -> None:
    # A VMA that is split inside of 2 MiB has all of them told of, which would hide that nobody was
    # told of the pages that go.
    with notifier_user(3 * LARGE) as user:
        device = used(user, evidence)
        with announced(user, device, evidence, LARGE, LARGE):
            user.munmap(LARGE, LARGE)
        evidence.denied("reading", device.load(word=WORD), LARGE)
        seen = evidence.granted("reading the rest", device.load(2 * LARGE, word=WORD))
        evidence.equal("the rest as it was", [OLD] * LARGE, seen, 2 * LARGE)


def test_discarded_memory_reads_zero(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    with announced(user, device, evidence):
        user.madvise("dontneed")
    same(user, device, evidence, 0)
    evidence.no_extra_references(user)


def test_read_only_memory_is_read_and_not_written(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    with announced(user, device, evidence):
        user.mprotect("read")
    evidence.denied("writing", device.store(NEW, word=WORD), 0)
    same(user, device, evidence, OLD)
    evidence.no_extra_references(user)


def test_inaccessible_memory_is_neither_read_nor_written(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    with announced(user, device, evidence):
        user.mprotect("none")
    evidence.denied("reading", device.load(word=WORD), 0)
    evidence.denied("writing", device.store(NEW, word=WORD), 0)
    user.mprotect("readwrite")
    same(user, device, evidence, OLD)


def test_moved_memory_is_gone_from_where_it_was(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    with announced(user, device, evidence):
        away = user.move_away()
    evidence.denied("reading", device.load(word=WORD), 0)
    user.move_back(away)
    same(user, device, evidence, OLD)
    evidence.no_extra_references(user)


def test_memory_moved_out_of_its_mapping_reads_zero_there(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    with announced(user, device, evidence):
        user.move_away(leaving=True)
    same(user, device, evidence, 0)


@pytest.mark.parametrize("backing", ["anon", "thp", "hugetlb"])
def test_the_child_of_a_fork_does_not_see_what_the_device_writes(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    with contextlib.ExitStack() as forked:
        with announced(user, device, evidence):
            child = forked.enter_context(user.forked())
        evidence.granted("writing", device.store(NEW, word=WORD))
        kept = child.read(0, user.pages, word=WORD)
        evidence.equal("the child to keep what was there", [OLD] * user.pages, kept)
        same(user, device, evidence, NEW)
        evidence.no_extra_references(user)


def test_the_device_follows_to_the_page_that_a_write_fault_copied(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    with user.forked() as child:
        # Read into the TLB once more, without the right to write that the fork took away.
        evidence.granted("reading", device.load(word=WORD))
        device.callbacks()
        with announced(user, device, evidence):
            user.host_write(NEW, 0, user.pages, word=WORD)
        same(user, device, evidence, NEW)
        kept = child.read(0, user.pages, word=WORD)
        evidence.equal("the child to keep what was there", [OLD] * user.pages, kept)


def test_the_device_follows_from_the_zero_page_to_what_is_written(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    user.madvise("dontneed")
    evidence.granted("reading zeros", device.load(word=WORD))
    device.callbacks()
    with announced(user, device, evidence):
        user.host_write(NEW, 0, user.pages, word=WORD)
    same(user, device, evidence, NEW)


def test_what_only_a_device_uses_is_swapped_out_and_comes_back(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    with announced(user, device, evidence):
        residency = user.reclaim()
    evidence.swapped_out(user, residency)
    seen = evidence.granted("reading", device.load(word=WORD))
    evidence.equal("what was swapped out", [OLD] * user.pages, seen)
    evidence.no_extra_references(user)


def test_what_a_device_has_used_lately_is_asked_for_before_it_is_swapped_out(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    # The multi-generational one goes over page tables of the primary MMU first.
    with multigenerational(user.session, on=False):
        user.reclaim()
    evidence.well_told(device)
    asked = device.state()["asked"]
    evidence.at_least("callbacks", "questions for young pages", user.pages, asked)


def test_switching_swap_off_brings_back_what_the_device_wrote(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    evidence.swapped_out(user, user.reclaim())
    with no_swap(user.session):
        same(user, device, evidence, OLD)
    evidence.no_extra_references(user)


@pytest.mark.parametrize("backing", ["anon", "memfd"])
def test_the_device_follows_pages_to_the_other_node(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    for node in (1, 0):
        device.callbacks()
        evidence.granted("writing", device.store(OLD, word=WORD))
        # The first may find every page at home already; then the second cannot.
        watched = announced(user, device, evidence) if node == 0 else contextlib.nullcontext()
        with watched:
            for _ in range(ATTEMPTS):
                user.session.ask("drain_lru")
                moved = user.move_to_node(node)
                if not moved["left"] and set(moved["places"]) == {node}:
                    break
        evidence.at_most("migration", "pages left behind", 0, moved["left"])
        evidence.equal("each page on its new node", [node] * user.pages, moved["places"])
        same(user, device, evidence, OLD)
    evidence.no_extra_references(user)


@pytest.mark.parametrize("backing", ["ksm"])
def test_merged_pages_are_written_one_by_one(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    half = user.pages // 2
    with merging(user.session):
        with announced(user, device, evidence):
            user.madvise("mergeable")
            merged = merged_pages(user.session, user.pages)
        evidence.at_least("merging", "pages merged", user.pages - MOST_APART, merged)
        evidence.granted("writing", device.store(NEW, 0, half, word=WORD))
        expected = [NEW] * half + [OLD] * (user.pages - half)
        seen = user.host_read(0, user.pages, word=WORD)
        evidence.equal("the write in its pages alone", expected, seen)
        seen_by_device = evidence.granted("reading", device.load(word=WORD))
        evidence.equal("the device to see the same", expected, seen_by_device)
        user.madvise("unmergeable")
    evidence.well_told(device)


@pytest.mark.parametrize("what", ["page", "mapping"])
@pytest.mark.parametrize("backing", ["thp"])
def test_a_large_page_that_is_split_is_announced_as_a_whole(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence, what: str
) -> None:
    with announced(user, device, evidence):
        if what == "page":
            user.split_large_pages()
        else:
            user.mprotect("read", PART, 1)
            user.mprotect("readwrite", PART, 1)
    same(user, device, evidence, OLD)


def test_the_device_follows_to_the_large_page_that_is_collapsed_to(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    with announced(user, device, evidence):
        evidence.at_least("collapse", "collapses", 1, user.collapse())
    same(user, device, evidence, OLD)
    user.host_write(NEW, 0, user.pages, word=WORD)
    same(user, device, evidence, NEW)
    evidence.no_extra_references(user)


def test_a_write_of_the_device_after_madv_free_keeps_the_page(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    with announced(user, device, evidence):
        user.madvise("free")
    evidence.granted("writing", device.store(NEW, word=WORD))
    user.reclaim()
    same(user, device, evidence, NEW)


@pytest.mark.parametrize("backing", ["memfd", "file-shared", "hugetlb-shared"])
def test_a_hole_in_a_file_reads_zero(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    with announced(user, device, evidence):
        user.punch()
    same(user, device, evidence, 0)


@pytest.mark.parametrize("backing", ["memfd"])
def test_what_is_beyond_the_end_of_a_file_is_out_of_reach(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    with announced(user, device, evidence):
        user.truncate(0)
    evidence.denied("reading", device.load(word=WORD), 0)


@pytest.mark.parametrize("backing", ["file-shared"])
def test_each_write_of_the_device_after_a_sync_reaches_the_file(
    user: NotifierUser, device: Device, evidence: SecondaryEvidence
) -> None:
    with announced(user, device, evidence):
        user.fsync()
    evidence.granted("writing", device.store(NEW, word=WORD))
    user.fsync()
    expected = [NEW] * user.pages
    evidence.equal("the writes on the disk", expected, user.stored(0, user.pages, word=WORD))
