# SPDX-License-Identifier: GPL-2.0-only
"""What to do next in a bisection: pure decisions over the checks that were made so far.

The failure is measured on the bad revision until it showed eight times, then the good revision is
checked, then git's candidates one by one, and in the end the culprit and its parents once more.

A failure is proof, a pass is none: a commit that has the failure may pass by chance. Somewhere on
the path such a chance may be taken, because it is found out: the last commit that was taken for
good is the culprit's parent, and it must pass often enough in the end. A commit that passed by
chance on the way leaves a parent that has the failure too, since all after it have. So few passes
are asked for on the way, and the error bound is kept where it counts, at the parent. Half of it
is spent on the chance that the measured rate is wrong, half on that of a parent that passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from harness.bisect.statistics import lower_bound, passes_needed, upper_bound
from harness.bisect.trial import Finding, Kind, Purpose, Trial

_FAILURES = 8
"""Failures on the bad revision. Fewer need more passes of the parent and more do not pay off: for
a failure that shows always and a bound of 1%, 8 and 10 to 11 passes is about the cheapest pair."""

_MOST_RUNS = 120
"""On the bad revision: enough for eight failures at a rate of 12% in most cases."""

_FIRST_RUNS = 30
"""On the bad revision, for the failure to be seen at all."""

_STEP_RISK = 0.12
"""Of a detour. At a failure that showed in 8 of 8 runs, one pass is enough."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """The commit that git wants to know about."""

    commit: str


@dataclasses.dataclass(frozen=True)
class Found:
    """The commit that git takes for the first bad one, and its parents."""

    commit: str
    parents: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Stuck:
    """Only commits that cannot be tested are left; one of these is the first bad one."""

    commits: tuple[str, ...]


Position = Candidate | Found | Stuck


@dataclasses.dataclass(frozen=True)
class Check:
    """Check this commit; ``why`` is for people."""

    commit: str
    purpose: Purpose
    why: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """The culprit, run again and confirmed like its parents."""

    culprit: str
    parents: tuple[str, ...]
    identical: bool


@dataclasses.dataclass(frozen=True)
class NoAnswer:
    """Why there is none, and what is left of it: commits of which one is the culprit."""

    reason: str
    commits: tuple[str, ...] = ()
    bad_input: bool = False


Action = Check | Answer | NoAnswer

Marks = tuple[tuple[str, str], ...]
"""What git is told: commits, and good, bad or skip."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """How often the failure showed on the bad revision, and what follows from it.

    ``least`` and ``most`` are one-sided bounds, each wrong with half the error bound.
    ``step`` passes make a commit good on the way, ``final`` in all make the culprit's parent good.
    """

    failures: int
    runs: int
    least: float
    most: float
    confidence: float
    step: int
    final: int


@dataclasses.dataclass(frozen=True)
class Case:
    """A bisection: what it is about, and the checks so far in their order."""

    good: str
    bad: str
    error: float
    trials: tuple[Trial, ...] = ()

    def of(self, commit: str, purpose: Purpose | None = None) -> tuple[Trial, ...]:
        """The checks of a commit that say something; infrastructure never does."""
        return tuple(
            trial
            for trial in self.trials
            if trial.commit == commit
            and trial.finding is not Finding.INFRASTRUCTURE
            and purpose in (None, trial.purpose)
        )

    @property
    def looked_for(self) -> frozenset[Kind]:
        """The kinds of the first failure that was seen on the bad revision."""
        for trial in self.of(self.bad, Purpose.MEASURE):
            if trial.finding is Finding.FAILS:
                return frozenset(trial.kinds)
        return frozenset()


def rate(case: Case) -> Rate | None:
    """The measured rate, once it is known well enough."""
    trials = case.of(case.bad, Purpose.MEASURE)
    failed = count(trials, Finding.FAILS)
    if failed < _FAILURES and len(trials) < _MOST_RUNS:
        return None
    if not failed:
        return None
    share = case.error / 2
    least = lower_bound(failed, len(trials), share)
    goods = max(1, sum(word == "good" for _, word in _marks(case, 1)))
    return Rate(
        failures=failed,
        runs=len(trials),
        least=least,
        most=upper_bound(failed, len(trials), share),
        confidence=1 - share,
        # The rule of succession keeps a rate of 1 from being taken at its word.
        step=passes_needed(failed / (len(trials) + 1), _STEP_RISK),
        final=passes_needed(least, share / goods),
    )


def plan(case: Case, where: Callable[[Marks], Position]) -> Action:
    """The next thing to do; ``where`` says where git is when it was told some marks."""
    if (first := _measure(case)) is not None:
        return first
    known = rate(case)
    assert known is not None
    if (second := _good_is_good(case, known)) is not None:
        return second
    position = where(_marks(case, known.step))
    if isinstance(position, Candidate):
        passed = count(case.of(position.commit), Finding.PASSES)
        why = f"a step, passed {passed} of {known.step} times" if passed else "a step"
        return Check(position.commit, Purpose.STEP, why)
    if isinstance(position, Stuck):
        return NoAnswer(
            "Every commit that is left cannot be tested, so the first bad one is among them.",
            position.commits,
        )
    return _confirm(case, known, position)


def count(trials: Sequence[Trial], finding: Finding) -> int:
    """How many checks had this finding."""
    return sum(trial.finding is finding for trial in trials)


def _measure(case: Case) -> Action | None:
    trials = case.of(case.bad, Purpose.MEASURE)
    failed = count(trials, Finding.FAILS)
    untestable = [trial for trial in trials if trial.finding is Finding.UNTESTABLE]
    if untestable:
        why = f"The bad revision cannot be tested: {untestable[0].reason}"
        return NoAnswer(why, bad_input=True)
    if not failed and len(trials) >= _FIRST_RUNS:
        most = upper_bound(0, len(trials), case.error)
        return NoAnswer(
            f"The bad revision did not fail in {len(trials)} runs. If it fails at all, then in "
            f"less than {most:.1%} of the runs.",
            bad_input=True,
        )
    if failed < _FAILURES and len(trials) < _MOST_RUNS:
        why = f"the bad revision, {failed} of {_FAILURES} failures in {len(trials)} runs"
        return Check(case.bad, Purpose.MEASURE, why)
    return None


def _good_is_good(case: Case, known: Rate) -> Action | None:
    word = _judge(case, case.good, known.step)
    if word == "good":
        return None
    if word is None:
        return Check(case.good, Purpose.STEP, "the good revision")
    trial = case.of(case.good)[-1]
    what = "fails in the same way" if word == "bad" else "cannot be judged"
    return NoAnswer(f"The good revision {what}: {trial.reason}", bad_input=True)


def _confirm(case: Case, known: Rate, found: Found) -> Action:
    # Until it fails once more; a failure of the least rate would have, but for the error bound.
    again = case.of(found.commit, Purpose.CONFIRM)
    if not count(again, Finding.FAILS):
        if len(again) >= known.final:
            return NoAnswer(
                f"The culprit failed before, but not once more in {len(again)} runs.",
                (found.commit,),
            )
        return Check(found.commit, Purpose.CONFIRM, "the culprit once more")
    for parent in found.parents:
        trials = case.of(parent)
        if count(trials, Finding.FAILS):
            # It was marked as bad, and git has its reasons to go on taking it for good.
            return NoAnswer(
                f"The parent {parent[:12]} of the culprit fails as well, although it is in the "
                "history of the good revision.",
                (found.commit,),
            )
        if any(trial.finding is Finding.UNTESTABLE for trial in trials):
            continue  # another branch of a merge, which git took for good unseen
        passed = count(trials, Finding.PASSES)
        fresh = count(case.of(parent, Purpose.CONFIRM), Finding.PASSES)
        if passed < known.final or not fresh:
            runs = len(case.of(parent, Purpose.CONFIRM))
            if runs >= 3 * known.final:
                return NoAnswer(
                    "The culprit's parent fails in other ways too often to be confirmed.",
                    (found.commit,),
                )
            why = f"the culprit's parent, passed {passed} of {known.final} times"
            return Check(parent, Purpose.CONFIRM, why)
    return Answer(found.commit, found.parents, _identical(case, found))


def _judge(case: Case, commit: str, step: int) -> str | None:
    """What git is to be told about a commit, or None when it must be checked once more."""
    trials = case.of(commit)
    if count(trials, Finding.FAILS):
        return "bad"
    if any(trial.finding in (Finding.UNTESTABLE, Finding.OTHERWISE) for trial in trials):
        # A pass before or after does not help: the next one may be cut short again.
        return "skip" if count(trials, Finding.PASSES) < step else "good"
    return "good" if count(trials, Finding.PASSES) >= step else None


def _marks(case: Case, step: int) -> Marks:
    commits = dict.fromkeys(trial.commit for trial in case.trials)
    words = [
        (commit, _judge(case, commit, step))
        for commit in commits
        if commit not in (case.good, case.bad)
    ]
    return tuple((commit, word) for commit, word in words if word is not None)


def _identical(case: Case, found: Found) -> bool:
    """Whether the culprit and a parent were the same binary: then the failure is chance."""
    binaries = {trial.binary for trial in case.of(found.commit) if trial.binary}
    return any(trial.binary in binaries for parent in found.parents for trial in case.of(parent))
