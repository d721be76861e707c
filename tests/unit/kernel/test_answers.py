# SPDX-License-Identifier: GPL-2.0-only
"""What a program answered is remembered until one of its files changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.kernel.answers import Answers


class Program:
    """Counts how often it is asked; answers with what a file says."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked = 0
        (root / "lists").mkdir()
        (root / "lists/one").write_text("yes")
        (root / "config").write_text("")

    def __call__(self) -> str:
        self.asked += 1
        return (self.root / "lists/one").read_text()

    def answers(self) -> Answers:
        places = (self.root / "lists", self.root / "config", self.root / "missing")
        return Answers(self.root / "answers.json", places)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_a_question_is_asked_once_by_all_processes(program: Program) -> None:
    assert program.answers().ask(["show", "x"], program) == "yes"
    assert program.answers().ask(["show", "x"], program) == "yes"
    assert program.asked == 1
    program.answers().ask(["show", "y"], program)
    program.answers().ask(["show y"], program)
    assert program.asked == 3, "words are not run together"
    program.answers().ask(["show", "x"], program)
    assert program.asked == 3, "one answer does not displace another"


@pytest.mark.parametrize("change", ["text", "time", "new", "gone", "config", "appears"])
def test_all_is_forgotten_when_anything_changes(program: Program, change: str) -> None:
    for question in ("x", "y"):
        program.answers().ask([question], program)
    one = program.root / "lists/one"
    match change:
        case "text":
            one.write_text("no")
        case "time":
            os.utime(one, (1, 1))
        case "new":
            (program.root / "lists/two").touch()
        case "gone":
            (program.root / "config").unlink()
        case "config":
            (program.root / "config").write_text("x")
        case "appears":
            (program.root / "missing").touch()
    for question in ("x", "y"):
        assert program.answers().ask([question], program) == one.read_text()
    assert program.asked == 4


def test_what_is_not_known_is_asked_again(program: Program) -> None:
    (program.root / "lists/one").write_text("")
    assert program.answers().ask(["x"], program) == ""
    assert program.answers().ask(["x"], program) == ""
    assert program.asked == 2


def test_an_answer_from_a_time_of_change_is_not_kept(program: Program) -> None:
    def changing() -> str:
        (program.root / "lists/two").touch()
        return "old"

    assert program.answers().ask(["x"], changing) == "old"
    assert program.answers().ask(["x"], program) == "yes"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stamp": 1}', '{"answers": {}}'])
def test_a_damaged_memory_is_no_memory(program: Program, text: str) -> None:
    (program.root / "answers.json").write_text(text)
    assert program.answers().ask(["x"], program) == "yes"
    assert program.answers().ask(["x"], program) == "yes"
    assert program.asked == 1
