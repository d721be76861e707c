# SPDX-License-Identifier: GPL-2.0-only
"""A build tree becomes what is asked, touching no more than it must."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from harness.errors import BuildError, SourceError
from harness.kernel.fingerprint import digest, fingerprint
from harness.kernel.series import read_series
from harness.kernel.source import Files, Reader
from harness.kernel.tree import BuildTree
from harness.progress import Silent

_OLD = 10**18


class FakeSource:
    """Files from a dictionary, as a tree of the user or as a tarball that may be moved away."""

    lineage = "fake"
    title = "fake"

    def __init__(self, root: Path, files: Mapping[str, str], *, ours: bool = False) -> None:
        self.root = root
        self.ours = ours
        self.opened = 0
        self._write(root, files)
        self.prints = {name: fingerprint(root / name) for name in files}
        self.digest = digest(self.prints)
        self._files = files

    def _write(self, root: Path, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
            os.utime(root / name, ns=(_OLD, _OLD))

    @contextlib.contextmanager
    def open(self, scratch: Path) -> Iterator[Files]:
        self.opened += 1
        if self.ours:
            self._write(scratch, self._files)
        yield Files(scratch if self.ours else self.root, self.prints, self.ours)
        shutil.rmtree(scratch, ignore_errors=True)

    @contextlib.contextmanager
    def peek(self, scratch: Path) -> Iterator[Reader]:
        with self.open(scratch) as files:
            yield files.read


_FILES = {"Makefile": "all:\n", "mm/memory.c": "one\ntwo\nthree\n", "mm/swap.c": "swap\n"}


@pytest.fixture
def tree(tmp_path: Path) -> BuildTree:
    (tmp_path / "home").mkdir()
    return BuildTree(tmp_path / "home")


def _become(tree: BuildTree, source: FakeSource, *patches: Path) -> None:
    # A fresh object, as another process has.
    BuildTree(tree.home).become(source, read_series(patches), Silent())


def _times(tree: BuildTree) -> dict[str, int]:
    return {
        str(path.relative_to(tree.root)): path.lstat().st_mtime_ns
        for path in tree.root.rglob("*")
        if not path.is_dir()
    }


def _contents(tree: BuildTree) -> dict[str, str]:
    return {name: (tree.root / name).read_text() for name in _times(tree)}


@pytest.mark.parametrize("ours", [True, False])
def test_first_time_and_again(tree: BuildTree, tmp_path: Path, ours: bool) -> None:
    source = FakeSource(tmp_path / "source", _FILES, ours=ours)
    _become(tree, source)
    assert _contents(tree) == _FILES
    times = _times(tree)
    _become(tree, source)
    assert _times(tree) == times
    assert source.opened == 1
    assert sorted(path.name for path in tree.home.iterdir()) == [
        "manifest",
        "patched",
        "source",
    ]


@pytest.mark.parametrize("ours", [True, False])
def test_only_what_differs_is_touched(tree: BuildTree, tmp_path: Path, ours: bool) -> None:
    _become(tree, FakeSource(tmp_path / "one", _FILES, ours=ours))
    (tree.root / "mm/swap.o").write_text("product")
    times = _times(tree)
    files = {"Makefile": "all:\n", "mm/memory.c": "changed\n", "fs/new.c": "new\n"}
    _become(tree, FakeSource(tmp_path / "two", files, ours=ours))
    assert _contents(tree) == {**files, "mm/swap.o": "product"}
    after = _times(tree)
    assert after["Makefile"] == times["Makefile"]
    # Although the new source is older than the products, make must rebuild them.
    assert after["mm/memory.c"] > after["mm/swap.o"]


def test_files_links_and_directories_can_change_places(tree: BuildTree, tmp_path: Path) -> None:
    _become(tree, FakeSource(tmp_path / "one", {"a": "file", "b/c": "below", "d": "x"}))
    two = FakeSource(tmp_path / "two", {"a/x": "below", "b": "file", "e": "target"})
    os.symlink("./e", two.root / "d")  # noqa: PTH211 - pathlib would write "e"
    two.prints["d"] = fingerprint(two.root / "d")
    two.digest = digest(two.prints)
    _become(tree, two)
    assert (tree.root / "a/x").read_text() == "below"
    assert (tree.root / "b").read_text() == "file"
    assert os.readlink(tree.root / "d") == "./e"  # noqa: PTH115
    assert (tree.root / "d").read_text() == "target"


def test_a_change_by_somebody_is_undone(tree: BuildTree, tmp_path: Path) -> None:
    source = FakeSource(tmp_path / "source", _FILES)
    _become(tree, source)
    (tree.root / "mm/swap.c").write_text("meddled\n")
    (tree.root / "Makefile").unlink()
    _become(tree, source)
    assert _contents(tree) == _FILES


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    path = tmp_path / "x.patch"
    path.write_text(
        "--- a/mm/memory.c\n+++ b/mm/memory.c\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"
    )
    return path


def test_patches_go_on_and_off_without_the_source(
    tree: BuildTree, tmp_path: Path, patch: Path
) -> None:
    source = FakeSource(tmp_path / "source", _FILES, ours=True)
    _become(tree, source, patch)
    assert (tree.root / "mm/memory.c").read_text() == "one\n2\nthree\n"
    _become(tree, source)
    assert _contents(tree) == _FILES
    _become(tree, source, patch)
    _become(tree, source)
    assert source.opened == 1


def test_new_source_under_a_patch(tree: BuildTree, tmp_path: Path, patch: Path) -> None:
    _become(tree, FakeSource(tmp_path / "one", _FILES), patch)
    newer = {**_FILES, "mm/memory.c": "one\ntwo\nthree\nfour\n"}
    _become(tree, FakeSource(tmp_path / "two", newer), patch)
    assert (tree.root / "mm/memory.c").read_text() == "one\n2\nthree\nfour\n"
    _become(tree, FakeSource(tmp_path / "two", newer))
    assert _contents(tree) == newer


def test_what_an_interrupted_make_wrote_is_not_trusted(tree: BuildTree, tmp_path: Path) -> None:
    source = FakeSource(tmp_path / "source", _FILES)
    _become(tree, source)
    (tree.root / "before.o").write_text("whole")
    os.utime(tree.root / "before.o", ns=(_OLD, _OLD))
    with contextlib.suppress(KeyboardInterrupt), tree.being_made():
        (tree.root / "half.o").write_text("ha")
        (tree.root / "include/config").mkdir(parents=True)
        (tree.root / "include/config/KVM").write_text("")
        raise KeyboardInterrupt
    _become(tree, source)
    assert _contents(tree) == {**_FILES, "before.o": "whole", "include/config/KVM": ""}
    (tree.root / "half.o").write_text("whole now")
    _become(tree, source)
    assert (tree.root / "half.o").exists()


def test_what_a_failed_make_wrote_is_kept(tree: BuildTree, tmp_path: Path) -> None:
    source = FakeSource(tmp_path / "source", _FILES)
    _become(tree, source)
    with contextlib.suppress(BuildError), tree.being_made():
        (tree.root / "whole.o").write_text("whole")
        raise BuildError("an error in another file")
    _become(tree, source)
    assert (tree.root / "whole.o").exists()


def test_what_was_made_before_the_clock_was_set_back_is_not_trusted(
    tree: BuildTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FakeSource(tmp_path / "source", _FILES)
    _become(tree, source)
    with tree.being_made():
        (tree.root / "memory.o").write_text("of the old source")
    _become(tree, source)
    assert (tree.root / "memory.o").exists(), "only time tells"
    now = time.time_ns()
    monkeypatch.setattr("harness.kernel.tree.time.time_ns", lambda: now - 86_400_000_000_000)
    _become(tree, source)
    assert _contents(tree) == _FILES


@pytest.mark.parametrize("damage", ["manifest", "half-written", "no source"])
def test_a_damaged_tree_is_begun_anew(tree: BuildTree, tmp_path: Path, damage: str) -> None:
    source = FakeSource(tmp_path / "source", _FILES, ours=True)
    _become(tree, source)
    (tree.root / "stale.c").write_text("")
    if damage == "manifest":
        (tree.home / "manifest").unlink()
    elif damage == "half-written":
        (tree.home / "manifest").write_text("f00 1,2 Makefile\0f00 3,4 mm/rmap.c")
    else:
        shutil.rmtree(tree.root)
    _become(tree, source)
    assert _contents(tree) == _FILES


def test_source_that_changes_meanwhile(tree: BuildTree, tmp_path: Path) -> None:
    source = FakeSource(tmp_path / "source", _FILES)
    (source.root / "mm/swap.c").write_text("edited just now\n")
    with pytest.raises(SourceError, match=r"swap\.c changed while it was read"):
        _become(tree, source)
    (source.root / "mm/swap.c").unlink()
    with pytest.raises(SourceError, match=r"swap\.c cannot be read: No such file"):
        _become(tree, source)
    fixed = FakeSource(tmp_path / "source", _FILES)
    _become(tree, fixed)
    assert _contents(tree) == _FILES


def test_a_way_to_another_source_that_is_cut_short_is_gone_on(
    tree: BuildTree, tmp_path: Path
) -> None:
    _become(tree, FakeSource(tmp_path / "one", _FILES))
    (tree.root / "mm/swap.o").write_text("product")
    for number in (2, 3):
        files = {"Makefile": "all:\n", f"a/new-{number}.c": "new\n", "z/last.c": "last\n"}
        source = FakeSource(tmp_path / str(number), files)
        (source.root / "z/last.c").unlink()
        with pytest.raises(SourceError, match=r"last\.c cannot be read"):
            _become(tree, source)
        assert (tree.root / f"a/new-{number}.c").exists()
    # What came on either way is known to be source, and the product to be none.
    _become(tree, FakeSource(tmp_path / "four", _FILES))
    assert _contents(tree) == {**_FILES, "mm/swap.o": "product"}
    assert sorted(path.name for path in tree.home.iterdir()) == [
        "manifest",
        "patched",
        "source",
    ]


def test_the_first_way_that_is_cut_short_is_gone_on(tree: BuildTree, tmp_path: Path) -> None:
    source = FakeSource(tmp_path / "one", {**_FILES, "z/last.c": "last\n"})
    (source.root / "z/last.c").unlink()
    with pytest.raises(SourceError, match=r"last\.c cannot be read"):
        _become(tree, source)
    times = _times(tree)
    _become(tree, FakeSource(tmp_path / "two", _FILES))
    assert _contents(tree) == _FILES
    assert _times(tree) == times, "what was there is not written again"
