# SPDX-License-Identifier: GPL-2.0-only
"""Which modules a kernel needs to reach its root, read from what depmod wrote."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.command import require, run
from harness.deadline import Deadline
from harness.errors import BootError

_DECOMPRESS_SECONDS = 60.0


def release_directory(modules: Path, release: str) -> Path:
    """The directory of ``release`` in what is used as /lib/modules; BootError if it has none."""
    directory = modules / release
    if not (directory / "modules.dep").is_file():
        raise BootError(
            f"The modules in {modules} do not fit the kernel: there is no "
            f"{release}/modules.dep. Give the modules of the same build, after depmod."
        )
    return directory


def name_of(path: str) -> str:
    """The name of the module in a file, as in ``crc32c_generic`` for .../crc32c-generic.ko.xz."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def parse_dependencies(text: str) -> dict[str, tuple[str, ...]]:
    """modules.dep: each module's file, and the files it needs, all relative to the directory."""
    table = {}
    for line in text.splitlines():
        path, colon, needed = line.partition(":")
        if colon:
            table[path.strip()] = tuple(needed.split())
    return table


def closure(wanted: Iterable[str], table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The files of the wanted modules with all they need, in an order in which insmod takes them.

    Modules that the table does not know are built in, or do not exist in this kernel: left out.
    """
    files = {name_of(path): path for path in table}
    order: dict[str, None] = {}
    for name in wanted:
        if path := files.get(name):
            # depmod lists what a module needs from the nearest to the farthest.
            for each in (*reversed(table[path]), path):
                order.setdefault(each)
    return tuple(order)


def content(path: Path, scratch: Path) -> bytes:
    """A module as the kernel takes it; distributions keep modules compressed.

    ``scratch`` is a directory for a temporary file.
    """
    match path.suffix:
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst":
            return _zstd(path, scratch / name_of(path.name))
    return path.read_bytes()


def _zstd(path: Path, target: Path) -> bytes:
    """Through the program: the standard library has no zstd before Python 3.14."""
    deadline = Deadline.after(_DECOMPRESS_SECONDS, f"Decompressing {path.name}")
    run([require("zstd", "zstd"), "-d", "-q", "-f", "-o", target, "--", path], deadline)
    try:
        return target.read_bytes()
    finally:
        target.unlink()
