# SPDX-License-Identifier: GPL-2.0-only
"""When each host was booted and each test ran, as the geometry of a plot; the report draws it."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

from harness.result.outcome import Outcome
from harness.result.record import RunRecord
from harness.result.summary import numbered

BOOT = "boot"
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600)
_TICKS = 8
_NARROWEST = {"fail": 0.6, "error": 0.6}
_NARROW = 0.15
"""Percent of the width: what is shorter is still to be seen, and what matters is found at once."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """Something that took time; ``left`` and ``width`` are percent of the plot."""

    kind: str
    left: float
    width: float
    title: str


@dataclasses.dataclass(frozen=True)
class Lane:
    """What happened under one MMU mode; later bars are drawn over earlier ones."""

    mode: str
    bars: tuple[Bar, ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Tick:
    """A mark on the axis of time."""

    left: float
    text: str


@dataclasses.dataclass(frozen=True)
class Timeline:
    """One lane for each mode over a common axis, from the run's start to its end."""

    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]


def timeline(record: RunRecord) -> Timeline:
    """The plot of a run; lanes are empty where it is not known when tests ran."""
    modes = dict.fromkeys(outcome.mmu for outcome in record.outcomes)
    modes |= dict.fromkeys(host.evidence.mmu for host in record.hosts)
    whole = record.seconds or 1.0
    lanes = tuple(_lane(record, mode, whole) for mode in modes)
    return Timeline(tuple(lane for lane in lanes if lane.bars), _ticks(whole))


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _lane(record: RunRecord, mode: str, whole: float) -> Lane:
    bars: list[Bar] = []
    tests = 0.0
    for host in record.hosts:
        if host.evidence.mmu == mode and host.started and host.boot_seconds is not None:
            title = f"boot of {host.evidence.host}: {duration(host.boot_seconds)}"
            at = _since(record, host.started)
            bars.append(_bar(BOOT, at, host.boot_seconds, title, whole))
    for outcome in record.outcomes:
        if outcome.mmu == mode and outcome.started and outcome.outcome is not Outcome.MISSING:
            title = f"{numbered(outcome)}: {outcome.outcome}, {duration(outcome.seconds)}"
            at = _since(record, outcome.started)
            bars.append(_bar(str(outcome.outcome), at, outcome.seconds, title, whole))
            tests += outcome.seconds
    # Drawn in this order: what did not pass is in front of its neighbours.
    bars.sort(key=lambda bar: (bar.kind in _NARROWEST, bar.left))
    return Lane(mode, tuple(bars), tests)


def _bar(kind: str, at: float, seconds: float, title: str, whole: float) -> Bar:
    # The wall clock may have been set during the run; nothing is drawn outside of it.
    narrowest = _NARROWEST.get(kind, _NARROW)
    left = min(max(at / whole * 100, 0.0), 100.0 - narrowest)
    width = min(max(seconds / whole * 100, narrowest), 100.0 - left)
    return Bar(kind, round(left, 3), round(width, 3), title)


def _since(record: RunRecord, moment: datetime.datetime) -> float:
    return (moment - record.started).total_seconds()


def _ticks(whole: float) -> tuple[Tick, ...]:
    step = next((step for step in _STEPS if whole / step <= _TICKS), whole / _TICKS)
    return tuple(
        Tick(round(number * step / whole * 100, 3), _axis(number * step, step))
        for number in range(int(whole / step) + 1)
    )


def _axis(seconds: float, step: float) -> str:
    if step < 60:
        return f"{seconds:g} s" if seconds else "0"
    return f"{seconds / 60:g} min" if seconds else "0"


def longest(seconds: Sequence[float]) -> float:
    """The scale for bars of durations: never 0."""
    return max((*seconds, 0.001))
