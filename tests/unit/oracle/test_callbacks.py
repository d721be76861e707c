# SPDX-License-Identifier: GPL-2.0-only
"""The order, pairs and coverage of a notifier's callbacks, judged from what was recorded."""

from __future__ import annotations

import pytest

from harness.guest.user import Callback, What
from harness.oracle.callbacks import freed_early, out_of_order, told, unbalanced
from harness.probe.layout import PAGE_BYTES

HVA = 0x10000000
CALM = dict.fromkeys(
    ("in_progress", "ends_too_many", "after_release", "starts", "ends", "late", "stale"), 0
)


def call(
    number: int,
    what: What,
    first: int = 0,
    last: int = 4,
    *,
    pid: int = 7,
    refused: bool = False,
) -> Callback:
    start, end = HVA + first * PAGE_BYTES, HVA + last * PAGE_BYTES
    return Callback(number, start, end, what, 0, pid, True, refused, False)


def test_a_record_of_the_module_is_a_callback() -> None:
    assert Callback.of([9, 0x1000, 0x2000, 2, 4, 0b101, 17]) == Callback(
        9, 0x1000, 0x2000, What.END, 4, 17, blockable=True, refused=False, late=True
    )
    with pytest.raises(ValueError, match="5"):
        Callback.of([9, 0x1000, 0x2000, 5, 4, 0, 17])


def test_pairs_in_order_are_right_nested_and_interleaved() -> None:
    nested = [
        call(1, What.START),
        call(2, What.START, 1, 2),
        call(6, What.END, 1, 2),
        call(7, What.START, 8, 9, pid=8),
        call(8, What.END),
        call(9, What.END, 8, 9, pid=8),
        call(10, What.RELEASE),
    ]
    assert out_of_order(nested) == []
    assert out_of_order([]) == []


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ([call(1, What.START)], ["without an end"]),
        ([call(1, What.END)], ["without a start"]),
        ([call(1, What.START), call(2, What.END, 0, 3)], ["end of 0x10000000-0x10003000"]),
        ([call(1, What.START), call(2, What.END, pid=9)], ["without a start", "without an end"]),
        ([call(2, What.START), call(1, What.END)], ["call 1 after call 2"]),
        (
            [call(1, What.RELEASE), call(2, What.START), call(3, What.END)],
            ["start", "end"],
        ),
        (
            # Ends in the order of the starts, which no caller that nests them gives.
            [
                call(1, What.START),
                call(2, What.START, 1, 2),
                call(3, What.END),
                call(4, What.END, 1, 2),
            ],
            ["after start of 0x10001000", "after start of 0x10000000"],
        ),
    ],
)
def test_what_is_out_of_order_is_named(calls: list[Callback], said: list[str]) -> None:
    wrong = out_of_order(calls)
    assert len(wrong) == len(said)
    for text, part in zip(wrong, said, strict=True):
        assert part in text


@pytest.mark.parametrize("name", ["in_progress", "ends_too_many", "after_release"])
def test_a_counter_that_must_be_zero_is_named(name: str) -> None:
    assert unbalanced(CALM) == []
    assert unbalanced({**CALM, name: 3}) == [f"{name} 3"]


def test_as_many_ends_as_starts() -> None:
    assert unbalanced({**CALM, "starts": 4, "ends": 4}) == []
    assert unbalanced({**CALM, "starts": 4, "ends": 3}) == ["4 starts and 3 ends"]


def test_a_page_that_was_free_before_is_told() -> None:
    assert freed_early(CALM) == []
    assert len(freed_early({**CALM, "late": 1, "stale": 2})) == 2
    assert freed_early({**CALM, "stale": 2})[0].startswith("2 accesses")


def test_pages_are_told_of_by_starts_that_were_heeded() -> None:
    calls = [
        call(1, What.START, 1, 3),
        call(2, What.END, 1, 3),
        call(3, What.START, 4, 5, refused=True),
        call(4, What.END, 0, 1),
        call(6, What.START, 6, 100),
        call(7, What.START, -9, -2),
    ]
    assert told(calls, HVA, 8).tolist() == [False, True, True, False, False, False, True, True]


def test_a_range_in_the_middle_of_a_page_covers_it() -> None:
    part = Callback(1, HVA + 5, HVA + PAGE_BYTES + 1, What.START, 0, 7, True, False, False)
    assert told([part], HVA, 3).tolist() == [True, True, False]
