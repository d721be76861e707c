# SPDX-License-Identifier: GPL-2.0-only
"""Runs a function in a forked child, which may lose its memory without harm to the tests."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import resource
import traceback
from collections.abc import Callable
from typing import TypeVar

_Answer = TypeVar("_Answer")


def _ended(function: Callable[[], object]) -> tuple[int, bytes]:
    """The wait status of a child that runs a function, and what it wrote."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Whatever happens here must neither return into pytest nor speak in its place.
        with contextlib.suppress(BaseException):
            os.close(reading)
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            try:
                said: tuple[bool, object] = (True, function())
            except BaseException:
                said = (False, traceback.format_exc())
            with open(writing, "wb") as stream:  # noqa: PTH123 - a descriptor has no path
                pickle.dump(said, stream)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as stream:  # noqa: PTH123
        text = stream.read()
    return os.waitpid(pid, 0)[1], text


def in_child(function: Callable[[], _Answer]) -> _Answer:
    """What a function returns in a forked child; AssertionError with its traceback otherwise."""
    status, text = _ended(function)
    assert status == 0, f"the child ended with wait status {status}"
    well, value = pickle.loads(text)
    assert well, value
    answer: _Answer = value
    return answer


def signal_of(function: Callable[[], object]) -> int:
    """The signal that kills a forked child which runs a function; 0 when it lives."""
    status, text = _ended(function)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    well, value = pickle.loads(text)
    assert well, value
    return 0
