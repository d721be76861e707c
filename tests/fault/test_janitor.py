# SPDX-License-Identifier: GPL-2.0-only
"""Nothing outlives a run, however it ends: real processes, really killed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.janitor import MARK, Janitor

# Holds what a run holds: a program, one that left its session, one that ignores SIGTERM, sockets
# and files in its directory, and a half-made store entry elsewhere.
DRIVER = """
    import os, subprocess, sys, time
    from pathlib import Path
    from harness.janitor import Janitor

    janitor = Janitor()
    (janitor.directory / "socket").touch()
    entry, kept = Path(sys.argv[1], "half-made"), Path(sys.argv[1], "complete")
    janitor.adopt(entry)
    janitor.adopt(kept)
    for directory in (entry, kept):
        directory.mkdir()
        (directory / "file").touch()
    janitor.release(kept)
    locked = entry / "locked"
    locked.mkdir()
    (locked / "file").touch()
    locked.chmod(0o500)
    (entry / "outside").symlink_to(kept)
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stubborn = "trap '' TERM; while :; do sleep 0.2; done"
    programs = [
        subprocess.Popen(["sleep", "1000"], **quiet),
        subprocess.Popen(["setsid", "sleep", "1000"], **quiet),
        subprocess.Popen(["sh", "-c", stubborn], start_new_session=True, **quiet),
    ]
    pids = [program.pid for program in programs]
    print(janitor.directory, janitor._helper.pid, *pids, flush=True)
    sys.stdin.readline()
    {ending}
"""


@dataclasses.dataclass(frozen=True)
class Run:
    process: subprocess.Popen[str]
    directory: Path
    helper: int
    programs: tuple[int, ...]
    elsewhere: Path

    def waited(self) -> None:
        """Wait for the harness and for the end of what cleans up after it."""
        self.process.wait(20)
        soon().poll(lambda: not alive(self.helper))

    def check_nothing_is_left(self) -> None:
        assert [pid for pid in self.programs if alive(pid)] == []
        assert marked(self.directory.name) == []
        assert not self.directory.exists()
        assert [path.name for path in self.elsewhere.iterdir()] == ["complete"]
        assert (self.elsewhere / "complete" / "file").exists()


def soon() -> Deadline:
    return Deadline.after(20, "The test")


def alive(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in "ZX"


def marked(name: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={name}".encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Run]]:
    processes: list[subprocess.Popen[str]] = []

    def start(ending: str) -> Run:
        elsewhere = tmp_path / "store"
        elsewhere.mkdir()
        script = textwrap.dedent(DRIVER).replace("{ending}", textwrap.dedent(ending))
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(elsewhere)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        directory, helper, *programs = process.stdout.readline().split()
        assert len(programs) == 3
        run = Run(process, Path(directory), int(helper), tuple(map(int, programs)), elsewhere)
        assert all(alive(pid) for pid in (run.helper, *run.programs))
        assert (run.directory / "socket").exists()
        assert run.directory.stat().st_mode & 0o777 == 0o700
        process.stdin.write("\n")
        process.stdin.flush()
        return run

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_killed_harness_leaves_nothing(start: Callable[[str], Run], signum: int) -> None:
    run = start("time.sleep(1000)")
    run.process.send_signal(signum)
    run.waited()
    run.check_nothing_is_left()


def test_a_killed_process_group_leaves_nothing(start: Callable[[str], Run]) -> None:
    # What a terminal or a job runner does: everything in the foreground at once.
    run = start("time.sleep(1000)")
    os.killpg(run.process.pid, signal.SIGKILL)
    run.waited()
    run.check_nothing_is_left()


def test_signals_to_the_helper_do_not_stop_it(start: Callable[[str], Run]) -> None:
    run = start("time.sleep(1000)")
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(run.helper, signum)
    run.process.kill()
    run.waited()
    run.check_nothing_is_left()


@pytest.mark.parametrize("ending", ["os._exit(3)", "raise SystemExit(3)", "1 / 0", "os.abort()"])
def test_a_harness_that_just_ends_leaves_nothing(
    start: Callable[[str], Run], ending: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = start(ending)
    run.waited()
    run.check_nothing_is_left()
    capfd.readouterr()


def test_closing_waits_until_all_is_gone(start: Callable[[str], Run]) -> None:
    run = start(
        """
        janitor.close()
        left = [program.pid for program in programs if program.poll() is None]
        os._exit(len(left) + janitor.directory.exists())
        """
    )
    assert run.process.wait(20) == 0
    run.check_nothing_is_left()


def test_a_harness_within_a_harness_goes_with_it(start: Callable[[str], Run]) -> None:
    inner = start("time.sleep(1000)")
    # The driver was started by nobody's run, so give it one: mark it as an outer run would.
    outer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import subprocess, sys
                from harness.janitor import Janitor
                janitor = Janitor()
                inner = "import time; from harness.janitor import Janitor; j = Janitor();"
                inner += "print(j.directory, j._helper.pid, flush=True); time.sleep(1000)"
                child = subprocess.Popen([sys.executable, "-c", inner], stdout=subprocess.PIPE)
                print(janitor.directory, janitor._helper.pid, child.pid, flush=True)
                print(child.stdout.readline().decode().strip(), flush=True)
                sys.stdin.read()
                """
            ),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with outer:
        assert outer.stdout is not None
        directory, helper, child = outer.stdout.readline().split()
        inner_directory, inner_helper = outer.stdout.readline().split()
        outer.kill()
    soon().poll(lambda: not any(alive(int(pid)) for pid in (helper, child, inner_helper)))
    assert not Path(directory).exists()
    assert not Path(inner_directory).exists()
    # An unrelated run beside it is none of its business.
    assert all(alive(pid) for pid in (inner.process.pid, *inner.programs))


@pytest.mark.parametrize(
    "base", ["x" * 110, "absent", "unwritable"], ids=["long", "absent", "unwritable"]
)
def test_the_directory_is_short_wherever_tmpdir_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    directory = tmp_path / base
    if base != "absent":
        directory.mkdir()
    if base == "unwritable":
        # Permissions do not stop root.
        monkeypatch.setattr(os, "access", lambda path, mode: path != directory)
    monkeypatch.setenv("TMPDIR", str(directory))
    with Janitor() as janitor:
        assert len(os.fsencode(janitor.directory)) <= 60
        assert janitor.directory.parent == Path("/tmp")
    assert not janitor.directory.exists()


def test_a_short_tmpdir_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    # A janitor that was killed in another test could not take it back.
    monkeypatch.delenv(MARK, raising=False)
    with Janitor() as janitor:
        assert janitor.directory.parent == Path("/dev/shm")
        assert os.environ[MARK] == janitor.directory.name
    assert MARK not in os.environ


def test_without_its_helper_nothing_new_is_begun(tmp_path: Path) -> None:
    janitor = Janitor()
    os.kill(janitor._helper.pid, signal.SIGKILL)
    janitor._helper.wait()
    with pytest.raises(InfrastructureError, match="cleans up after the harness is gone"):
        janitor.adopt(tmp_path)
    janitor.close()
    janitor.directory.rmdir()
