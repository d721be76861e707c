# SPDX-License-Identifier: GPL-2.0-only
"""Patches are read from whatever people keep them in."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import pytest

from harness.errors import ExitCode, PatchError, UsageError
from harness.kernel.series import STDIN, read_series, with_stdin
from harness.store import Store


def diff(number: int, name: str = "mm/x.c") -> str:
    return (
        f"diff --git a/{name} b/{name}\n--- a/{name}\n+++ b/{name}\n"
        f"@@ -{number},3 +{number},3 @@\n one\n-two\n+change {number}\n three\n"
    )


def mail(number: int, body: str, headers: str = "") -> str:
    return (
        f"From {number:040} Mon Sep 17 00:00:00 2001\nFrom: A <a@example.org>\n"
        f"Date: Mon, 28 Jul 2008 15:46:29 -0700\nSubject: [PATCH {number}/3] mm: change {number}\n"
        f"{headers}\n{body}\n"
    )


def test_a_bare_diff(tmp_path: Path) -> None:
    path = tmp_path / "-fix, it.patch"
    path.write_text(diff(1))
    (patch,) = read_series([path])
    assert (patch.name, patch.subject, patch.origin) == ("-fix, it.patch", "", path)
    assert patch.text == diff(1).encode()
    assert patch.paths == ("mm/x.c",)


def test_prose_and_the_end_of_the_last_line_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "bare").write_text(diff(1))
    (tmp_path / "prose").write_text("\n  the subject\nmore\n+ no change\n" + diff(1).rstrip("\n"))
    bare, prose = read_series([tmp_path / "bare", tmp_path / "prose"])
    assert prose.subject == "the subject"
    assert bare.digest == prose.digest


def test_names_without_a_and_b_are_whole(tmp_path: Path) -> None:
    plain = diff(1) + "--- /dev/null\n+++ b/mm/new.c\n@@ -0,0 +1 @@\n+new\n"
    (tmp_path / "x").write_text(plain.replace(" a/", " ").replace(" b/", " "))
    (tmp_path / "created").write_text("--- /dev/null\n+++ b/mm/new.c\n@@ -0,0 +1 @@\n+new\n")
    whole, created = read_series([tmp_path / "x", tmp_path / "created"])
    assert (whole.strip, whole.paths) == (0, ("mm/x.c", "mm/new.c"))
    assert (created.strip, created.paths) == (1, ("mm/new.c",))


def test_carriage_returns_of_a_mailer_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "bare").write_text(diff(1))
    (tmp_path / "mailed").write_bytes(diff(1).replace("\n", "\r\n").encode())
    (tmp_path / "meant").write_bytes(diff(1).replace("two", "two\r").encode())
    bare, mailed, meant = read_series([tmp_path / name for name in ("bare", "mailed", "meant")])
    assert bare.digest == mailed.digest
    assert b"-two\r\n" in meant.text


def test_a_mailbox_in_its_order_without_its_letters(tmp_path: Path) -> None:
    path = tmp_path / "v3.mbox"
    cover = mail(0, "What this is about.\n---\n mm/x.c | 2 +-\n")
    reply = mail(9, "> " + diff(1).replace("\n", "\n> "))
    path.write_text(cover + mail(1, "why\n---\n x | 1 +\n\n" + diff(1)) + reply + mail(2, diff(2)))
    first, second = read_series([path])
    assert [p.name for p in (first, second)] == [
        "v3.mbox [1] mm: change 1",
        "v3.mbox [2] mm: change 2",
    ]
    assert first.text == diff(1).encode()
    assert second.subject == "mm: change 2"


@pytest.mark.parametrize("lines", ["\n", "\r\n"])
def test_a_mail_saved_by_itself_and_encoded(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "mail.eml"
    text = mail(1, base64.encodebytes(diff(1).encode()).decode(), (
        "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
        "Content-Transfer-Encoding: base64\n"
    ))  # fmt: skip
    path.write_bytes(text.partition("\n")[2].replace("\n", lines).encode())
    (patch,) = read_series([path])
    assert patch.text == diff(1).encode()
    assert patch.subject == "mm: change 1"


def test_what_git_format_patch_writes(tmp_path: Path) -> None:
    def git(*words: str) -> bytes:
        identity = ("-c", "user.name=x", "-c", "user.email=x@x")
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True
        ).stdout

    git("init", "-q")
    for text in ("one\n", "two\n", "three\n"):
        (tmp_path / "file").write_text(text)
        git("add", "file")
        git("commit", "-q", "-m", f"mm: make it {text}")
    (tmp_path / "series.mbox").write_bytes(git("format-patch", "--stdout", "HEAD~2"))
    patches = read_series([tmp_path / "series.mbox"])
    assert [patch.subject for patch in patches] == ["mm: make it two", "mm: make it three"]
    assert b"+three\n" in patches[1].text


@pytest.mark.parametrize("place", ["series", "patches/series"])
def test_a_quilt_directory(tmp_path: Path, place: str) -> None:
    series = tmp_path / place
    series.parent.mkdir(exist_ok=True)
    series.write_text("# why\n\nb.patch\nsub/a.patch -p0  # because\nc.patch -p1\n")
    (series.parent / "sub").mkdir()
    (series.parent / "b.patch").write_text("Subject: second letter\n" + diff(1))
    (series.parent / "sub/a.patch").write_text(diff(2).replace("a/", "").replace("b/", ""))
    (series.parent / "c.patch").write_text(diff(3))
    (series.parent / "unlisted.patch").write_text(diff(4))
    patches = read_series([tmp_path])
    assert [(patch.name, patch.strip) for patch in patches] == [
        ("b.patch", 1),
        ("sub/a.patch", 0),
        ("c.patch", 1),
    ]
    assert {patch.paths for patch in patches} == {("mm/x.c",)}


def test_several_at_once_keep_their_order(tmp_path: Path) -> None:
    for number in (3, 1, 2):
        (tmp_path / str(number)).write_text(diff(number))
    paths = [tmp_path / str(number) for number in (3, 1, 2)]
    assert [patch.name for patch in read_series(paths)] == ["3", "1", "2"]


def test_a_digest_knows_what_is_stripped_and_changed(tmp_path: Path) -> None:
    (tmp_path / "series").write_text("a -p1\na -p2\nb\n")
    (tmp_path / "a").write_text(diff(1))
    (tmp_path / "b").write_text(diff(2))
    assert len({patch.digest for patch in read_series([tmp_path])}) == 3


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_an_empty_patch(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(PatchError, match=r"x is empty") as caught:
        read_series([tmp_path / "x"])
    assert caught.value.exit_code is ExitCode.UNTESTABLE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"just words\n", "no diff in it"),
        (b"\x7fELF\0\0\1\n\xff\xfe", "no diff in it"),
        (diff(1).encode()[:-20], "damaged patch: hunk #1"),
        (mail(0, "a letter").encode(), "mailbox without a patch"),
        (mail(1, diff(1)[:-20]).encode(), "damaged patch: hunk #1"),
        (b"diff --cc x\n", "combined diff of a merge"),
    ],
)
def test_what_is_no_patch(tmp_path: Path, text: bytes, says: str) -> None:
    (tmp_path / "x").write_bytes(text)
    with pytest.raises(PatchError, match=says):
        read_series([tmp_path / "x"])


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_series([tmp_path / "none.patch"])
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="no regular file"):
        read_series([tmp_path / "fifo"])


@pytest.mark.parametrize(
    ("series", "error", "says"),
    [
        ("", PatchError, "lists no patch"),
        ("none.patch\n", UsageError, r"series:1, .*none\.patch cannot be read: No such file"),
        ("# x\na -R\n", PatchError, r"series:2: the option -R is not supported"),
        ("a b c\n", PatchError, "is not a line of a series"),
        ("..\n", UsageError, "no regular file"),
    ],
)
def test_a_bad_series(tmp_path: Path, series: str, error: type[Exception], says: str) -> None:
    (tmp_path / "a").write_text(diff(1))
    (tmp_path / "series").write_text(series)
    with pytest.raises(error, match=says):
        read_series([tmp_path])


def test_a_directory_without_a_series(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no file named series"):
        read_series([tmp_path])


def test_standard_input_is_kept_where_it_is_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    other = tmp_path / "other"
    other.write_text(diff(2))
    paths = with_stdin([other, STDIN], diff(1).encode, store)
    assert paths[0] == other
    assert [patch.text for patch in read_series(paths)] == [diff(2).encode(), diff(1).encode()]
    assert with_stdin([STDIN], diff(1).encode, store) == paths[1:]
    assert [path.name for path in paths[1].parent.iterdir()] == [paths[1].name]


def test_standard_input_is_read_only_when_it_is_wanted(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    assert with_stdin([tmp_path], lambda: pytest.fail("read"), store) == (tmp_path,)
    with pytest.raises(UsageError, match="only once"):
        with_stdin([STDIN, STDIN], diff(1).encode, store)
    with pytest.raises(PatchError, match="Standard input is empty"):
        with_stdin([STDIN], lambda: b"\n", store)
