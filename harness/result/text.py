# SPDX-License-Identifier: GPL-2.0-only
"""Text that came out of a machine under test, made safe to show and to store.

A guest or a crashing kernel may print anything: terminal escapes, NUL, text that runs backwards,
megabytes of one line. Everything that enters the result room passes through here once, so that
no format has to remember it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

EXCERPT_LIMIT = 16_384
"""Characters of a log excerpt; a crash report with its call trace has 3,000 to 8,000."""

LINE_LIMIT = 2_000
"""Characters of a message, an expectation or an observation."""

_ITEMS_LIMIT = 65_536
"""Items of one list in a detail: above the 16,384 pages of a 64 MiB guest."""

_DEPTH_LIMIT = 16

# Controls, formats (which hold the bidirectional overrides), surrogates, unassigned code points,
# and the line separators that some viewers take for a new line.
_HOSTILE = frozenset({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})


def printable(text: str, limit: int = LINE_LIMIT) -> str:
    """``text`` with every character that is not plain to see written as an escape.

    Newline and tab stay, CR LF becomes a newline. What exceeds ``limit`` characters is left out
    of the middle, because the beginning says what happened and the end how it ended.
    """
    return _escaped(_bounded(text.replace("\r\n", "\n"), limit))


def one_line(text: str, limit: int = LINE_LIMIT) -> str:
    """The same on a single line, for table cells and lists of reasons."""
    return " ".join(printable(text, limit).split())


def plain(value: object, depth: int = 0) -> Json:
    """``value`` as JSON can carry it: hostile text escaped, unknown types as their text.

    Numbers of other libraries become int or float; what JSON cannot say (NaN, infinities)
    becomes text.
    """
    if value is None or isinstance(value, bool | str):
        return printable(value, EXCERPT_LIMIT) if isinstance(value, str) else value
    if isinstance(value, bytes | bytearray):
        return printable(value.decode("utf-8", "backslashreplace"), EXCERPT_LIMIT)
    if isinstance(value, Mapping | Sequence | frozenset | set):
        return _plain_container(value, depth)
    return _plain_number(value)


def _plain_container(value: object, depth: int) -> Json:
    if depth >= _DEPTH_LIMIT:
        return "(nested too deeply)"
    if isinstance(value, Mapping):
        items = list(value.items())[:_ITEMS_LIMIT]
        return {one_line(str(key)): plain(item, depth + 1) for key, item in items}
    # A set has no order of its own; two equal records must give equal files.
    members = value if isinstance(value, Sequence) else sorted(_members(value), key=str)
    kept: list[Json] = [plain(item, depth + 1) for item in members[:_ITEMS_LIMIT]]
    if len(members) > _ITEMS_LIMIT:
        kept.append(f"({len(members) - _ITEMS_LIMIT} more left out)")
    return kept


def _members(value: object) -> list[object]:
    assert isinstance(value, frozenset | set)
    return list(value)


def _plain_number(value: object) -> Json:
    if hasattr(value, "tolist"):  # arrays and scalars of numpy, which we do not import here
        return plain(value.tolist())
    if hasattr(value, "__index__"):
        return int(value)
    if hasattr(value, "__float__"):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    return printable(str(value), EXCERPT_LIMIT)


def _bounded(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head, tail = limit // 2, limit - limit // 2
    return f"{text[:head]}\n[{len(text) - limit} characters left out]\n{text[-tail:]}"


def _escaped(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(character) for character in text)


def _escape(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _HOSTILE:
        return character
    return character.encode("unicode_escape").decode("ascii")
