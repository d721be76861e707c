# SPDX-License-Identifier: GPL-2.0-only
"""What a bisection leaves for people: a summary for a mail, git's log, a picture of the path."""

from __future__ import annotations

import dataclasses
import html
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.bisect.history import History
from harness.bisect.plan import Answer, Case, NoAnswer, count, rate
from harness.bisect.question import Question
from harness.bisect.trial import HOST, Finding
from harness.result.directory import write_atomically
from harness.result.text import one_line, printable
from harness.result.timeline import duration

_WIDTH, _LEFT, _RIGHT, _TOP, _STEP = 900, 30, 330, 60, 24
_COLOURS = {
    Finding.FAILS: "#c4262e",
    Finding.PASSES: "#1a7f37",
    Finding.OTHERWISE: "#8a3ffc",
    Finding.UNTESTABLE: "#6b7280",
    Finding.INFRASTRUCTURE: "#b8c0ca",
}
_SHAPES = {
    Finding.FAILS: "M-5-5L5 5M5-5L-5 5",
    Finding.PASSES: "M-5 0L-1 4L6-5",
    Finding.OTHERWISE: "M0-6V2M0 4V6",
    Finding.UNTESTABLE: "M-5 0H5",
    Finding.INFRASTRUCTURE: "M-2-2H2V2H-2Z",
}


def write_reports(
    directory: Path, question: Question, case: Case, history: History, end: Answer | NoAnswer
) -> None:
    """Write summary.txt, bisect.log and path.svg."""
    titles = {trial.commit: history.title(trial.commit) for trial in case.trials}
    order = history.order(question.good, question.bad)
    text = summary(question, case, end, titles)
    if isinstance(end, Answer):
        text += "\n" + printable(history.describe(end.culprit), 8000) + "\n"
    for name, contents in (
        ("summary.txt", text),
        ("bisect.log", history.log()),
        ("path.svg", picture(case, end, titles, order)),
    ):
        write_atomically(directory / name, contents.encode("utf-8", "backslashreplace"))


def summary(
    question: Question, case: Case, end: Answer | NoAnswer, titles: Mapping[str, str]
) -> str:
    """The answer as a mail tells it: culprit, evidence, and how to see it again."""
    lines = [*_answer(end, titles), ""]
    if case.looked_for:
        lines += ["The failure that was looked for:", ""]
        lines += [*_kinds(case, end), ""]
    lines += _evidence(question, case, end, titles)
    lines += _besides(case, titles)
    if isinstance(end, Answer):
        lines += ["To see it again:", "", *_reproduce(question, case, end)]
    return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"


def _answer(end: Answer | NoAnswer, titles: Mapping[str, str]) -> Iterator[str]:
    if isinstance(end, Answer):
        yield f"First bad commit: {one_line(titles.get(end.culprit, end.culprit))}"
        yield f"  {end.culprit}"
        if end.identical:
            yield ""
            yield "Careful: the binary of this commit is identical to its parent's, so that the"
            yield "commit cannot be the cause. The failure depends on something else."
        return
    yield f"No first bad commit was found. {one_line(end.reason)}"
    for commit in end.commits:
        yield f"  {one_line(titles.get(commit, commit))}"


def _kinds(case: Case, end: Answer | NoAnswer) -> Iterator[str]:
    kinds = sorted(case.looked_for)
    at_culprit = set(kinds)
    if isinstance(end, Answer):
        at_culprit = {kind for trial in case.of(end.culprit) for kind in trial.kinds}
    for kind in kinds:
        unseen = "" if kind in at_culprit else " (not seen at the first bad commit)"
        yield f"  {kind}, {kind.mmu}{unseen}"
    if not at_culprit.issuperset(kinds):
        yield ""
        yield "What was not seen there may have another cause; bisect it alone with --select."


def _evidence(
    question: Question, case: Case, end: Answer | NoAnswer, titles: Mapping[str, str]
) -> Iterator[str]:
    measured = rate(case)
    if measured is None:
        return
    yield "Evidence:"
    yield ""
    yield (
        f"  On the bad revision it showed in {measured.failures} of {measured.runs} runs: "
        f"in {measured.least:.1%} to {measured.most:.1%}"
    )
    yield f"  of runs (exact, each bound with {measured.confidence:.2%} confidence)."
    if isinstance(end, Answer):
        culprit = case.of(end.culprit)
        failed = count(culprit, Finding.FAILS)
        yield f"  The commit failed in {failed} of {len(culprit)} runs."
        for parent in end.parents:
            passed = count(case.of(parent), Finding.PASSES)
            title = one_line(titles.get(parent, parent))
            if passed:
                yield f"  Its parent {title} passed {passed} times,"
                yield f"  of {measured.final} for an error bound of {question.error:.2%}."
            else:
                yield f"  Its parent {title} could not be tested."
    tested = len({trial.commit for trial in case.trials})
    seconds = duration(sum(trial.seconds for trial in case.trials))
    yield f"  {len(case.trials)} checks of {tested} commits in {seconds}."
    yield ""


def _besides(case: Case, titles: Mapping[str, str]) -> Iterator[str]:
    """What else was seen: other failures, and commits that could not be tested."""
    lines = []
    for trial in case.trials:
        title = one_line(titles.get(trial.commit, trial.commit))
        others = [kind for kind in trial.kinds if kind not in case.looked_for]
        lines += [f"  {title}: {kind}" for kind in others]
        if trial.finding is Finding.UNTESTABLE:
            lines.append(f"  {title} cannot be tested: {one_line(trial.reason, 200)}")
    if lines:
        yield "Besides:"
        yield ""
        yield from dict.fromkeys(lines)
        yield ""


def _reproduce(question: Question, case: Case, end: Answer) -> Iterator[str]:
    tests = sorted({kind.test for kind in case.looked_for} - {HOST})
    modes = sorted({kind.mmu for kind in case.looked_for})
    words = ["mmu-harness", "check", "--kernel", "linux-culprit"]
    for mode in modes:
        words += ["--mmu", mode]
    for patch in question.patches:
        words += ["--patch", str(patch)]
    for fragment in question.fragments:
        words += ["--config", str(fragment)]
    git = ["git", "-C", str(question.source), "worktree", "add", "--detach"]
    yield f"  {shlex.join([*git, str(Path.cwd() / 'linux-culprit'), end.culprit])}"
    yield f"  {shlex.join([*words, *tests])}"


@dataclasses.dataclass(frozen=True)
class _Dot:
    """The checks of one commit in a row."""

    commit: str
    finding: Finding
    runs: int


def picture(
    case: Case, end: Answer | NoAnswer, titles: Mapping[str, str], order: Mapping[str, int]
) -> str:
    """The path as SVG: the history from good to bad across, the checks in their order down."""
    dots = _dots(case)
    last = max((*order.values(), 1))
    height = _TOP + _STEP * (len(dots) + 1)
    culprit = end.culprit if isinstance(end, Answer) else None
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="30" fill="#1a7f37">good</text>',
        f'<text x="{_WIDTH - _RIGHT}" y="30" fill="#c4262e" text-anchor="end">bad, '
        f"{last} commits later</text>",
    ]
    if culprit is not None and culprit in order:
        x = _place(order[culprit], last)
        parts.append(
            f'<path d="M{x:.1f} {_TOP - 15}V{height - 12}" stroke="#c4262e" '
            'stroke-dasharray="3 3"/>'
        )
    points = []
    for row, dot in enumerate(dots):
        x, y = _place(order.get(dot.commit, 0), last), _TOP + row * _STEP
        points.append(f"{x:.1f},{y}")
        colour = _COLOURS[dot.finding]
        title = one_line(titles.get(dot.commit, dot.commit), 60)
        runs = f", {dot.runs} runs" if dot.runs > 1 else ""
        parts.append(
            f'<path d="{_SHAPES[dot.finding]}" transform="translate({x:.1f} {y})" fill="none" '
            f'stroke="{colour}" stroke-width="2.5"/>'
            f'<text x="{_WIDTH - _RIGHT + 15}" y="{y + 4}" fill="{colour}">'
            f"{html.escape(f'{title[:12]} {dot.finding}{runs}')}"
            f"<title>{html.escape(title)}</title></text>"
        )
    # Below the marks.
    parts.insert(4, f'<polyline points="{" ".join(points)}" fill="none" stroke="#b8c0ca"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _dots(case: Case) -> list[_Dot]:
    dots: list[_Dot] = []
    for trial in case.trials:
        if dots and (dots[-1].commit, dots[-1].finding) == (trial.commit, trial.finding):
            dots[-1] = dataclasses.replace(dots[-1], runs=dots[-1].runs + 1)
        else:
            dots.append(_Dot(trial.commit, trial.finding, 1))
    return dots


def _place(number: int, last: int) -> float:
    return _LEFT + number / last * (_WIDTH - _LEFT - _RIGHT)
