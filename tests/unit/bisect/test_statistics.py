# SPDX-License-Identifier: GPL-2.0-only
"""The bounds are exact: against published values, and against chance itself."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bisect.statistics import lower_bound, passes_needed, upper_bound


@pytest.mark.parametrize(
    ("runs", "most"),
    # One-sided 95% without a failure: 1 - 0.05 ** (1 / n).
    [(20, 0.1391), (60, 0.0487), (300, 0.00994)],
)
def test_no_failures_bound_the_rate(runs: int, most: float) -> None:
    assert upper_bound(0, runs, 0.05) == pytest.approx(most, abs=1e-4)
    assert lower_bound(0, runs, 0.05) == 0.0


@pytest.mark.parametrize(
    ("failures", "runs", "low", "high"),
    # Two-sided 95% intervals, as in the tables of Clopper and Pearson (1934).
    [(10, 10, 0.6915, 1.0), (5, 10, 0.1871, 0.8129), (1, 20, 0.0013, 0.2487)],
)
def test_known_intervals(failures: int, runs: int, low: float, high: float) -> None:
    assert lower_bound(failures, runs, 0.025) == pytest.approx(low, abs=1e-4)
    assert upper_bound(failures, runs, 0.025) == pytest.approx(high, abs=1e-4)


@given(st.integers(1, 60), st.data())
def test_the_bounds_enclose_what_was_seen(runs: int, data: st.DataObject) -> None:
    failures = data.draw(st.integers(0, runs))
    low, high = lower_bound(failures, runs, 0.01), upper_bound(failures, runs, 0.01)
    assert 0 <= low <= failures / runs <= high <= 1


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6])
def test_a_bound_is_wrong_as_seldom_as_it_says(rate: float) -> None:
    # Runs go on until 8 failures, as they do on the bad revision.
    chance = random.Random(1)
    wrong = 0
    for _ in range(2000):
        runs = failures = 0
        while failures < 8:
            runs += 1
            failures += chance.random() < rate
        wrong += lower_bound(failures, runs, 0.05) > rate
    # 5% with 3.5 standard deviations of 2000 draws.
    assert wrong / 2000 <= 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / 2000)
    assert wrong > 0


@pytest.mark.parametrize(("rate", "passes"), [(1.0, 1), (0.9, 2), (0.5, 7), (0.3, 13), (0.1, 44)])
def test_passes_until_a_failure_would_have_shown(rate: float, passes: int) -> None:
    assert passes_needed(rate, 0.01) == passes
    assert (1 - rate) ** passes <= 0.01
    assert passes == 1 or (1 - rate) ** (passes - 1) > 0.01


@pytest.mark.parametrize(("rate", "risk"), [(0, 0.1), (1.1, 0.1), (0.5, 0), (0.5, 1)])
def test_no_number_of_passes_proves_the_impossible(rate: float, risk: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        passes_needed(rate, risk)
