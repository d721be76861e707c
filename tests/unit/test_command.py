# SPDX-License-Identifier: GPL-2.0-only
"""Programs end with us, in time, and say what happened."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from harness import command
from harness.deadline import Deadline
from harness.errors import CommandError, DeadlineError, MachineUnfitError, StoreError


def soon(seconds: float = 20.0) -> Deadline:
    return Deadline.after(seconds, "The test")


def alive(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return False
    return fields[0] not in "ZX"


@pytest.fixture
def pid_file(tmp_path: Path) -> Path:
    return tmp_path / "pid"


def test_output_status_and_time_come_back() -> None:
    done = command.run(["sh", "-c", "cat; echo err >&2; exit 3"], soon(), stdin=b"in", check=False)
    assert (done.stdout, done.stderr, done.status) == ("in", "err\n", 3)
    assert 0 < done.seconds < 10


def test_a_failing_program_is_an_error_with_its_words() -> None:
    with pytest.raises(CommandError, match="exited with 3") as caught:
        command.run(["sh", "-c", "echo why >&2; exit 3"], soon(), hint="Try again.")
    assert caught.value.output == "why\n"
    assert str(caught.value).endswith("why\nTry again.")


def test_more_output_than_a_pipe_holds_does_not_block() -> None:
    text = "import sys; sys.stderr.write('e' * 300000); sys.stdout.write('o' * 300000)"
    done = command.run([sys.executable, "-c", text], soon())
    assert (len(done.stdout), len(done.stderr)) == (300_000, 300_000)


def test_output_that_is_no_text_is_shown_all_the_same() -> None:
    assert command.run(["printf", r"\377x"], soon()).stdout == "\ufffdx"


def test_a_program_that_does_not_read_its_input_is_no_error() -> None:
    assert command.run(["true"], soon(), stdin=b"x" * 1_000_000).status == 0


def test_the_environment_is_added_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    done = command.run(["sh", "-c", "echo $OURS$THEIRS"], soon(), env={"THEIRS": "2"})
    assert done.stdout == "12\n"


@pytest.mark.parametrize("argv", [["no-such-program"], ["/"], ["/etc/passwd"]])
def test_what_cannot_be_run_is_named(argv: list[str]) -> None:
    with pytest.raises(MachineUnfitError, match=f"{argv[0]} cannot be run"):
        command.run(argv, soon())


def test_a_file_that_is_no_program_is_named(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"\0\1\2")
    text.chmod(0o755)
    with pytest.raises(MachineUnfitError, match="Exec format error"):
        command.run([text], soon())


def test_a_directory_that_is_not_there_is_named_rather_than_the_program(tmp_path: Path) -> None:
    with pytest.raises(MachineUnfitError, match="absent cannot be run"):
        command.run(["true"], soon(), cwd=tmp_path / "absent")


def test_require_finds_programs_of_the_administrator_and_names_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert command.require("mke2fs", "e2fsprogs").endswith("/sbin/mke2fs")
    with pytest.raises(MachineUnfitError, match="Debian package qemu-system-x86"):
        command.require("no-such-program", "qemu-system-x86")


def test_the_deadline_ends_the_whole_group(pid_file: Path) -> None:
    script = f"sleep 1000 & echo $! > {pid_file}; wait"
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"^The test took longer than 0\.5 s\. sh was ended\.$"):
        command.run(["sh", "-c", script], soon(0.5))
    assert time.monotonic() - started < 4
    assert not alive(int(pid_file.read_text()))


def test_a_child_that_outlives_its_parent_is_ended(pid_file: Path) -> None:
    script = f"sleep 1000 >/dev/null 2>&1 & echo $! > {pid_file}"
    command.run(["sh", "-c", script], soon())
    assert not alive(int(pid_file.read_text()))


def test_what_ignores_sigterm_is_killed(pid_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_GRACE_SECONDS", 0.3)
    script = f"trap '' TERM; echo $$ > {pid_file}; while :; do sleep 0.1; done"
    with pytest.raises(DeadlineError):
        command.run(["sh", "-c", script], soon(0.5))
    assert not alive(int(pid_file.read_text()))


def test_an_error_in_the_body_ends_the_program() -> None:
    with pytest.raises(KeyError), command.spawned(["sleep", "1000"]) as process:
        raise KeyError
    assert process.returncode == -signal.SIGTERM


def test_a_program_that_leaves_by_itself_is_not_waited_for_twice() -> None:
    started = time.monotonic()
    for _ in range(10):
        command.run(["true"], soon())
    assert time.monotonic() - started < 2


def test_a_logged_program_is_heard_line_by_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    heard: list[str] = []
    script = r"printf 'one\r\ntwo\n\377\nlast'; echo err >&2; exit 2"
    done = command.run_logged(["sh", "-c", script], soon(), log, on_line=heard.append)
    assert done.status == 2
    assert heard == ["one", "two", "\ufffd", "lasterr"]
    assert log.read_bytes() == b"before\none\r\ntwo\n\xff\nlasterr\n"


def test_a_last_line_without_end_is_heard(tmp_path: Path) -> None:
    heard: list[str] = []
    command.run_logged(["printf", "a\nb"], soon(), tmp_path / "log", on_line=heard.append)
    assert heard == ["a", "b"]


def test_a_line_without_end_is_handed_on_in_parts(tmp_path: Path) -> None:
    heard: list[str] = []
    argv = [sys.executable, "-c", "print('x' * 1000000, end='')"]
    command.run_logged(argv, soon(), tmp_path / "log", on_line=heard.append)
    assert "".join(heard) == "x" * 1_000_000
    assert max(map(len, heard)) < 200_000


def test_a_logged_program_ends_at_its_deadline_and_says_where_its_log_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(DeadlineError, match=f"its output is in {log}"):
        command.run_logged(["sh", "-c", "echo said; exec sleep 1000"], soon(0.5), log)
    assert log.read_text() == "said\n"


def test_a_pipe_that_a_lost_child_holds_open_does_not_hold_us(
    tmp_path: Path, pid_file: Path
) -> None:
    # It left the group, so only the janitor can find it; here it must not block.
    script = f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 1000' & sleep 0.2"
    started = time.monotonic()
    try:
        with pytest.raises(DeadlineError):
            command.run_logged(["sh", "-c", script], soon(1), tmp_path / "log")
        assert time.monotonic() - started < 4
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_a_log_that_cannot_be_written_is_an_error_of_the_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="absent/log cannot be written: No such file"):
        command.run_logged(["true"], soon(), tmp_path / "absent" / "log")
    with pytest.raises(StoreError, match="No space left"):
        command.run_logged(["echo", "x"], soon(), Path("/dev/full"))
