# SPDX-License-Identifier: GPL-2.0-only
"""The guests of a soak: counted rightly, audited, and replaced."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import GuestEmulationError, LinuxGuestError, Violation
from harness.linux_guest.spec import LinuxGuestSpec
from harness.soak import crowd as module
from harness.soak.crowd import Crowd
from harness.soak.timeline import Sample

VMSTAT = "nr_free_pages 7\npswpin 30\npswpout 40\n"


class FakeGuest:
    """A guest that has verified so many bytes."""

    def __init__(self, number: int) -> None:
        self.pid, self.vm_fd = number, 9
        self.counters = SimpleNamespace(verified=100 * number)
        self.serial = SimpleNamespace(silence=float(number), last=self.counters)
        self.killed = self.ended = self.broken = False
        self.watched = 0

    def order(self, order: str) -> Any:
        assert order == "check"
        return SimpleNamespace(visit=("visit", self.pid))

    def check(self) -> None:
        if self.broken:
            raise GuestEmulationError("It was given an interrupt twice.")

    def watch(self) -> None:
        self.watched += 1

    def kill(self) -> None:
        self.killed = True


class FakeHome:
    """A place where guests come up, but for the one whose number is ``bad``."""

    cgroup = "/cg"

    def __init__(self) -> None:
        self.made: list[FakeGuest] = []
        self.specs: list[LinuxGuestSpec] = []
        self.bad = 0
        self.limits: list[tuple[str, int | str, int]] = []
        self.session = SimpleNamespace(host=None, read=self._read)

    def _read(self, path: str) -> str:
        if path == "/proc/vmstat":
            return VMSTAT
        if path == "/cg/memory.swap.current":
            return "8192\n"
        if path.endswith("pages_1g"):
            raise FileNotFoundError(path)
        return "3\n"

    def limit(self, name: str, value: int | str) -> None:
        self.limits.append((name, value, len(self.made)))

    @contextlib.contextmanager
    def guest(self, spec: LinuxGuestSpec) -> Iterator[FakeGuest]:
        guest = FakeGuest(len(self.made) + 1)
        if guest.pid == self.bad:
            raise LinuxGuestError("It did not come up.")
        self.made.append(guest)
        self.specs.append(spec)
        try:
            yield guest
        finally:
            guest.ended = True


class FakeEvidence:
    """Oracles that agree, unless ``wrong`` is raised."""

    wrong: Violation | None = None

    def __init__(self, host: object) -> None:
        self.asked: list[tuple[str, object]] = []

    def content(self, visit: object) -> None:
        self.asked.append(("content", visit))

    def sound(self, guest: FakeGuest) -> None:
        self.asked.append(("sound", guest.pid))
        if self.wrong:
            raise self.wrong

    def frames(self, guest: FakeGuest) -> tuple[int, ...]:
        return (guest.pid,)

    def memory_given_back(self, guest: FakeGuest) -> None:
        assert guest.killed
        assert not guest.ended
        self.asked.append(("given back by", guest.pid))

    def frames_returned(self, guest: FakeGuest, frames: tuple[int, ...]) -> None:
        self.asked.append((f"returned to {guest.pid}", frames))

    def log_is_clean(self) -> None:
        self.asked.append(("log", None))


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> FakeHome:
    monkeypatch.setattr(module, "Evidence", FakeEvidence)
    return FakeHome()


def gathered(home: Any, seen: list[Sample], count: int = 2) -> Crowd:
    return Crowd(home, count, 128, random.Random(3), seen.append)


def test_each_guest_comes_up_and_ends(home: FakeHome) -> None:
    with gathered(home, []) as crowd:
        assert len(crowd.guests) == 2
        assert crowd.bytes == 256 << 20
        assert all(spec.merge and spec.memory_mib == 128 for spec in home.specs)
    assert all(guest.ended for guest in home.made)


def test_a_guest_that_does_not_come_up_ends_those_that_did(home: FakeHome) -> None:
    home.bad = 2
    with pytest.raises(LinuxGuestError), gathered(home, []):
        pytest.fail("one is missing")
    assert [guest.ended for guest in home.made] == [True]


def test_an_audit_asks_for_all_guests_and_counts(home: FakeHome) -> None:
    seen: list[Sample] = []
    with gathered(home, seen) as crowd:
        crowd.audit()
        evidence: Any = crowd._evidence
    assert [what for what, _ in evidence.asked] == ["content", "content", "sound", "sound", "log"]
    (sample,) = seen
    assert (sample.swapped_out, sample.swapped_in, sample.swap) == (40, 30, 8192)
    # 3 pages of 4 KiB and 3 of 2 MiB for each; this kernel does not tell of those of 1 GiB.
    assert sample.sptes == 2 * (3 + 3 * 512)
    assert sample.verified == 300
    assert sample.silence == 2.0
    assert sample.extra == 0


def test_a_violation_of_references_is_counted_and_raised(
    home: FakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sample] = []
    monkeypatch.setattr(FakeEvidence, "wrong", Violation("references", "exact", "page 1; page 2"))
    with gathered(home, seen) as crowd, pytest.raises(Violation):
        crowd.audit()
    assert seen[-1].extra == 2


def test_watching_watches_all_and_looks_on(home: FakeHome) -> None:
    seen: list[Sample] = []
    with gathered(home, seen) as crowd:
        crowd.watch_for(0.02)
    assert all(guest.watched for guest in home.made)
    assert len(seen) == 1


def test_a_guest_is_replaced_and_what_it_verified_still_counts(home: FakeHome) -> None:
    seen: list[Sample] = []
    with gathered(home, seen) as crowd:
        crowd.replace_one()
        crowd.audit()
        evidence: Any = crowd._evidence
        assert len(crowd.guests) == 2
    (gone,) = [guest for guest in home.made if guest.killed]
    assert gone.ended
    assert evidence.asked[0] == ("given back by", gone.pid)
    assert evidence.asked[1][1] == (gone.pid,)
    assert seen[-1].verified == 100 + 200 + 300
    # Before the third came.
    assert home.limits == [("memory.high", "max", 2)]


def test_a_guest_that_the_emulator_broke_is_replaced_without_limits(home: FakeHome) -> None:
    seen: list[Sample] = []
    with gathered(home, seen) as crowd:
        assert crowd.replace_broken() == 0
        home.made[0].broken = True
        assert crowd.replace_broken() == 1
        assert [guest.pid for guest in crowd.guests] == [2, 3]
        crowd.audit()
    assert seen[-1].verified == 100 + 200 + 300
    assert home.limits[-1] == ("memory.high", "max", 2)


def test_a_guest_that_ksm_merged_may_stay_charged_for_what_others_still_have(
    home: FakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged: list[object] = []

    @contextlib.contextmanager
    def merging(session: object) -> Iterator[None]:
        merged.append(session)
        yield

    monkeypatch.setattr(module, "merging", merging)
    with gathered(home, [], count=1) as crowd:
        with crowd.merging():
            assert merged == [home.session]
        evidence: Any = crowd._evidence
        crowd.replace_one()
        assert evidence.asked == []
        # The one in its place came when nobody merged any more.
        crowd.replace_one()
        assert evidence.asked == [("given back by", home.made[1].pid)]
