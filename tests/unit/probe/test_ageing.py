# SPDX-License-Identifier: GPL-2.0-only
"""The bitmap of idle page tracking, on a file that stands for it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness.probe import ageing


@pytest.fixture
def bitmap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bitmap of 256 frames, none of them idle."""
    path = tmp_path / "bitmap"
    path.write_bytes(bytes(32))
    monkeypatch.setattr(ageing, "_BITMAP", str(path))
    return path


def words(path: Path) -> tuple[int, ...]:
    return struct.unpack("<4Q", path.read_bytes())


def test_marks_are_bits_of_little_endian_words(bitmap: Path) -> None:
    ageing.mark_idle([0, 63, 64, 130])
    assert words(bitmap) == (1 << 63 | 1, 1, 1 << 2, 0)


def test_words_without_a_frame_of_ours_are_left_alone(bitmap: Path) -> None:
    bitmap.write_bytes(struct.pack("<4Q", 0, 0xFF, 0, 0xFF))
    ageing.mark_idle([3, 129])
    assert words(bitmap) == (1 << 3, 0xFF, 1 << 1, 0xFF)


def test_each_frame_is_looked_up_in_the_order_asked(bitmap: Path) -> None:
    bitmap.write_bytes(struct.pack("<4Q", 1 << 5, 0, 0, 1 << 63))
    assert ageing.idle([255, 5, 6, 64, 5]) == [True, True, False, False, True]
    assert ageing.idle([]) == []


def test_a_kernel_without_it_has_no_such_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ageing, "_BITMAP", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError):
        ageing.mark_idle([1])
