# SPDX-License-Identifier: GPL-2.0-only
"""What GitHub is told around a run, and that it takes no command from what a guest printed."""

from __future__ import annotations

import datetime
import io
from pathlib import Path

import pytest

from harness import ci
from harness.result.outcome import Outcome, Request, TestOutcome, completed
from harness.result.record import KernelFacts, MachineFacts, RunRecord
from harness.result.verdict import judge

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


@pytest.fixture
def record() -> RunRecord:
    message = "\n::error::guest\r\n::stop-commands::x"
    outcome = TestOutcome("t.py::test_a", Outcome.FAIL, "tdp", "anon", 1.0, message=message)
    requests = [Request("t.py::test_a", "tdp", "anon")]
    return RunRecord(
        judge(requests, [outcome], [], []),
        completed(requests, [outcome]),
        KernelFacts("linux/"),
        MachineFacts("x86_64", 2),
        (),
        ("mmu-harness", "check"),
        NOW,
        NOW,
    )


def executed(output: str) -> list[str]:
    """The commands that GitHub would execute, by its rules."""
    commands, stopped = [], ""
    for line in output.split("\n"):
        text = line.lstrip()
        if stopped:
            stopped = "" if text == f"::{stopped}::" else stopped
        elif text.startswith("::stop-commands::"):
            stopped = text.removeprefix("::stop-commands::")
        elif text.startswith("::"):
            commands.append(text)
    assert not stopped, "commands are read again in the end"
    return commands


def test_a_guest_gives_no_commands(record: RunRecord) -> None:
    stream = io.StringIO()
    job = ci.job(stream, {"GITHUB_ACTIONS": "true"})
    job.begin()
    stream.write("  ::error::guest\n::stop-commands::guest\n::guest::\n::set-env name=A::b\n")
    job.publish(record)
    job.end()
    commands = executed(stream.getvalue())
    assert commands[0].startswith("::error title=mmu-harness%3A FAIL")
    assert not [line for line in commands if line.startswith(("::error::guest", "::set-env"))]
    assert stream.getvalue().isascii()


def test_the_word_that_ends_the_silence_is_never_the_same() -> None:
    words = set()
    for _ in range(3):
        stream = io.StringIO()
        job = ci.GitHub(stream, None)
        job.begin()
        words.add(stream.getvalue())
    assert len(words) == 3


def test_a_run_without_a_verdict_lets_github_read_on() -> None:
    stream = io.StringIO()
    job = ci.GitHub(stream, None)
    job.begin()
    job.end()
    job.end()
    assert executed(stream.getvalue()) == []
    assert stream.getvalue().count("\n") == 2


def test_the_summary_is_added_to_what_is_there(record: RunRecord, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("# Build\n")
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    ci.job(io.StringIO(), environment).publish(record)
    assert summary.read_text().startswith("# Build\n## ❌ mmu-harness")


def test_a_summary_that_cannot_be_written_is_said_and_no_more(
    record: RunRecord, tmp_path: Path
) -> None:
    stream = io.StringIO()
    ci.GitHub(stream, tmp_path).publish(record)
    assert f"The job's summary {tmp_path} cannot be written" in stream.getvalue()


@pytest.mark.parametrize("environment", [{}, {"CI": "true"}, {"GITHUB_ACTIONS": "false"}])
def test_elsewhere_nothing_is_printed(record: RunRecord, environment: dict[str, str]) -> None:
    stream = io.StringIO()
    job = ci.job(stream, environment)
    job.begin()
    job.publish(record)
    job.end()
    assert stream.getvalue() == ""
