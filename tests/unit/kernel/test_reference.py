# SPDX-License-Identifier: GPL-2.0-only
"""A reference is understood, or the error says what may be given."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_kernels import bzimage, kernel_tree

from harness.errors import ImageError, SourceError, UsageError
from harness.kernel import reference
from harness.kernel.reference import DebianImage, DebianSource, ImageFile, SourceTree, parse


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
