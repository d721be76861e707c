# SPDX-License-Identifier: GPL-2.0-only
"""The only place that runs programs on L0: argv lists, a deadline, and no orphans."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from harness.deadline import Deadline
from harness.errors import CommandError, InfrastructureError, MachineUnfitError, StoreError

_GRACE_SECONDS = 5.0
"""How long a program may take to end after SIGTERM before it is killed."""

_LONGEST_LINE = 65_536
"""Bytes after which a line is handed on although it has no end yet."""

_CANNOT_EXECUTE = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP}
)


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
    """Run a long program, appending stdout and stderr to ``log`` as they come.

    ``on_line`` is called with each line, in the calling thread. The status is not checked,
    because what a failing build means is for the caller to say; ``stdout`` of the result is
    empty. Raises DeadlineError as run() does, and StoreError when the log cannot be written.
    """
    words = tuple(str(word) for word in argv)
    started = time.monotonic()
    ended = f"{words[0]} was ended; its output is in {log}."
    with _log(log) as write, spawned(words, cwd=cwd, env=env, merge=True) as process:
        assert process.stdout is not None
        lines = _Lines()
        for chunk in _chunks(process.stdout, deadline, ended):
            write(chunk)
            for line in lines.feed(chunk):
                if on_line is not None:
                    on_line(line)
        try:
            process.wait(deadline.remaining)
        except subprocess.TimeoutExpired:
            raise deadline.error(ended) from None
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
    except OSError as error:
        if error.errno in _CANNOT_EXECUTE:
            what = error.filename or argv[0]
            raise MachineUnfitError(f"{what} cannot be run: {error.strerror}.") from error
        raise InfrastructureError(f"{argv[0]} did not start: {error.strerror}.") from error
    try:
        yield process
    finally:
        end(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what was still to be written is moot
                    stream.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process group that spawned() started, children that outlived their parent included.

    SIGTERM, a grace, SIGKILL. What cannot be ended at all, because it is another user's or stuck
    in the kernel, is left after a second grace rather than waited for.
    """
    for signum in (signal.SIGTERM, signal.SIGKILL):
        if not _runs(process):
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signum)
        for _ in Deadline.after(_GRACE_SECONDS, "ending a program").ticks(0.005, 0.05):
            if not _runs(process):
                return


def _runs(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process or anything in its group is alive."""
    if process.poll() is None:
        return True
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # Zombies answer too, and where process 1 of a container reaps nothing, they stay.
    return any(_group_of_live(entry) == process.pid for entry in Path("/proc").glob("[0-9]*"))


def _group_of_live(entry: Path) -> int | None:
    try:
        # The command name in parentheses may itself hold blanks and parentheses.
        fields = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    state, _parent, group = fields[:3]
    return None if state in "ZX" else int(group)


@contextlib.contextmanager
def _log(path: Path) -> Iterator[Callable[[bytes], object]]:
    try:
        sink = path.open("ab", buffering=0)
    except OSError as error:
        raise StoreError(f"The log {path} cannot be written: {error.strerror}.") from error

    def write(data: bytes) -> None:
        try:
            while data:
                data = data[sink.write(data) :]
        except OSError as error:
            raise StoreError(f"The log {path} cannot be written: {error.strerror}.") from error

    with sink:
        yield write


def _chunks(stream: IO[bytes], deadline: Deadline, ended: str) -> Iterator[bytes]:
    """What a pipe brings until its end; raises DeadlineError when that does not come in time.

    Not readline(): a child that left the group may hold the pipe open for ever.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if not selector.select(deadline.remaining):
                raise deadline.error(ended)
            chunk = os.read(stream.fileno(), 65536)
            yield chunk  # the empty one too: it ends the last line
            if not chunk:
                return


class _Lines:
    """Cuts a stream of bytes into decoded lines; one without an end is cut, not kept."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, chunk: bytes) -> Iterator[str]:
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        if len(self._pending) > _LONGEST_LINE or (not chunk and self._pending):
            lines.append(self._pending)
            self._pending = b""
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
