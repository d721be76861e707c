# SPDX-License-Identifier: GPL-2.0-only
"""Patches go on and come off, whatever happens in between."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.errors import ExitCode, PatchError
from harness.kernel import patches as patches_module
from harness.kernel.hunks import Status
from harness.kernel.patches import Patched
from harness.kernel.series import read_series

_LINES = [f"line {number}" for number in range(1, 61)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tree = tmp_path / "build tree"
    (tree / "mm").mkdir(parents=True)
    (tree / "mm/memory.c").write_text("\n".join(_LINES) + "\n")
    (tree / "mm/old.c").write_text("old\n" * 20)
    (tree / "run.sh").write_text("#!/bin/sh\n")
    for path in tree.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    return tree


@pytest.fixture
def patched(root: Path) -> Patched:
    return Patched(root, root.parent / "patched")


def _state(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(root)): (path.read_text(), path.stat().st_mode)
        for path in root.rglob("*")
        if path.is_file()
    }


def _patch(directory: Path, name: str, *changes: tuple[int, str]) -> Path:
    """A unified diff that replaces lines of mm/memory.c, one hunk each."""
    hunks = []
    for number, text in changes:
        context = _LINES[number - 4 : number + 3]
        body = [
            f"-{line}\n+{text}" if line == _LINES[number - 1] else f" {line}" for line in context
        ]
        hunks.append(f"@@ -{number - 3},7 +{number - 3},7 @@\n" + "\n".join(body) + "\n")
    path = directory / name
    path.write_text("--- a/mm/memory.c\n+++ b/mm/memory.c\n" + "".join(hunks))
    return path


def test_apply_and_revert(root: Path, patched: Patched, tmp_path: Path) -> None:
    before = _state(root)
    patch = _patch(tmp_path, "-a, b.patch", (10, "changed"))
    patched.apply(read_series([patch]))
    assert (root / "mm/memory.c").read_text().splitlines()[9] == "changed"
    assert patched.touched() == {"mm/memory.c"}
    assert (root / "mm/memory.c").stat().st_mtime_ns > 10**18
    patched.revert()
    assert _state(root) == before
    assert patched.touched() == frozenset()
    # make must see that the file changed back.
    assert (root / "mm/memory.c").stat().st_mtime_ns > 10**18
    assert (root / "mm/old.c").stat().st_mtime_ns == 10**18


def test_a_series_applies_in_order(root: Path, patched: Patched, tmp_path: Path) -> None:
    first = _patch(tmp_path, "1.patch", (10, "one"))
    second = tmp_path / "2.patch"
    second.write_text(first.read_text().replace("+one", "+two").replace("-line 10", "-one"))
    patched.apply(read_series([first, second]))
    assert (root / "mm/memory.c").read_text().splitlines()[9] == "two"
    with pytest.raises(PatchError, match=r"2\.patch"):
        patched.apply(read_series([second, first]))
    assert (root / "mm/memory.c").read_text().splitlines()[9] == "two"


def test_same_patches_again_touch_nothing(root: Path, patched: Patched, tmp_path: Path) -> None:
    patch = _patch(tmp_path, "1.patch", (10, "changed"))
    patched.apply(read_series([patch]))
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    patched.apply(read_series([patch]))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times


def test_another_patch_replaces_the_first(root: Path, patched: Patched, tmp_path: Path) -> None:
    patched.apply(read_series([_patch(tmp_path, "1.patch", (10, "changed"))]))
    patched.apply(read_series([_patch(tmp_path, "2.patch", (30, "changed"))]))
    lines = (root / "mm/memory.c").read_text().splitlines()
    assert (lines[9], lines[29]) == ("line 10", "changed")


def test_git_format_new_renamed_deleted_and_mode(
    root: Path, patched: Patched, tmp_path: Path
) -> None:
    before = _state(root)
    patch = tmp_path / "git.patch"
    patch.write_text(
        "From 0 Mon Sep 17 00:00:00 2001\nSubject: [PATCH] x\n\n---\n"
        "diff --git a/mm/old.c b/fs/new.c\nsimilarity index 100%\n"
        "rename from mm/old.c\nrename to fs/new.c\n"
        "diff --git a/run.sh b/run.sh\nold mode 100644\nnew mode 100755\n"
        "diff --git a/mm/added.c b/mm/added.c\nnew file mode 100644\n"
        "--- /dev/null\n+++ b/mm/added.c\n@@ -0,0 +1 @@\n+added\n"
    )
    patched.apply(read_series([patch]))
    assert patched.touched() == {"mm/old.c", "fs/new.c", "run.sh", "mm/added.c"}
    assert not (root / "mm/old.c").exists()
    assert (root / "fs/new.c").read_text() == "old\n" * 20
    assert os.access(root / "run.sh", os.X_OK)
    assert (root / "mm/added.c").read_text() == "added\n"
    patched.revert()
    assert _state(root) == before


def test_failing_hunks_are_named_and_nothing_changes(
    root: Path, patched: Patched, tmp_path: Path
) -> None:
    before = _state(root)
    patch = _patch(tmp_path, "bad.patch", (10, "fine"), (30, "fine"), (50, "fine"))
    text = patch.read_text().replace("line 29", "unknown").replace("line 52", "unknown")
    patch.write_text(text)
    with pytest.raises(PatchError) as caught:
        patched.apply(read_series([patch]))
    assert caught.value.exit_code is ExitCode.UNTESTABLE
    assert f"{patch} does not apply to this source; rejected:" in str(caught.value)
    assert "mm/memory.c: hunk #2, #3 (line 27, 47) does not match" in str(caught.value)
    assert _state(root) == before
    assert patched.touched() == frozenset()


def test_missing_and_existing_files_are_named(patched: Patched, tmp_path: Path) -> None:
    missing = tmp_path / "missing.patch"
    missing.write_text("--- a/none.c\n+++ b/none.c\n@@ -1 +1 @@\n-a\n+b\n")
    with pytest.raises(PatchError, match=r"none\.c: No such file"):
        patched.apply(read_series([missing]))
    existing = tmp_path / "existing.patch"
    existing.write_text("--- /dev/null\n+++ b/mm/old.c\n@@ -0,0 +1 @@\n+added\n")
    with pytest.raises(PatchError, match=r"not applicable: this tree already has mm/old\.c"):
        patched.apply(read_series([existing]))


def test_a_patch_that_is_in_the_source_already_changes_nothing(
    root: Path, patched: Patched, tmp_path: Path
) -> None:
    patch = _patch(tmp_path, "1.patch", (10, "changed"))
    text = (root / "mm/memory.c").read_text().replace("line 10\n", "changed\n")
    (root / "mm/memory.c").write_text(text)
    (report,) = patched.apply(read_series([patch]))
    assert report.status is Status.ALREADY
    assert (root / "mm/memory.c").read_text() == text


def test_what_git_cannot_read(patched: Patched, tmp_path: Path) -> None:
    path = tmp_path / "x.patch"
    path.write_text("diff --git a/x b/x\nrename from x\nrename to y\nnew mode 9\n")
    with pytest.raises(PatchError, match="not a patch that git can read"):
        patched.apply(read_series([path]))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", ".git/hooks/post-commit"])
def test_patches_stay_inside(patched: Patched, tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.patch"
    path.write_text(f"--- /dev/null\n+++ b/{name}\n@@ -0,0 +1 @@\n+x\n")
    with pytest.raises(PatchError):
        patched.apply(read_series([path]))
    assert not (tmp_path / "outside").exists()


def test_a_repository_around_it_does_not_matter(
    root: Path, patched: Patched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    patched.apply(read_series([_patch(tmp_path, "1.patch", (10, "changed"))]))
    assert "changed" in (root / "mm/memory.c").read_text()


@pytest.mark.parametrize("deaths", range(1, 9))
def test_killed_at_any_step_it_can_be_put_back(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    """Die at the n-th change of the tree or the journal, then revert with a fresh object."""
    before = _state(root)
    patch = _patch(tmp_path, "1.patch", (10, "changed"))
    extra = tmp_path / "2.patch"
    extra.write_text("--- /dev/null\n+++ b/mm/added.c\n@@ -0,0 +1 @@\n+added\n")
    steps = 0

    class Killed(BaseException):
        pass

    def dying(name: str) -> None:
        real = getattr(patches_module, name)

        def step(*arguments: object) -> None:
            nonlocal steps
            steps += 1
            if steps == deaths:
                raise Killed
            real(*arguments)

        monkeypatch.setattr(patches_module, name, step)

    for name in ("_copy", "_place", "write_atomically"):
        dying(name)
    with pytest.raises(Killed):
        Patched(root, tmp_path / "patched").apply(read_series([patch, extra]))
    monkeypatch.undo()
    Patched(root, tmp_path / "patched").revert()
    assert _state(root) == before
