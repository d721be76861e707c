# SPDX-License-Identifier: GPL-2.0-only
"""Evaluate Kconfig expressions against a configuration, with "unknown" where a macro decides."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LEVELS = {"n": 0, "m": 1, "y": 2}
_TOKEN = re.compile(
    r"""\s*(?: (?P<operator>&&|\|\||!=|<=|>=|[!=<>()])
          | (?P<quoted>"(?:\\.|[^"])*"|'(?:\\.|[^'])*')
          | (?P<word>[A-Za-z0-9_.-]+) )""",
    re.X,
)
_MACRO = re.compile(r"\s*\$")

Value = int | None
"""0 is n, 1 is m, 2 is y, None is unknown."""


def evaluate(text: str, config: Mapping[str, str]) -> Value:
    """The value of an expression; ``config`` is as read_config() returns it."""
    return _Parser(_tokens(text), config).whole()


def conjuncts(text: str) -> list[str]:
    """The parts of an expression that must all hold, as they are written."""
    parts, depth, begin, index = [], 0, 0, 0
    while index < len(text):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0 and text.startswith("&&", index):
            parts.append(text[begin:index])
            begin = index = index + 2
            continue
        # Without parentheses an || binds weaker than &&, so nothing can be split.
        if depth == 0 and text.startswith("||", index):
            return [text.strip()]
        index += 1
    parts.append(text[begin:])
    return [part.strip() for part in parts if part.strip()]


def symbols(text: str) -> list[str]:
    """The symbols that an expression mentions, each once."""
    words = [word for kind, word in _tokens(text) if kind == "word"]
    return list(dict.fromkeys(word for word in words if re.fullmatch(r"[A-Z0-9_]*[A-Z]\w*", word)))


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, position = [], 0
    while position < len(text.rstrip()):
        if _MACRO.match(text, position):
            end = _macro_end(text, text.index("$", position))
            tokens.append(("macro", text[position:end].strip()))
            position = end
        elif match := _TOKEN.match(text, position):
            assert match.lastgroup is not None
            tokens.append((match.lastgroup, match[match.lastgroup]))
            position = match.end()
        else:
            tokens.append(("macro", text[position:]))
            break
    return tokens


def _macro_end(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if text[index] == ")" and depth == 0:
            return index + 1
    return len(text)


class _Parser:
    """Recursive descent; ``||`` binds weaker than ``&&``, that weaker than ``!``."""

    def __init__(self, tokens: list[tuple[str, str]], config: Mapping[str, str]) -> None:
        self._tokens = tokens
        self._config = config

    def whole(self) -> Value:
        value = self._or()
        # What this grammar does not know must not be judged.
        return None if self._tokens else value

    def _next(self) -> str:
        return self._tokens[0][1] if self._tokens and self._tokens[0][0] == "operator" else ""

    def _or(self) -> Value:
        value = self._and()
        while self._next() == "||":
            self._tokens.pop(0)
            other = self._and()
            known = [level for level in (value, other) if level is not None]
            value = max(known) if len(known) == 2 or 2 in known else None
        return value

    def _and(self) -> Value:
        value = self._not()
        while self._next() == "&&":
            self._tokens.pop(0)
            other = self._not()
            known = [level for level in (value, other) if level is not None]
            value = min(known) if len(known) == 2 or 0 in known else None
        return value

    def _not(self) -> Value:
        if self._next() == "!":
            self._tokens.pop(0)
            value = self._not()
            return None if value is None else 2 - value
        return self._comparison()

    def _comparison(self) -> Value:
        if self._next() == "(":
            self._tokens.pop(0)
            value = self._or()
            if self._next() != ")":
                return None
            self._tokens.pop(0)
            return value
        if not self._tokens or self._tokens[0][0] == "operator":
            self._tokens.clear()
            return None
        left = self._operand()
        operator = self._next()
        if operator not in ("=", "!=", "<", ">", "<=", ">="):
            return None if left is None else _LEVELS.get(left, 0)
        self._tokens.pop(0)
        right = self._operand() if self._tokens else None
        return None if left is None or right is None else 2 * _compare(left, operator, right)

    def _operand(self) -> str | None:
        """The text of a symbol's value or of a constant; None for a macro."""
        kind, word = self._tokens.pop(0)
        if kind == "macro" or (kind == "quoted" and "$" in word):
            return None
        if kind == "quoted":
            return word[1:-1]
        if word in _LEVELS or re.fullmatch(r"-?[0-9]+|0[xX][0-9a-fA-F]+", word):
            return word
        return self._config.get(word, "n")


def _compare(left: str, operator: str, right: str) -> bool:
    if operator in ("=", "!="):
        return (left == right) == (operator == "=")
    try:
        first, second = int(left, 0), int(right, 0)
    except ValueError:
        return False
    return {
        "<": first < second,
        ">": first > second,
        "<=": first <= second,
        ">=": first >= second,
    }[operator]
