# SPDX-License-Identifier: GPL-2.0-only
"""A soak from its boot to its results, with a host and guests that are told what to do."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.display import Plain
from harness.errors import (
    GuestEmulationError,
    HarnessError,
    HostLostError,
    KernelSplat,
    KernelUntestableError,
    LinuxGuestError,
    OracleUnavailable,
    UsageError,
    Violation,
)
from harness.progress import Progress, Silent
from harness.soak import drive
from harness.soak.drive import Order, soaked
from harness.soak.timeline import Sample
from harness.store import Store
from harness.workbench import Wish

SAMPLE = Sample(1.0, 1, 2, 3, 4, 0, 5 << 20, 0.5)


class FakeHost:
    """A host whose memory can be saved, and whose kernel may have complained."""

    def __init__(self) -> None:
        self.problem: HarnessError | None = None
        self.lost = False
        self.guests = ""

    def check(self) -> None:
        if self.problem:
            raise self.problem

    def dump(self, path: Path, deadline: Deadline) -> None:
        if self.lost:
            raise HostLostError("gone")
        path.write_text(f"memory {self.guests}")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What a soak is made of; ``steps`` are the scenarios, ``done`` those that ran."""
    it = SimpleNamespace(host=FakeHost(), done=[], discarded=0, steps={}, audits=0)
    it.replaced, it.ended = 0, 1

    class Bench:
        def __init__(self, *_: object) -> None:
            pass

        def session(self, mode: object) -> Any:
            return SimpleNamespace(host=it.host)

        def discard(self) -> None:
            it.discarded += 1

    class FakeCrowd:
        def __init__(self, home: object, count: int, mib: int, chance: Any, take: Any) -> None:
            self.chance, self._take = chance, take

        def __enter__(self) -> FakeCrowd:
            it.host.guests = "with guests"
            return self

        def __exit__(self, *_: object) -> None:
            it.host.guests = ""

        def audit(self) -> None:
            it.audits += 1
            self._take(SAMPLE)

        def replace_broken(self) -> int:
            it.replaced += it.ended
            return int(it.ended)

    @contextlib.contextmanager
    def guests(*_: object) -> Iterator[object]:
        yield object()

    kernel = SimpleNamespace(release="6.12.1")
    monkeypatch.setattr(drive, "make_parts", lambda *_: SimpleNamespace(kernel=kernel))
    monkeypatch.setattr(drive, "linux_image", lambda *_: None)
    monkeypatch.setattr(drive, "linux_guests", guests)
    monkeypatch.setattr(drive, "Workbench", Bench)
    monkeypatch.setattr(drive, "Crowd", FakeCrowd)
    monkeypatch.setattr(drive, "STEPS", it.steps)
    monkeypatch.setattr("harness.soak.steps.STEPS", it.steps)
    return it


def run(
    tmp_path: Path, seconds: float = 0.05, progress: Progress | None = None
) -> tuple[Any, HarnessError | None, Path]:
    order = Order(2, 128, seconds, seed=7)
    results = tmp_path / "results"
    return soaked(Wish(), order, Store(tmp_path), tmp_path, results, progress or Silent())


def test_who_watches_a_soak_sees_how_it_goes(world: SimpleNamespace, tmp_path: Path) -> None:
    world.steps["wait"] = lambda crowd: None
    stream = io.StringIO()
    # Each look at the clock is half a minute later, so a log hears each update.
    run(tmp_path, progress=Plain(stream, map(float, itertools.count(0, 31)).__next__))
    lines = stream.getvalue().splitlines()
    assert any("the guests boot" in line for line in lines)
    assert any("wait" in line and "5 MiB verified" in line for line in lines)


def test_a_soak_ends_with_its_time_and_writes_what_it_saw(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    world.steps["wait"] = lambda crowd: world.done.append("wait")
    soak, failure, path = run(tmp_path)
    assert failure is None
    assert len(world.done) == len(soak.steps) == world.audits - 1
    document = json.loads((path / "soak.json").read_text())
    assert document["seed"] == 7
    assert document["failure"] == ""
    assert document["steps"][0]["name"] == "wait"
    assert (path / "soak.svg").read_text().startswith("<svg ")
    assert "seed 7" in (path / "soak.txt").read_text()
    assert not (path / "host-memory.kdump").exists()
    assert world.discarded == 1


@pytest.mark.parametrize("error", [Violation("content", "this", "that"), LinuxGuestError("died")])
def test_the_first_failure_ends_it_and_the_hosts_memory_is_saved(
    world: SimpleNamespace, tmp_path: Path, error: HarnessError
) -> None:
    def fail(crowd: object) -> None:
        raise error

    world.steps["fail"] = fail
    soak, failure, path = run(tmp_path, 60)
    assert failure is error
    assert str(error) in soak.failure
    assert (path / "host-memory.kdump").read_text() == "memory with guests"
    assert "Failed in fail" in (path / "soak.txt").read_text()
    assert world.discarded == 1


def test_a_guest_that_the_emulator_reset_is_replaced_and_counted(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    def now_and_then(crowd: object) -> None:
        world.done.append("")
        if len(world.done) % 2:
            raise GuestEmulationError("It reset itself.")

    world.steps["storm"] = now_and_then
    soak, failure, path = run(tmp_path)
    assert failure is None
    assert soak.broken == world.replaced >= 1
    assert f"{soak.broken} of the guests were broken" in (path / "soak.txt").read_text()


def test_a_soak_without_a_scenario_that_came_to_its_end_is_no_pass(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    def broken_once(crowd: object) -> None:
        world.done.append("")
        if len(world.done) == 1:
            raise GuestEmulationError("It reset itself.")

    world.steps["storm"] = broken_once
    soak, failure, _ = run(tmp_path, 0.0)
    assert failure is None
    assert (len(world.done), soak.broken) == (2, 1)


def test_a_host_that_can_be_put_under_no_scenario_is_untestable(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    def lack(crowd: object) -> None:
        raise OracleUnavailable("This kernel has no KSM.")

    world.steps.update(one=lack, other=lack)
    with pytest.raises(KernelUntestableError, match="no KSM"):
        run(tmp_path, 60)


@pytest.mark.parametrize(("ended", "steps"), [(1, 3), (0, 1)])
def test_guests_that_are_reset_each_time_or_a_host_that_failed_end_it(
    world: SimpleNamespace, tmp_path: Path, ended: int, steps: int
) -> None:
    def always(crowd: object) -> None:
        raise GuestEmulationError("It reset itself.")

    world.ended = ended
    world.steps["storm"] = always
    soak, failure, _ = run(tmp_path, 60)
    assert isinstance(failure, GuestEmulationError)
    assert len(soak.steps) == steps


def test_what_the_hosts_kernel_says_comes_first(world: SimpleNamespace, tmp_path: Path) -> None:
    def fail(crowd: object) -> None:
        world.host.problem = KernelSplat("oops", "BUG")
        world.host.lost = True
        raise LinuxGuestError("died")

    world.steps["fail"] = fail
    _, failure, path = run(tmp_path, 60)
    assert isinstance(failure, KernelSplat)
    assert not (path / "host-memory.kdump").exists()
    assert (path / "soak.json").exists()


def test_a_scenario_that_this_kernel_cannot_run_is_tried_once(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    def lack(crowd: object) -> None:
        world.done.append("lack")
        raise OracleUnavailable("This kernel has no KSM.")

    world.steps["lack"] = lack
    world.steps["wait"] = lambda crowd: world.done.append("wait")
    soak, failure, _ = run(tmp_path)
    assert failure is None
    assert world.done.count("lack") == 1
    assert world.done.count("wait") > 1
    assert len(soak.steps) == len(world.done)


def test_a_kernel_that_has_no_place_for_guests_is_untestable(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: object) -> object:
        raise OracleUnavailable("This kernel has no memory cgroups.")

    monkeypatch.setattr(drive, "linux_guests", nowhere)
    with pytest.raises(KernelUntestableError, match="no memory cgroups"):
        run(tmp_path)
    assert world.discarded == 1


def test_guests_that_no_host_has_room_for_are_refused(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="16 guests of 1024 MiB"):
        soaked(Wish(), Order(16, 1024, 1, 7), Store(tmp_path), tmp_path, tmp_path, Silent())


def test_a_bug_of_ours_is_none_of_the_hosts(world: SimpleNamespace, tmp_path: Path) -> None:
    def fail(crowd: object) -> None:
        raise ZeroDivisionError

    world.steps["fail"] = fail
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, 60)
    assert world.discarded == 1
