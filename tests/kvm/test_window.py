# SPDX-License-Identifier: GPL-2.0-only
"""Memory that a driver maps (VM_PFNMAP) follows what the driver shows, and no page of it is held.

Such memory has pages that belong to somebody else, here to another process, and KVM looks their
frames up in the page table instead of asking for the pages: commit f8be156be163 ("KVM: do not allow
mapping valid but non-reference-counted pages") (in v5.13) is what can go wrong.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import pytest

from harness.guest.probe import GuestFactory, ProbeGuest
from harness.guest.user import NotifierUser, UserFactory
from harness.oracle.secondary import SecondaryEvidence

pytestmark = pytest.mark.secondary_mmu

SEED = 0x5EED
NEW = 0x2E
WORD = 7
PAGES = 512


def _fork_and_write(owner: NotifierUser) -> None:
    with owner.forked():
        owner.host_write(NEW, 0, owner.pages, word=WORD)


def _move_and_back(owner: NotifierUser) -> None:
    for node in (1, 0):
        owner.move_to_node(node)


FOLLOWED: dict[str, Callable[[NotifierUser], object]] = {
    "discard": lambda owner: owner.madvise("dontneed"),
    "fork": _fork_and_write,
    "reclaim": lambda owner: owner.reclaim(),
    "migrate": _move_and_back,
}

GONE: dict[str, Callable[[NotifierUser], object]] = {
    "unmap": lambda owner: owner.munmap(),
    "protect": lambda owner: owner.mprotect("read"),
    "exit": lambda owner: owner.kill(signal.SIGKILL),
}


@contextlib.contextmanager
def _guest_on_memory_of(owner: NotifierUser, probe_guest: GuestFactory) -> Iterator[ProbeGuest]:
    device = owner.attached("remote", "sleepy")
    with device.held() as held, probe_guest(pages=owner.pages) as guest:
        guest.show_window(held, owner.hva)
        yield guest


@pytest.mark.parametrize("change", FOLLOWED)
def test_a_guest_follows_what_a_driver_maps(
    probe_guest: GuestFactory, notifier_user: UserFactory, evidence: SecondaryEvidence, change: str
) -> None:
    with notifier_user(PAGES) as owner, _guest_on_memory_of(owner, probe_guest) as guest:
        evidence.content(guest.fill(SEED))
        evidence.sound(guest)
        frames = evidence.frames(owner)
        with evidence.told(guest):
            FOLLOWED[change](owner)
        evidence.no_stale_translations(guest)
        seen = guest.read(0, guest.pages, word=WORD).words
        by_owner = owner.host_read(0, owner.pages, word=WORD)
        evidence.equal("the guest to see what the owner sees", by_owner, seen)
        if change in ("reclaim", "migrate"):
            evidence.content(guest.check(SEED))
        evidence.done("writing", guest.write(NEW, 0, guest.pages, word=WORD))
        by_owner = owner.host_read(0, owner.pages, word=WORD)
        evidence.equal("the owner to have it", [NEW] * owner.pages, by_owner)
        evidence.sound(guest)
        evidence.no_extra_references(owner)
        evidence.frames_returned(owner, frames)


@pytest.mark.parametrize("change", GONE)
def test_what_a_driver_may_show_no_more_is_out_of_reach(
    probe_guest: GuestFactory, notifier_user: UserFactory, evidence: SecondaryEvidence, change: str
) -> None:
    with notifier_user(PAGES) as owner, _guest_on_memory_of(owner, probe_guest) as guest:
        evidence.content(guest.fill(SEED))
        evidence.sound(guest)
        frames = evidence.frames(owner)
        with evidence.told(guest):
            GONE[change](owner)
        evidence.no_stale_translations(guest)
        evidence.sptes_dropped(guest)
        evidence.refused("a write", guest.write(NEW, 3), 3)
        if change != "protect":
            evidence.frames_returned(guest, frames)
