# SPDX-License-Identifier: GPL-2.0-only
"""A busy machine is seen as a slow one before it runs a host."""

from __future__ import annotations

import os

import pytest

from harness.machine import pace


@pytest.mark.parametrize(
    ("seconds", "load", "slow"),
    [
        (0.001, 0.1, 1.0),  # faster than the reference is not rewarded
        (pace._REFERENCE_SECONDS, 0.1, 1.0),
        (3 * pace._REFERENCE_SECONDS, 0.1, 3.0),
        (0.001, 10.0, 5.0),  # five times as much to do as there are CPUs
        (1.0, 0.1, 20.0),
    ],
)
def test_it_is_what_work_takes_and_how_many_wait(
    monkeypatch: pytest.MonkeyPatch, seconds: float, load: float, slow: float
) -> None:
    clock = [100.0]

    def work() -> None:
        clock[0] += seconds

    monkeypatch.setattr(pace, "_round", work)
    monkeypatch.setattr("harness.machine.pace.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert pace.slowness() == pytest.approx(slow)


def test_it_is_measured_and_never_below_one() -> None:
    assert 1.0 <= pace.slowness() <= 20.0
