# SPDX-License-Identifier: GPL-2.0-only
"""What a guest inside the guest needs, and whether KVM has it."""

from __future__ import annotations

import ctypes
import errno
import struct
from pathlib import Path

import pytest

from harness.probe import kvm, nested

SVM = (0x80000001, (0, 0, 1 << 2, 0))
PAGING = (0x8000000A, (1, 8, 0, 1))
OTHER = (1, (7, 7, 7, 7))


def cpuid(*entries: tuple[int, tuple[int, ...]]) -> ctypes.Array[ctypes.c_char]:
    """struct kvm_cpuid2 with these functions."""
    buffer = ctypes.create_string_buffer(8 + 40 * len(entries))
    struct.pack_into("<I", buffer, 0, len(entries))
    for index, (function, registers) in enumerate(entries):
        struct.pack_into("<7I", buffer, 8 + 40 * index, function, 0, 0, *registers)
    return buffer


def test_a_host_with_nested_paging_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, cpuid(OTHER, SVM, PAGING))
    nested.require()


@pytest.mark.parametrize(
    "offered",
    [
        [],
        [OTHER],
        [SVM],
        [PAGING],
        [SVM, (0x8000000A, (1, 8, 0, 0))],
        [(0x80000001, (0, 0, ~(1 << 2) & 0xFFFFFFFF, 0)), PAGING],
    ],
)
def test_a_host_that_lacks_part_of_it_says_so(
    offered: list[tuple[int, tuple[int, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, cpuid(*offered))
    with pytest.raises(OSError, match="no SVM with nested paging") as caught:
        nested.require()
    assert caught.value.errno == errno.ENOTSUP


def offer(monkeypatch: pytest.MonkeyPatch, cpuid: ctypes.Array[ctypes.c_char]) -> None:
    monkeypatch.setattr(nested, "DEVICE", Path("/dev/null"))
    monkeypatch.setattr(kvm, "supported_cpuid", lambda fd: cpuid)
