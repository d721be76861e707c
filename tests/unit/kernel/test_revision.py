# SPDX-License-Identifier: GPL-2.0-only
"""Revisions of a repository are sources, and the repository stays as it is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from fake_kernels import kernel_tree

from harness.errors import SourceError
from harness.kernel import revision as revision_module
from harness.kernel.reference import Revision, SourceTree
from harness.kernel.revision import RevisionTree
from harness.kernel.source import UserTree
from harness.kernel.tree import BuildTree
from harness.progress import Silent
from harness.store import Store


def git(tree: Path, *words: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@x")
    done = subprocess.run(
        ["git", *identity, *words], cwd=tree, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two commits, the first with the tag "old"."""
    root = kernel_tree(tmp_path / "-my, linux")
    (root / "mm").mkdir()
    (root / "mm/memory.c").write_text("int x;\n")
    (root / "mm/link.c").symlink_to("memory.c")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "mm/größe.c").write_bytes(b"\xff\0\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "x")
    git(root, "tag", "old")
    (root / "mm/memory.c").write_text("int y;\n")
    git(root, "commit", "-q", "-a", "-m", "y")
    return root


def source(tree: Path, revision: str, store: Store) -> RevisionTree:
    return RevisionTree(Revision("", tree, revision), store, Silent())


def state(tree: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in (tree, *tree.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_ctime_ns, status.st_size)
    return found


def test_it_is_what_a_checkout_of_it_would_be(tree: Path, store: Store) -> None:
    checkout = UserTree(SourceTree("", tree), store)
    head = source(tree, "HEAD", store)
    assert head.digest == checkout.digest
    assert head.lineage == checkout.lineage
    git(tree, "checkout", "-q", "old")
    assert UserTree(SourceTree("", tree), store).digest == source(tree, "old", store).digest
    assert source(tree, "old", store).digest != head.digest


def test_nothing_is_written_to_the_repository(tree: Path, store: Store, tmp_path: Path) -> None:
    (tree / "mm/memory.c").write_text("uncommitted\n")
    before = state(tree)
    built = source(tree, "old", store)
    BuildTree(tmp_path / "home").become(built, (), Silent())
    with built.peek(tmp_path / "unused") as read:
        assert read("mm/memory.c")[1] == b"int x;\n"
    assert state(tree) == before


def test_a_build_tree_gets_the_files_of_the_revision(
    tree: Path, store: Store, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    BuildTree(home).become(source(tree, "old", store), (), Silent())
    made = home / "source"
    assert (made / "mm/memory.c").read_text() == "int x;\n"
    assert (made / "mm/größe.c").read_bytes() == b"\xff\0\n"
    assert os.readlink(made / "mm/link.c") == "memory.c"  # noqa: PTH115
    assert os.access(made / "run.sh", os.X_OK)
    assert not (made / ".git").exists()
    times = {path: path.lstat().st_mtime_ns for path in made.rglob("*") if path.is_file()}
    BuildTree(home).become(source(tree, "HEAD", store), (), Silent())
    assert (made / "mm/memory.c").read_text() == "int y;\n"
    changed = [path.name for path, time in times.items() if path.lstat().st_mtime_ns != time]
    # The link leads to what changed.
    assert sorted(changed) == ["memory.c"]


def test_a_blob_is_read_once_in_its_life(
    tree: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = source(tree, "old", store).digest
    read: list[str] = []
    objects = revision_module._Objects
    plain = objects.read_all

    def counting(self: revision_module._Objects, blobs: list[str]) -> object:
        read.extend(blobs)
        return plain(self, blobs)

    monkeypatch.setattr(objects, "read_all", counting)
    assert source(tree, "HEAD", store).digest != first
    assert read == [git(tree, "rev-parse", "HEAD:mm/memory.c")]
    monkeypatch.setattr(RevisionTree, "_entries", property(lambda _: pytest.fail("listed")))
    assert source(tree, "old", store).digest == first


def test_a_linked_worktree_and_a_bare_clone_will_do(
    tree: Path, store: Store, tmp_path: Path
) -> None:
    git(tree, "worktree", "add", "-q", str(tmp_path / "linked"), "old")
    git(tmp_path, "clone", "-q", "--bare", str(tree), "bare.git")
    head = source(tree, "HEAD", store)
    linked = source(tmp_path / "linked", "master" if _has_master(tree) else "main", store)
    assert (linked.digest, linked.lineage) == (head.digest, head.lineage)
    assert source(tmp_path / "bare.git", "HEAD", store).digest == head.digest


def _has_master(tree: Path) -> bool:
    return git(tree, "symbolic-ref", "--short", "HEAD") == "master"


def test_a_shallow_or_changed_environment_does_not_matter(
    tree: Path, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = source(tree, "HEAD", store).digest
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert source(tree, "HEAD", store).digest == expected


@pytest.mark.parametrize("revision", ["v9.9", "HEAD:mm", "HEAD:mm/memory.c", "old^{tree}", "a b"])
def test_no_such_revision(tree: Path, store: Store, revision: str) -> None:
    with pytest.raises(SourceError, match="has no revision"):
        source(tree, revision, store)


def test_what_is_no_checkout_or_no_top_of_one(tree: Path, store: Store, tmp_path: Path) -> None:
    plain = kernel_tree(tmp_path / "plain")
    with pytest.raises(SourceError, match="is not a git checkout"):
        source(plain, "HEAD", store)
    with pytest.raises(SourceError, match="is not the top of its git checkout"):
        source(tree / "mm", "HEAD", store)


def test_a_revision_without_a_kernel(tree: Path, store: Store) -> None:
    git(tree, "rm", "-q", "Kconfig")
    git(tree, "commit", "-q", "-m", "x")
    with pytest.raises(SourceError, match="holds no kernel source tree"):
        _ = source(tree, "HEAD", store).digest


def test_a_damaged_repository(tree: Path, store: Store) -> None:
    blob = git(tree, "rev-parse", "HEAD:mm/memory.c")
    (tree / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(SourceError, match=f"lacks the object {blob}"):
        _ = source(tree, "HEAD", store).digest
