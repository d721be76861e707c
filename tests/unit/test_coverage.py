# SPDX-License-Identifier: GPL-2.0-only
"""Which test of a run is held to have reached what, whatever happens to its host."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness import coverage
from harness.coverage import Recorder
from harness.errors import HostLostError, OracleUnavailable
from harness.guest.session import Session
from harness.kernel.model import Kernel
from harness.oracle.callsites import CallSites
from harness.oracle.reach import Reading
from harness.progress import Silent
from harness.result.coverage import Coverage, Site
from harness.result.outcome import Request

FORK = Site("__mmu_notifier_invalidate_range_start", "copy_page_range", "mm/memory.c", 1392)
COW = Site("__mmu_notifier_invalidate_range_start", "wp_page_copy", "mm/memory.c", 3385)
KERNEL = Kernel(Path("bzImage"), "6.12.1", "0" * 64, "linux/")


class FakeReach:
    """Counts what a test adds to its session's ``passed``."""

    def __init__(self, session: Any, sites: CallSites) -> None:
        if session.problem is not None:
            raise session.problem
        session.watched += 1
        self._session = session
        self.unwatched = session.unwatched

    def read(self) -> Reading:
        if self._session.problem is not None:
            raise self._session.problem
        passed = dict(self._session.passed), dict(self._session.others)
        return Reading(*passed, self._session.unexplained, self._session.lost)


def host() -> Any:
    return SimpleNamespace(
        passed={FORK: 0, COW: 0},
        others={FORK: 0, COW: 0},
        problem=None,
        watched=0,
        unwatched=(),
        unexplained={},
        lost=0,
    )


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(coverage, "call_sites", lambda kernel: CallSites((FORK, COW), {}))
    monkeypatch.setattr(coverage, "Reach", FakeReach)
    return Recorder(KERNEL, Silent())


def run(recorder: Recorder, session: Any, name: str, mmu: str = "tdp", **passed: int) -> None:
    with recorder.watching(cast(Session, session), Request(f"t.py::{name}[{mmu}]", mmu, "anon")):
        session.passed[FORK] += passed.get("fork", 0)
        session.passed[COW] += passed.get("cow", 0)


def hits(result: Coverage) -> list[dict[Site, int]]:
    return [dict(cell.hits) for cell in result.cells]


def test_each_test_has_what_was_passed_while_it_ran(recorder: Recorder) -> None:
    session = host()
    session.passed[COW] = 7  # before anybody asked
    run(recorder, session, "test_a", fork=1)
    run(recorder, session, "test_b", fork=2, cow=1)
    run(recorder, session, "test_c")
    result = recorder.result()
    assert hits(result) == [{FORK: 1}, {FORK: 2, COW: 1}, {}]
    assert [cell.scenario for cell in result.cells] == ["t: a", "t: b", "t: c"]
    assert result.sites == (FORK, COW)
    assert result.release == "6.12.1"
    assert result.problems == ()
    assert session.watched == 1


def test_what_is_passed_for_a_vmm_itself_is_kept_apart(recorder: Recorder) -> None:
    session = host()
    session.others[COW] = 3
    with recorder.watching(cast(Session, session), Request("t.py::test_a[tdp]", "tdp", "")):
        session.passed[FORK] += 1
        session.others[COW] += 2
    (cell,) = recorder.result().cells
    assert (cell.hits, cell.others) == ({FORK: 1}, {COW: 2})


def test_what_is_passed_between_tests_belongs_to_none(recorder: Recorder) -> None:
    session = host()
    run(recorder, session, "test_a", fork=1)
    session.passed[COW] += 4
    run(recorder, session, "test_b", fork=1)
    result = recorder.result()
    assert hits(result) == [{FORK: 1}, {FORK: 1}]
    assert result.outside == {COW: 4}


def test_each_host_is_watched_by_itself(recorder: Recorder) -> None:
    first, second = host(), host()
    run(recorder, first, "test_a", fork=5)
    run(recorder, second, "test_a", mmu="shadow", fork=1)
    result = recorder.result()
    assert hits(result) == [{FORK: 5}, {FORK: 1}]
    assert result.outside == {}, "a new host begins at nought"
    assert result.modes == ("tdp", "shadow")


def test_a_test_that_fails_is_measured_and_its_failure_passes_through(recorder: Recorder) -> None:
    session = host()

    def failing() -> None:
        with recorder.watching(cast(Session, session), Request("t.py::test_a[tdp]", "tdp", "")):
            session.passed[FORK] += 1
            raise HostLostError("Gone.")

    with pytest.raises(HostLostError):
        failing()
    assert hits(recorder.result()) == [{FORK: 1}]


@pytest.mark.parametrize("problem", [HostLostError("Gone.\nFor ever."), OSError(5, "no tracefs")])
def test_a_host_that_does_not_answer_at_the_end_stops_nothing(
    recorder: Recorder, problem: Exception
) -> None:
    session = host()
    with recorder.watching(cast(Session, session), Request("t.py::test_a[tdp]", "tdp", "")):
        session.passed[FORK] += 1
        session.problem = problem
    run(recorder, host(), "test_b", cow=1)
    lost, well = recorder.result().cells
    assert (lost.hits, well.hits) == ({}, {COW: 1})
    assert lost.problem.startswith("the host did not answer at the end (")
    assert "\n" not in lost.problem


def test_a_host_that_cannot_be_watched_stops_nothing(recorder: Recorder) -> None:
    session = host()
    session.problem = OracleUnavailable("The host's kernel has no kprobe events.")
    run(recorder, session, "test_a", fork=1)
    run(recorder, session, "test_b", fork=1)
    result = recorder.result()
    assert [cell.problem for cell in result.cells] == [
        "The host's kernel has no kprobe events."
    ] * 2
    assert hits(result) == [{}, {}]


def test_a_kernel_that_cannot_be_searched_stops_nothing() -> None:
    recorder = Recorder(KERNEL, Silent())
    session = host()
    run(recorder, session, "test_a", fork=1)
    result = recorder.result()
    assert session.watched == 0
    assert result.sites == ()
    (problem,) = result.problems
    assert "6.12.1 has no vmlinux" in problem
    assert result.cells[0].problem == problem


def test_what_the_counts_do_not_tell_is_told(recorder: Recorder) -> None:
    session = host()
    session.unwatched = (COW,)
    session.unexplained = {"__mmu_notifier_release": 2}
    session.lost = 1
    run(recorder, session, "test_a", fork=1)
    run(recorder, session, "test_b", fork=1)
    problems = recorder.result().problems
    assert len(problems) == 3
    assert (
        problems[0] == "wp_page_copy: invalidate_range_start (mm/memory.c:3385) cannot be probed."
    )
    assert "__mmu_notifier_release came from no known site" in problems[1]
    assert "could not count" in problems[2]
