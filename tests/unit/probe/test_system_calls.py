# SPDX-License-Identifier: GPL-2.0-only
"""System calls by number, with their errors as exceptions."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from harness.probe import system
from harness.probe.backing import map_anonymous
from harness.probe.layout import PAGE_BYTES
from harness.probe.system import call, checked


def test_a_negative_result_is_the_error_of_the_last_call() -> None:
    ctypes.set_errno(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left") as caught:
        checked(-1)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("result", [0, 1, 1 << 31])
def test_any_other_result_is_the_result(result: int) -> None:
    ctypes.set_errno(errno.ENOSPC)
    assert checked(result) == result


def test_a_system_call_is_made_by_its_number() -> None:
    fd = call("pidfd_open", os.getpid(), 0)
    assert os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[pidfd]"  # noqa: PTH115
    os.close(fd)
    with pytest.raises(ProcessLookupError):
        call("pidfd_open", (1 << 22) + 1, 0)


def test_numbers_are_passed_as_longs(monkeypatch: pytest.MonkeyPatch) -> None:
    # As an int, an address above 4 GiB would lose its upper half.
    monkeypatch.setitem(system.NUMBERS, "mincore", 27)
    address = map_anonymous(PAGE_BYTES)
    assert address >= 1 << 32
    assert call("mincore", address, PAGE_BYTES, ctypes.create_string_buffer(1)) == 0
    with pytest.raises(OSError, match="Invalid argument"):
        call("mincore", address + 1, PAGE_BYTES, ctypes.create_string_buffer(1))


def test_a_system_call_that_the_kernel_does_not_have_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(system.NUMBERS, "nothing", 100_000)
    with pytest.raises(OSError, match="not implemented"):
        call("nothing")
