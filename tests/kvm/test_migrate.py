# SPDX-License-Identifier: GPL-2.0-only
"""Pages of a guest move to other frames and nodes, the sptes follow, and nothing holds a page."""

from __future__ import annotations

import contextlib

import pytest
from matrix import on_backings

from harness.deadline import Deadline
from harness.errors import OracleUnavailable
from harness.guest.probe import ProbeGuest
from harness.guest.settings import numa_balancing
from harness.oracle.evidence import Evidence

SEED = 0x5EED
# A page may be in a CPU's LRU batch or under writeback at one attempt.
ATTEMPTS = 5
NODES = 2
HINTING_SECONDS = 20.0


@on_backings("migrate")
def test_every_page_moves_to_the_other_node_and_back(guest: ProbeGuest, evidence: Evidence) -> None:
    evidence.content(guest.fill(SEED))
    evidence.sound(guest)
    for node in (1, 0):
        # The first may find every page at home already; then the second cannot.
        with evidence.told(guest) if node == 0 else contextlib.nullcontext():
            for _ in range(ATTEMPTS):
                guest.session.ask("drain_lru")
                moved = guest.move_to_node(node)
                if not moved["left"] and set(moved["places"]) == {node}:
                    break
        evidence.at_most("migration", "pages left behind", 0, moved["left"])
        evidence.equal("each page on its new node", [node] * guest.pages, moved["places"])
        evidence.no_stale_translations(guest)
        evidence.content(guest.check(SEED))
        evidence.sound(guest)


@pytest.mark.parametrize("backing", ["anon", "thp", "memfd"])
def test_a_hammering_guest_loses_no_write_to_migration(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    evidence.content(guest.fill(SEED))
    with guest.hammering() as hammer:
        for round_ in range(2):
            guest.migrate(round_ % NODES, (round_ + 1) % NODES)
            hammer.await_visits(guest.pages // 4)
    evidence.content(hammer.stop())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@pytest.mark.parametrize("backing", ["anon", "memfd"])
def test_compaction_of_the_host_loses_nothing(guest: ProbeGuest, evidence: Evidence) -> None:
    evidence.content(guest.fill(SEED))
    with guest.hammering() as hammer:
        guest.session.ask("write", path="/proc/sys/vm/compact_memory", text="1")
        hammer.await_visits(guest.pages // 4)
    evidence.content(hammer.stop())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


@pytest.mark.parametrize("backing", ["anon", "thp"])
def test_numa_hints_take_access_away_for_a_moment_only(
    guest: ProbeGuest, evidence: Evidence
) -> None:
    # Half of it nobody uses, and there a hint stays until it is seen; others are for memory of the
    # VMM itself.
    half = guest.pages // 2
    evidence.content(guest.fill(SEED))
    hinted = _hinted(guest)
    with numa_balancing(guest.session), guest.hammering(0, 0, half) as hammer:
        deadline = Deadline.after(HINTING_SECONDS * guest.pace, "A NUMA hint")
        for _ in deadline.ticks():
            accessible = len(evidence.frames(guest, half, half))
            if _hinted(guest) > hinted and accessible < half:
                break
        evidence.at_least("NUMA hints", "ptes changed", 1, _hinted(guest) - hinted)
        evidence.at_most("NUMA hints", "pages without one", half - 1, accessible)
        evidence.no_stale_translations(guest)
        hammer.await_visits(half)
    evidence.content(hammer.stop())
    evidence.content(guest.check(SEED))
    evidence.sound(guest)


def _hinted(guest: ProbeGuest) -> int:
    """How many ptes of this host NUMA balancing has made inaccessible so far."""
    lines = guest.session.read("/proc/vmstat").splitlines()
    counters = dict(line.split() for line in lines)
    if "numa_pte_updates" not in counters:
        raise OracleUnavailable("The host's kernel does not count NUMA hints.")
    return int(counters["numa_pte_updates"])
