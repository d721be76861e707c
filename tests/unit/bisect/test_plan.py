# SPDX-License-Identifier: GPL-2.0-only
"""The decisions of a bisection, over thousands of runs that chance decides."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from harness.bisect.plan import (
    Answer,
    Candidate,
    Case,
    Check,
    Found,
    Marks,
    NoAnswer,
    Position,
    Stuck,
    plan,
    rate,
)
from harness.bisect.trial import Finding, Kind, Purpose, Trial

KIND = Kind("test", "tdp", "references")
COMMITS = [f"c{number:02}" for number in range(65)]


def where(marks: Marks) -> Position:
    """What git bisect does, on a straight line from c00 (good) to c64 (bad)."""
    bad = min([COMMITS.index(commit) for commit, word in marks if word == "bad"] + [64])
    goods = [COMMITS.index(commit) for commit, word in marks if word == "good"]
    good = max([number for number in goods if number < bad] + [0])
    skipped = {commit for commit, word in marks if word == "skip"}
    between = COMMITS[good + 1 : bad]
    left = [commit for commit in between if commit not in skipped]
    if not between:
        return Found(COMMITS[bad], (COMMITS[bad - 1],))
    if not left:
        return Stuck((*between, COMMITS[bad]))
    middle = (good + bad) / 2
    return Candidate(min(left, key=lambda commit: abs(COMMITS.index(commit) - middle)))


@dataclasses.dataclass
class World:
    """What a check of each commit shows."""

    culprit: int
    rate: float
    chance: random.Random
    special: dict[int, Finding] = dataclasses.field(default_factory=dict)
    identical: bool = False

    def check(self, action: Check) -> Trial:
        number = COMMITS.index(action.commit)
        finding = self.special.get(number)
        if finding is None:
            fails = number >= self.culprit and self.chance.random() < self.rate
            finding = Finding.FAILS if fails else Finding.PASSES
        kinds = (KIND,) if finding is Finding.FAILS else ()
        binary = "same" if self.identical else action.commit
        return Trial(action.commit, action.purpose, finding, kinds, f"{finding}.", binary)


def bisect(world: World, error: float = 0.01, most: int = 2000) -> tuple[Answer | NoAnswer, Case]:
    case = Case(COMMITS[0], COMMITS[-1], error)
    for _ in range(most):
        action = plan(case, where)
        if not isinstance(action, Check):
            return action, case
        case = dataclasses.replace(case, trials=(*case.trials, world.check(action)))
    raise AssertionError("it does not end")


@pytest.mark.parametrize("culprit", [1, 2, 31, 32, 33, 63, 64])
def test_a_failure_that_always_shows_is_found_with_few_checks(culprit: int) -> None:
    answer, case = bisect(World(culprit, 1.0, random.Random(0)))
    assert answer == Answer(COMMITS[culprit], (COMMITS[culprit - 1],), identical=False)
    # 8 to measure, 1 for the good revision, 6 steps, the culprit, and the parent's.
    assert len(case.trials) <= 8 + 1 + 6 + 1 + 12


@pytest.mark.parametrize(
    ("showing", "rounds", "most"), [(1.0, 300, 30), (0.3, 150, 240), (0.1, 30, 900)]
)
def test_the_error_bound_is_kept(showing: float, rounds: int, most: int) -> None:
    chance = random.Random(7)
    wrong, runs = 0, 0
    for _ in range(rounds):
        culprit = chance.randrange(1, 65)
        answer, case = bisect(World(culprit, showing, chance))
        runs += len(case.trials)
        if isinstance(answer, Answer):
            wrong += answer.culprit != COMMITS[culprit]
        else:
            # Rare enough for 30 runs to show nothing now and then, which is no wrong answer.
            assert showing == 0.1
            assert "did not fail in 30 runs" in answer.reason
    # 1%, and three standard deviations.
    assert wrong <= 0.01 * rounds + 3 * math.sqrt(0.01 * rounds)
    assert runs / rounds <= most


def test_a_pass_by_chance_on_the_way_is_found_out() -> None:
    world = World(10, 1.0, random.Random(0))
    first = True

    def check(action: Check) -> Trial:
        nonlocal first
        # Commit 32 has the failure, and its first check passes all the same.
        if action.commit == COMMITS[32] and first:
            first = False
            return Trial(action.commit, action.purpose, Finding.PASSES)
        return World.check(world, action)

    world.check = check  # type: ignore[method-assign]
    answer, case = bisect(world)
    assert answer == Answer(COMMITS[10], (COMMITS[9],), identical=False)
    assert any(
        trial.purpose is Purpose.CONFIRM and trial.commit == COMMITS[32] for trial in case.trials
    )


def test_untestable_commits_are_gone_around() -> None:
    special = dict.fromkeys((16, 31, 32, 33), Finding.UNTESTABLE) | {8: Finding.OTHERWISE}
    answer, _ = bisect(World(20, 1.0, random.Random(0), special))
    assert answer == Answer(COMMITS[20], (COMMITS[19],), identical=False)


def test_untestable_commits_around_the_culprit_leave_a_range() -> None:
    special = dict.fromkeys((19, 20, 21), Finding.UNTESTABLE)
    answer, _ = bisect(World(20, 1.0, random.Random(0), special))
    assert isinstance(answer, NoAnswer)
    assert answer.commits == tuple(COMMITS[19:23])


def test_a_failure_of_another_kind_is_not_bad() -> None:
    special = dict.fromkeys(range(5, 12), Finding.OTHERWISE)
    answer, _ = bisect(World(40, 1.0, random.Random(0), special))
    assert answer == Answer(COMMITS[40], (COMMITS[39],), identical=False)


def test_infrastructure_decides_nothing() -> None:
    chance = random.Random(3)
    world = World(40, 1.0, random.Random(0))

    def check(action: Check) -> Trial:
        if chance.random() < 0.4:
            return Trial(action.commit, action.purpose, Finding.INFRASTRUCTURE)
        return World.check(world, action)

    plain, quiet = bisect(World(40, 1.0, random.Random(0)))
    world.check = check  # type: ignore[method-assign]
    disturbed, case = bisect(world)
    assert disturbed == plain
    said = [trial for trial in case.trials if trial.finding is not Finding.INFRASTRUCTURE]
    assert [trial.commit for trial in said] == [trial.commit for trial in quiet.trials]
    assert len(case.trials) > len(said)


def test_a_bad_revision_that_does_not_fail_is_said_with_a_bound() -> None:
    answer, case = bisect(World(99, 1.0, random.Random(0)))
    assert isinstance(answer, NoAnswer)
    assert answer.bad_input
    assert "did not fail in 30 runs" in answer.reason
    assert "less than 14.2%" in answer.reason
    assert {trial.commit for trial in case.trials} == {COMMITS[-1]}


def test_a_good_revision_that_fails_is_said_at_once() -> None:
    answer, case = bisect(World(0, 1.0, random.Random(0)))
    assert isinstance(answer, NoAnswer)
    assert answer.bad_input
    assert answer.reason.startswith("The good revision fails in the same way")
    assert len(case.trials) == 9


@pytest.mark.parametrize("end", [0, 64])
def test_an_end_that_cannot_be_tested_is_said(end: int) -> None:
    answer, _ = bisect(World(40, 1.0, random.Random(0), {end: Finding.UNTESTABLE}))
    assert isinstance(answer, NoAnswer)
    assert answer.bad_input
    assert "untestable." in answer.reason


def test_an_identical_binary_is_said() -> None:
    answer, _ = bisect(World(40, 1.0, random.Random(0), identical=True))
    assert isinstance(answer, Answer)
    assert answer.identical


def test_the_rate_follows_from_what_was_seen() -> None:
    _, case = bisect(World(40, 1.0, random.Random(0)))
    known = rate(case)
    assert known is not None
    assert (known.failures, known.runs, known.step) == (8, 8, 1)
    # 0.005 ** (1 / 8), and the passes that such a failure survives in 0.5% of 5 goods.
    assert known.least == pytest.approx(0.5157, abs=1e-4)
    assert known.most == 1.0
    assert known.confidence == 0.995
    assert 8 <= known.final <= 11
