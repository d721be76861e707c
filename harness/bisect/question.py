# SPDX-License-Identifier: GPL-2.0-only
"""What a bisection is asked, and the file in which it keeps what it knows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from harness.bisect.plan import Answer, Case, NoAnswer, rate
from harness.bisect.trial import Finding, Kind, Purpose, Trial
from harness.errors import UsageError
from harness.result.directory import write_atomically

SCHEMA = 1
FILE = "bisect.json"


@dataclasses.dataclass(frozen=True)
class Question:
    """What the user asked: between which revisions of which checkout, and by which checks.

    ``good`` and ``bad`` are commits. ``select`` and ``tests`` are as for ``check``; ``error`` is
    the probability of a wrong answer that is put up with.
    """

    source: Path
    good: str
    bad: str
    select: str | None = None
    tests: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    patches: tuple[Path, ...] = ()
    fragments: tuple[Path, ...] = ()
    accelerator: str = "auto"
    jobs: int | None = None
    error: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.error < 0.5:
            raise UsageError("The error bound is a probability above 0 and below 0.5.")

    def key(self) -> dict[str, Any]:
        """What tells this question from others; the number of jobs does not change the answer."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "jobs"
        }
        plain: dict[str, Any] = json.loads(json.dumps(fields, default=str))
        return plain


def save(
    directory: Path, question: Question, case: Case, answer: Answer | NoAnswer | None = None
) -> None:
    """Write bisect.json: the question, every check, and the answer when there is one."""
    measured = rate(case)
    document = {
        "schema": SCHEMA,
        "question": question.key(),
        "looked_for": [dataclasses.asdict(kind) for kind in sorted(case.looked_for)],
        "rate": dataclasses.asdict(measured) if measured else None,
        "trials": [dataclasses.asdict(trial) for trial in case.trials],
        "answer": dataclasses.asdict(answer) if isinstance(answer, Answer) else None,
        "no_answer": dataclasses.asdict(answer) if isinstance(answer, NoAnswer) else None,
    }
    text = json.dumps(document, indent=1, default=str) + "\n"
    write_atomically(directory / FILE, text.encode("utf-8", "backslashreplace"))


def load(directory: Path, question: Question) -> Case:
    """What is known from an earlier run of the same question; nothing if there was none.

    Raises UsageError for a file of another question, or of a version that we cannot read.
    """
    case = Case(question.good, question.bad, question.error)
    try:
        document = json.loads((directory / FILE).read_text("utf-8"))
        if document["schema"] != SCHEMA or document["question"] != question.key():
            raise ValueError("it is of another question or version")
        trials = tuple(_trial(fields) for fields in document["trials"])
    except FileNotFoundError:
        return case
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{directory / FILE} cannot be continued: {error}. Move it away to begin anew."
        ) from error
    return dataclasses.replace(case, trials=trials)


def _trial(fields: dict[str, Any]) -> Trial:
    return Trial(
        **{
            **fields,
            "purpose": Purpose(fields["purpose"]),
            "finding": Finding(fields["finding"]),
            "kinds": tuple(Kind(**kind) for kind in fields["kinds"]),
        }
    )
