# SPDX-License-Identifier: GPL-2.0-only
"""The judgement over a run: pure, and suspicious of everything that is not positive evidence.

What decides, in this order:

1. somebody asked us to stop: INTERRUPTED (130, 143);
2. a test failed, or a kernel that had come up complained in its log: FAIL (1), whatever broke
   besides;
3. something broke: the gravest of bug (203), usage (201), unfit machine (202), infrastructure
   (200), untestable kernel (125). Tests that never reported, errors, nonces that do not match and
   logs that have no end are infrastructure, unless something above explains them;
4. nothing was selected (201), or everything was skipped (125), or anything was skipped although
   the run was to be ``strict`` (125);
5. else PASS (0).
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import signal
from collections import Counter
from collections.abc import Iterator, Sequence

from harness.errors import ExitCode, HarnessError, Interrupted, OracleUnavailable
from harness.result.outcome import Outcome, Request, TestOutcome, completed
from harness.result.text import EXCERPT_LIMIT, one_line, printable

_NAMED = 5
"""How many tests of a kind a reason names; the record has all of them."""

_GRAVITY = (
    ExitCode.BUG,
    ExitCode.USAGE,
    ExitCode.UNFIT,
    ExitCode.INFRASTRUCTURE,
    ExitCode.UNTESTABLE,
)

_OUR_MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)


class Word(enum.StrEnum):
    """The verdict in one word."""

    PASS = "PASS"  # noqa: S105 - no password
    FAIL = "FAIL"
    UNTESTABLE = "UNTESTABLE"
    INTERRUPTED = "INTERRUPTED"
    ERROR = "ERROR"


_WORDS = {
    ExitCode.PASS: Word.PASS,
    ExitCode.FAIL: Word.FAIL,
    ExitCode.UNTESTABLE: Word.UNTESTABLE,
    ExitCode.INTERRUPTED: Word.INTERRUPTED,
    ExitCode.TERMINATED: Word.INTERRUPTED,
}


@dataclasses.dataclass(frozen=True)
class Crash:
    """A crash report on a kernel's log: its kind (panic, WARN, lockdep ...) and its text."""

    kind: str
    excerpt: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", one_line(self.kind))
        object.__setattr__(self, "excerpt", printable(self.excerpt, EXCERPT_LIMIT))


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What one booted host left as proof that it did the work.

    ``nonce_seen`` is None when the host never answered. ``crashes`` are the crash reports since
    it came up, or all of them when it never did: then they say why it did not boot, and are no
    failure of a test.
    """

    host: str
    mmu: str
    nonce_expected: str
    nonce_seen: str | None
    log_end_mark: bool
    crashes: tuple[Crash, ...] = ()

    @property
    def came_up(self) -> bool:
        """Whether this very host answered."""
        return self.nonce_seen is not None and self.nonce_seen == self.nonce_expected


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judgement: a word, the exit code that says the same, and why, as sentences."""

    word: Word
    exit_code: ExitCode
    reasons: tuple[str, ...]


def exit_code(error: BaseException) -> ExitCode:
    """The exit code for an error that ended a run, whatever its class."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, OracleUnavailable):
        return ExitCode.UNTESTABLE
    if isinstance(error, HarnessError):
        return error.exit_code
    if isinstance(error, MemoryError):
        return ExitCode.INFRASTRUCTURE
    if isinstance(error, OSError) and error.errno in _OUR_MACHINE:
        return ExitCode.INFRASTRUCTURE
    return ExitCode.BUG


def judge(
    requested: Sequence[Request],
    outcomes: Sequence[TestOutcome],
    evidence: Sequence[Evidence],
    problems: Sequence[BaseException] = (),
    *,
    strict: bool = False,
) -> Verdict:
    """The verdict over a run.

    ``problems`` are the errors that ended the run or a host of it, Interrupted included; the
    order of none of the arguments matters for the word and the exit code.
    """
    everything = completed(requested, outcomes)
    failures = (*_failures(everything, evidence), *_violations(problems))
    broken = tuple(_broken(everything, evidence, problems))
    stops = [(code, text) for code, text in broken if code in _STOPS]
    others = [(code, text) for code, text in broken if code not in _STOPS]
    besides = tuple(text for _, text in others)
    if stops:
        # SIGTERM may be what the system sent after a SIGINT was not heeded.
        code = max(code for code, _ in stops)
        return _verdict(code, (*(text for _, text in stops), *failures, *besides))
    if failures:
        return _verdict(ExitCode.FAIL, (*failures, *besides))
    if others:
        code = min((code for code, _ in others), key=_GRAVITY.index)
        ordered = sorted(others, key=lambda item: _GRAVITY.index(item[0]))
        return _verdict(code, tuple(text for _, text in ordered))
    return _quiet(everything, strict)


_STOPS = frozenset({ExitCode.INTERRUPTED, ExitCode.TERMINATED})


def _quiet(outcomes: Sequence[TestOutcome], strict: bool) -> Verdict:
    """The verdict when nothing failed and nothing broke."""
    if not outcomes:
        return _verdict(ExitCode.USAGE, ("The selection matched no test, so nothing was run.",))
    passed = sum(outcome.outcome is Outcome.PASS for outcome in outcomes)
    skipped = [outcome for outcome in outcomes if outcome.outcome is Outcome.SKIP]
    if not passed or (strict and skipped):
        why = Counter(one_line(outcome.message) or "no reason given" for outcome in skipped)
        reasons = (f"{count} skipped: {text}" for text, count in why.most_common(_NAMED))
        what = f"{len(skipped)} of {_tests(len(outcomes))} skipped, which --strict forbids."
        first = what if passed else "All tests were skipped."
        return _verdict(ExitCode.UNTESTABLE, (first, *reasons))
    besides = f" {len(skipped)} skipped." if skipped else ""
    return _verdict(ExitCode.PASS, (f"{_tests(passed)} passed.{besides}",))


def _failures(outcomes: Sequence[TestOutcome], evidence: Sequence[Evidence]) -> tuple[str, ...]:
    failed = [outcome for outcome in outcomes if outcome.outcome is Outcome.FAIL]
    reasons = [f"{outcome.id} failed: {one_line(outcome.message)}" for outcome in failed]
    crashes = [(item.host, crash) for item in evidence if item.came_up for crash in item.crashes]
    reasons += [
        f"The kernel log of host {host} has a crash report: {crash.kind}."
        for host, crash in crashes
    ]
    return tuple(reasons)


def _violations(problems: Sequence[BaseException]) -> Iterator[str]:
    for problem in problems:
        if exit_code(problem) is ExitCode.FAIL:
            yield _said(problem)


def _broken(
    outcomes: Sequence[TestOutcome],
    evidence: Sequence[Evidence],
    problems: Sequence[BaseException],
) -> Iterator[tuple[ExitCode, str]]:
    """Everything that keeps the run from being a pass without being the kernel's failure."""
    for problem in problems:
        if (code := exit_code(problem)) is not ExitCode.FAIL:
            yield code, _said(problem)
    silent = all(outcome.outcome is Outcome.MISSING for outcome in outcomes)
    if problems and silent and not evidence:
        return  # the run ended before its first host, and it is said why
    yield from _errors(outcomes)
    # A run that was stopped leaves tests unreported and hosts unanswered; the stop is the reason.
    explained = [exit_code(problem) for problem in problems]
    explained += [
        outcome.code
        for outcome in outcomes
        if outcome.outcome is Outcome.ERROR and outcome.code is not None
    ]
    yield from _missing(outcomes, explained)
    yield from _unproven(outcomes, evidence, explained)


def _errors(outcomes: Sequence[TestOutcome]) -> Iterator[tuple[ExitCode, str]]:
    erroneous: dict[ExitCode, list[TestOutcome]] = {}
    for outcome in outcomes:
        if outcome.outcome is Outcome.ERROR:
            code = outcome.code
            if code is None or code in (ExitCode.PASS, ExitCode.FAIL):
                code = ExitCode.INFRASTRUCTURE
            erroneous.setdefault(code, []).append(outcome)
    for code, group in erroneous.items():
        first = group[0]
        yield code, f"{_named(group)} ended in an error: {one_line(first.message)}"
    counts = Counter(outcome.id for outcome in outcomes)
    for twice in sorted(name for name, count in counts.items() if count > 1):
        yield ExitCode.INFRASTRUCTURE, f"{twice} was reported {counts[twice]} times."


def _missing(
    outcomes: Sequence[TestOutcome], explained: Sequence[ExitCode]
) -> Iterator[tuple[ExitCode, str]]:
    # A kernel that cannot be tested explains the silence of a mode that never worked. Where other
    # tests of the same mode did report, something else swallowed this one.
    worked = {item.mmu for item in outcomes if item.outcome in (Outcome.PASS, Outcome.FAIL)}
    groups: dict[ExitCode, list[TestOutcome]] = {}
    for outcome in outcomes:
        if outcome.outcome is Outcome.MISSING:
            causes = [
                code
                for code in explained
                if code is not ExitCode.UNTESTABLE or outcome.mmu not in worked
            ]
            groups.setdefault(_gravest(causes), []).append(outcome)
    for code, group in groups.items():
        yield code, f"{_named(group)} never reported."


def _unproven(
    outcomes: Sequence[TestOutcome],
    evidence: Sequence[Evidence],
    explained: Sequence[ExitCode],
) -> Iterator[tuple[ExitCode, str]]:
    passed = {outcome.mmu for outcome in outcomes if outcome.outcome is Outcome.PASS}
    for mmu in sorted(passed - {item.mmu for item in evidence if item.came_up}):
        yield (
            ExitCode.INFRASTRUCTURE,
            f"Tests passed in MMU mode {mmu}, but no host of that mode proved that it ran.",
        )
    nonces = Counter(item.nonce_expected for item in evidence)
    for item in evidence:
        if item.nonce_seen is None:
            kinds = ", ".join(crash.kind for crash in item.crashes)
            if kinds:
                yield (
                    ExitCode.UNTESTABLE,
                    f"The kernel of host {item.host} crashed before it answered: {kinds}.",
                )
            else:
                yield _gravest(explained), f"Host {item.host} never answered."
        elif not item.came_up:
            yield (
                ExitCode.INFRASTRUCTURE,
                f"Host {item.host} answered with another run's nonce, so it is not the host that "
                "was booted for this run.",
            )
        elif not item.log_end_mark and not item.crashes:
            yield (
                ExitCode.INFRASTRUCTURE,
                f"The console log of host {item.host} breaks off before its end mark.",
            )
    if any(count > 1 for count in nonces.values()) or "" in nonces:
        yield ExitCode.INFRASTRUCTURE, "Hosts of this run share a nonce, so it proves nothing."


def _gravest(codes: Sequence[ExitCode]) -> ExitCode:
    """The gravest code that explains an absence, or infrastructure if nothing does."""
    if any(code in _STOPS for code in codes):
        return max(code for code in codes if code in _STOPS)
    return min(
        (code for code in codes if code in _GRAVITY),
        key=_GRAVITY.index,
        default=ExitCode.INFRASTRUCTURE,
    )


def _verdict(code: ExitCode, reasons: tuple[str, ...]) -> Verdict:
    return Verdict(_WORDS.get(code, Word.ERROR), code, tuple(printable(text) for text in reasons))


def _said(problem: BaseException) -> str:
    if isinstance(problem, KeyboardInterrupt):
        problem = Interrupted(signal.SIGINT)
    text = str(problem).strip()
    if isinstance(problem, HarnessError):
        return text or type(problem).__name__
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__


def _tests(count: int) -> str:
    return "1 test" if count == 1 else f"{count} tests"


def _named(outcomes: Sequence[TestOutcome]) -> str:
    names = [outcome.id for outcome in outcomes[:_NAMED]]
    more = len(outcomes) - len(names)
    rest = f" and {more} more" if more else ""
    return f"{_tests(len(outcomes))} ({', '.join(names)}{rest})"
