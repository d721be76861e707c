# SPDX-License-Identifier: GPL-2.0-only
"""Diffs are found in any text, and damage is noticed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.kernel.diff import DiffError, read_diffs

PLAIN = b"--- a/mm/x.c\n+++ b/mm/x.c\n@@ -1,3 +1,4 @@ int f(void)\n one\n-two\n+2\n+3\n three\n"
CREATED = b"--- /dev/null\n+++ b/mm/new.c\n@@ -0,0 +1,2 @@\n+first\n+second\n"
GIT = b"diff --git a/mm/y.c b/mm/y.c\nindex 8d45fab..ce3251c 100644\n" + PLAIN.replace(
    b"x.c", b"y.c"
)


def test_a_plain_diff() -> None:
    prose, (file,) = read_diffs(PLAIN)
    assert prose == b""
    assert (file.path(), file.old, file.new) == ("mm/x.c", "a/mm/x.c", "b/mm/x.c")
    assert file.text == PLAIN
    (hunk,) = file.hunks
    assert (hunk.number, hunk.line) == (1, 1)
    assert list(hunk.before()) == [b"one", b"two", b"three"]


def test_files_that_come_and_go() -> None:
    _, (created, gone) = read_diffs(
        CREATED + b"--- a/old.c\t2008-07-28\n+++ /dev/null\t1970-01-01\n@@ -1 +0,0 @@\n-only\n"
    )
    assert created.creates
    assert not created.deletes
    assert created.path() == "mm/new.c"
    assert gone.deletes
    assert gone.path() == "old.c"


def test_what_git_writes_without_hunks() -> None:
    _, (renamed, mode, empty, binary, after) = read_diffs(
        b"diff --git a/old.c b/dir/new.c\nsimilarity index 100%\n"
        b"rename from old.c\nrename to dir/new.c\n"
        b"diff --git a/run.sh b/run.sh\nold mode 100644\nnew mode 100755\n"
        b"diff --git a/empty b/empty\nnew file mode 100644\nindex 000..e69\n"
        b"diff --git a/b.bin b/b.bin\nindex 1..2 100644\nGIT binary patch\nliteral 3\nKcmZQz\n\n"
        b"literal 0\nHcmV?d00001\n\n" + GIT
    )
    assert (renamed.path(), renamed.renames) == ("dir/new.c", True)
    assert mode.path() == "run.sh"
    assert (empty.path(), empty.creates) == ("empty", True)
    assert binary.text.endswith(b"HcmV?d00001\n\n")
    assert after.text == GIT


def test_prose_around_it_is_not_part_of_it() -> None:
    before = (
        b"subject\n\n struct kvm *x(void)\n {\n+       int err;\n-       y\n--- a\n@@ -1 +1 @@\n"
    )
    between = b"---\n mm/x.c | 2 +-\nIndex: mm/x.c\n=====\n"
    prose, files = read_diffs(before + GIT + between + PLAIN + b"-- \n2.39.5\n")
    assert prose == before
    assert [file.text for file in files] == [GIT, PLAIN]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n")), max_size=8))
def test_no_prose_hides_a_diff(lines: list[str]) -> None:
    prose = "".join(f"| {line}\n" for line in lines).encode()
    assert read_diffs(prose + GIT + prose) == (prose, read_diffs(GIT)[1])


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fall_over(text: bytes) -> None:
    with contextlib.suppress(DiffError):
        read_diffs(text)


@given(st.lists(st.sampled_from(PLAIN.splitlines(keepends=True) + GIT.splitlines(keepends=True))))
def test_no_mixture_of_lines_makes_it_fall_over(lines: list[bytes]) -> None:
    try:
        _, files = read_diffs(b"".join(lines))
    except DiffError:
        return
    assert all(file.text in b"".join(lines) for file in files)


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_the_end_of_the_last_line_may_be_lost(end: bytes) -> None:
    _, (file,) = read_diffs(PLAIN.rstrip(b"\n") + end)
    assert file.text == PLAIN


def test_empty_lines_of_context_may_have_lost_their_blank() -> None:
    text = b"--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n\n-a\n+b\n\n"
    _, (file,) = read_diffs(text)
    assert file.text == text


def test_a_file_without_a_newline_at_its_end() -> None:
    text = (
        b"--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+b\n"
        b"\\ No newline at end of file\n"
    )
    _, (file,) = read_diffs(text)
    assert file.text == text
    assert list(file.hunks[0].before()) == [b"a"]


@pytest.mark.parametrize("keep", range(3, 8))
def test_a_patch_that_was_cut_off(keep: int) -> None:
    lines = PLAIN.splitlines(keepends=True)
    with pytest.raises(DiffError, match=r"hunk #1 of b/mm/x\.c \(line 3\) lacks .* at the end"):
        read_diffs(b"".join(lines[:keep]))


def test_a_patch_that_was_edited() -> None:
    with pytest.raises(DiffError, match="lacks 1 of its lines: it ends in line 8"):
        read_diffs(PLAIN.replace(b"+3\n", b"") + b"next\n")
    with pytest.raises(DiffError, match="more lines than its header promises"):
        read_diffs(b"--- a/x\n+++ b/x\n@@ -1,1 +1,3 @@\n one\n two\n three\n")


def test_the_diff_of_a_merge() -> None:
    with pytest.raises(DiffError, match="combined diff of a merge"):
        read_diffs(b"prose\ndiff --cc mm/x.c\n")
