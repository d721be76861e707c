# SPDX-License-Identifier: GPL-2.0-only
"""After a fork the guest follows its VMM's pages, and the child keeps what it had.

Memory that a child shares with its parent is the same for both instead.
"""

from __future__ import annotations

import contextlib

from matrix import SHARED, on_backings

from harness.guest.probe import ProbeGuest
from harness.guest.settings import failing_allocations
from harness.oracle.evidence import Evidence

SEED = 0x5EED
OLD = 0x0D
NEW = 0x2E
WORD = 7


@on_backings("fork")
def test_the_guest_sees_what_the_parent_writes_after_fork(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    before, written = [OLD] * guest.pages, [NEW] * guest.pages
    evidence.content(guest.fill(SEED))
    guest.write(OLD, 0, guest.pages, word=WORD)
    frames = evidence.frames(guest)
    evidence.sound(guest)
    with contextlib.ExitStack() as forked:
        with _told_if_private(guest, evidence):
            child = forked.enter_context(guest.forked())
        evidence.no_stale_translations(guest)
        # Read through sptes that are read-only now, so that the parent's copy must replace them.
        seen = guest.read(0, guest.pages, word=WORD).words
        evidence.equal("the guest to see what was there", before, seen)
        with _told_if_private(guest, evidence):
            guest.host_write(NEW, 0, guest.pages, word=WORD)
        evidence.sound(guest)
        seen = guest.read(0, guest.pages, word=WORD).words
        evidence.equal("the guest to see the parent's write", written, seen)
        kept = child.read(0, guest.pages, word=WORD)
        old = written if guest.backing in SHARED else before
        evidence.equal("the child to keep the old content", old, kept)
        evidence.sound(guest)
    evidence.frames_returned(guest, frames)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@on_backings("fork")
def test_the_guest_does_not_see_what_the_child_writes_after_fork(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    before, written = [OLD] * guest.pages, [NEW] * guest.pages
    evidence.content(guest.fill(SEED))
    guest.write(OLD, 0, guest.pages, word=WORD)
    frames = evidence.frames(guest)
    with guest.forked() as child:
        child.write(NEW, 0, guest.pages, word=WORD)
        seen = guest.read(0, guest.pages, word=WORD).words
        old = written if guest.backing in SHARED else before
        evidence.equal("the guest to keep the parent's content", old, seen)
        evidence.sound(guest)
        kept = child.read(0, guest.pages, word=WORD)
        evidence.equal("the child to see its own write", written, kept)
    evidence.frames_returned(guest, frames)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@on_backings("fork")
def test_the_child_does_not_see_what_the_guest_writes_after_fork(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    before, written = [OLD] * guest.pages, [NEW] * guest.pages
    evidence.content(guest.fill(SEED))
    guest.write(OLD, 0, guest.pages, word=WORD)
    frames = evidence.frames(guest)
    with guest.forked() as child:
        evidence.no_stale_translations(guest)
        guest.write(NEW, 0, guest.pages, word=WORD)
        evidence.sound(guest)
        kept = child.read(0, guest.pages, word=WORD)
        old = written if guest.backing in SHARED else before
        evidence.equal("the child to keep the old content", old, kept)
        seen = guest.host_read(0, guest.pages, word=WORD)
        evidence.equal("the VMM to see the guest's write", written, seen)
    evidence.frames_returned(guest, frames)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def test_a_second_child_keeps_what_was_there_at_its_own_fork(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    guest.write(OLD, 0, guest.pages, word=WORD)
    with guest.forked() as first:
        guest.write(NEW, 0, guest.pages, word=WORD)
        with guest.forked() as second:
            evidence.no_stale_translations(guest)
            guest.write(OLD + NEW, 0, guest.pages, word=WORD)
            for child, kept in ((first, OLD), (second, NEW)):
                seen = child.read(0, guest.pages, word=WORD)
                evidence.equal(
                    "a child to keep what it was forked with", [kept] * guest.pages, seen
                )
            evidence.sound(guest)
        evidence.sound(guest)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@on_backings("fork")
def test_a_hammering_guest_loses_no_write_to_forks(guest: ProbeGuest, evidence: Evidence) -> None:
    evidence.content(guest.fill(SEED))
    with guest.hammering() as hammer:
        for _ in range(2):
            with guest.forked() as child:
                kept = child.read(0, guest.pages)
                hammer.await_visits(guest.pages)
                again = child.read(0, guest.pages)
                if guest.backing not in SHARED:
                    evidence.equal("the child to keep what it was forked with", kept, again)
    evidence.content(hammer.stop())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def test_a_fork_that_runs_out_of_memory_leaves_the_guest_alone(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    with failing_allocations(guest.session):
        ends = guest.ask("forks_without_memory")
    strange = {name: count for name, count in ends.items() if name not in ("ok", "ENOMEM")}
    evidence.equal("success or ENOMEM", [], sorted(strange.values()))
    evidence.at_least("fork", "failures for want of memory", 1, ends.get("ENOMEM", 0))
    # Each invalidation that was begun has ended, or this waits for one that never does.
    evidence.done("writing after all that", guest.write(NEW, 0, guest.pages, word=WORD))
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def _told_if_private(
    guest: ProbeGuest, evidence: Evidence
) -> contextlib.AbstractContextManager[None]:
    """Nobody needs to be told where nothing is copied on write."""
    return contextlib.nullcontext() if guest.backing in SHARED else evidence.told(guest)
