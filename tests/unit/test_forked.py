# SPDX-License-Identifier: GPL-2.0-only
"""A function runs in a fork as a program would: with its output in a log, a status, and an end."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from harness import forked
from harness.deadline import Deadline
from harness.errors import DeadlineError, Interrupted
from harness.forked import run_forked


def soon(seconds: float = 30) -> Deadline:
    return Deadline.after(seconds, "the function")


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_what_it_says_is_in_the_log_and_what_it_returns_is_the_status(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")

    def action() -> int:
        print("out")
        print("err", file=sys.stderr)
        os.write(1, b"below\n")
        assert sys.stdin.read() == ""
        return 125

    print("ours", end="")
    status, seconds = run_forked(action, soon(), log)
    assert status == 125
    assert 0 < seconds < 30
    text = log.read_text()
    assert text.startswith("before\n")
    assert sorted(text.split()) == ["before", "below", "err", "out"]
    assert capfd.readouterr().out == "ours", "and nothing twice"


def test_it_changes_nothing_here(tmp_path: Path) -> None:
    seen: list[int] = []

    def action() -> int:
        seen.append(os.getpid())
        os.environ["MMU_FORKED"] = "1"
        assert os.getsid(0) == os.getpid(), "the terminal's signals are not for it"
        return 0

    assert run_forked(action, soon(), tmp_path / "log")[0] == 0
    assert seen == []
    assert "MMU_FORKED" not in os.environ


def test_an_error_is_in_the_log_and_no_success(tmp_path: Path) -> None:
    def action() -> int:
        raise ValueError("broken")

    assert run_forked(action, soon(), tmp_path / "log")[0] == 1
    assert "ValueError: broken" in (tmp_path / "log").read_text()


def test_a_signal_that_ends_it_is_a_negative_status(tmp_path: Path) -> None:
    def action() -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert run_forked(action, soon(), tmp_path / "log")[0] == -signal.SIGKILL


def test_what_takes_too_long_is_ended_even_if_it_does_not_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "_GRACE_SECONDS", 0.2)
    mark = tmp_path / "pid"

    def action() -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        mark.write_text(str(os.getpid()))
        time.sleep(600)
        return 0

    with pytest.raises(DeadlineError, match="its output is in"):
        run_forked(action, soon(1), tmp_path / "log")
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_it_can_tidy_up_when_we_are_interrupted(tmp_path: Path) -> None:
    tidied = tmp_path / "tidied"

    def action() -> int:
        def stop(number: int, frame: object) -> None:
            tidied.touch()
            sys.exit(143)

        signal.signal(signal.SIGTERM, stop)
        soon().poll(lambda: _sleeps(os.getppid()))
        os.kill(os.getppid(), signal.SIGUSR2)
        time.sleep(600)
        return 0

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted(signal.SIGTERM)

    before = signal.signal(signal.SIGUSR2, interrupt)
    try:
        with pytest.raises(Interrupted):
            run_forked(action, soon(), tmp_path / "log")
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert tidied.exists()
