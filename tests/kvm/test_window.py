# SPDX-License-Identifier: GPL-2.0-only
"""Memory that a driver maps (VM_PFNMAP) follows what the driver shows, and no page of it is held.

Such memory has pages that belong to somebody else, here to another process, and KVM looks their
frames up in the page table instead of asking for the pages: commit f8be156be163 ("KVM: do not allow
mapping valid but non-reference-counted pages") (in v5.13) is what can go wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Window:
    """A process, a guest that filled what a driver maps of its memory, and the frames of that."""

    owner: NotifierUser
    guest: ProbeGuest
    frames: tuple[int, ...]


@pytest.fixture
def window(
    probe_guest: GuestFactory, notifier_user: UserFactory, evidence: SecondaryEvidence
) -> Iterator[Window]:
    with contextlib.ExitStack() as stack:
        owner = stack.enter_context(notifier_user(PAGES))
        held = stack.enter_context(owner.attached("remote", "sleepy").held())
        guest = stack.enter_context(probe_guest(pages=PAGES))
        guest.show_window(held, owner.hva)
        evidence.content(guest.fill(SEED))
        evidence.sound(guest)
        yield Window(owner, guest, evidence.frames(owner))


@pytest.mark.parametrize("change", FOLLOWED)
def test_a_guest_follows_what_a_driver_maps(
    window: Window, evidence: SecondaryEvidence, change: str
) -> None:
    owner, guest = window.owner, window.guest
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
    evidence.frames_returned(owner, window.frames)


@pytest.mark.parametrize("change", GONE)
def test_what_a_driver_may_show_no_more_is_out_of_reach(
    window: Window, evidence: SecondaryEvidence, change: str
) -> None:
    guest = window.guest
    with evidence.told(guest):
        GONE[change](window.owner)
    evidence.no_stale_translations(guest)
    evidence.sptes_dropped(guest)
    evidence.refused("a write", guest.write(NEW, 3), 3)
    if change != "protect":
        evidence.frames_returned(guest, window.frames)
