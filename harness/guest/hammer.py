# SPDX-License-Identifier: GPL-2.0-only
"""L0's handles of what runs beside a scenario: a vcpu that hammers, and a forked child."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.deadline import Deadline
from harness.errors import Violation
from harness.guest.observation import Visit

if TYPE_CHECKING:
    from harness.guest.memory import GuestMemory
    from harness.guest.probe import ProbeGuest

VISIT_SECONDS = 30.0
"""How long a vcpu may take for one pass over REFERENCE_PAGES on a fast machine."""

REFERENCE_PAGES = 16384


class Child:
    """A process forked off a guest's VMM, which has its memory copy-on-write."""

    def __init__(self, guest: GuestMemory, name: str, pid: int) -> None:
        self._guest = guest
        self._name = name
        self.pid = pid

    def ask(self, op: str, **arguments: Any) -> Any:
        """One of the memory requests of the probe, on the child's memory."""
        request = {"op": op, **arguments}
        return self._guest.ask("child", name=self._name, request=request)

    def read(self, first: int = 0, pages: int = 1, word: int = 0) -> list[int]:
        """Load a word of each page with the child's CPU."""
        return list(self.ask("peek", first=first, pages=pages, word=word))

    def write(self, value: int, first: int = 0, pages: int = 1, word: int = 0) -> None:
        """Store a word into each page with the child's CPU."""
        self.ask("poke", first=first, pages=pages, word=word, value=value)


class Hammer:
    """A vcpu that goes over the memory until it is stopped."""

    def __init__(self, guest: ProbeGuest, vcpu: int) -> None:
        self._guest = guest
        self._vcpu = vcpu
        self.visit: Visit | None = None

    def await_visits(self, visits: int) -> None:
        """Wait until that many more pages have been visited.

        Raises Violation when the vcpu does not get there: a guest that makes no progress.
        """
        self._await("done", visits, f"to visit {visits} more pages")

    def await_refusal(self) -> None:
        """Wait until the vcpu, hammering patiently, has been refused an access anew."""
        self._await("refusals", 1, "to be refused an access")

    def _await(self, counter: str, more: int, what: str) -> None:
        start = self._progress()[counter]
        patience = VISIT_SECONDS * self._guest.pace * max(1.0, more / REFERENCE_PAGES)
        deadline = Deadline.after(patience, "The hammering vcpu")
        for _ in deadline.ticks(0.005, 0.05):
            if self._progress()[counter] - start >= more:
                return
        progress = self._progress()
        raise Violation(
            "progress",
            f"vcpu {self._vcpu} {what} within {patience:.0f} s",
            f"{progress['done']} page visits in all, now at page {progress['current']}",
            progress["current"],
        )

    def _progress(self) -> dict[str, int]:
        return dict(self._guest.ask("progress", vcpu=self._vcpu))

    def stop(self) -> Visit:
        """Stop, and return what the vcpu saw since it began."""
        if self.visit is None:
            self._guest.ask("stop", vcpu=self._vcpu)
            self.visit = self._guest.finish(self._vcpu, "hammering")
        return self.visit
