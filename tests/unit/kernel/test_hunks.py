# SPDX-License-Identifier: GPL-2.0-only
"""Every hunk is reported as what became of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from preimages import postimage, source_for

from harness.kernel.hunks import PatchReport, Status, apply
from harness.kernel.series import Patch, read_series

LINES = [f"line {number}\n" for number in range(1, 61)]


def hunk(number: int, new: str, shift: int = 0) -> str:
    """A hunk that replaces one line, said to be ``shift`` lines above where it is."""
    before, after = (
        "".join(f" {line}" for line in LINES[number - 4 : number - 1]),
        LINES[number : number + 3],
    )
    at = number - 3 - shift
    return f"@@ -{at},7 +{at},7 @@\n{before}-{LINES[number - 1]}+{new}\n" + "".join(
        f" {line}" for line in after
    )


def made(tmp_path: Path, *hunks: str, rest: str = "") -> Patch:
    path = tmp_path / "x.patch"
    path.write_text("--- a/mm/x.c\n+++ b/mm/x.c\n" + "".join(hunks) + rest)
    (patch,) = read_series([path])
    return patch


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/mm").mkdir(parents=True)
    (tmp_path / "root/mm/x.c").write_text("".join(LINES))
    return tmp_path / "root"


def statuses(report: PatchReport) -> list[tuple[Status, int]]:
    return [(hunk.status, hunk.offset) for file in report.files for hunk in file.hunks]


def test_all_of_it_applies(root: Path, tmp_path: Path) -> None:
    report = apply(made(tmp_path, hunk(10, "ten"), hunk(30, "thirty")), root)
    assert report.status is Status.APPLIED
    assert report.verdict == "applied"
    assert statuses(report) == [(Status.APPLIED, 0)] * 2
    assert "ten\n" in (root / "mm/x.c").read_text()


def test_offsets_are_told_hunk_by_hunk(root: Path, tmp_path: Path) -> None:
    report = apply(made(tmp_path, hunk(10, "ten"), hunk(30, "x", 3), hunk(50, "y", 1)), root)
    assert report.status is Status.OFFSET
    assert statuses(report) == [(Status.APPLIED, 0), (Status.OFFSET, 3), (Status.OFFSET, 1)]
    assert report.moves() == ["mm/x.c: hunk #2 +3 lines, #3 +1 line"]
    assert report.files[0].hunks[1].line() == "hunk #2 (line 24) applied with offset (+3 lines)"
    assert report.failures() == []


def test_what_is_there_already(root: Path, tmp_path: Path) -> None:
    patch = made(tmp_path, hunk(10, "ten"), hunk(30, "thirty"))
    apply(patch, root)
    before = (root / "mm/x.c").read_text()
    report = apply(patch, root)
    assert report.status is Status.ALREADY
    assert statuses(report) == [(Status.ALREADY, 0)] * 2
    assert (root / "mm/x.c").read_text() == before


def test_each_hunk_is_judged_for_itself(root: Path, tmp_path: Path) -> None:
    apply(made(tmp_path, hunk(20, "twenty")), root)
    unknown = hunk(30, "thirty").replace("line 29", "unknown")
    patch = made(tmp_path, hunk(10, "ten", 2), hunk(20, "twenty"), unknown, hunk(50, "fifty"))
    report = apply(patch, root)
    assert report.status is Status.REJECTED
    assert statuses(report) == [
        (Status.OFFSET, 2),
        (Status.ALREADY, 0),
        (Status.REJECTED, 0),
        (Status.APPLIED, 0),
    ]
    assert report.failures() == ["mm/x.c: hunk #3 (line 27) does not match"]
    assert report.verdict == "rejected"


def test_half_of_a_patch_being_there_is_a_reject(root: Path, tmp_path: Path) -> None:
    apply(made(tmp_path, hunk(20, "twenty")), root)
    report = apply(made(tmp_path, hunk(10, "ten"), hunk(20, "twenty")), root)
    assert report.status is Status.REJECTED
    assert report.failures() == ["mm/x.c: a part of the hunks is in this source already"]


def test_half_of_the_files_being_there_is_a_reject(root: Path, tmp_path: Path) -> None:
    (root / "mm/new.c").write_text("new\n")
    rest = "--- /dev/null\n+++ b/mm/new.c\n@@ -0,0 +1 @@\n+new\n"
    report = apply(made(tmp_path, hunk(10, "ten"), rest=rest), root)
    assert [file.status for file in report.files] == [Status.APPLIED, Status.ALREADY]
    assert report.status is Status.REJECTED
    assert report.verdict == "rejected: this tree has a part of it already"
    assert report.failures() == ["mm/new.c: already applied"]


def test_a_file_that_is_in_the_way(root: Path, tmp_path: Path) -> None:
    (root / "mm/new.c").write_text("other\n")
    (root / "mm/new.h").write_text("other\n")
    rest = "".join(
        f"--- /dev/null\n+++ b/mm/new.{end}\n@@ -0,0 +1 @@\n+new\n" for end in ("h", "c")
    )
    report = apply(made(tmp_path, hunk(10, "ten"), rest=rest), root)
    assert report.existing == ("mm/new.c", "mm/new.h")
    assert report.verdict == "not applicable: this tree already has mm/new.c and mm/new.h"


def test_a_file_that_is_missing(root: Path, tmp_path: Path) -> None:
    (root / "mm/x.c").unlink()
    report = apply(made(tmp_path, hunk(10, "ten")), root)
    assert report.failures() == ["mm/x.c: No such file or directory"]


def test_renames_modes_and_files_that_go(root: Path, tmp_path: Path) -> None:
    text = (
        "diff --git a/mm/x.c b/mm/z.c\nsimilarity index 90%\nrename from mm/x.c\n"
        "rename to mm/z.c\n--- a/mm/x.c\n+++ b/mm/z.c\n"
        + hunk(10, "ten")
        + "diff --git a/run b/run\nold mode 100644\nnew mode 100755\n"
        "diff --git a/gone b/gone\ndeleted file mode 100644\n--- a/gone\n+++ /dev/null\n"
        "@@ -1 +0,0 @@\n-only\n"
    )
    (tmp_path / "git.patch").write_text(text)
    (root / "run").write_text("")
    (root / "gone").write_text("only\n")
    (patch,) = read_series([tmp_path / "git.patch"])
    report = apply(patch, root)
    assert report.status is Status.APPLIED
    assert [file.path for file in report.files] == ["mm/z.c", "run", "gone"]
    assert sorted(path.name for path in root.rglob("*")) == ["mm", "run", "z.c"]
    assert apply(patch, root).status is Status.ALREADY
    (root / "mm/z.c").write_text("".join(LINES))
    (root / "gone").write_text("something else\n")
    report = apply(patch, root)
    assert [file.status for file in report.files] == [
        Status.REJECTED,
        # git sets a mode again, whatever it is.
        Status.APPLIED,
        Status.REJECTED,
    ]


def test_a_created_file_and_a_shifted_source(tmp_path: Path) -> None:
    rest = "--- /dev/null\n+++ b/mm/new.c\n@@ -0,0 +1,2 @@\n+new\n+er\n"
    patch = made(tmp_path, hunk(10, "ten"), hunk(30, "x"), rest=rest)
    root = source_for(patch, tmp_path / "shifted", shift=4)
    report = apply(patch, root)
    assert report.status is Status.OFFSET
    assert statuses(report) == [(Status.OFFSET, 4), (Status.OFFSET, 4), (Status.APPLIED, 0)]
    assert (root / "mm/new.c").read_bytes() == postimage(patch.files[1])
