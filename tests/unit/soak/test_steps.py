# SPDX-License-Identifier: GPL-2.0-only
"""The scenarios of a soak, in an order that a seed repeats."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.soak.steps import STEPS, chosen


class FakeSession:
    """A host whose files can be set; ``files`` is what they say now."""

    def __init__(self) -> None:
        self.host = SimpleNamespace(facts=SimpleNamespace(pace=1.0))
        self.files = {"/proc/swaps": "Filename\n/dev/vdc partition 1 2 3\n"}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def ask(self, op: str, **arguments: Any) -> Any:
        self.asked.append((op, arguments))
        return True

    def wait(self, op: str, seconds: float, **arguments: Any) -> Any:
        return self.ask(op, **arguments)

    def read(self, path: str) -> str:
        return self.files.get(path, "")

    @contextlib.contextmanager
    def setting(self, path: str, value: str) -> Iterator[None]:
        self.asked.append(("setting", {path: value}))
        yield


class FakeCrowd:
    """Guests that do not mind; ``limits`` is what their cgroup was given."""

    def __init__(self, seed: int = 1) -> None:
        self.limits: list[tuple[str, int | str]] = []
        self.session = FakeSession()
        self.home = SimpleNamespace(
            session=self.session,
            limit=self._limit,
            confine=lambda size: self._limit("memory.high", size),
        )
        self.chance = random.Random(seed)
        self.bytes = 2 << 20
        self.memory_mib = 60
        self.watched = 0.0
        self.replaced = 0

    def _limit(self, name: str, value: int | str) -> None:
        self.limits.append((name, value))

    def watch_for(self, seconds: float) -> None:
        self.watched += seconds

    def replace_one(self) -> None:
        self.replaced += 1
        self._limit("memory.high", "max")

    def merging(self) -> contextlib.AbstractContextManager[None]:
        return self.session.setting("ksm", "on")

    def one(self) -> Any:
        return SimpleNamespace(collapse=lambda: 0)


def names(seed: int, count: int) -> list[str]:
    crowd: Any = FakeCrowd(seed)
    return list(itertools.islice(chosen(crowd), count))


def test_a_seed_repeats_its_order_and_another_has_its_own() -> None:
    assert names(5, 40) == names(5, 40)
    assert names(5, 40) != names(6, 40)


def test_each_scenario_comes_once_a_round() -> None:
    order = names(5, 3 * len(STEPS))
    for first in range(0, len(order), len(STEPS)):
        assert sorted(order[first : first + len(STEPS)]) == sorted(STEPS)


@pytest.fixture(autouse=True)
def balloons(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes that balloons were given."""
    sizes: list[int] = []
    monkeypatch.setattr("harness.soak.steps.set_balloon", lambda _, mib: sizes.append(mib))
    monkeypatch.setattr("harness.soak.steps.free_mib", lambda _: 21)
    return sizes


@pytest.mark.parametrize("name", STEPS)
def test_a_scenario_watches_and_lifts_its_limit(name: str) -> None:
    crowd: Any = FakeCrowd()
    STEPS[name](crowd)
    assert crowd.watched > 0
    if crowd.limits:
        assert crowd.limits[0] == ("memory.high", 1 << 20)
        assert crowd.limits[-1] == ("memory.high", "max")


def test_swap_is_on_again_after_swapoff() -> None:
    crowd: Any = FakeCrowd()
    STEPS["swapoff"](crowd)
    asked = [op for op, _ in crowd.session.asked if op.startswith("swap")]
    assert asked == ["swapoff", "swapon"]


def test_a_balloon_is_let_out_of_the_guest_again(balloons: list[int]) -> None:
    crowd: Any = FakeCrowd()
    STEPS["balloon"](crowd)
    assert balloons == [50, 60]


def test_a_guest_is_replaced_under_pressure() -> None:
    crowd: Any = FakeCrowd()
    STEPS["replace"](crowd)
    assert crowd.replaced == 1
