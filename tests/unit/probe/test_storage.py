# SPDX-License-Identifier: GPL-2.0-only
"""What a disk has of a file, with this machine's file system and a file for a disk."""

from __future__ import annotations

import errno
import mmap
import os
import re
from pathlib import Path

import pytest

from harness.probe import storage
from harness.probe.layout import PAGE_BYTES
from harness.probe.storage import device_of, extents, read_stored

PAGES = 8
UNWRITTEN, DELAYED = 0x800, 0x4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of pages that are numbered from 1 on, and on the disk."""
    path = tmp_path / "file"
    with path.open("wb") as stream:
        for page in range(PAGES):
            stream.write(bytes([page + 1]) * PAGE_BYTES)
        stream.flush()
        os.fsync(stream.fileno())
    return path


@pytest.fixture
def disk(file: Path, tmp_path: Path) -> str:
    """A file that has, where the disk has it, what that file has now.

    The real disk is root's, and often nobody's.
    """
    path = tmp_path / "disk"
    try:
        with path.open("wb") as stream:
            for logical, physical, length, _ in extents(str(file), 0, PAGES * PAGE_BYTES):
                stream.seek(physical)
                stream.write(file.read_bytes()[logical : logical + length])
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        pytest.skip(f"The file system of {tmp_path} does not tell where files are: {error}.")
    return str(path)


def numbers(data: bytes) -> list[int]:
    """The first byte of each page, where all of a page is that byte."""
    pages = [data[at : at + PAGE_BYTES] for at in range(0, len(data), PAGE_BYTES)]
    assert all(len(page) == PAGE_BYTES and set(page) == {page[0]} for page in pages)
    return [page[0] for page in pages]


def test_a_file_is_read_where_its_disk_has_it(file: Path, disk: str) -> None:
    assert numbers(read_stored(str(file), 0, PAGES * PAGE_BYTES, disk)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert numbers(read_stored(str(file), 2 * PAGE_BYTES, 3 * PAGE_BYTES, disk)) == [3, 4, 5]


def test_what_is_dirty_is_not_written_back_for_us(file: Path, disk: str) -> None:
    def dirty() -> int:
        text = Path("/proc/self/smaps").read_text()
        mapping = text[text.index(str(file)) :]
        return sum(int(size) for size in re.findall(r"_Dirty: +(\d+) kB", mapping)[:2])

    with file.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as memory:
        memory[PAGE_BYTES : 2 * PAGE_BYTES] = b"\x63" * PAGE_BYTES
        before = dirty()
        assert before
        assert numbers(read_stored(str(file), 0, 3 * PAGE_BYTES, disk)) == [1, 2, 3]
        assert dirty() == before
        memory.flush()
        assert not dirty(), "or this test could not see it"


def test_a_disk_that_is_too_short_is_an_error(file: Path, disk: str) -> None:
    os.truncate(disk, PAGE_BYTES)
    with pytest.raises(OSError, match="ends before byte"):
        read_stored(str(file), 0, PAGE_BYTES, disk)


def test_what_was_never_written_is_nowhere(file: Path, disk: str) -> None:
    with file.open("r+b") as stream:
        os.truncate(stream.fileno(), 4 * PAGE_BYTES)
        os.posix_fallocate(stream.fileno(), 4 * PAGE_BYTES, 2 * PAGE_BYTES)
        os.fsync(stream.fileno())
    for first, pages in ((3, 2), (4, 1), (5, 3)):
        with pytest.raises(OSError, match="has nothing of the file's byte") as caught:
            read_stored(str(file), first * PAGE_BYTES, pages * PAGE_BYTES, disk)
        assert caught.value.errno == errno.ENODATA
    assert numbers(read_stored(str(file), 3 * PAGE_BYTES, PAGE_BYTES, disk)) == [4]


EXTENTS = [(0, 1000, 100, 0), (100, 5000, 50, 0), (150, 2000, 100, 1)]


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [
        (0, 100, [(1000, 100)]),
        (0, 250, [(1000, 100), (5000, 50), (2000, 100)]),
        (90, 20, [(1090, 10), (5000, 10)]),
        (110, 10, [(5010, 10)]),
        (240, 10, [(2090, 10)]),
    ],
)
def test_a_range_is_put_together_from_its_extents(
    offset: int, size: int, expected: list[tuple[int, int]]
) -> None:
    assert list(storage._pieces(EXTENTS, offset, size)) == expected


@pytest.mark.parametrize(
    ("found", "missing"),
    [
        ([], 0),
        ([(0, 1000, 100, 0)], 100),
        ([(0, 1000, 100, 0), (150, 5000, 100, 1)], 100),
        ([(0, 1000, 100, UNWRITTEN), (100, 5000, 100, 1)], 0),
        ([(0, 1000, 100, 0), (100, 0, 100, DELAYED | 1)], 100),
    ],
)
def test_a_range_with_a_gap_is_not_put_together(
    found: list[tuple[int, int, int, int]], missing: int
) -> None:
    with pytest.raises(OSError, match=f"byte {missing}$"):
        list(storage._pieces(found, 0, 200))


def test_the_disk_of_a_file_is_a_block_device(file: Path) -> None:
    try:
        device = device_of(str(file))
    except FileNotFoundError:
        pytest.skip("The temporary directory is on no disk.")
    assert Path(device).is_block_device()
    assert Path(device).stat().st_rdev == file.stat().st_dev
