# SPDX-License-Identifier: GPL-2.0-only
"""Measures which notifier sites each test of a run reaches.

What cannot be measured is said and never stops a test: coverage is about the suite, not about the
kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from harness.errors import HarnessError
from harness.guest.session import Session
from harness.kernel.model import Kernel
from harness.oracle.callsites import CallSites, call_sites
from harness.oracle.reach import Reach, Reading, grown
from harness.progress import Progress
from harness.result.coverage import Cell, Coverage, Site
from harness.result.outcome import Request
from harness.result.summary import scenario


class Recorder:
    """Watches the hosts of a run, one after the other, and keeps what each test reached."""

    def __init__(self, kernel: Kernel, progress: Progress) -> None:
        self._kernel = kernel
        self._problems: dict[str, None] = {}
        self._cells: list[Cell] = []
        self._outside: dict[Site, int] = {}
        self._host: _Watched | None = None
        self._sites: CallSites | None = None
        self._blind = ""
        try:
            with progress.phase("Looking for the notifier sites of the kernel"):
                self._sites = call_sites(kernel)
        except HarnessError as error:
            self._blind = str(error)
            self._problem(self._blind)

    @contextlib.contextmanager
    def watching(self, session: Session, request: Request) -> Iterator[None]:
        """Count what is reached while the context is open, on behalf of one test."""
        before, problem = self._before(session)
        try:
            yield
        finally:
            if before is None:
                self._cell(request, problem=problem)
            else:
                self._after(request, before)

    def result(self) -> Coverage:
        """What was measured so far."""
        return Coverage(
            release=self._kernel.release,
            sites=self._sites.sites if self._sites else (),
            cells=tuple(self._cells),
            outside=dict(self._outside),
            problems=tuple(self._problems),
        )

    def _before(self, session: Session) -> tuple[Reading | None, str]:
        """The counts at the beginning of a test, or why there are none.

        A host is watched from its first test on.
        """
        if self._sites is None:
            return None, self._blind
        try:
            if self._host is None or self._host.session is not session:
                self._host = None
                self._host = _Watched(session, Reach(session, self._sites))
                self._say_unwatched(self._host.reach)
            now = self._host.reach.read()
        except (HarnessError, OSError) as error:
            return None, str(error)
        if self._host.last is not None:
            _add(self._outside, grown(now.hits, self._host.last.hits))
        return now, ""

    def _after(self, request: Request, before: Reading) -> None:
        """Take in the counts at the end of a test."""
        assert self._host is not None
        try:
            now = self._host.reach.read()
        except (HarnessError, OSError) as error:
            # Most likely the test broke the host, which is told elsewhere.
            self._cell(request, problem=f"the host did not answer at the end ({_first(error)})")
            return
        self._host.last = now
        hits = grown(now.hits, before.hits)
        self._cell(request, hits, grown(now.others, before.others))
        for notifier, count in now.unexplained.items():
            self._problem(f"Calls of {notifier} came from no known site, {count} on one host.")
        if now.lost:
            self._problem("The kernel could not count some passes of notifier sites.")

    def _cell(
        self,
        request: Request,
        hits: Mapping[Site, int] = MappingProxyType({}),
        others: Mapping[Site, int] = MappingProxyType({}),
        problem: str = "",
    ) -> None:
        name = scenario(request)
        self._cells.append(Cell(request.id, request.mmu, name, hits, others, problem))

    def _say_unwatched(self, reach: Reach) -> None:
        for site in reach.unwatched:
            self._problem(f"{site.function}: {site.hook} ({site.where}) cannot be probed.")

    def _problem(self, sentence: str) -> None:
        self._problems[sentence] = None


class _Watched:
    """A host that is watched, and its counts at the end of the last test."""

    def __init__(self, session: Session, reach: Reach) -> None:
        self.session = session
        self.reach = reach
        self.last: Reading | None = None


def _add(to: dict[Site, int], more: dict[Site, int]) -> None:
    for site, count in more.items():
        to[site] = to.get(site, 0) + count


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
