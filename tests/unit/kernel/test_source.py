# SPDX-License-Identifier: GPL-2.0-only
"""Sources are known by their contents, and never written to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from fake_kernels import kernel_tree

from harness.errors import SourceError
from harness.kernel import fingerprint as fingerprint_module
from harness.kernel.debian import Apt, Package
from harness.kernel.fingerprint import FingerprintCache, fingerprint
from harness.kernel.reference import SourceTree
from harness.kernel.source import DebianSource, UserTree
from harness.progress import Silent
from harness.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = kernel_tree(tmp_path / "-my, linux")
    (root / "mm").mkdir()
    (root / "mm/memory.c").write_text("int x;\n")
    (root / "mm/link.c").symlink_to("memory.c")
    (root / "mm/folder").symlink_to("../arch")
    return root


def _source(tree: Path, store: Store) -> UserTree:
    return UserTree(SourceTree(str(tree), tree), store)


def _names(source: UserTree, tmp_path: Path) -> set[str]:
    with source.open(tmp_path / "unused") as files:
        assert not files.ours
        return set(files.fingerprints)


_ALL = {"Makefile", "Kconfig", "arch/x86/Kconfig", "mm/memory.c", "mm/link.c", "mm/folder"}


def _git(tree: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=x", "-c", "user.email=x@x")
    subprocess.run(["git", *identity, *arguments], cwd=tree, check=True, capture_output=True)


def test_plain_tree(tree: Path, store: Store, tmp_path: Path) -> None:
    assert _names(_source(tree, store), tmp_path) == _ALL


def test_build_products_are_left_out(tree: Path, store: Store, tmp_path: Path) -> None:
    clean = _source(tree, store)
    for name in (
        *("mm/memory.o", "mm/.memory.o.cmd", "vmlinux", ".config", "arch/x86/boot/bzImage"),
        *("arch/x86/boot/.bzImage.cmd", "include/generated/autoconf.h", "include/config/KVM"),
        *("scripts/kconfig/conf", "scripts/kconfig/.conf.cmd", "arch/x86/include/generated/a.h"),
        *("mm/x.ko", "modules.order", "scripts/kconfig/parser.tab.c", ".tmp_vmlinux1"),
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("made")
    (tree / "tools/include/generated").mkdir(parents=True)
    (tree / "tools/include/generated/kept.h").write_text("")
    built = _source(tree, store)
    assert _names(built, tmp_path) == _ALL | {"tools/include/generated/kept.h"}
    assert built.lineage == clean.lineage


def test_checkout_gives_what_git_tracks_or_might(tree: Path, store: Store, tmp_path: Path) -> None:
    (tree / ".gitignore").write_text("*.o\n/ignored\n")
    _git(tree, "init", "-q")
    _git(tree, "add", ".")
    _git(tree, "commit", "-q", "-m", "x")
    (tree / "mm/new file.c").write_text("new")
    (tree / "mm/memory.o").write_text("made")
    (tree / "ignored").write_text("made")
    (tree / "mm/link.c").unlink()
    index = (tree / ".git/index").read_bytes()
    names = _names(_source(tree, store), tmp_path)
    assert names == (_ALL | {".gitignore", "mm/new file.c"}) - {"mm/link.c"}
    assert (tree / ".git/index").read_bytes() == index


def test_a_repository_around_the_tree_is_not_its_own(
    tree: Path, store: Store, tmp_path: Path
) -> None:
    _git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("*\n")
    assert _names(_source(tree, store), tmp_path) == _ALL


def test_broken_checkout(tree: Path, store: Store) -> None:
    (tree / ".git").write_text("gitdir: /nowhere\n")
    with pytest.raises(SourceError, match="git cannot list"):
        _ = _source(tree, store).digest


@pytest.mark.parametrize("change", ["contents", "mode", "link", "new", "gone"])
def test_digest_follows_the_tree(tree: Path, store: Store, change: str) -> None:
    before = _source(tree, store).digest
    assert _source(tree, store).digest == before
    if change == "contents":
        (tree / "mm/memory.c").write_text("int y;\n")
    elif change == "mode":
        (tree / "mm/memory.c").chmod(0o755)
    elif change == "link":
        (tree / "mm/link.c").unlink()
        (tree / "mm/link.c").symlink_to("other.c")
    elif change == "new":
        (tree / "mm/new.c").write_text("")
    else:
        (tree / "mm/link.c").unlink()
    assert _source(tree, store).digest != before


def test_digest_does_not_depend_on_the_place(tree: Path, store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["cp", "-a", "--", str(tree), str(other)], check=True)
    one, two = _source(tree, store), _source(other, store)
    assert one.digest == two.digest
    assert one.lineage != two.lineage
    assert "/" not in one.lineage
    assert "," not in one.lineage


def test_tree_is_not_written_to(tree: Path, store: Store) -> None:
    before = {path: path.lstat().st_ctime_ns for path in (tree, *tree.rglob("*"))}
    _ = _source(tree, store).digest
    assert {path: path.lstat().st_ctime_ns for path in (tree, *tree.rglob("*"))} == before


def test_fifo_in_the_way_is_an_error_not_a_hang(tree: Path, store: Store) -> None:
    os.mkfifo(tree / "mm/fifo")
    with pytest.raises(SourceError, match="mm/fifo"):
        _ = _source(tree, store).digest


def test_settled_files_are_read_once(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint_module, "_SETTLED_NANOSECONDS", 0)
    cache = FingerprintCache(tree, tmp_path / "known")
    first = cache.get("mm/memory.c")
    cache.save()
    monkeypatch.setattr(fingerprint_module, "fingerprint", lambda _: pytest.fail("read again"))
    again = FingerprintCache(tree, tmp_path / "known")
    assert again.get("mm/memory.c") == first
    assert again.get("mm/none.c") == "-"


def test_fresh_files_are_not_trusted(tree: Path, tmp_path: Path) -> None:
    cache = FingerprintCache(tree, tmp_path / "known")
    cache.get("mm/memory.c")
    cache.save()
    assert (tmp_path / "known").read_text() == ""


def test_any_name_of_a_file_is_remembered(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint_module, "_SETTLED_NANOSECONDS", 0)
    names = ["mm/a b.c", "mm/a\nb.c", os.fsdecode(b"mm/\xff.c")]
    for name in names:
        (tree / name).write_text(name, "utf-8", "surrogateescape")
    cache = FingerprintCache(tree, tmp_path / "known")
    marks = [cache.get(name) for name in names]
    cache.save()
    monkeypatch.setattr(fingerprint_module, "fingerprint", lambda _: pytest.fail("read again"))
    again = FingerprintCache(tree, tmp_path / "known")
    assert [again.get(name) for name in names] == marks


def test_damaged_cache_is_ignored(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "known").write_text("f0 1,2")
    cache = FingerprintCache(tree, tmp_path / "known")
    assert cache.get("mm/memory.c") == fingerprint(tree / "mm/memory.c")


class _Unpacked(Apt):
    """An apt whose packages are unpacked already."""

    def __init__(self, store: Store, directory: Path) -> None:
        super().__init__(store)
        self._directory = directory

    def unpacked(self, package: Package, progress: object) -> Path:
        return self._directory


def test_debian_source_is_unpacked_and_removed(tree: Path, store: Store, tmp_path: Path) -> None:
    package = Package("linux-source-6.12", "6.12.1-1", "all", "ab" * 32, 1, "")
    tarball = tmp_path / "deb/usr/src/linux-source-6.12.tar.xz"
    tarball.parent.mkdir(parents=True)
    source = DebianSource(package, _Unpacked(store, tmp_path / "deb"), Silent())
    assert (source.lineage, source.digest) == ("linux-source-6.12", "ab" * 32)
    with pytest.raises(SourceError, match="holds no tarball"), source.open(tmp_path / "scratch"):
        pass
    subprocess.run(
        ["tar", "-cJf", str(tarball), f"--directory={tree.parent}", "--", tree.name], check=True
    )
    with source.open(tmp_path / "scratch") as files:
        assert files.ours
        assert files.root == tmp_path / "scratch"
        assert set(files.fingerprints) == _ALL
        assert files.fingerprints["mm/memory.c"] == fingerprint(tree / "mm/memory.c")
    assert not (tmp_path / "scratch").exists()
