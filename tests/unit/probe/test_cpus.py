# SPDX-License-Identifier: GPL-2.0-only
"""Who enters a cgroup keeps its CPUs, and the kernel's threads come to those of processes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from harness.probe.cpus import enter, gather


def test_a_process_keeps_the_cpus_that_it_had_when_it_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus = {1, 2}
    procs = tmp_path / "cgroup.procs"
    asked: list[tuple[int, set[int], str]] = []

    def ask(pid: int, cpus: set[int]) -> None:
        asked.append((pid, cpus, procs.read_text()))

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cpus if pid == 0 else {0})
    monkeypatch.setattr(os, "sched_setaffinity", ask)
    enter(str(tmp_path))
    threads = {int(thread.name) for thread in Path("/proc/self/task").iterdir()}
    assert asked == [(thread, cpus, str(os.getpid())) for thread, *_ in asked]
    assert {thread for thread, *_ in asked} == threads


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, set[int]]:
    """The CPUs of the processes below ``tmp_path``; 3 is bound, 4 has gone."""
    found = {0: {1, 2}, 2: {0, 1, 2}, 3: {0}, 5: {0, 1}}
    for name in ("2", "3", "4", "5", "self", "sys"):
        (tmp_path / name).mkdir()

    def look(pid: int) -> set[int]:
        if pid not in found:
            raise ProcessLookupError(pid)
        return found[pid]

    def ask(pid: int, cpus: set[int]) -> None:
        if not cpus:
            raise OSError(errno.EINVAL, "Invalid argument")
        found[pid] = cpus

    monkeypatch.setattr(os, "sched_getaffinity", look)
    monkeypatch.setattr(os, "sched_setaffinity", ask)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    return found


def test_the_kernels_threads_come_to_where_processes_may_run(
    processes: dict[int, set[int]], tmp_path: Path
) -> None:
    workers = tmp_path / "cpumask"
    gather(tmp_path, workers)
    assert processes == {0: {1, 2}, 2: {1, 2}, 3: {0}, 5: {1}}
    assert workers.read_text() == "6"
    gather(tmp_path, tmp_path / "none" / "cpumask")


def test_nothing_is_moved_where_every_cpu_is_for_all(
    processes: dict[int, set[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(processes)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    gather(tmp_path, tmp_path / "cpumask")
    assert processes == before
    assert not (tmp_path / "cpumask").exists()
