# SPDX-License-Identifier: GPL-2.0-only
"""The only place that runs programs on L0: argv lists, a deadline, and no orphans."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from harness.deadline import Deadline
from harness.errors import CommandError, MachineUnfitError

_GRACE_SECONDS = 5.0
"""How long a program may take to end after SIGTERM before it is killed."""


@dataclasses.dataclass(frozen=True)
class Completed:
    """What a program that ended left behind; times are seconds, output is decoded text."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    seconds: float

    def checked(self, hint: str = "") -> Completed:
        """Itself if the status is 0; raises CommandError with ``hint`` otherwise."""
        if self.status != 0:
            raise CommandError(self.argv, self.status, self.stderr or self.stdout, hint)
        return self


def require(program: str, package: str) -> str:
    """The path of ``program``; raises MachineUnfitError naming the Debian ``package``."""
    # Debian keeps mke2fs and others in sbin, which is not on a plain user's PATH.
    path = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if path is None:
        raise MachineUnfitError(
            f"The program {program} is missing; install the Debian package {package}."
        )
    return path


def run(
    argv: Sequence[str | Path],
    deadline: Deadline,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    check: bool = True,
    hint: str = "",
) -> Completed:
    """Run a program to its end and return its output.

    ``env`` is added to our own environment. Raises CommandError when ``check`` is set and the
    status is not 0, and DeadlineError when the deadline passes; the program and all of its
    children in the same process group are ended first.
    """
    words = tuple(str(word) for word in argv)
    started = time.monotonic()
    with spawned(words, cwd=cwd, env=env, stdin=stdin is not None) as process:
        try:
            out, err = process.communicate(stdin, timeout=deadline.remaining)
        except subprocess.TimeoutExpired:
            raise deadline.error(f"{words[0]} was ended.") from None
    completed = Completed(
        words,
        process.returncode,
        out.decode(errors="replace"),
        err.decode(errors="replace"),
        time.monotonic() - started,
    )
    return completed.checked(hint) if check else completed


def run_logged(
    argv: Sequence[str | Path],
    deadline: Deadline,
    log: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run a long program, appending stdout and stderr to ``log`` line by line.

    ``on_line`` is called with each line as it comes, in the calling thread. The status is not
    checked, because what a failing build means is for the caller to say; ``stdout`` of the
    result is empty. Raises DeadlineError as run() does.
    """
    words = tuple(str(word) for word in argv)
    started = time.monotonic()
    with (
        log.open("ab") as sink,
        spawned(words, cwd=cwd, env=env, merge=True) as process,
        _ended_at(deadline, process) as expired,
    ):
        stream = process.stdout
        assert stream is not None
        for line in _lines(stream):
            sink.write(line)
            if on_line is not None:
                on_line(line.decode(errors="replace").rstrip("\n"))
        process.wait()
    if expired.is_set():
        raise deadline.error(f"{words[0]} was ended; its output is in {log}.")
    return Completed(words, process.returncode, "", "", time.monotonic() - started)


@contextlib.contextmanager
def spawned(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bool = False,
    merge: bool = False,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A running program in a process group of its own, ended on the way out if it still runs."""
    try:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise MachineUnfitError(f"{argv[0]} cannot be run: {error.strerror}.") from error
    try:
        yield process
    finally:
        end(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process group that spawned() started: SIGTERM, a grace, SIGKILL."""
    for signum, grace in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)


@contextlib.contextmanager
def _ended_at(deadline: Deadline, process: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        end(process)

    timer = threading.Timer(deadline.remaining, expire)
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()
        timer.join()


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    yield from iter(stream.readline, b"")
