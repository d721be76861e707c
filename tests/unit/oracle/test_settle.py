# SPDX-License-Identifier: GPL-2.0-only
"""What lasts is told from what passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.deadline import Deadline
from harness.oracle.settle import settled

MOST_LOOKS = 1000


class Clock:
    """Stands for the module ``time`` in harness.deadline: it moves when somebody waits."""

    def __init__(self) -> None:
        self.now = 50.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("harness.deadline.time", clock)
    return clock


class Looks:
    """Finds something else at each look; the last finding is repeated."""

    def __init__(self, *found: list[str]) -> None:
        self._found = list(found)
        self.number = 0

    def __call__(self) -> list[str]:
        self.number += 1
        assert self.number < MOST_LOOKS, "it looks again and again without a pause"
        return self._found.pop(0) if len(self._found) > 1 else self._found[0]


def patience(seconds: float = 3.0) -> Deadline:
    return Deadline.after(seconds, "Settling")


def test_where_nothing_is_wrong_one_look_is_enough(clock: Clock) -> None:
    looks = Looks([])
    start = clock.now
    assert settled(looks, patience()) == ()
    assert (looks.number, clock.now) == (1, start)


@pytest.mark.usefixtures("clock")
def test_what_passes_is_no_finding() -> None:
    looks = Looks(["a", "b"], ["b"], [])
    assert settled(looks, patience(), key=str) == ()
    assert looks.number == 3


def test_what_lasts_until_time_is_up_is_found(clock: Clock) -> None:
    looks = Looks(["a"])
    start = clock.now
    assert settled(looks, patience(), key=str) == ("a",)
    assert 3.0 <= clock.now - start < 3.5
    assert 3 <= looks.number < 50


@pytest.mark.usefixtures("clock")
def test_what_lasts_is_told_from_what_passes_beside_it() -> None:
    looks = Looks(["a", "b", "c"], ["c", "a"], ["d", "a"], ["a"])
    assert settled(looks, patience(), key=str) == ("a",)


@pytest.mark.usefixtures("clock")
def test_something_else_at_each_look_is_no_finding() -> None:
    looks = Looks(["a"], ["b"], ["c"], ["d"])
    assert settled(looks, patience(), key=str) == ()
    assert looks.number == 2


@pytest.mark.usefixtures("clock")
def test_what_went_and_came_back_did_not_last() -> None:
    looks = Looks(["a", "b"], ["b"], ["a", "b"], ["a"])
    assert settled(looks, patience(), key=str) == ()


@pytest.mark.usefixtures("clock")
def test_it_is_shown_as_last_seen() -> None:
    looks = Looks(["page 7: 3"], ["page 7: 3"], ["page 7: 2"])

    def page(finding: str) -> str:
        return finding.split(":", maxsplit=1)[0]

    assert settled(looks, patience(), key=page) == ("page 7: 2",)


@pytest.mark.usefixtures("clock")
def test_without_a_key_all_findings_are_one() -> None:
    assert settled(Looks(["anon 3"], ["anon 2"], ["anon 1"]), patience()) == ("anon 1",)


def test_a_slow_look_is_repeated_all_the_same(clock: Clock) -> None:
    looks = Looks(["a"])

    def slow(look: Callable[[], list[str]] = looks) -> list[str]:
        clock.sleep(10)
        return look()

    assert settled(slow, patience(), key=str) == ("a",)
    assert looks.number == 5
