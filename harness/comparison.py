# SPDX-License-Identifier: GPL-2.0-only
"""Before and after the mmu notifiers, side by side: a table and a picture of what was measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from xml.sax.saxutils import escape

SCHEMA = 1
"""Version of comparison.json."""

BEFORE = "before: no notifier, a reference per spte"
AFTER = "after: this kernel"

_SHARES: Mapping[str, str] = MappingProxyType(
    {
        "swapped": "swapped out",
        "unpinned": "free of extra references",
        "merged": "merged by KSM",
        "migrated": "migrated to another node",
    }
)
"""What is measured as a number of pages, with the words for it; the more, the better."""

_ENOUGH: Mapping[str, float] = MappingProxyType({"merged": 0.98})
"""Shares that are as good as all: KSM passes over a page that somebody looks at just then."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one kernel let be done to a guest of so many ``pages``.

    ``counts`` are pages for each key of shares(), None where this host cannot say; ``seconds``
    maps what was timed to how long it took.
    """

    pages: int
    counts: Mapping[str, int | None]
    seconds: Mapping[str, float]

    def share(self, what: str) -> float | None:
        """The share of the guest's pages of which this is true, between 0 and 1."""
        count = self.counts.get(what)
        return None if count is None else count / self.pages


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The same done to a guest on both kernels."""

    kernel: str
    release: str
    before: Measurement
    after: Measurement

    @property
    def claim_holds(self) -> bool:
        """Whether the kernel lets everything be done that the mission promises, to all pages."""
        return not faults(self)


def shares() -> tuple[str, ...]:
    """What a Measurement counts."""
    return tuple(_SHARES)


def rows(comparison: Comparison) -> list[tuple[str, str, str]]:
    """The table: what, before, after."""
    before, after = comparison.before, comparison.after
    table = [
        (f"pages {words}", _count(before, what), _count(after, what))
        for what, words in _SHARES.items()
    ]
    for what in dict.fromkeys((*before.seconds, *after.seconds)):
        table.append((f"seconds to {what}", _time(before, what), _time(after, what)))
    return table


def faults(comparison: Comparison) -> Sequence[str]:
    """What the kernel did not let be done to all pages, as sentences."""
    after = comparison.after
    return [
        f"Only {after.counts[what]} of {after.pages} pages were {words}."
        for what, words in _SHARES.items()
        if (share := after.share(what)) is not None and share < _ENOUGH.get(what, 1.0)
    ]


def as_text(comparison: Comparison) -> str:
    """comparison.txt."""
    lines = [("", "before", "after"), *rows(comparison)]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    text = [
        f"{what:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}"
        for what, before, after in lines
    ]
    facts = f"{comparison.kernel} ({comparison.release}), a guest of {comparison.after.pages} pages"
    return "\n".join([facts, "", *text, "", f"{BEFORE}; {AFTER}", *faults(comparison), ""])


def as_json(comparison: Comparison) -> str:
    """comparison.json."""
    document = {
        "schema": SCHEMA,
        "kernel": comparison.kernel,
        "release": comparison.release,
        "claim_holds": comparison.claim_holds,
        "before": _plain(comparison.before),
        "after": _plain(comparison.after),
    }
    return json.dumps(document, indent=1) + "\n"


def as_svg(comparison: Comparison) -> str:
    """comparison.svg: for each share a bar before and a bar after."""
    parts = [
        _text(_LEFT, 26, "What the host can do with the memory of a running guest", size=16),
        _text(_LEFT, 46, f"{comparison.kernel}, {comparison.release}", colour=_GREY),
    ]
    kernels = ((comparison.before, _OLD, "before"), (comparison.after, _NEW, "after"))
    for number, (what, words) in enumerate(_SHARES.items()):
        top = _TOP + number * _STEP
        parts.append(_text(_LEFT - 12, top + _BAR + 5, words, anchor="end"))
        for row, (measured, colour, _) in enumerate(kernels):
            parts += _bar(top + row * (_BAR + 2), measured.share(what), colour)
    legend = _TOP + len(_SHARES) * _STEP + 14
    for row, words in enumerate((BEFORE, AFTER)):
        y = legend + row * 20
        parts.append(_rect(_LEFT, y - 10, 12, kernels[row][1], 12))
        parts.append(_text(_LEFT + 18, y, words))
    height = legend + 40
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


_WIDTH, _LEFT, _TOP, _FULL = 720, 210, 70, 420
_BAR, _STEP = 16, 50
_OLD, _NEW, _GREY, _INK = "#9a9a9a", "#1f6fb2", "#666666", "#222222"


def _bar(y: int, share: float | None, colour: str) -> list[str]:
    label = "not measured" if share is None else f"{share:.1%}"
    width = round(_FULL * (share or 0.0))
    return [
        _rect(_LEFT, y, max(width, 1), colour, _BAR),
        _text(_LEFT + width + 6, y + 13, label, colour=_GREY),
    ]


def _rect(x: int, y: int, width: int, colour: str, height: int) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{colour}"/>'


def _text(
    x: int, y: int, words: str, *, size: int = 13, anchor: str = "start", colour: str = _INK
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(words)}</text>"
    )


def _count(measured: Measurement, what: str) -> str:
    count, share = measured.counts.get(what), measured.share(what)
    return "not measured" if share is None else f"{count} ({share:.1%})"


def _time(measured: Measurement, what: str) -> str:
    return f"{measured.seconds[what]:.1f}" if what in measured.seconds else "-"


def _plain(measured: Measurement) -> dict[str, object]:
    seconds = {what: round(value, 2) for what, value in measured.seconds.items()}
    return {"pages": measured.pages, "counts": dict(measured.counts), "seconds": seconds}
