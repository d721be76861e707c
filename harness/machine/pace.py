# SPDX-License-Identifier: GPL-2.0-only
"""How fast this machine is at this moment, before there is a host to measure it by."""

from __future__ import annotations

import os
import time

_STEPS = 100_000
_REFERENCE_SECONDS = 0.0045
"""Of one round of so many steps on the reference machine, a core of 2.6 GHz to itself."""

_ROUNDS = 15
_MOST = 20.0
"""A machine that is slower than that does not get well by waiting."""


def slowness() -> float:
    """How many times longer than on the idle reference machine work takes, from 1 to 20.

    By the wall clock, so that a core that is shared counts as a slow one, and a machine on which
    more wants to run than it has CPUs, by how much. Takes some 70 ms where nothing else runs.
    """
    began = time.monotonic()
    for _ in range(_ROUNDS):
        _round()
    measured = (time.monotonic() - began) / (_ROUNDS * _REFERENCE_SECONDS)
    # A short piece of work is favoured by the scheduler, a host of two CPUs is not.
    crowd = os.getloadavg()[0] / (os.cpu_count() or 1)
    return min(_MOST, max(1.0, measured, crowd))


def _round() -> int:
    total = 0
    for number in range(_STEPS):
        total += number
    return total
