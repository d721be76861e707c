# SPDX-License-Identifier: GPL-2.0-only
"""DAMON on the memory of a guest: the kernel samples which of it is used, and says how often.

Its files are described in Documentation/admin-guide/mm/damon/usage.rst.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from harness.errors import OracleUnavailable
from harness.guest.probe import ProbeGuest
from harness.guest.session import Session, undone

_ADMIN = "/sys/kernel/mm/damon/admin/kdamonds"
_KDAMOND = f"{_ADMIN}/0"
_CONTEXT = f"{_KDAMOND}/contexts/0"
_TARGET = f"{_CONTEXT}/targets/0"
_SCHEME = f"{_CONTEXT}/schemes/0"
_TRIED = f"{_SCHEME}/tried_regions"

_STATISTICS = "/sys/module/damon_stat/parameters/enabled"
"""A watcher of the kernel's own, which Debian's 7.2 has on; DAMON serves one of its kind only."""

_SAMPLE_US, _WINDOW_US = 10_000, 200_000
_MOST_REGIONS = 20
_ANY = (1 << 63) - 1

VIRTUAL, PHYSICAL = "fvaddr", "paddr"
"""Regions of a process's addresses, and of physical ones."""


@dataclasses.dataclass(frozen=True)
class Region:
    """Addresses, and in how many samples of the last window they were found used."""

    start: int
    end: int
    accesses: int


class Damon:
    """DAMON at work."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def window(self) -> list[Region]:
        """What it saw in a window of samples that ends after this was called."""
        self._session.ask("write", path=f"{_KDAMOND}/state", text="update_schemes_tried_regions")
        found = []
        for number in range(_MOST_REGIONS):
            if not self._session.ask("exists", path=f"{_TRIED}/{number}"):
                break
            files = [f"{_TRIED}/{number}/{name}" for name in ("start", "end", "nr_accesses")]
            texts = self._session.ask_all(*[("read", {"path": path}) for path in files])
            found.append(Region(*map(int, texts)))
        return found


@contextlib.contextmanager
def damon(guest: ProbeGuest, kind: str, regions: Sequence[tuple[int, int]]) -> Iterator[Damon]:
    """DAMON samples ``regions``, as (start, end), while the context is open.

    ``kind`` is VIRTUAL, for addresses of the VMM, or PHYSICAL. Raises OracleUnavailable on a
    kernel that has no DAMON, or none that tells its regions.
    """
    session = guest.session
    if not session.ask("exists", path=f"{_ADMIN}/nr_kdamonds"):
        raise OracleUnavailable("The host's kernel has no DAMON with files in sysfs.")
    with contextlib.ExitStack() as stack:

        def put(path: str, value: object) -> None:
            session.ask("write", path=path, text=str(value))

        if session.ask("exists", path=_STATISTICS):
            stack.enter_context(session.setting(_STATISTICS, "N"))
        put(f"{_ADMIN}/nr_kdamonds", 1)
        stack.enter_context(undone(lambda: put(f"{_ADMIN}/nr_kdamonds", 0)))
        put(f"{_KDAMOND}/contexts/nr_contexts", 1)
        if kind not in session.read(f"{_CONTEXT}/avail_operations").split():
            raise OracleUnavailable(f"The host's DAMON does not do {kind}.")
        put(f"{_CONTEXT}/operations", kind)
        intervals = f"{_CONTEXT}/monitoring_attrs/intervals"
        put(f"{intervals}/sample_us", _SAMPLE_US)
        put(f"{intervals}/aggr_us", _WINDOW_US)
        put(f"{_CONTEXT}/monitoring_attrs/nr_regions/max", _MOST_REGIONS)
        put(f"{_CONTEXT}/targets/nr_targets", 1)
        if kind == VIRTUAL:
            put(f"{_TARGET}/pid_target", guest.pid)
        put(f"{_TARGET}/regions/nr_regions", len(regions))
        for number, (start, end) in enumerate(regions):
            put(f"{_TARGET}/regions/{number}/start", start)
            put(f"{_TARGET}/regions/{number}/end", end)
        put(f"{_CONTEXT}/schemes/nr_schemes", 1)
        put(f"{_SCHEME}/action", "stat")
        for what in ("sz", "nr_accesses", "age"):
            put(f"{_SCHEME}/access_pattern/{what}/max", _ANY if what == "sz" else 0x7FFFFFFF)
        if not session.ask("exists", path=_TRIED):
            raise OracleUnavailable("The host's DAMON does not tell which regions it found.")
        put(f"{_KDAMOND}/state", "on")
        stack.enter_context(undone(lambda: put(f"{_KDAMOND}/state", "off")))
        yield Damon(session)
