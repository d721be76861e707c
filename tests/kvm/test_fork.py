# SPDX-License-Identifier: GPL-2.0-only
"""After a fork the guest follows its VMM's pages, and the child keeps what it had."""

from __future__ import annotations

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence

SEED = 0x5EED
OLD = 0x0D
NEW = 0x2E
WORD = 7


def test_the_guest_sees_what_the_parent_writes_after_fork(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    guest.write(OLD, 0, guest.pages, word=WORD)
    frames = evidence.frames(guest)
    evidence.sound(guest)
    with evidence.told(guest), guest.forked() as child:
        evidence.no_stale_translations(guest)
        guest.host_write(NEW, 0, guest.pages, word=WORD)
        evidence.sound(guest)
        seen = guest.read(0, guest.pages, word=WORD).words
        evidence.equal("the guest to see the parent's write", [NEW] * guest.pages, seen)
        kept = child.read(0, guest.pages, word=WORD)
        evidence.equal("the child to keep the old content", [OLD] * guest.pages, kept)
        evidence.sound(guest)
    evidence.frames_returned(guest, frames)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def test_the_guest_does_not_see_what_the_child_writes_after_fork(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    guest.write(OLD, 0, guest.pages, word=WORD)
    frames = evidence.frames(guest)
    with guest.forked() as child:
        child.write(NEW, 0, guest.pages, word=WORD)
        seen = guest.read(0, guest.pages, word=WORD).words
        evidence.equal("the guest to keep the parent's content", [OLD] * guest.pages, seen)
        evidence.sound(guest)
        kept = child.read(0, guest.pages, word=WORD)
        evidence.equal("the child to see its own write", [NEW] * guest.pages, kept)
    evidence.frames_returned(guest, frames)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def test_the_child_does_not_see_what_the_guest_writes_after_fork(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    guest.write(OLD, 0, guest.pages, word=WORD)
    frames = evidence.frames(guest)
    with guest.forked() as child:
        evidence.no_stale_translations(guest)
        guest.write(NEW, 0, guest.pages, word=WORD)
        evidence.sound(guest)
        kept = child.read(0, guest.pages, word=WORD)
        evidence.equal("the child to keep the old content", [OLD] * guest.pages, kept)
        seen = guest.host_read(0, guest.pages, word=WORD)
        evidence.equal("the VMM to see the guest's write", [NEW] * guest.pages, seen)
    evidence.frames_returned(guest, frames)
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def test_a_hammering_guest_loses_no_write_to_forks(guest: ProbeGuest, evidence: Evidence) -> None:
    evidence.content(guest.fill(SEED))
    with guest.hammering() as hammer:
        for _ in range(3):
            with guest.forked() as child:
                kept = child.read(0, guest.pages)
                hammer.await_visits(guest.pages)
                again = child.read(0, guest.pages)
                evidence.equal("the child to keep what it was forked with", kept, again)
    evidence.content(hammer.stop())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)
