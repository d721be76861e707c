# SPDX-License-Identifier: GPL-2.0-only
"""Tarballs are unpacked whatever they are compressed with, and never trusted."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from fake_kernels import kernel_tree

from harness.errors import SourceError
from harness.kernel.reference import Tarball
from harness.kernel.tarball import TarballSource
from harness.progress import Silent
from harness.store import Store

PROGRAMS = {"xz": "xz", "gz": "gzip", "zst": "zstd", "bz2": "bzip2"}
ALL = {"Makefile", "Kconfig", "arch/x86/Kconfig", "mm/memory.c", "mm/link.c"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = kernel_tree(tmp_path / "linux-6.12.3")
    (root / "mm").mkdir()
    (root / "mm/memory.c").write_text("int x;\n")
    (root / "mm/link.c").symlink_to("memory.c")
    return root


def packed(path: Path, tree: Path, *, top: bool = True) -> Path:
    plain = path.with_name("plain")
    with tarfile.open(plain, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(tree, tree.name if top else ".")
    program = PROGRAMS.get(path.suffix[1:])
    if program is None:
        plain.rename(path)
        return path
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    with path.open("wb") as file:
        subprocess.run([program, "-c", str(plain)], stdout=file, check=True)
    plain.unlink()
    return path


def source(path: Path, store: Store) -> TarballSource:
    return TarballSource(Tarball(str(path), path), store, Silent())


@pytest.mark.parametrize("kind", ["xz", "gz", "zst", "bz2", "tar"])
@pytest.mark.parametrize("top", [True, False])
def test_every_compression(tree: Path, store: Store, tmp_path: Path, kind: str, top: bool) -> None:
    path = packed(tmp_path / (f"-a, b.tar.{kind}" if kind != "tar" else "-a:b.tar"), tree, top=top)
    with source(path, store).open(tmp_path / "scratch") as files:
        assert files.ours
        assert set(files.fingerprints) == ALL
        assert files.read("mm/memory.c") == (files.fingerprints["mm/memory.c"], b"int x;\n")
    assert not (tmp_path / "scratch").exists()
    with source(path, store).peek(tmp_path / "scratch") as read:
        assert read("mm/memory.c")[1] == b"int x;\n"
    assert not (tmp_path / "scratch").exists()


def test_the_name_does_not_decide_the_compression(tree: Path, store: Store, tmp_path: Path) -> None:
    path = packed(tmp_path / "x.tar.gz", tree).rename(tmp_path / "x.tar.xz")
    with source(path, store).open(tmp_path / "scratch") as files:
        assert set(files.fingerprints) == ALL


@pytest.mark.parametrize(
    ("name", "lineage"),
    [
        ("linux-6.12.3.tar.xz", "tarball-linux-6.12"),
        ("linux-6.12.tar.gz", "tarball-linux-6.12"),
        ("linux-6.12-rc1.tar.gz", "tarball-linux-6.12-rc1"),
        ("my, tree.tgz", "tarball-my--tree"),
    ],
)
def test_neighbours_share_a_build_tree(
    store: Store, tmp_path: Path, name: str, lineage: str
) -> None:
    assert source(tmp_path / name, store).lineage == lineage


def test_a_digest_is_that_of_the_contents_and_read_once(
    tree: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path / "x.tar", tree)
    first = source(path, store).digest
    copy = tmp_path / "y.tar"
    shutil.copy(path, copy)
    assert source(copy, store).digest == first
    with path.open("ab") as file:
        file.write(b"\0")
    assert source(path, store).digest != first
    monkeypatch.setattr(
        "harness.kernel.tarball.hashlib.file_digest", lambda *_: pytest.fail("read again")
    )
    assert source(copy, store).digest == first


def refused(path: Path, store: Store, says: str) -> None:
    scratch = path.with_name("scratch")
    with pytest.raises(SourceError, match=says), source(path, store).open(scratch):
        pass
    assert not scratch.exists()


@pytest.mark.parametrize("kind", ["xz", "gz", "zst"])
def test_truncated(tree: Path, store: Store, tmp_path: Path, kind: str) -> None:
    path = packed(tmp_path / f"x.tar.{kind}", tree)
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, store, "damaged or truncated")


@pytest.mark.parametrize("content", [b"", b"words\n", bytes(2000), b"MZ" * 400])
def test_what_is_no_tarball(store: Store, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tar.xz"
    path.write_bytes(content)
    refused(path, store, "is not a tarball" if content else "is empty")


def test_a_tarball_without_a_kernel(tree: Path, store: Store, tmp_path: Path) -> None:
    (tree / "Kconfig").unlink()
    refused(packed(tmp_path / "x.tar", tree), store, "holds no kernel source tree")


def test_a_tarball_that_went_away(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        _ = source(tmp_path / "none.tar", store).digest


@pytest.mark.parametrize("name", ["../outside", "/tmp/mmu-harness-outside", "linux/link/outside"])
def test_nothing_is_written_outside(store: Store, tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("linux/link")
        link.type = tarfile.SYMTYPE
        link.linkname = str(tmp_path)
        tar.addfile(link)
        member = tarfile.TarInfo(name)
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(SourceError), source(path, store).open(tmp_path / "scratch"):
        pass
    assert not (tmp_path / "outside").exists()
    assert not Path("/tmp/mmu-harness-outside").exists()


def test_a_fifo_in_it_is_an_error_not_a_hang(tree: Path, store: Store, tmp_path: Path) -> None:
    plain = packed(tmp_path / "x.tar", tree)
    with tarfile.open(plain, "a") as tar:
        fifo = tarfile.TarInfo(f"{tree.name}/mm/fifo")
        fifo.type = tarfile.FIFOTYPE
        tar.addfile(fifo)
    refused(plain, store, "something else than files and links: .*mm/fifo")
