# SPDX-License-Identifier: GPL-2.0-only
"""A reference is understood, or the error says what may be given."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
from fake_kernels import bzimage, kernel_tree

from harness.errors import ImageError, SourceError, UsageError
from harness.kernel import reference
from harness.kernel.reference import (
    DebianImage,
    DebianSource,
    Download,
    ImageFile,
    Revision,
    SourceTree,
    Tarball,
    parse,
)

SHA256 = "0123456789abcdefABCDEF" + "0" * 42


def test_default_is_a_reference() -> None:
    assert parse(reference.DEFAULT) == DebianSource("deb:linux-source-6.12", "6.12")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("deb:linux-image-6.1.0-53-amd64", "6.1.0-53-amd64"),
        ("deb:linux-image-6.12.117+deb12-amd64", "6.12.117+deb12-amd64"),
        ("deb:linux-image-amd64", "amd64"),
        ("deb:linux-image-6.1", "6.1"),
    ],
)
def test_debian_images(text: str, version: str) -> None:
    assert parse(text) == DebianImage(text, version)
    assert parse(f"{text}/bookworm-security") == DebianImage(
        f"{text}/bookworm-security", version, "bookworm-security"
    )


def test_debian_source_of_a_suite() -> None:
    text = "deb:linux-source-6.12/trixie"
    assert parse(text) == DebianSource(text, "6.12", "trixie")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\0b",
        "deb:",
        "deb:linux",
        "deb:linux-source-",
        "deb:linux-source-6",
        "deb:linux-source-6.12; rm",
        "deb:linux-image-",
        "deb:linux-image--o",
        "deb:linux-image-6.1 ",
        "deb:linux-source-6.12/",
        "deb:linux-image-6.1/../x",
        "deb:linux-image-6.1/-o",
        "rpm:kernel",
        "git:v6.12",
    ],
)
def test_malformed(text: str) -> None:
    with pytest.raises(UsageError, match="linux-source-V"):
        parse(text)


@pytest.mark.parametrize("name", ["bzImage", "-x", "a b,c=d", "deb:x", "--help"])
def test_paths_to_images_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(bzimage())
    assert parse(f"./{name}") == ImageFile(f"./{name}", tmp_path / name)


def test_a_path_like_a_scheme_is_a_path_if_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my:kernel").write_bytes(bzimage())
    assert parse("my:kernel") == ImageFile("my:kernel", tmp_path / "my:kernel")


def test_source_tree(tmp_path: Path) -> None:
    tree = kernel_tree(tmp_path / "linux, a tree")
    assert parse(str(tree)) == SourceTree(str(tree), tree)


def test_directories_that_are_no_tree(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="give the top directory"):
        parse(str(tmp_path))
    tree = kernel_tree(tmp_path / "linux")
    with pytest.raises(SourceError, match="without a kernel source tree"):
        parse(str(tree / "arch"))
    (tree / "Makefile").write_text("all:\n")
    with pytest.raises(SourceError, match="VERSION"):
        parse(str(tree))


def test_a_build_directory_is_pointed_to_its_image(tmp_path: Path) -> None:
    boot = tmp_path / "arch/x86/boot"
    boot.mkdir(parents=True)
    (boot / "bzImage").write_bytes(bzimage())
    with pytest.raises(SourceError, match=f"give {boot / 'bzImage'} instead"):
        parse(str(tmp_path))


def test_missing_and_empty_images(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="There is no kernel image"):
        parse(str(tmp_path / "none"))
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ImageError, match="is empty"):
        parse(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("revision", "tree"),
    [
        ("v6.12", "linux"),
        ("HEAD~3", "my@linux"),
        ("a/branch", "linux"),
        ("@{1 day ago}", "linux"),
        ("master@{u}", "linux"),
    ],
)
def test_a_revision_of_a_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str, tree: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / tree).mkdir()
    text = f"{tree}@{revision}"
    assert parse(text) == Revision(text, tmp_path / tree, revision)


def test_a_tree_with_an_at_sign_is_a_tree(tmp_path: Path) -> None:
    tree = kernel_tree(tmp_path / "linux@home")
    assert parse(str(tree)) == SourceTree(str(tree), tree)


@pytest.mark.parametrize("revision", ["", "--output=x"])
def test_no_revision_behind_the_at_sign(tmp_path: Path, revision: str) -> None:
    with pytest.raises(UsageError, match="names no revision"):
        parse(f"{tmp_path}@{revision}")


def test_a_revision_of_a_tree_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="There is no kernel image"):
        parse(f"{tmp_path}/none@v6.12")


@pytest.mark.parametrize(
    "name", ["linux-6.12.tar.xz", "a b.tar.gz", "-x.tar.zst", "x.tgz", "x.TAR.BZ2", "x.tar"]
)
def test_tarballs_are_told_by_their_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"whatever")
    assert parse(str(tmp_path / name)) == Tarball(str(tmp_path / name), tmp_path / name)


def test_tarballs_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.tar\.xz does not exist"):
        parse(str(tmp_path / "none.tar.xz"))
    os.mkfifo(tmp_path / "fifo.tar.xz")
    with pytest.raises(SourceError, match="is no regular file"):
        parse(str(tmp_path / "fifo.tar.xz"))
    (tmp_path / "image").write_bytes(b"\xfd7zXZ\0" + bytes(5000))
    with pytest.raises(ImageError, match="is xz data, perhaps a tarball"):
        parse(str(tmp_path / "image"))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.org/linux-6.12.tar.xz", "linux-6.12.tar.xz"),
        ("HTTPS://example.org:8443/a/b%20c;d?x=/y", "b-c-d"),
        ("https://example.org/", "kernel"),
        ("https://example.org/..", "kernel"),
    ],
)
def test_downloads(url: str, name: str) -> None:
    text = f"{url}#sha256={SHA256}"
    download = parse(text)
    assert download == Download(text, url, SHA256.lower())
    assert isinstance(download, Download)
    assert download.name == name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://example.org/x.tar.xz", "not fetched without a digest"),
        ("https://example.org/x#sha256=", "not fetched without a digest"),
        (f"https://example.org/x#sha256={SHA256[1:]}", "not fetched without a digest"),
        (f"https://example.org/x#md5={SHA256}", "not fetched without a digest"),
        (f"http://example.org/x#sha256={SHA256}", "not https"),
        (f"https:///x#sha256={SHA256}", "is not an address"),
        (f"https://example.org:x/#sha256={SHA256}", "is not an address"),
        (f"https://[/#sha256={SHA256}", "is not an address"),
        (f"https://example.org/a b#sha256={SHA256}", "is not an address"),
    ],
)
def test_downloads_that_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(text)


@pytest.mark.parametrize("place", ["boot/vmlinuz-9.9-test", "usr/lib/modules/9.9-test/vmlinuz"])
def test_the_running_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(platform, "release", lambda: "9.9-test")
    with pytest.raises(ImageError, match=r"runs 9\.9-test, but its image is in neither of"):
        parse("running")
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_bytes(bzimage("9.9-test"))
    monkeypatch.setattr(reference, "_ROOT", tmp_path)
    assert parse("running") == ImageFile("running", tmp_path / place)
    (tmp_path / place).write_bytes(b"")
    with pytest.raises(ImageError, match="is empty"):
        parse("running")
