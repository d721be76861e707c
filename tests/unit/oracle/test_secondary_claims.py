# SPDX-License-Identifier: GPL-2.0-only
"""Claims about the notifiers by devices, once where each holds and once where it is broken."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import ProbeError, Violation
from harness.guest.user import Access, Callback, What
from harness.oracle.secondary import SecondaryEvidence
from harness.probe.layout import PAGE_BYTES
from harness.result.outcome import OracleStatus

HVA = 0x40000000
PAGES = 8
CALM = dict.fromkeys(
    (
        "in_progress", "ends_too_many", "after_release", "starts", "ends", "late", "stale",
        "hits", "misses", "retries", "lost",
    ),
    0,
)  # fmt: skip


class FakeDevice:
    """Has calls to tell of once, and ``later`` others, with which what is under way ends."""

    def __init__(
        self, calls: Sequence[Callback] = (), *, later: Sequence[Callback] = (), **state: int
    ) -> None:
        self._calls = [tuple(calls), tuple(later)]
        self._ends = len(later)
        self._state = {**CALM, **state}
        self._looks = 0

    def callbacks(self) -> tuple[Callback, ...]:
        self._looks += 1
        return self._calls.pop(0) if self._calls else ()

    def state(self) -> dict[str, int]:
        if self._looks < 2 or not self._ends:
            return self._state
        return {**self._state, "in_progress": 0, "ends": self._state["ends"] + self._ends}


class Clock:
    """Stands for the module ``time`` in harness.deadline: it moves when somebody waits."""

    now = 50.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def call(number: int, what: What, first: int = 0, last: int = PAGES, pid: int = 4) -> Callback:
    start, end = HVA + first * PAGE_BYTES, HVA + last * PAGE_BYTES
    return Callback(number, start, end, what, 0, pid, True, False, False)


PAIR = (call(1, What.START), call(2, What.END))


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> SecondaryEvidence:
    monkeypatch.setattr("harness.deadline.time", Clock())
    host: Any = SimpleNamespace(facts=SimpleNamespace(pace=1.0))
    return SecondaryEvidence(host)


@pytest.fixture
def user() -> Any:
    return SimpleNamespace(hva=HVA, pages=PAGES)


def well_told(ours: SecondaryEvidence, device: FakeDevice, *before: Callback) -> Any:
    return ours.well_told(device, before)  # type: ignore[arg-type]


def violated(ours: SecondaryEvidence) -> list[str]:
    return [one.name for one in ours.reports if one.status is OracleStatus.VIOLATED]


def test_calls_in_pairs_are_well_told(ours: SecondaryEvidence) -> None:
    assert well_told(ours, FakeDevice(PAIR, starts=1, ends=1)) == PAIR
    assert {one.name for one in ours.reports} == {"callbacks", "secondary TLB"}
    assert not violated(ours)


def test_what_was_asked_for_before_counts_as_well(ours: SecondaryEvidence) -> None:
    start, end = PAIR
    assert well_told(ours, FakeDevice([end], starts=1, ends=1), start) == PAIR


def test_what_is_under_way_is_given_time_to_end(ours: SecondaryEvidence) -> None:
    device = FakeDevice(PAIR[:1], later=PAIR[1:], starts=1, in_progress=1)
    assert well_told(ours, device) == PAIR
    assert not violated(ours)


@pytest.mark.parametrize(
    ("device", "oracle"),
    [
        (FakeDevice(PAIR[:1], starts=1, in_progress=1), "callbacks"),
        (FakeDevice(PAIR[1:], ends=1, ends_too_many=1), "callbacks"),
        (FakeDevice(PAIR, starts=2, ends=1), "callbacks"),
        (FakeDevice(PAIR, starts=1, ends=1, late=1), "secondary TLB"),
        (FakeDevice(PAIR, starts=1, ends=1, stale=1), "secondary TLB"),
    ],
)
def test_what_is_not_well_told_is_a_violation(
    ours: SecondaryEvidence, device: FakeDevice, oracle: str
) -> None:
    with pytest.raises(Violation) as caught:
        well_told(ours, device)
    assert caught.value.oracle == oracle
    assert violated(ours) == [oracle]


def test_records_without_room_are_no_evidence(ours: SecondaryEvidence) -> None:
    with pytest.raises(ProbeError, match="no room for 3"):
        well_told(ours, FakeDevice(PAIR, starts=1, ends=1, lost=3))


def test_a_page_that_nobody_told_of_is_named(ours: SecondaryEvidence, user: Any) -> None:
    ours.told_of(user, PAIR)
    some = [call(1, What.START, 0, 3), call(2, What.START, 4, PAGES)]
    ours.told_of(user, some, 4)
    ours.told_of(user, some, 0, 3)
    with pytest.raises(Violation) as caught:
        ours.told_of(user, some)
    assert (caught.value.oracle, caught.value.page) == ("notifier", 3)


def test_access_is_granted_with_its_words(ours: SecondaryEvidence) -> None:
    assert ours.granted("reading", Access(words=(1, 2), done=2)) == (1, 2)
    with pytest.raises(Violation) as caught:
        ours.granted("reading", Access(refused=14, done=1))
    assert (caught.value.oracle, caught.value.page) == ("access", 1)


def test_an_entry_of_a_free_page_is_no_matter_of_access(ours: SecondaryEvidence) -> None:
    with pytest.raises(Violation, match="page 2 was free") as caught:
        ours.granted("reading", Access(refused=errno.ESTALE, done=2))
    assert (caught.value.oracle, caught.value.page) == ("secondary TLB", 2)


def test_access_is_denied_at_the_page_where_it_must_be(ours: SecondaryEvidence) -> None:
    ours.denied("reading", Access(refused=14, done=3), 3)
    for access, said in (
        (Access(words=(7,), done=1), "read 0x7"),
        (Access(done=4), "went through"),
        (Access(refused=14, done=2), "page 2 was refused already"),
    ):
        with pytest.raises(Violation, match=said):
            ours.denied("reading", access, 3)


def test_a_number_is_exact(ours: SecondaryEvidence) -> None:
    ours.counted("releases", 1, 1)
    with pytest.raises(Violation, match="1 releases; seen: 2"):
        ours.counted("releases", 1, 2)


def test_notifiers_are_told_the_same_whatever_the_numbers(ours: SecondaryEvidence) -> None:
    later = [call(5, What.START), call(9, What.END)]
    ours.same_calls([PAIR, later, PAIR])
    for other in ([], PAIR[:1], PAIR[::-1], [call(1, What.START, 1), call(2, What.END, 1)]):
        with pytest.raises(Violation, match="notifier 1 "):
            ours.same_calls([PAIR, other])
