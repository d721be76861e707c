# SPDX-License-Identifier: GPL-2.0-only
"""KTAP, the format of the kernel's own tests (Documentation/dev-tools/ktap.rst), version 1.

One test for each MMU mode with its scenarios as subtests, and last the verdict: a run in which
everything was skipped, or whose kernel complained between two tests, is not ok.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.result.outcome import Outcome, TestOutcome
from harness.result.record import RunRecord
from harness.result.summary import closing_lines, failure_lines, numbered
from harness.result.text import one_line
from harness.result.verdict import Word

_BROKEN = (Outcome.FAIL, Outcome.ERROR, Outcome.MISSING)
_DATA_LIMIT = 300
"""Characters after the hash sign; all of it is in the diagnostic lines before."""


def as_ktap(record: RunRecord) -> str:
    """results.ktap as text."""
    modes = tuple(dict.fromkeys(outcome.mmu for outcome in record.outcomes))
    lines = ["KTAP version 1", f"1..{len(modes) + 1}"]
    lines += _diagnostics(f"kernel: {record.kernel.origin} {record.kernel.release or ''}".rstrip())
    for number, mode in enumerate(modes, 1):
        outcomes = [outcome for outcome in record.outcomes if outcome.mmu == mode]
        lines += [f"  {line}" for line in _subtests(outcomes)]
        lines.append(_mode_line(number, mode, outcomes))
    for line in closing_lines(record):
        lines += _diagnostics(line)
    lines.append(_verdict_line(len(modes) + 1, record))
    return "\n".join(lines) + "\n"


def _subtests(outcomes: Sequence[TestOutcome]) -> Iterator[str]:
    yield "KTAP version 1"
    yield f"1..{len(outcomes)}"
    for number, outcome in enumerate(outcomes, 1):
        name = _description(numbered(outcome))
        if outcome.outcome in _BROKEN:
            for line in (*failure_lines(outcome), outcome.log_excerpt):
                yield from _diagnostics(line)
        if outcome.outcome is Outcome.PASS:
            yield f"ok {number} {name} # {outcome.seconds:.3f} s"
        elif outcome.outcome is Outcome.SKIP:
            yield f"ok {number} {name} # SKIP {_data(outcome.message)}".rstrip()
        elif outcome.outcome is Outcome.FAIL:
            yield f"not ok {number} {name} # {_data(outcome.message)}"
        else:
            # KTAP has one word for both; its data keeps them apart.
            said = _data(f"{outcome.outcome}: {outcome.message}")
            yield f"not ok {number} {name} # ERROR {said}"


def _mode_line(number: int, mode: str, outcomes: Sequence[TestOutcome]) -> str:
    name = _description(mode) or "no mode"
    kinds = {outcome.outcome for outcome in outcomes}
    if Outcome.FAIL in kinds:
        return f"not ok {number} {name}"
    if kinds & set(_BROKEN):
        return f"not ok {number} {name} # ERROR no verdict on the kernel"
    if kinds == {Outcome.SKIP}:
        return f"ok {number} {name} # SKIP every test was skipped"
    return f"ok {number} {name}"


def _verdict_line(number: int, record: RunRecord) -> str:
    verdict = record.verdict
    said = f"{verdict.word}, exit code {int(verdict.exit_code)}"
    if verdict.word is Word.PASS:
        return f"ok {number} verdict # {said}"
    directive = "" if verdict.word is Word.FAIL else "ERROR "
    return f"not ok {number} verdict # {directive}{said}"


def _diagnostics(text: str) -> Iterator[str]:
    """Each line of ``text`` behind a hash sign, so that none is taken for a result."""
    for line in text.split("\n") if text else ():
        yield f"# {line}".rstrip()


def _description(text: str) -> str:
    return one_line(text).replace("#", r"\x23")


def _data(text: str) -> str:
    return one_line(text, _DATA_LIMIT).replace("#", r"\x23")
