# SPDX-License-Identifier: GPL-2.0-only
"""What a soak saw over time, as a line for people, as JSON, and as a picture. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from html import escape

SCHEMA = "mmu-harness soak 1"

_MIB = 1 << 20
_PAGE_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Sample:
    """One look at the guests and their host, ``at`` seconds after the beginning.

    ``swapped_out`` and ``swapped_in`` are pages since the host's boot; ``swap`` is what the guests
    have in swap now, in bytes; ``sptes`` is how many pages of 4 KiB KVM maps for them; ``extra``
    how many pages had references too many or too few at the last audit; ``verified`` is bytes that
    the guests have compared; ``silence`` the seconds since the last word of the slowest of them.
    """

    at: float
    swapped_out: int
    swapped_in: int
    swap: int
    sptes: int
    extra: int
    verified: int
    silence: float


@dataclasses.dataclass(frozen=True)
class Step:
    """A scenario that began ``at`` seconds after the beginning."""

    at: float
    name: str


@dataclasses.dataclass(frozen=True)
class Soak:
    """A soak from its beginning to its end; ``failure`` is empty when nothing was wrong.

    ``broken`` is how many guests the emulator broke, so that they were replaced.
    """

    seed: int
    kernel: str
    seconds: float
    steps: tuple[Step, ...]
    samples: tuple[Sample, ...]
    own_memory: int
    failure: str = ""
    broken: int = 0

    @property
    def verified(self) -> int:
        """How many bytes the guests have compared."""
        return self.samples[-1].verified if self.samples else 0


def live_line(step: str, before: Sample, now: Sample) -> str:
    """How it goes, in one line; rates are those since ``before``."""
    seconds = max(now.at - before.at, 0.001)

    def rate(amount: int) -> str:
        return f"{amount / seconds / _MIB:.1f}"

    out = rate((now.swapped_out - before.swapped_out) * _PAGE_BYTES)
    back = rate((now.swapped_in - before.swapped_in) * _PAGE_BYTES)
    return (
        f"{step}: swap out {out}, in {back} MiB/s; {now.extra} extra references; "
        f"slowest beat {now.silence:.1f} s; "
        f"{now.verified / _MIB:.0f} MiB verified, {rate(now.verified - before.verified)} MiB/s"
    )


def as_text(soak: Soak) -> str:
    """The closing lines."""
    rate = soak.verified / max(soak.seconds, 0.001) / _MIB
    lines = [
        f"{len(soak.steps)} scenarios in {soak.seconds:.0f} s with seed {soak.seed}",
        f"{soak.verified / _MIB:.0f} MiB verified, {rate:.1f} MiB/s",
        f"{soak.own_memory / _MIB:.0f} MiB of memory used by the harness itself",
    ]
    if soak.broken:
        lines.append(
            f"{soak.broken} of the guests were broken by QEMU's emulation, which says nothing "
            "about the kernel, and were replaced"
        )
    if soak.failure:
        last = soak.steps[-1].name if soak.steps else "the boot"
        lines.append(f"Failed in {last}: {soak.failure}")
    return "\n".join(lines) + "\n"


def as_json(soak: Soak) -> str:
    """soak.json."""
    return json.dumps({"schema": SCHEMA, **dataclasses.asdict(soak)}, indent=1) + "\n"


_WIDTH, _LEFT, _RIGHT = 960, 90, 20
_TOP, _PLOT, _GAP = 64, 110, 34
_NAMES, _NARROW = 90, 10
"""Room below for the names of scenarios, and how far apart they are at least where they fit."""

_INK, _GREY, _LINE, _MARK = "#222222", "#666666", "#1f6fb2", "#dddddd"

_PLOTS: tuple[tuple[str, Callable[[Sample], float]], ...] = (
    ("MiB in swap", lambda sample: sample.swap / _MIB),
    ("pages mapped by sptes", lambda sample: float(sample.sptes)),
    ("extra references", lambda sample: float(sample.extra)),
    ("MiB verified", lambda sample: sample.verified / _MIB),
)


def as_svg(soak: Soak) -> str:
    """soak.svg: each quantity over time, with the scenarios marked."""
    bottom = _TOP + len(_PLOTS) * (_PLOT + _GAP)
    height = bottom + _NAMES
    title = f"{soak.kernel}, seed {soak.seed}: {len(soak.steps)} scenarios in {soak.seconds:.0f} s"
    parts = [_text(_LEFT, 24, title, size=16)]
    if soak.failure:
        parts.append(_text(_LEFT, 44, soak.failure.splitlines()[0][:120], colour="#b21f1f"))
    named = -float(_NARROW)
    for step in soak.steps:
        x = _x(soak, step.at)
        parts.append(
            f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{bottom - _GAP}" '
            f'stroke="{_MARK}"><title>{escape(step.name)}</title></line>'
        )
        if x - named >= _NARROW:
            named = x
            parts.append(_name(x, bottom, step.name))
    for number, (name, value) in enumerate(_PLOTS):
        parts += _plot(soak, _TOP + number * (_PLOT + _GAP), name, value)
    parts.append(_text(_LEFT, bottom - _GAP + 16, "0 s", colour=_GREY))
    end = f"{soak.seconds:.0f} s"
    parts.append(_text(_WIDTH - _RIGHT, bottom - _GAP + 16, end, anchor="end", colour=_GREY))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _plot(soak: Soak, top: int, name: str, value: Callable[[Sample], float]) -> Sequence[str]:
    values = [value(sample) for sample in soak.samples]
    most = max([*values, 1.0])
    points = " ".join(
        f"{_x(soak, sample.at):.1f},{top + _PLOT * (1 - number / most):.1f}"
        for sample, number in zip(soak.samples, values, strict=True)
    )
    bottom = top + _PLOT
    return (
        _text(_LEFT, top - 4, name, colour=_GREY),
        _text(_LEFT - 8, top + 10, f"{most:.0f}", anchor="end", colour=_GREY),
        _text(_LEFT - 8, bottom, "0", anchor="end", colour=_GREY),
        f'<line x1="{_LEFT}" y1="{bottom}" x2="{_WIDTH - _RIGHT}" y2="{bottom}" stroke="{_GREY}"/>',
        f'<polyline points="{points}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>',
    )


def _name(x: float, y: int, words: str) -> str:
    """The name of a scenario, which is read from above."""
    return (
        f'<text transform="translate({x - 3:.1f} {y}) rotate(90)" font-size="10" '
        f'fill="{_GREY}">{escape(words)}</text>'
    )


def _x(soak: Soak, at: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at / max(soak.seconds, 0.001)


def _text(
    x: int, y: int, words: str, *, size: int = 12, anchor: str = "start", colour: str = _INK
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(words)}</text>"
    )
