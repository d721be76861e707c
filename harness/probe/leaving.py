# SPDX-License-Identifier: GPL-2.0-only
"""Processes that attach a secondary MMU and end, with the device kept by whoever forked them off.

Whichever comes first, the end of the memory or the detaching, the device must have been released
once for each time that it was attached, and be told nothing afterwards.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable

from harness.probe.device import Device
from harness.probe.layout import PAGE_BYTES
from harness.probe.memory import Memory

_MOST_ATTACHED = 7
"""A child that attaches over and over is killed after so many times at most."""

_SUMMED = ("attached", "releases", "in_progress", "ends_too_many", "after_release", "late")


class Late(Exception):
    """A child did not get as far as it should in time."""


def play(way: str, memory: Memory, rounds: int, seconds: float) -> dict[str, int]:
    """Rounds of one ``way`` of ending; how many there was time for, and sums of the counters.

    ``exit-first`` and ``detach-first`` are one after the other, ``both`` is at once, ``close``
    leaves it to the last close of the device, and ``attaching`` kills a child that attaches and
    detaches all the time.
    """
    until = time.monotonic() + seconds
    sums = dict.fromkeys(_SUMMED, 0)
    played = 0
    while played < rounds and time.monotonic() < until:
        state = _round(way, memory, played, until)
        for name in _SUMMED:
            sums[name] += state[name]
        played += 1
    return {"rounds": played, **sums}


def _round(way: str, memory: Memory, number: int, until: float) -> dict[str, int]:
    device = Device()
    address, size = memory.span(0, memory.pages)
    again = way == "attaching"
    pid = _child(lambda: _attach(device, address, size, again=again))
    if again:
        _await(device, pid, "attached", 1 + number % _MOST_ATTACHED, until)
    else:
        _await(device, pid, "misses", memory.pages, until)
    if way == "detach-first":
        device.detach()
    os.kill(pid, signal.SIGKILL)
    if way == "both":
        device.detach()
    os.waitpid(pid, 0)
    if way in ("exit-first", "attaching"):
        _detach_if_attached(device)
    state = device.state()
    device.close()
    return state


def _await(device: Device, pid: int, counter: str, least: int, until: float) -> None:
    while device.state()[counter] < least:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise Late(f"the child has not come to {least} {counter}")
        time.sleep(0)


def _child(action: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(1)
    return pid


def _attach(device: Device, address: int, size: int, *, again: bool) -> None:
    """In a child: attach to its memory, use that, and wait for the end."""
    device.attach("tlb", [], address, size)
    while again:
        device.detach()
        device.attach("tlb", [], address, size)
    device.store(address, size // PAGE_BYTES, 0, 1)
    signal.pause()


def _detach_if_attached(device: Device) -> None:
    """A child that was killed between detaching and attaching has left it detached."""
    try:
        device.detach()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
