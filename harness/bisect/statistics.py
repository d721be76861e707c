# SPDX-License-Identifier: GPL-2.0-only
"""How much a number of runs proves about a failure that does not show every time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

_HALVINGS = 60
"""Of the interval [0, 1]: more than a double can hold."""


@functools.cache
def lower_bound(failures: int, runs: int, risk: float) -> float:
    """The rate that a failure has at least; wrong with a probability of ``risk``.

    The exact one-sided bound of Clopper and Pearson. It holds as well when runs went on until
    that many failures were seen: n runs bring k failures in either way with the same probability
    of at least k.
    """
    if failures == 0:
        return 0.0
    return _solve(lambda rate: _at_least(failures, runs, rate) >= risk)


@functools.cache
def upper_bound(failures: int, runs: int, risk: float) -> float:
    """The rate that a failure has at most; wrong with a probability of ``risk``."""
    if failures == runs:
        return 1.0
    return _solve(lambda rate: 1 - _at_least(failures + 1, runs, rate) <= risk)


def passes_needed(rate: float, risk: float) -> int:
    """How many passes in a row a failure of this rate survives with a probability of ``risk``."""
    if not 0 < rate <= 1 or not 0 < risk < 1:
        raise ValueError("a rate is in (0, 1], a risk in (0, 1)")
    if rate == 1:
        return 1
    return max(1, math.ceil(math.log(risk) / math.log1p(-rate) - 1e-9))


def _at_least(failures: int, runs: int, rate: float) -> float:
    """The probability of so many failures or more."""
    if rate in (0.0, 1.0):
        return float(rate == 1.0 or failures == 0)
    below = math.fsum(
        math.comb(runs, count) * rate**count * (1 - rate) ** (runs - count)
        for count in range(failures)
    )
    return max(0.0, 1.0 - below)


def _solve(true_above: Callable[[float], bool]) -> float:
    """The rate at which a condition, false below it, becomes true."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if true_above(middle):
            high = middle
        else:
            low = middle
    return (low + high) / 2
