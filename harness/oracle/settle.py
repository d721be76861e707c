# SPDX-License-Identifier: GPL-2.0-only
"""Tell what lasts from what passes: look again until nothing is wrong, or time is up."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from harness.deadline import Deadline

_Finding = TypeVar("_Finding")

_LEAST_LOOKS = 5


def settled(
    look: Callable[[], Sequence[_Finding]],
    deadline: Deadline,
    key: Callable[[_Finding], Hashable] = lambda finding: None,
) -> tuple[_Finding, ...]:
    """What was wrong at every look until the deadline; empty as soon as nothing is.

    A page that is being faulted in, or that sits in a CPU's LRU batch, has one reference more for
    a moment, and statistics lag. So findings are told apart by ``key``, and only those whose key
    was found at each of five looks or more are returned, as last seen.
    """
    lasting: set[Hashable] | None = None
    looks = 0
    pauses = deadline.ticks()
    next(pauses)  # the first comes at once
    while True:
        found = look()
        keys = {key(finding) for finding in found}
        lasting = keys if lasting is None else lasting & keys
        looks += 1
        if not lasting:
            return ()
        if deadline.expired and looks >= _LEAST_LOOKS:
            return tuple(finding for finding in found if key(finding) in lasting)
        next(pauses, None)
