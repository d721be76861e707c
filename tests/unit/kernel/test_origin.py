# SPDX-License-Identifier: GPL-2.0-only
"""Every reference to source leads to a source, and one to a built kernel to none."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_kernels import bzimage, kernel_tree

from harness.errors import UsageError
from harness.kernel.origin import source_of
from harness.kernel.reference import DebianImage, Revision, parse
from harness.kernel.revision import RevisionTree
from harness.kernel.source import Source, UserTree
from harness.kernel.tarball import TarballSource
from harness.progress import Silent
from harness.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_each_kind_has_its_source(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = kernel_tree(tmp_path / "linux")
    (tmp_path / "x.tar.xz").write_bytes(b"")
    assert isinstance(source_of(parse(str(tree)), store, Silent()), UserTree)
    tarball = source_of(parse(str(tmp_path / "x.tar.xz")), store, Silent())
    assert isinstance(tarball, TarballSource)
    made: list[Revision] = []
    monkeypatch.setattr(RevisionTree, "__init__", lambda self, ref, *_: made.append(ref))
    source: Source = source_of(parse(f"{tree}@v6.12"), store, Silent())
    assert isinstance(source, RevisionTree)
    assert [ref.revision for ref in made] == ["v6.12"]


def test_what_is_built_has_no_source(store: Store, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bzimage())
    for reference in (parse(str(tmp_path / "image")), DebianImage("deb:linux-image-6.1", "6.1")):
        with pytest.raises(UsageError, match=r"needs kernel source, but .* is built already"):
            source_of(reference, store, Silent())
