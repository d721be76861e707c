# SPDX-License-Identifier: GPL-2.0-only
"""Idle page tracking: mark pages idle, and see which of them nobody has touched since.

The bitmap has a bit for each frame of the host, in words of 64; to write a zero changes nothing
(Documentation/admin-guide/mm/idle_page_tracking.rst). Only pages on an LRU list take the mark, of
large pages the first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

_BITMAP = "/sys/kernel/mm/page_idle/bitmap"
_BITS = 64
_WORD_BYTES = 8


def mark_idle(frames: Sequence[int]) -> None:
    """Mark these frames idle; raises FileNotFoundError on a kernel without idle page tracking."""
    words: dict[int, int] = {}
    for frame in frames:
        words[frame // _BITS] = words.get(frame // _BITS, 0) | 1 << frame % _BITS
    fd = os.open(_BITMAP, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for word, bits in words.items():
            os.pwrite(fd, bits.to_bytes(_WORD_BYTES, "little"), word * _WORD_BYTES)
    finally:
        os.close(fd)


def idle(frames: Sequence[int]) -> list[bool]:
    """Which of these frames are marked and were not touched since; each look asks anew."""
    fd = os.open(_BITMAP, os.O_RDONLY | os.O_CLOEXEC)
    try:
        words = {
            word: int.from_bytes(os.pread(fd, _WORD_BYTES, word * _WORD_BYTES), "little")
            for word in sorted({frame // _BITS for frame in frames})
        }
    finally:
        os.close(fd)
    return [bool(words[frame // _BITS] >> frame % _BITS & 1) for frame in frames]
