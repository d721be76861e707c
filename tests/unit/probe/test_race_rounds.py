# SPDX-License-Identifier: GPL-2.0-only
"""Rounds of a race on real memory, against a vcpu that keeps the rules and one that does not."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked import in_child

from harness.probe import race as module
from harness.probe.layout import PAGE_BYTES
from harness.probe.memory import Memory
from harness.probe.race import Race, migrate

PAGES, PAGE, WORD = 8, 5, 1
SECONDS = 10.0
ROUNDS = 3
ENOENT, EFAULT = -errno.ENOENT, -errno.EFAULT

Act = Callable[[Memory], object]


def _write(memory: Memory) -> None:
    """What a visit of a hammer does."""
    (seen,) = memory.peek(PAGE, 1, WORD)
    memory.poke(PAGE, 1, WORD, seen + 1)


def _nothing(memory: Memory) -> None:
    """A visit whose write went to a page that is nobody's any more."""


def _write_regardless(memory: Memory) -> None:
    """Write to the page whatever its mapping allows, as through a stale spte."""
    address = memory.hva + PAGE * PAGE_BYTES + 8 * WORD
    fd = os.open("/proc/self/mem", os.O_RDWR)
    os.pwrite(fd, os.urandom(8), address)
    os.close(fd)


class FakeVcpu:
    """A vcpu that makes a visit whenever somebody looks how many there were.

    ``visit`` is what it does while it may, ``refused`` what it does when it is refused, which is at
    every fifth look. It visits ``most`` times in all.
    """

    index = WORD

    def __init__(
        self, memory: Memory, visit: Act = _write, refused: Act = _nothing, most: int = 1 << 30
    ) -> None:
        self._memory, self._visit, self._refused, self._left = memory, visit, refused, most
        self._done = self._looks = 0
        self.mailbox: Any = self

    @property
    def done(self) -> int:
        if self._left:
            self._left -= 1
            self._visit(self._memory)
            self._done += 1
        return self._done

    @property
    def refusals(self) -> int:
        self._looks += 1
        if self._looks % 5 == 0:
            self._refused(self._memory)
        return self._looks // 5


def played(
    kind: str,
    visit: Act = _write,
    refused: Act = _nothing,
    *,
    backing: str = "anon",
    after: Act = lambda _: None,
) -> tuple[dict[str, int], object]:
    """How a race of three rounds ended in a forked child, and what ``after`` says then."""

    def run() -> tuple[dict[str, int], object]:
        memory = Memory(PAGES, backing)
        memory.poke(0, PAGES, WORD, 100)
        vcpu: Any = FakeVcpu(memory, visit, refused)
        return Race(memory, vcpu, PAGE, SECONDS).play(kind, ROUNDS), after(memory)

    return in_child(run)


BACKINGS = {"punch": "memfd"}
ON_ONE_NODE = ("discard", "discard-all", "punch", "protect", "fork", "move", "pageout")


@pytest.mark.parametrize("kind", ON_ONE_NODE)
def test_a_vcpu_that_goes_where_it_may_loses_no_write(kind: str) -> None:
    backing = BACKINGS.get(kind, "anon")
    assert played(kind, backing=backing)[0] == {"rounds": ROUNDS, "lost": 0}


@pytest.mark.parametrize("kind", ["discard", "discard-all", "punch"])
def test_a_write_that_is_not_in_the_new_page_is_lost(kind: str) -> None:
    backing = BACKINGS.get(kind, "anon")
    assert played(kind, _nothing, backing=backing)[0] == {"rounds": ROUNDS, "lost": ROUNDS}


class FakeWalker:
    """A vcpu that goes on to the next page whenever somebody looks how far it is.

    ``stuck`` is a page at which its writes go where the VMM does not see them.
    """

    index = WORD

    def __init__(self, memory: Memory, stuck: int | None = None) -> None:
        self._memory, self._stuck = memory, stuck
        self.done_visits = 0
        self.current = PAGE
        self.mailbox: Any = self

    @property
    def done(self) -> int:
        self.current = PAGE + self.done_visits % module.SPAN
        if self.current != self._stuck:
            self._memory.poke(self.current, 1, WORD, 1)
        self.done_visits += 1
        return self.done_visits


@pytest.mark.parametrize(("stuck", "lost"), [(None, 0), (PAGE, 1), (PAGE + 1, 1)])
def test_a_vcpu_whose_way_is_crossed_writes_to_pages_that_are_there(
    stuck: int | None, lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossed: list[int] = []
    discard = Memory.madvise

    def remember(memory: Memory, first: int, pages: int, advice: str) -> None:
        assert (pages, advice) == (1, "dontneed")
        crossed.append(first)
        discard(memory, first, pages, advice)

    monkeypatch.setattr(Memory, "madvise", remember)

    def run() -> dict[str, int]:
        memory = Memory(PAGE + module.SPAN)
        memory.poke(0, memory.pages, WORD, 100)
        vcpu: Any = FakeWalker(memory, stuck)
        played = Race(memory, vcpu, PAGE, SECONDS).play("discard-ahead", 1)
        assert set(crossed) <= set(range(PAGE, PAGE + module.SPAN))
        assert len(crossed) > module.SPAN
        return played

    assert in_child(run) == {"rounds": 1, "lost": lost}


def test_a_write_to_a_page_that_is_protected_is_one_too_many() -> None:
    ended, _ = played("protect", refused=_write_regardless)
    assert ended == {"rounds": ROUNDS, "lost": ROUNDS}


def test_a_write_that_a_forked_child_sees_is_one_too_many() -> None:
    ended, _ = played("fork", backing="memfd")
    assert ended == {"rounds": ROUNDS, "lost": ROUNDS}


def test_a_write_to_a_page_that_was_moved_is_one_too_many() -> None:
    class Moving(Memory):
        def move(self, first: int, pages: int, *, leaving: bool = False) -> int:
            self.there = super().move(first, pages, leaving=leaving)
            return self.there

    def refused(memory: Any) -> None:
        ctypes.c_uint64.from_address(memory.there + 8 * WORD).value += 1

    def run() -> dict[str, int]:
        memory = Moving(PAGES)
        vcpu: Any = FakeVcpu(memory, refused=refused)
        return Race(memory, vcpu, PAGE, SECONDS).play("move", ROUNDS)

    assert in_child(run) == {"rounds": ROUNDS, "lost": ROUNDS}


# What is left behind.


def _words(memory: Memory) -> list[int]:
    return memory.peek(0, PAGES, WORD)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("discard", [100, 100, 100, 100, 100, 4, 100, 100]),
        ("discard-all", [0, 0, 0, 0, 0, 4, 0, 0]),
        ("protect", [100, 100, 100, 100, 100, 112, 100, 100]),
        ("move", [100, 100, 100, 100, 100, 112, 100, 100]),
        ("pageout", [100, 100, 100, 100, 100, 112, 100, 100]),
        ("fork", [100, 100, 100, 100, 100, 112, 100, 100]),
    ],
)
def test_the_operation_is_done_to_its_pages_and_undone(kind: str, expected: list[int]) -> None:
    # A round is over after three visits; one more is made when they begin to be counted.
    _, words = played(kind, after=_words)
    assert words == expected


def _descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_the_child_of_a_fork_ends_with_its_round() -> None:
    def run() -> tuple[bool, str]:
        memory = Memory(PAGES)
        vcpu: Any = FakeVcpu(memory)
        before = _descriptors()
        Race(memory, vcpu, PAGE, SECONDS).play("fork", ROUNDS)
        same = _descriptors() == before
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return same, "no child is left"
        return same, "a child is left"

    assert in_child(run) == (True, "no child is left")


def test_pages_move_to_the_other_node_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[list[int], int]] = []
    monkeypatch.setattr(module, "migrate", lambda pages, node: moves.append((pages, node)))
    memory: Any = SimpleNamespace(hva=0x7000, pages=PAGES)
    vcpu: Any = FakeVcpu(memory, visit=_nothing)
    ended = Race(memory, vcpu, PAGE, SECONDS).play("migrate", ROUNDS)
    assert ended == {"rounds": ROUNDS, "lost": 0}
    where = [0x7000 + PAGE * PAGE_BYTES]
    assert moves == [(where, 1), (where, 0), (where, 1)]


# Time.


@pytest.mark.parametrize("kind", ["discard", "protect", "fork", "move"])
def test_a_vcpu_that_stands_still_has_no_round_and_the_race_ends(kind: str) -> None:
    def run() -> tuple[dict[str, int], float]:
        memory = Memory(PAGES)
        vcpu: Any = SimpleNamespace(index=WORD, refusals=0, mailbox=SimpleNamespace(done=5))
        start = time.monotonic()
        ended = Race(memory, vcpu, PAGE, 4 * 0.05).play(kind, ROUNDS)
        return ended, time.monotonic() - start

    ended, took = in_child(run)
    assert ended == {"rounds": 0, "lost": 0}
    assert 0.05 <= took < SECONDS


def test_a_slow_vcpu_may_take_longer_for_all_rounds_than_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]

    def look(_: float) -> None:
        now[0] += 0.2

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=look))

    def run() -> tuple[dict[str, int], float]:
        memory = Memory(PAGES)
        vcpu: Any = FakeVcpu(memory)
        return Race(memory, vcpu, PAGE, 4 * 1.0).play("discard", 5), now[0]

    ended, took = in_child(run)
    assert ended == {"rounds": 5, "lost": 0}
    assert took > 1.0, "or nothing was slow"


def test_rounds_before_time_was_up_count() -> None:
    def run() -> dict[str, int]:
        memory = Memory(PAGES)
        # A round takes the visits that are awaited and the one at which counting begins.
        vcpu: Any = FakeVcpu(memory, most=2 * (module._VISITS + 1) + 1)
        return Race(memory, vcpu, PAGE, 0.1).play("discard", 50)

    assert in_child(run) == {"rounds": 2, "lost": 0}


def test_a_race_that_nobody_knows_is_refused() -> None:
    memory: Any = SimpleNamespace(hva=0, pages=PAGES)
    vcpu: Any = FakeVcpu(memory)
    with pytest.raises(KeyError, match="stroll"):
        Race(memory, vcpu, PAGE, SECONDS).play("stroll", 1)


# move_pages(2).


def moved(pages: list[int], node: int = 0) -> tuple[int, list[int]]:
    """What is said of pages of eight, of which 3 is not touched and 4 not mapped."""

    def run() -> tuple[int, list[int]]:
        memory = Memory(PAGES)
        memory.poke(0, PAGES, 0, 1)
        memory.madvise(3, 1, "dontneed")
        memory.munmap(4, 1)
        return migrate([memory.hva + page * PAGE_BYTES for page in pages], node)

    try:
        return in_child(run)
    except AssertionError as error:
        for word in ("not implemented", "not permitted"):
            if word in str(error):
                pytest.skip(f"move_pages(2) cannot be called here: {word}.")
        raise


def test_each_page_has_its_place() -> None:
    assert moved([0, 1, 7]) == (0, [0, 0, 0])
    _, places = moved([0, 3, 4, 5])
    assert places == [0, ENOENT, EFAULT, 0]


def test_a_node_that_is_not_there_is_an_error() -> None:
    if Path("/sys/devices/system/node/node63").exists():
        pytest.skip("This machine has 64 nodes.")
    with pytest.raises(AssertionError, match="No such device"):
        moved([0], node=63)
