# SPDX-License-Identifier: GPL-2.0-only
"""Whatever a guest prints, what is stored and shown is plain."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.result.text import one_line, plain, printable


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("nul\0", "nul\\x00"),
        ("\u202etxet", "\\u202etxet"),
        ("lone \udc80", "lone \\udc80"),
        ("one\r\ntwo\tthree", "one\ntwo\tthree"),
        ("carriage\rreturn", "carriage\\rreturn"),
        ("Grüße, 世界", "Grüße, 世界"),
    ],
)
def test_hostile_characters_are_shown_as_escapes(hostile: str, shown: str) -> None:
    assert printable(hostile) == shown


@given(st.text())
def test_nothing_that_controls_a_terminal_survives(text: str) -> None:
    left = {unicodedata.category(character) for character in printable(text)} - {"Cc"}
    assert left.isdisjoint({"Cf", "Cs", "Cn", "Zl", "Zp"})
    assert {character for character in printable(text) if ord(character) < 32} <= {"\n", "\t"}


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    text = "begin" + "x" * 1_000_000 + "end"
    shown = printable(text, 100)
    assert shown.startswith("begin")
    assert shown.endswith("end")
    assert "999908 characters left out" in shown
    assert len(shown) < 150


def test_one_line_is_one_line() -> None:
    assert one_line(" a\n\n  b\tc ") == "a b c"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.uint64(2**63), 2**63),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.arange(3), [0, 1, 2]),
        (float("nan"), "nan"),
        ({7: (1, b"\xff\0")}, {"7": [1, "\\xff\\x00"]}),
        ({"b", "a"}, ["a", "b"]),
        (None, None),
        (True, True),
        (ValueError("no"), "no"),
    ],
)
def test_anything_becomes_what_json_can_carry(value: Any, expected: Any) -> None:
    answer = plain(value)
    assert answer == expected
    assert type(answer) is type(expected)
    json.dumps(answer, allow_nan=False)


def test_a_value_that_holds_itself_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert "nested too deeply" in json.dumps(plain(loop))


def test_a_list_without_end_is_cut_and_says_so() -> None:
    answer = plain(range(100_000))
    assert isinstance(answer, list)
    assert answer[-1] == f"({100_000 - 65_536} more left out)"
