# SPDX-License-Identifier: GPL-2.0-only
"""A patch tells which kernels it was made for by what it expects in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.kernel.landmarks import LANDMARKS, Landmark, release_of, target
from harness.kernel.series import Patch, read_series


def made(tmp_path: Path, text: str) -> Patch:
    (tmp_path / "x.patch").write_text(text)
    (patch,) = read_series([tmp_path / "x.patch"])
    return patch


MARKS = (
    Landmark(since="2.6.27-rc1", path="mm/new.c"),
    Landmark(since="2.6.26", until="3.7", word="old_word"),
    Landmark(until="5.8", word="older_word"),
    Landmark(since="6.8", word="new_word"),
)
CREATES = "--- /dev/null\n+++ b/mm/new.c\n@@ -0,0 +1 @@\n+new_word\n"


def changes(before: str, name: str = "mm/x.c") -> str:
    return f"--- a/{name}\n+++ b/{name}\n@@ -1,2 +1,2 @@\n {before}\n-a\n+new_word\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CREATES, "before 2.6.27-rc1"),
        (changes("x", "mm/new.c"), "2.6.27-rc1 or later"),
        (changes("x->old_word = 1;"), "2.6.26 to 3.7"),
        (changes("x->old_word = 1;") + CREATES, "2.6.26 to 2.6.27-rc1"),
        (changes("old_word older_word"), "2.6.26 to 3.7"),
        (changes("not_old_word_either"), None),
        (changes("old_word new_word"), None),
    ],
)
def test_the_range_that_a_patch_tells(tmp_path: Path, text: str, said: str | None) -> None:
    found = target(made(tmp_path, text), MARKS)
    assert (None if found is None else str(found)) == said


@pytest.mark.parametrize(
    ("release", "outside"),
    [
        ("2.6.25.20", True),
        ("2.6.26-rc9", True),
        ("2.6.26", False),
        ("2.6.26.8", False),
        ("2.6.27-rc1", True),
        ("2.6.27", True),
        ("6.12.117+deb", True),
        ("", False),
    ],
)
def test_releases_inside_and_outside(tmp_path: Path, release: str, outside: bool) -> None:
    found = target(made(tmp_path, changes("old_word") + CREATES), MARKS)
    assert found is not None
    assert found.excludes(release) is outside


def test_every_landmark_can_be_ordered() -> None:
    for mark in LANDMARKS:
        assert mark.since or mark.until
        assert (mark.path is None) != (mark.word is None)
        assert all(release_of(_makefile(r)) == r for r in (mark.since, mark.until) if r)


def _makefile(release: str) -> str:
    numbers, _, extra = release.partition("-")
    parts = [*numbers.split("."), "", ""][:3]
    names = ("VERSION", "PATCHLEVEL", "SUBLEVEL")
    text = "".join(f"{name} = {part}\n" for name, part in zip(names, parts, strict=True))
    return f"# x\n{text}EXTRAVERSION = {'-' + extra if extra else ''}\nNAME = x\n"
