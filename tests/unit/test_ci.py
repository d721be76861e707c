# SPDX-License-Identifier: GPL-2.0-only
"""What GitHub is told around a run, and that it takes no command from what a guest printed."""

from __future__ import annotations

import datetime
import io
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import ci, cli, suite
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


# Templates.


def scripts(name: str) -> dict[str, str]:
    """The shell script of each job with its variables put in, by the job's name."""
    text = ci.template(name)
    if name == "jenkins":
        found = re.search(r"script: '''\n(.*?)'''", text, re.DOTALL)
        assert found
        values = {"kvm": {"ACCEL": "kvm", "SELECT": ""}}
        values["tcg"] = {"ACCEL": "tcg", "SELECT": "not hammering"}
        assert "choices: ['kvm', 'tcg']" in text
        assert "'' : 'not hammering'" in text
        return {job: filled(found[1], variables) for job, variables in values.items()}
    document: Any = yaml.safe_load(text)
    if name == "github":
        jobs = document["jobs"]
        runs = {job: [step["run"] for step in jobs[job]["steps"] if "run" in step] for job in jobs}
        return {job: "\n".join(lines) for job, lines in runs.items()}
    common = document[".mmu-harness"]
    return {
        job.removeprefix("mmu-harness-"): filled("\n".join(common["script"]), values["variables"])
        for job, values in document.items()
        if values.get("extends") == ".mmu-harness"
    }


def filled(script: str, variables: dict[str, str]) -> str:
    for key, value in variables.items():
        script = script.replace(f"${key}", value)
    return script


@pytest.mark.parametrize("name", ["github", "gitlab", "jenkins"])
def test_the_jobs_of_a_template_call_us_rightly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str | None, list[str]]] = []

    def check(expression: str | None, _: Sequence[str], options: Sequence[str]) -> int:
        called.append((expression or None, list(options)))
        return 0

    monkeypatch.setattr(suite, "check", check)
    jobs = scripts(name)
    assert sorted(jobs) == ["kvm", "tcg"]
    for job, script in sorted(jobs.items()):
        line = next(part for part in script.replace("\\\n", " ").split("\n") if " check " in part)
        words = shlex.split(line.partition("||")[0])
        assert words[:2] == ["mmu-harness", "check"]
        assert cli.command.main(words[1:], standalone_mode=False) == 0
        assert f"--accel={job}" in called[-1][1]
        assert "--ci" in called[-1][1]
    assert [expression for expression, _ in called] == [None, "not hammering"]


@pytest.mark.parametrize("name", ["github", "gitlab", "jenkins"])
def test_the_scripts_of_a_template_are_shell(name: str) -> None:
    for script in scripts(name).values():
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("statuses", "ended", "calls"),
    [([0], 0, 1), ([1], 1, 1), ([125], 125, 1), ([200, 0], 0, 2), ([200, 200], 200, 2)],
)
def test_a_job_of_github_ends_with_the_verdict_and_tries_infrastructure_twice(
    tmp_path: Path, statuses: list[int], ended: int, calls: int
) -> None:
    fake = tmp_path / "mmu-harness"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = check ] || exit 0\nread -r status <queue\n'
        "sed -i 1d queue\necho call >>calls\nexit $status\n"
    )
    fake.chmod(0o755)
    (tmp_path / "queue").write_text("".join(f"{status}\n" for status in statuses))
    done = subprocess.run(
        ["sh", "-e"],
        input=scripts("github")["kvm"],
        text=True,
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_WORKSPACE": str(tmp_path)},
        check=False,
    )
    assert done.returncode == ended
    assert len((tmp_path / "calls").read_text().splitlines()) == calls


@pytest.mark.parametrize("name", ci.TEMPLATES)
def test_every_template_can_be_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.command.main(["template", name], standalone_mode=False) == 0
    assert capsys.readouterr().out == ci.template(name)


def test_the_results_that_jobs_keep_are_where_runs_put_them() -> None:
    kept = yaml.safe_load(ci.template("gitlab"))[".mmu-harness"]["artifacts"]["paths"]
    assert f"--results {kept[0]} " in scripts("gitlab")["kvm"]
    assert "results/2*/junit.xml" in ci.template("jenkins")
