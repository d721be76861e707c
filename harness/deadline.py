# SPDX-License-Identifier: GPL-2.0-only
"""One deadline that is handed down through nested waits."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from harness.errors import DeadlineError

_Answer = TypeVar("_Answer")


@dataclasses.dataclass(frozen=True)
class Deadline:
    """A moment on the monotonic clock, with the words for what must be done by then.

    Pass the same deadline to every wait of one task: each takes what the ones before it left.
    Times are seconds.
    """

    what: str
    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float, what: str) -> Deadline:
        """A deadline ``seconds`` from now for ``what``, a noun phrase used in the error."""
        return cls(what, time.monotonic() + seconds, seconds)

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether the moment has passed."""
        return time.monotonic() >= self.at

    def within(self, seconds: float) -> Deadline:
        """A deadline for a part of the same task: ``seconds`` from now, or this one if sooner."""
        at = time.monotonic() + seconds
        # Whoever is told that time ran out must hear the time that was really given.
        return self if self.at <= at else dataclasses.replace(self, at=at, seconds=seconds)

    def error(self, detail: str = "") -> DeadlineError:
        """The error to raise when it has passed; ``detail`` is appended as a sentence."""
        seconds = f"{round(self.seconds, 2):g}"
        return DeadlineError(f"{self.what} took longer than {seconds} s. {detail}".strip())

    def check(self, detail: str = "") -> None:
        """Raise DeadlineError if the moment has passed."""
        if self.expired:
            raise self.error(detail)

    def ticks(self, pause: float = 0.01, longest: float = 0.2) -> Iterator[None]:
        """Yield at growing intervals until the deadline, and at least once.

        For polling where nothing can be subscribed to. The caller decides what running out means.
        """
        while True:
            yield
            if self.expired:
                return
            time.sleep(min(pause, longest, self.remaining))
            pause *= 1.5

    def poll(self, ask: Callable[[], _Answer | None], detail: str = "") -> _Answer:
        """Ask until the answer is true, and return it; raises DeadlineError when time runs out."""
        for _ in self.ticks():
            answer = ask()
            if answer:
                return answer
        raise self.error(detail)
