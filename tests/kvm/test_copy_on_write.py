# SPDX-License-Identifier: GPL-2.0-only
"""A page that is shared until somebody writes to it is copied for the guest as for the VMM."""

from __future__ import annotations

import contextlib

import pytest
from matrix import on_backings

from harness.guest.probe import ProbeGuest
from harness.oracle.evidence import Evidence

NEW = 0x2E
WORD = 7
BREAKPOINT = 0xCC


@pytest.mark.parametrize("writer", ["guest", "vmm"])
@on_backings("copy on write")
def test_what_was_only_read_is_copied_when_it_is_written(
    guest: ProbeGuest, evidence: Evidence, writer: str
) -> None:
    zeros, written = [0] * guest.pages, [NEW] * guest.pages
    # A zero page, or a page of the file: either may be read by many and written by nobody.
    evidence.equal("untouched memory", zeros, guest.read(0, guest.pages, word=WORD).words)
    evidence.sound(guest)
    if writer == "guest":
        evidence.done("writing", guest.write(NEW, 0, guest.pages, word=WORD))
    else:
        with evidence.told(guest):
            guest.host_write(NEW, 0, guest.pages, word=WORD)
        evidence.no_stale_translations(guest)
    seen = guest.read(0, guest.pages, word=WORD).words
    evidence.equal("the guest to see what was written", written, seen)
    seen_by_host = guest.host_read(0, guest.pages, word=WORD)
    evidence.equal("the VMM to see what was written", written, seen_by_host)
    if guest.backing == "file-private":
        stored = guest.stored(word=WORD)
        evidence.equal("the file to stay as it was", zeros, stored)
    evidence.sound(guest)


@on_backings("copy on write")
def test_what_the_guest_did_not_write_stays_shared(guest: ProbeGuest, evidence: Evidence) -> None:
    half = guest.pages // 2
    guest.read(0, guest.pages, word=WORD)
    evidence.done("writing", guest.write(NEW, 0, half, word=WORD))
    seen = guest.read(half, half, word=WORD).words
    evidence.equal("the other half to stay as it was", [0] * half, seen, half)
    evidence.sound(guest)


@pytest.mark.parametrize("backing", ["file-private"])
def test_the_guest_sees_a_breakpoint_come_and_go(guest: ProbeGuest, evidence: Evidence) -> None:
    zeros = [0] * guest.pages
    page = guest.pages // 2
    broken = [BREAKPOINT if each == page else 0 for each in range(guest.pages)]
    # The kernel sets breakpoints in what could be a program: private, and nobody may write to it.
    guest.mprotect("read")
    evidence.equal("untouched memory", zeros, guest.read(0, guest.pages).words)
    evidence.sound(guest)
    with contextlib.ExitStack() as stack:
        with evidence.told(guest, page, 1):
            stack.enter_context(guest.breakpoint(page))
        evidence.no_stale_translations(guest)
        seen_by_host = guest.host_read(0, guest.pages)
        evidence.equal("a breakpoint, and nothing else", broken, seen_by_host)
        seen = guest.read(0, guest.pages).words
        evidence.equal("the guest to see what its VMM sees", broken, seen)
        evidence.sound(guest)
        with evidence.told(guest, page, 1):
            stack.close()
    evidence.no_stale_translations(guest)
    evidence.equal("the breakpoint to be gone", zeros, guest.read(0, guest.pages).words)
    stored = guest.stored()
    evidence.equal("the file to stay as it was", zeros, stored)
    evidence.sound(guest)
