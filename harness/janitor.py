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
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

MARK = "MMU_HARNESS_RUN"
"""The environment variable that every process of a run carries."""

_LONGEST_DIRECTORY = 60
"""Bytes of a directory's path below which a UNIX socket in it fits sockaddr_un (108 bytes)."""

_READY = b"\n"


class Janitor:
    """Owns the run's directory and the promise that nothing of the run is left behind.

    ``directory`` is private (0700) and short enough for UNIX sockets. Directories elsewhere
    (half-made store entries) are put under the same promise with ``adopt`` and taken out of it
    with ``release`` once they are complete.
    """

    def __init__(self) -> None:
        self._mark = f"mmu-{secrets.token_hex(6)}"
        self.directory = _base(self._mark) / self._mark
        self._outer = os.environ.get(MARK)
        # Before the mark is set: the helper must survive its own sweep.
        environment = {key: value for key, value in os.environ.items() if key != MARK}
        self._helper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve()), self._mark],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        os.environ[MARK] = self._mark
        # Adopted before it exists: there is no moment in which it could be left behind.
        self.adopt(self.directory)
        self._await_helper()
        try:
            self.directory.mkdir(mode=0o700)
        except OSError as error:
            self.close()
            raise _failure(
                f"The private directory {self.directory} cannot be made: {error.strerror}. "
                "Point TMPDIR at a directory that can be written to."
            ) from error

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

    def _await_helper(self) -> None:
        """Wait until the helper cannot be stopped by accident any more, some 30 ms."""
        assert self._helper.stdout is not None
        with self._helper.stdout as answer:
            if answer.read(1) != _READY:
                self.close()
                raise _failure("The process that cleans up after the harness did not start.")

    def _tell(self, verb: str, directory: Path) -> None:
        assert self._helper.stdin is not None
        # NUL ends a message, because a path may hold anything else.
        message = verb.encode() + b" " + os.fsencode(directory.absolute()) + b"\0"
        try:
            self._helper.stdin.write(message)
            self._helper.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise _failure(
                "The process that cleans up after the harness is gone, so nothing new is begun."
            ) from None


def _base(name: str) -> Path:
    """Where the run's directory goes: $TMPDIR where that is writable and short enough."""
    base = Path(os.environ.get("TMPDIR") or "/var/tmp").absolute()  # noqa: S108 - private below
    if len(os.fsencode(base / name)) > _LONGEST_DIRECTORY or not os.access(base, os.W_OK):
        return Path("/tmp")  # noqa: S108 - the directory made below it is private
    return base


def _failure(sentence: str) -> Exception:
    # Imported here, because as the helper's script this file stands alone.
    from harness.errors import InfrastructureError

    return InfrastructureError(sentence)


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
    os.write(1, _READY)
    os.close(1)
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
        _remove(directory)


def _remove(directory: str) -> None:
    """Remove a tree, directories without write permission in it included, as far as we may."""
    shutil.rmtree(directory, ignore_errors=True)
    # Only where that did not do: walking follows no symbolic link, so nothing else is touched.
    for parent, _, _ in os.walk(directory):
        with contextlib.suppress(OSError):
            Path(parent).chmod(stat.S_IRWXU)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
