# SPDX-License-Identifier: GPL-2.0-only
"""Measures on one host what the mission's claim is about, without judging it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from harness.comparison import Measurement
from harness.errors import OracleUnavailable, Violation
from harness.guest.probe import ProbeGuest, probe_guest
from harness.guest.session import Session
from harness.guest.settings import merged_pages, merging
from harness.oracle.evidence import Evidence
from harness.result.outcome import OracleStatus

_SEED = 0x5EED
_SAME = 0x5A
_ATTEMPTS = 5
_NODES = (1, 0)


def measure(session: Session, pages: int) -> Measurement:
    """What this host can do with the memory of guests of so many pages."""
    seconds: dict[str, float] = {}
    counts: dict[str, int | None] = {}
    with probe_guest(session, pages) as guest:
        with _timed(seconds, "fill the memory from inside"):
            guest.fill(_SEED)
        counts["unpinned"] = _unpinned(session, guest)
        with _timed(seconds, "migrate it there and back"):
            counts["migrated"] = _migrated(session, guest)
        with _timed(seconds, "swap out what goes"):
            residency = guest.reclaim()
        counts["swapped"] = int((residency.swapped & ~residency.resident).sum())
        with _timed(seconds, "read it again from inside"):
            guest.check(_SEED)
    with probe_guest(session, pages, backing="ksm") as guest:
        guest.write(_SAME, 0, pages)
        counts["merged"] = _merged(session, guest)
    return Measurement(pages, counts, seconds)


def _unpinned(session: Session, guest: ProbeGuest) -> int | None:
    """How many pages have no references but those of mappings and caches."""
    evidence = Evidence(session.host)
    with contextlib.suppress(Violation):
        evidence.no_extra_references(guest)
    (report,) = evidence.reports
    if report.status is OracleStatus.NOT_CONSULTED:
        return None
    count = report.detail.get("count", 0)
    assert isinstance(count, int)
    return guest.pages - count


def _migrated(session: Session, guest: ProbeGuest) -> int:
    """How many pages can be moved to either node, wherever they were before."""
    return len(set.intersection(*(_moved_to(session, guest, node) for node in _NODES)))


def _moved_to(session: Session, guest: ProbeGuest, node: int) -> set[int]:
    """The pages that are on a node after they were asked there.

    One that is in a CPU's LRU batch wants a second try, and of those that moved in vain company
    only a second try says where they are.
    """
    there: set[int] = set()
    for _ in range(_ATTEMPTS):
        session.ask("drain_lru")
        places = guest.move_to_node(node)["places"]
        there = {page for page, place in enumerate(places) if place == node}
        if len(there) == guest.pages:
            break
    return there


def _merged(session: Session, guest: ProbeGuest) -> int | None:
    """How many of the guest's pages, which are all equal, KSM merges while it makes progress."""
    try:
        with merging(session):
            guest.madvise("mergeable")
            merged = merged_pages(session, guest.pages)
            guest.madvise("unmergeable")
    except OracleUnavailable:
        return None
    return min(merged, guest.pages)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[what] = time.monotonic() - started
