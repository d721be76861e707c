# SPDX-License-Identifier: GPL-2.0-only
"""The store can be looked through, and made smaller without harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_kernels import bzimage

from harness.kernel.inventory import Item, inventory, remove, size_text, table, to_remove
from harness.store import Store

DAY = 86400.0
NOW = 1000 * DAY


def kernel(store: Store, release: str, days: float) -> Path:
    """A kernel that was used so many days ago, by a process that has ended."""

    def fill(directory: Path) -> None:
        (directory / "bzImage").write_bytes(bzimage(release))

    path = store.entry("kernel", {"release": release}, fill)
    os.close(store._held.pop(path))
    os.utime(path / "key.json", (NOW - days * DAY,) * 2)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_an_empty_store(store: Store) -> None:
    assert inventory(store) == []
    assert to_remove([], NOW, older_than=0.0, at_most=0) == []


def test_what_is_there_is_told(store: Store) -> None:
    old = kernel(store, "6.1.1", days=40)
    kernel(store, "6.12.1", days=0.5)
    package = {"package": "linux-source-6.12", "version": "6.12.1-1"}
    with_link = store.entry("debian", package, lambda p: os.link(old / "bzImage", p / "linked"))
    os.utime(with_link / "key.json", (NOW - DAY * 3,) * 2)
    tree = store.directory("trees/linux-1")
    (tree / "manifest").write_text("x" * 10_000)
    for path in (tree, tree / "manifest"):
        os.utime(path, (NOW - 60,) * 2)
    # None of these is for the list.
    store.directory("apt/lists")
    store.directory("logs")
    (store.root / "kernel/.x.making").mkdir()
    (store.root / "kernel/.x.making/key.json").write_text("{}")
    items = inventory(store)
    assert [(item.kind, item.title) for item in items] == [
        ("build tree", "linux-1"),
        ("built kernel", "6.12.1"),
        ("package", "linux-source-6.12 6.12.1-1"),
        ("built kernel", "6.1.1"),
    ]
    assert items[0].size >= 10_000
    # The image that two entries share is counted with the one that comes first.
    assert items[2].size == items[1].size
    assert items[3].size < items[1].size
    assert [row[3] for row in table(items, NOW)] == [
        "last used", "1 min ago", "12 h ago", "3 d ago", "40 d ago",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("older_than", "at_most", "gone"),
    [
        (None, None, []),
        (30 * DAY, None, ["40"]),
        (3 * DAY, None, ["40", "4"]),
        (None, 100, []),
        (None, 99, ["40"]),
        (None, 30, ["40", "4"]),
        (None, 0, ["40", "4", "1"]),
        (30 * DAY, 30, ["40", "4"]),
    ],
)
def test_the_longest_unused_goes_first(
    older_than: float | None, at_most: int | None, gone: list[str]
) -> None:
    items = [
        Item("kernel", str(days), Path("x"), size, NOW - days * DAY)
        for days, size in ((1, 30), (40, 50), (4, 20))
    ]
    found = to_remove(items, NOW, older_than, at_most)
    assert [item.title for item in found] == gone


def test_what_is_removed_is_gone_and_what_is_used_stays(store: Store) -> None:
    kernel(store, "6.1.1", days=40)
    store.entry("kernel", {"release": "held"}, lambda p: (p / "bzImage").touch())
    store.directory("trees/linux-1")
    used, tree, unused = _three(store)
    assert remove(unused, store)
    assert not remove(used, Store(store.root))
    with store.lock("tree-linux-1"):
        assert not remove(tree, Store(store.root))
    assert remove(tree, store)
    assert inventory(store) == [used]


def _three(store: Store) -> tuple[Item, Item, Item]:
    """The kernel in use, the build tree, and the kernel that nobody uses."""
    items = inventory(store)
    (tree,) = (item for item in items if item.lock)
    unused = next(item for item in items if item.title == "6.1.1")
    (used,) = (item for item in items if item not in (tree, unused))
    return used, tree, unused


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1 << 10, "1.0 KiB"),
        (3 << 29, "1.5 GiB"),
        (5 << 20, "5.0 MiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text
