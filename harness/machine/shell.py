# SPDX-License-Identifier: GPL-2.0-only
"""An interactive shell in a host, on the terminal that the harness was started from."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.deadline import Deadline
from harness.errors import UsageError
from harness.machine.qemu_host import QemuHost

if TYPE_CHECKING:
    import paramiko

_START_SECONDS = 30.0
_CHUNK = 32768


def interact(host: QemuHost) -> int:
    """Let the user work in a shell of the host until it ends; returns its exit status.

    Raises UsageError when our standard input is no terminal, HostLostError when the connection
    breaks.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("A shell in the host needs a terminal; run this from one.")
    deadline = Deadline.after(_START_SECONDS * host.facts.pace, "Starting a shell in the host")
    columns, rows = shutil.get_terminal_size()
    channel = host.ssh.terminal(os.environ.get("TERM", "vt100"), columns, rows, deadline)
    with contextlib.closing(channel), _raw(sys.stdin.fileno()), _resized(channel):
        _relay(channel, sys.stdin.fileno(), sys.stdout.fileno())
        return channel.exit_status if channel.status_event.wait(1.0) else 255


def _relay(channel: paramiko.Channel, source: int, sink: int) -> None:
    """Copy both ways until the shell ends; the end of our input ends the shell."""
    sources = [channel.fileno(), source]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if channel.fileno() in ready:
            data = channel.recv(_CHUNK)
            if not data:
                return
            _write(sink, data)
        if source in ready:
            data = os.read(source, _CHUNK)
            if data:
                channel.sendall(data)
            else:
                channel.shutdown_write()
                sources.remove(source)


def _write(sink: int, data: bytes) -> None:
    while data:
        data = data[os.write(sink, data) :]


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """The terminal hands over every key as it is, and is as it was afterwards."""
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resized(channel: paramiko.Channel) -> Iterator[None]:
    """The shell learns when the size of our terminal changes."""

    def resize(*_: object) -> None:
        columns, rows = shutil.get_terminal_size()
        with contextlib.suppress(OSError, EOFError):
            channel.resize_pty(columns, rows)

    before = signal.signal(signal.SIGWINCH, resize)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
