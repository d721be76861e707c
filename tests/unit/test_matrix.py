# SPDX-License-Identifier: GPL-2.0-only
"""The table of which operation is tried on which memory, against the tests that go by it."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from harness.probe.backing import BACKINGS
from harness.probe.race import Race

SUITE = Path(__file__).parents[1] / "kvm"
PARTLY = " partly"
USERS = ("on_backings", "on_ranges", "backings")
"""The functions of the table that take an operation."""


def _loaded() -> ModuleType:
    # It lies beside the tests of the suite, which are no package.
    spec = importlib.util.spec_from_file_location("matrix_under_test", SUITE / "matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


matrix = _loaded()
ABSENT: dict[str, dict[str, str]] = matrix.ABSENT
CELLS = [(operation, backing) for operation, why in ABSENT.items() for backing in why]


def used(source: str) -> Iterator[tuple[str, str]]:
    """The functions of the table that a module calls, with the operations it calls them for."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name in USERS:
                (operation,) = node.args
                assert isinstance(operation, ast.Constant), (
                    f"say the operation in line {node.lineno}"
                )
                yield name, str(operation.value)


def operations_of_the_suite() -> set[str]:
    """Every operation that some test goes by."""
    found = set()
    for path in sorted(SUITE.glob("test_*.py")):
        for name, operation in used(path.read_text("utf-8")):
            found.add(operation)
            if name == "on_ranges":
                found.add(operation + PARTLY)
    return found


@pytest.mark.parametrize(("operation", "backing"), CELLS)
def test_each_absence_is_of_a_backing_and_says_why(operation: str, backing: str) -> None:
    assert backing in BACKINGS
    reason = ABSENT[operation][backing]
    # A piece of a sentence: it follows "because" and is followed by a stop.
    assert re.fullmatch(r"\S.*[^\s.!?;,]", reason), reason
    assert len(reason.split()) >= 4, "and not only a word"
    first = reason.split()[0]
    assert (
        first[0].islower() or not first.isalpha() or first.isupper() or first.startswith("UFFDIO")
    )


@pytest.mark.parametrize("operation", ABSENT)
def test_no_operation_is_absent_everywhere(operation: str) -> None:
    tried = matrix.backings(operation)
    assert tried
    assert sorted([*tried, *ABSENT[operation], *matrix.RARE]) == sorted(BACKINGS)
    assert "anon" in tried or all(BACKINGS[name].file for name in tried)


def test_every_operation_of_the_table_is_tried_and_every_one_that_is_tried_is_in_it() -> None:
    assert operations_of_the_suite() == ABSENT.keys()


def test_every_backing_is_in_the_suite_and_not_only_as_an_exception() -> None:
    tried = {name for operation in ABSENT for name in matrix.backings(operation)}
    assert not tried & set(matrix.RARE)
    assert tried | set(matrix.RARE) == BACKINGS.keys()
    assert named_by_the_suite() >= set(matrix.RARE), "a rare one is named where it is tried"


def test_an_operation_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(KeyError, match="levitate"):
        matrix.on_backings("levitate")
    with pytest.raises(KeyError, match="levitate"):
        matrix.on_ranges("levitate")


def test_a_new_backing_is_tried_with_every_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKINGS, "tape", BACKINGS["anon"])
    assert all("tape" in matrix.backings(operation) for operation in ABSENT)


def test_shared_memory_is_what_is_mapped_shared() -> None:
    shared = {name for name, backing in BACKINGS.items() if backing.flags & 1}
    assert set(matrix.SHARED) == shared - set(matrix.RARE)


# Ranges.


@pytest.mark.parametrize(("first", "pages"), matrix._RANGES.values(), ids=matrix._RANGES)
def test_each_range_is_within_a_guest(first: int, pages: int) -> None:
    assert 0 <= first < first + pages <= 2048


@pytest.mark.parametrize("operation", [name for name in ABSENT if name + PARTLY in ABSENT])
def test_ranges_are_those_of_each_backing_that_allows_them(operation: str) -> None:
    mark = matrix.on_ranges(operation).mark
    names, cells = mark.args
    assert names == ("backing", "first", "pages")
    assert len(set(cells)) == len(cells) == len(set(mark.kwargs["ids"])) == len(mark.kwargs["ids"])
    seen = {backing for backing, *_ in cells}
    assert seen == {*matrix.backings(operation), *matrix.backings(operation + PARTLY)}
    for backing, first, pages in cells:
        whole = not (first % 512 or pages % 512)
        assert backing in matrix.backings(operation if whole else operation + PARTLY)
        assert not (first * 4096) % BACKINGS[backing].page_bytes
        assert not (pages * 4096) % BACKINGS[backing].page_bytes


def test_every_operation_on_ranges_says_where_a_part_is_refused() -> None:
    ranges = {
        operation
        for path in SUITE.glob("test_*.py")
        for name, operation in used(path.read_text("utf-8"))
        if name == "on_ranges"
    }
    assert ranges
    assert {operation + PARTLY for operation in ranges} == {
        operation for operation in ABSENT if operation.endswith(PARTLY)
    }


# Names that the suite uses by themselves.


def literals(source: str, argument: str) -> set[str]:
    """The words that a module parametrizes an argument with, or passes under its name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        given = [keyword.value for keyword in node.keywords if keyword.arg == argument]
        head = node.args[0] if node.args else None
        if isinstance(head, ast.Constant) and head.value == argument:
            given += node.args[1:]
        for value in given:
            for leaf in ast.walk(value):
                if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
                    found.add(leaf.value)
    return found


def named_by_the_suite() -> set[str]:
    """Every backing that some test names."""
    found: set[str] = set()
    for path in SUITE.glob("test_*.py"):
        # What is the operation of backings("...") was looked at above.
        source = re.sub(r'backings\("[^"]+"\)', "()", path.read_text("utf-8"))
        found |= literals(source, "backing")
    return found


def test_every_backing_that_the_suite_names_is_known() -> None:
    assert named_by_the_suite()
    assert named_by_the_suite() <= BACKINGS.keys()


def test_every_race_of_the_suite_can_be_played() -> None:
    tree = ast.parse((SUITE / "test_race.py").read_text("utf-8"))
    tables = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Dict)
    }
    played = set(tables["ROUNDS"])
    assert tables["_BACKINGS"].keys() <= played
    assert set(tables["_BACKINGS"].values()) <= BACKINGS.keys()
    kinds = re.findall(r'"([a-z-]+)": self\.', inspect.getsource(Race.__init__))
    assert played == set(kinds)


# This reader itself.


def test_this_reader_of_operations_does_see_them() -> None:
    source = (
        "@on_backings('a')\ndef f(): pass\n"
        "@pytest.mark.parametrize('backing', backings('b'))\ndef g(): pass\n"
        "@on_ranges('c')\nclass C: pass\n"
        "@other('d')\ndef h(): pass\n"
    )
    assert sorted(used(source)) == [("backings", "b"), ("on_backings", "a"), ("on_ranges", "c")]
    source = "f(backing='x')\nmark('backing', ['y', 'z'])\nmark('other', ['w'])\n"
    assert literals(source, "backing") == {"x", "y", "z"}
    with pytest.raises(AssertionError, match="say the operation in line 1"):
        list(used("on_backings(name)"))
