# SPDX-License-Identifier: GPL-2.0-only
"""Nothing outlives the harness, not even when the harness is killed.

A door opens one ``Janitor``. It makes the run's private directory, marks this process and with
it every later child through an environment variable, and starts a helper process that holds the
read end of a pipe. When the pipe closes, for whatever reason, the helper ends every process
that carries the mark and removes the directories. Killing the harness with SIGKILL is just one
of those reasons.

This file is also the helper: it runs as a script with nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

MARK = "MMU_HARNESS_RUN"
"""The environment variable that every process of a run carries."""

_LONGEST_DIRECTORY = 60
"""Bytes of a directory's path below which a UNIX socket in it fits sockaddr_un (108 bytes)."""


class Janitor:
    """Owns the run's directory and the promise that nothing of the run is left behind.

    ``directory`` is private (0700) and short enough for UNIX sockets. Directories elsewhere
    (half-made store entries) are put under the same promise with ``adopt`` and taken out of it
    with ``release`` once they are complete.
    """

    def __init__(self) -> None:
        base = Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 - private below
        if len(os.fsencode(base)) > _LONGEST_DIRECTORY - 16 or not os.access(base, os.W_OK):
            base = Path("/tmp")  # noqa: S108 - the directory made below is private
        self.directory = Path(tempfile.mkdtemp(prefix="mmu-", dir=base))
        self._mark = self.directory.name
        self._outer = os.environ.get(MARK)
        # Before the mark is set: the helper must survive its own sweep.
        environment = {key: value for key, value in os.environ.items() if key != MARK}
        self._helper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve()), self._mark],
            env=environment,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        os.environ[MARK] = self._mark
        self.adopt(self.directory)

    def adopt(self, directory: Path) -> None:
        """Have ``directory`` removed when the run ends, however it ends."""
        self._tell("adopt", directory)

    def release(self, directory: Path) -> None:
        """Leave ``directory`` alone from now on."""
        self._tell("release", directory)

    def close(self) -> None:
        """End what is left of the run, remove its directories, and wait until that is done."""
        if self._helper.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._helper.stdin.close()
        if self._outer is None:
            os.environ.pop(MARK, None)
        else:
            os.environ[MARK] = self._outer
        self._helper.wait()

    def __enter__(self) -> Janitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _tell(self, verb: str, directory: Path) -> None:
        assert self._helper.stdin is not None
        # NUL ends a message, because a path may hold anything else.
        self._helper.stdin.write(verb.encode() + b" " + os.fsencode(directory) + b"\0")
        self._helper.stdin.flush()


def _marked(mark: str) -> list[int]:
    """The ids of all processes of the run except the one that asks for its end."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), os.getppid()):
            continue
        with contextlib.suppress(OSError):
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def _sweep(mark: str) -> None:
    """End every marked process: SIGTERM first, SIGKILL for what is left after a second."""
    started = time.monotonic()
    while left := _marked(mark):
        gentle = time.monotonic() - started < 1.0
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM if gentle else signal.SIGKILL)
        if time.monotonic() - started > 10.0:
            return
        time.sleep(0.05)


def main(mark: str) -> None:
    """Wait for the harness to end, then clean up after it."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    adopted: list[str] = []
    pending = b""
    while chunk := os.read(0, 65536):
        *messages, pending = (pending + chunk).split(b"\0")
        for message in messages:
            verb, _, path = message.partition(b" ")
            if verb == b"adopt":
                adopted.append(os.fsdecode(path))
            elif os.fsdecode(path) in adopted:
                adopted.remove(os.fsdecode(path))
    _sweep(mark)
    for directory in adopted:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
