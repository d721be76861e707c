# SPDX-License-Identifier: GPL-2.0-only
"""One deadline, handed down."""

from __future__ import annotations

import time

import pytest

from harness.deadline import Deadline
from harness.errors import DeadlineError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in its only item; sleeping moves it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def test_it_counts_down_and_never_below_zero(clock: list[float]) -> None:
    deadline = Deadline.after(10, "Booting")
    clock[0] += 4
    assert deadline.remaining == 6
    deadline.check()
    clock[0] += 7
    assert deadline.remaining == 0
    with pytest.raises(DeadlineError, match=r"^Booting took longer than 10 s\. QEMU runs\.$"):
        deadline.check("QEMU runs.")


@pytest.mark.parametrize(
    ("passed", "part", "remaining", "said"),
    [(0, 5, 5, "5 s"), (58, 5, 2, "60 s"), (0, 0.25, 0.25, "0.25 s")],
)
def test_a_part_ends_with_the_whole_and_tells_the_time_that_was_given(
    clock: list[float], passed: float, part: float, remaining: float, said: str
) -> None:
    whole = Deadline.after(60, "Booting")
    clock[0] += passed
    inner = whole.within(part)
    assert inner.remaining == remaining
    assert said in str(inner.error())


def test_polling_asks_at_once_and_once_more_at_the_end(clock: list[float]) -> None:
    asked: list[float] = []
    deadline = Deadline.after(1, "Waiting")
    with pytest.raises(DeadlineError, match="Nobody answered"):
        deadline.poll(lambda: asked.append(clock[0]), "Nobody answered.")
    assert asked[0] == 1000
    assert asked[-1] == 1001
    assert len(asked) < 20


def test_polling_returns_the_first_true_answer(clock: list[float]) -> None:
    answers = iter([None, 0, "", "ready"])
    assert Deadline.after(60, "Waiting").poll(lambda: next(answers)) == "ready"
    assert clock[0] < 1001


def test_an_expired_deadline_still_asks_once(clock: list[float]) -> None:
    assert Deadline.after(0, "Waiting").poll(lambda: "ready") == "ready"
