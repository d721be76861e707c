# SPDX-License-Identifier: GPL-2.0-only
"""Faults while a test runs on a real host: signals, and a kernel that complains afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import Deadline

SECONDS = 300.0
ROOT = Path(__file__).parents[2]

SLEEPING = """
import pathlib, time

def test_a(guest, evidence):
    evidence.content(guest.fill(seed=1))
    pathlib.Path({here!r}, "running").touch()
    time.sleep(600)
"""
LATE = """
from harness.deadline import Deadline

def test_a(guest, evidence, host):
    evidence.content(guest.fill(seed=1))
    line = "<4>WARNING: CPU: 0 PID: 1 at mm/rmap.c:1 on_purpose+0x1/0x2"
    script = f"(sleep 1; echo '{line}' >/dev/kmsg; sleep 1) >/dev/null 2>&1 &"
    host.run(["sh", "-c", script], Deadline.after(30, "the test"))

def test_b(guest, evidence, host):
    evidence.content(guest.fill(seed=1))
    Deadline.after(60, "the report").poll(lambda: "on_purpose" in host.log.text())
"""

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def start(tmp_path: Path, temporary: Path) -> Iterator[Start]:
    started = []

    def start(text: str) -> subprocess.Popen[bytes]:
        (tmp_path / "test_mine.py").write_text(text)
        with (tmp_path / "log").open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "harness", "check", "--mmu=tdp", "test_mine.py"],
                cwd=tmp_path,
                env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "CI": "1"},
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def said(tmp_path: Path) -> str:
    text = (tmp_path / "log").read_text(errors="replace")
    print(text)
    return text


def results(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "results/latest/results.json").read_text())


def left(temporary: Path) -> list[str]:
    found = [str(path) for path in temporary.iterdir()]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TMPDIR={temporary}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(entry.name)
    return found


SIGNALS = {
    "SIGKILL": ([signal.SIGKILL], -9),
    "SIGTERM": ([signal.SIGTERM], 143),
    "SIGINT": ([signal.SIGINT], 130),
    "SIGINT twice": ([signal.SIGINT, signal.SIGINT], 130),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_while_a_test_runs_leaves_nothing(
    start: Start, tmp_path: Path, temporary: Path, name: str
) -> None:
    signals, code = SIGNALS[name]
    process = start(SLEEPING.format(here=str(tmp_path)))
    Deadline.after(SECONDS, "The test").poll(
        lambda: (tmp_path / "running").exists() or process.poll() is not None
    )
    for signum in signals:
        process.send_signal(signum)
    assert process.wait(60) == code, said(tmp_path)
    Deadline.after(30, "Cleaning up").poll(lambda: not left(temporary), str(left(temporary)))
    if code > 0:
        assert f"Interrupted by {name.split()[0]}." in said(tmp_path)
        assert results(tmp_path)["verdict"]["word"] == "INTERRUPTED"
        assert [test["outcome"] for test in results(tmp_path)["tests"]] == ["missing"]


def test_a_report_after_a_test_is_a_failure(start: Start, tmp_path: Path, temporary: Path) -> None:
    # Asked for before the test ended, and printed after it.
    process = start(LATE)
    assert process.wait(SECONDS) == 1, said(tmp_path)
    document = results(tmp_path)
    assert document["verdict"]["word"] == "FAIL"
    assert document["tests"][0]["outcome"] == "pass"
    assert "on_purpose" in json.dumps(document)
    assert left(temporary) == []
