# SPDX-License-Identifier: GPL-2.0-only
"""What the callbacks of one notifier must be like: pure judgement over what a device recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from harness.guest.user import Callback, What
from harness.probe.layout import PAGE_BYTES


def out_of_order(callbacks: Sequence[Callback]) -> list[str]:
    """What is wrong with the order of the callbacks of a notifier that has both, start and end.

    Each end must be that of the same caller's last start that is still open, with the same range;
    none may be left open, and a release is the last of all.
    """
    wrong = []
    open_: dict[int, list[Callback]] = {}
    released = False
    number = 0
    for callback in callbacks:
        if callback.number <= number:
            wrong.append(f"call {callback.number} after call {number}")
        number = callback.number
        if released:
            wrong.append(f"{_named(callback)} after the release")
        if callback.what is What.START:
            open_.setdefault(callback.pid, []).append(callback)
        elif callback.what is What.END:
            begun = open_.get(callback.pid, [])
            if not begun:
                wrong.append(f"{_named(callback)} without a start")
            elif _range(opened := begun.pop()) != _range(callback):
                wrong.append(f"{_named(callback)} after {_named(opened)}")
        released = released or callback.what is What.RELEASE
    wrong += [f"{_named(left)} without an end" for begun in open_.values() for left in begun]
    return wrong


def unbalanced(state: Mapping[str, int]) -> list[str]:
    """Which counters of a device, with nothing under way, say that calls do not come in pairs."""
    wrong = [
        f"{name} {state[name]}"
        for name in ("in_progress", "ends_too_many", "after_release")
        if state[name]
    ]
    if state["starts"] != state["ends"]:
        wrong.append(f"{state['starts']} starts and {state['ends']} ends")
    return wrong


def freed_early(state: Mapping[str, int]) -> list[str]:
    """Which counters say that a page was free before its device was told."""
    texts = {
        "late": "pages were free already when the start told of them",
        "stale": "accesses met an entry of a page that was free",
    }
    return [f"{state[name]} {text}" for name, text in texts.items() if state[name]]


def told(callbacks: Sequence[Callback], hva: int, pages: int) -> npt.NDArray[np.bool_]:
    """For each page of memory at ``hva`` whether a start that was heeded covers it."""
    covered = np.zeros(pages, np.bool_)
    for callback in callbacks:
        if callback.what is not What.START or callback.refused:
            continue
        first = max(0, (callback.start - hva) // PAGE_BYTES)
        last = min(pages, -(-(callback.end - hva) // PAGE_BYTES))
        covered[first : max(first, last)] = True
    return covered


def _range(callback: Callback) -> tuple[int, int]:
    return callback.start, callback.end


def _named(callback: Callback) -> str:
    return (
        f"{callback.what.name.lower()} of {callback.start:#x}-{callback.end:#x} "
        f"by {callback.pid} (call {callback.number})"
    )
