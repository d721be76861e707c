# SPDX-License-Identifier: GPL-2.0-only
"""What is in the store, how large it is, when it was used last, and what of it may go."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from harness.errors import ImageError
from harness.kernel.header import read_header
from harness.store import Store

_KINDS = {
    "kernel": "built kernel",
    "prebuilt": "prebuilt kernel",
    "debian": "package",
    "download": "download",
    "claims": "checked claim",
    "compiler": "cross compiler",
    "cross": "checked for others",
    "release": "release of a source",
    "modules": "modules disk",
    "headers": "kernel headers",
    "external": "module",
    "root": "host root",
    "host": "host image",
    "initramfs": "initramfs",
    "probe": "probe",
}
_TREES = "trees"
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing in the store.

    ``size`` is bytes on the disk, of which those that an item listed before has too are not
    counted again; ``used`` is seconds since the epoch. ``lock`` guards a build tree, and is None
    for an entry, which its users hold.
    """

    kind: str
    title: str
    path: Path
    size: int
    used: float
    lock: str | None = None


def inventory(store: Store) -> list[Item]:
    """Everything in the store that can be made again, the newest used first."""
    seen: set[tuple[int, int]] = set()
    items = []
    for path, kind in _found(store):
        tree = kind == _TREES
        used = _newest(path) if tree else _mtime(path / "key.json")
        items.append((used, path, kind))
    listed = []
    for used, path, kind in sorted(items, reverse=True):
        tree = kind == _TREES
        listed.append(
            Item(
                kind="build tree" if tree else _KINDS.get(kind, kind),
                title=path.name if tree else _title(kind, path),
                path=path,
                size=_size(path, seen),
                used=used,
                lock=f"tree-{path.name}" if tree else None,
            )
        )
    return listed


def to_remove(
    items: Sequence[Item],
    now: float,
    older_than: float | None = None,
    at_most: int | None = None,
) -> list[Item]:
    """What must go so that nothing is older than that many seconds, and all has so many bytes.

    What was not used for longest goes first. None leaves that bound away.
    """
    total = sum(item.size for item in items)
    gone = []
    for item in sorted(items, key=lambda item: item.used):
        old = older_than is not None and now - item.used > older_than
        much = at_most is not None and total > at_most
        if old or much:
            gone.append(item)
            total -= item.size
    return gone


def remove(item: Item, store: Store) -> bool:
    """Remove an item unless somebody uses it; whether that was done."""
    if item.lock is not None:
        return store.remove_directory(item.path, item.lock)
    return store.remove(item.path)


def table(items: Sequence[Item], now: float) -> list[tuple[str, ...]]:
    """The items as rows of text, the first of which has the titles."""
    rows: list[tuple[str, ...]] = [("kind", "what", "size", "last used", "digest")]
    for item in items:
        name = "" if item.lock else item.path.name[:12]
        rows.append((item.kind, item.title, size_text(item.size), _ago(now - item.used), name))
    return rows


def size_text(size: int) -> str:
    """A number of bytes for people."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{size / (1 << power):.1f} {unit}"
    return f"{size} B"


def _found(store: Store) -> list[tuple[Path, str]]:
    found = []
    for directory in sorted(path for path in store.root.glob("*") if path.is_dir()):
        for path in sorted(directory.iterdir()):
            entry = directory.name == _TREES or (path / "key.json").is_file()
            # What begins with a dot is being made or removed.
            if path.is_dir() and not path.name.startswith(".") and entry:
                found.append((path, directory.name))
    return found


def _title(kind: str, path: Path) -> str:
    """What an entry is, from its key or, for a kernel, from the image in it."""
    with contextlib.suppress(ImageError):
        if kind == "kernel":
            return read_header(path / "bzImage").release
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if kind == "release":
            return (path / "release").read_text()
        key = json.loads((path / "key.json").read_text())["key"]
        words = [key.get(name) for name in ("package", "version", "name", "module", "what")]
        return " ".join(str(word) for word in words if word)
    return ""


def _size(path: Path, seen: set[tuple[int, int]]) -> int:
    """The bytes on the disk below a directory; files with several names count once."""
    total = 0
    for directory, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(directory, name))  # noqa: PTH118 - 100,000 files
                if status.st_nlink > 1:
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total


def _newest(path: Path) -> float:
    """When anything right in a directory was changed last."""
    return max([_mtime(path), *(_mtime(child) for child in path.iterdir())])


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return time.time()


def _ago(seconds: float) -> str:
    if seconds < _HOUR:
        return f"{max(seconds, 0) / _MINUTE:.0f} min ago"
    return f"{seconds / _HOUR:.0f} h ago" if seconds < 2 * _DAY else f"{seconds / _DAY:.0f} d ago"
