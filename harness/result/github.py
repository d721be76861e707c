# SPDX-License-Identifier: GPL-2.0-only
"""What GitHub shows of a run: annotations on the job, and a summary in Markdown.

Both hold text of machines under test. In an annotation a newline would begin a new workflow
command, so it and the separators are escaped; in Markdown all that is not a letter, a digit or a
blank is a character reference, which no Markdown reader takes for markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from harness.result.outcome import Outcome, TestOutcome
from harness.result.record import RunRecord
from harness.result.summary import closing_lines, failure_lines, not_consulted, numbered, table
from harness.result.text import one_line, printable
from harness.result.verdict import Word

_ANNOTATIONS = 10
"""GitHub keeps this many annotations of each level from a step, and drops the rest silently."""

_DETAILED = 20
_EXCERPT = 4000
"""Failures that a summary explains, and characters of log with each; GitHub refuses summaries of
more than 1 MiB."""

_MARKS = {
    Outcome.PASS: "✅",
    Outcome.FAIL: "❌",
    Outcome.ERROR: "💥",
    Outcome.MISSING: "❔",
    Outcome.SKIP: "⏭",
    None: "",
}
_BROKEN = (Outcome.ERROR, Outcome.MISSING)


def as_annotations(record: RunRecord) -> str:
    """Workflow commands, one a line: the verdict, what failed, and what broke.

    Only what the kernel did is an error; what broke on our side is a warning, unless it is the
    verdict.
    """
    verdict = record.verdict
    level = "notice" if verdict.word is Word.PASS else "error"
    head = f"{verdict.word} (exit code {int(verdict.exit_code)})"
    lines = [_command(level, f"mmu-harness: {head}", "\n".join(verdict.reasons))]
    failed = [outcome for outcome in record.outcomes if outcome.outcome is Outcome.FAIL]
    broken = [outcome for outcome in record.outcomes if outcome.outcome in _BROKEN]
    lines += _annotations("error", failed)
    lines += _annotations("warning", broken)
    return "\n".join(lines) + "\n"


def as_markdown(record: RunRecord) -> str:
    """The summary of a job: verdict, table, what went wrong, and what was not consulted."""
    counts, head, *reasons = closing_lines(record)
    mark = "✅" if record.verdict.word is Word.PASS else "❌"
    kernel = record.kernel
    lines = [f"## {mark} mmu-harness: {_text(head)}", ""]
    lines += [f"- {_text(reason)}" for reason in reasons]
    of = f"{kernel.origin} ({kernel.release})" if kernel.release else kernel.origin
    lines += ["", f"{_text(counts)}, kernel {_text(of)}", ""]
    if kernel.control:
        lines += [f"The guarantee {_text(kernel.control)} was broken on purpose.", ""]
    lines += _matrix(record)
    wrong = [item for item in record.outcomes if item.outcome in (Outcome.FAIL, Outcome.ERROR)]
    for outcome in wrong[:_DETAILED]:
        lines += _details(outcome)
    if len(wrong) > _DETAILED:
        lines += [f"{len(wrong) - _DETAILED} more are in the report.", ""]
    lines += [f"- {_text(sentence)}" for sentence in not_consulted(record)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _annotations(level: str, outcomes: list[TestOutcome]) -> Iterator[str]:
    room = _ANNOTATIONS - 2  # one is the verdict's, and one says how many are not shown
    for outcome in outcomes[:room]:
        title = f"{outcome.outcome}: {numbered(outcome)} under {outcome.mmu}"
        yield _command(level, title, "\n".join(failure_lines(outcome)))
    if len(outcomes) > room:
        more = f"{len(outcomes) - room} more tests ended in the same way; see report.html."
        yield _command(level, "mmu-harness", more)


def _command(level: str, title: str, message: str) -> str:
    # Runners read these three, and in a property the two separators as well.
    data = printable(message).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    name = one_line(title).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={name}::{data}"


def _matrix(record: RunRecord) -> Iterator[str]:
    contents = table(record)
    if not contents.rows:
        return
    yield f"| scenario | {' | '.join(_text(mode) for mode in contents.modes)} |"
    yield f"|---|{'---|' * len(contents.modes)}"
    for row in contents.rows:
        cells = (f"{_MARKS[cell.outcome]} {_text(cell.text)}".strip() for cell in row.cells)
        yield f"| {_text(row.scenario)} | {' | '.join(cells)} |"
    yield ""


def _details(outcome: TestOutcome) -> Iterator[str]:
    title = f"{outcome.outcome}: {numbered(outcome)} under {outcome.mmu}"
    said = "\n".join(failure_lines(outcome))
    if outcome.log_excerpt:
        said += f"\n\n{printable(outcome.log_excerpt, _EXCERPT)}"
    # Inside of <pre> nothing is Markdown, and a blank line does not end it.
    yield f"<details><summary>{_text(title)}</summary>"
    yield ""
    yield f"<pre>{html.escape(said)}</pre>"
    yield ""
    yield "</details>"
    yield ""


def _text(text: str) -> str:
    """``text`` as Markdown that shows just that, on one line."""
    quoted = re.sub(r"[^\w .,()/=-]|_|^[-=]", lambda found: _reference(found[0]), one_line(text))
    # What begins like the next item of a list.
    return re.sub(r"^(\d+)([.)])", lambda found: found[1] + _reference(found[2]), quoted)


def _reference(character: str) -> str:
    return f"&#{ord(character)};"
