# SPDX-License-Identifier: GPL-2.0-only
"""The life of one QEMU process."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import IO

from harness.command import end, spawned
from harness.deadline import Deadline
from harness.errors import QemuError
from harness.machine.console import ConsoleLog, pump
from harness.machine.splat import visible

_LAST_WORDS = 16384
"""Bytes of QEMU's standard error that are kept, from its end."""

_DRAIN_SECONDS = 5.0
"""How long a reader may take to see the end of a pipe whose writer is gone."""


class Qemu:
    """A running QEMU: its console, and why it ended if it did."""

    def __init__(self, process: subprocess.Popen[bytes], console: ConsoleLog) -> None:
        self.console = console
        self._process = process
        self._words = bytearray()
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = (
            pump(process.stdout, console),
            _keep_last(process.stderr, self._words),
        )

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    @property
    def switched_off(self) -> bool:
        """Whether it ended in order because the machine inside was switched off or reset."""
        # On a signal QEMU also ends in order, but says who sent it.
        return self._process.poll() == 0 and "terminating on signal" not in self.last_words()

    def wait(self, deadline: Deadline) -> bool:
        """Wait for its end, and for the last of its output; False when time runs out."""
        try:
            self._process.wait(deadline.remaining)
        except subprocess.TimeoutExpired:
            return False
        self._drain()
        return True

    def last_words(self) -> str:
        """The end of what QEMU wrote to its standard error, safe to show."""
        return visible(self._words.decode(errors="replace").strip())

    def error(self) -> QemuError:
        """The error that says how QEMU ended."""
        self._drain()
        status = self._process.poll()
        how = "stopped answering" if status is None else f"ended with status {status}"
        if status is not None and status < 0:
            how = f"was killed by signal {-status}"
        words = self.last_words()
        return QemuError(f"QEMU {how}." + (f" It said:\n{words}" if words else ""))

    def require_alive(self) -> None:
        """Raise QemuError if the process has ended."""
        if self.ended:
            raise self.error()

    def stop(self) -> None:
        """End the process, and take in the last of its output."""
        end(self._process)
        self._drain()

    def _drain(self) -> None:
        if self.ended:
            deadline = Deadline.after(_DRAIN_SECONDS, "Reading QEMU's last output")
            for reader in self._readers:
                reader.join(deadline.remaining)


@contextlib.contextmanager
def running(argv: Sequence[str]) -> Iterator[Qemu]:
    """A QEMU with this command line, whose standard output is the host's serial console.

    Raises MachineUnfitError when the program is missing.
    """
    with spawned(argv) as process:
        qemu = Qemu(process, ConsoleLog())
        try:
            yield qemu
        finally:
            qemu.stop()


def _keep_last(stream: IO[bytes], kept: bytearray) -> threading.Thread:
    def run() -> None:
        with contextlib.suppress(OSError, ValueError):  # closed under us: its end
            while chunk := stream.read1(4096):  # type: ignore[attr-defined]
                kept.extend(chunk)
                del kept[:-_LAST_WORDS]

    thread = threading.Thread(target=run, name="qemu-stderr", daemon=True)
    thread.start()
    return thread
