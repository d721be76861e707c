# SPDX-License-Identifier: GPL-2.0-only
"""The host's serial console: kept within bounds, watched while it grows."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Iterator
from typing import IO

from harness.deadline import Deadline
from harness.machine.splat import Splat, find_splats

_HEAD = 4 << 20
_TAIL = 4 << 20
"""Bytes kept from the start and from the end of a console; what is between may be dropped."""

_CHUNK = 65536
_LONGEST_LINE = 16384

_BATCH_SECONDS = 0.005

_QUIET_SECONDS = 0.2
"""A report is taken to be complete when the console has been silent for this long."""


class ConsoleLog:
    """All that a host printed. Positions are bytes from its start, and stay valid for ever.

    One thread appends; any number may read and wait.
    """

    def __init__(self, head: int = _HEAD, tail: int = _TAIL) -> None:
        self._limits = (head, tail)
        self._head = bytearray()
        self._tail: collections.deque[bytes] = collections.deque()
        self._tail_size = 0
        self._total = 0
        self._line_start = 0
        self._closed = False
        self._changed = threading.Condition()

    def append(self, data: bytes) -> None:
        """Add what the host printed."""
        with self._changed:
            newline = data.rfind(b"\n")
            if newline >= 0:
                self._line_start = self._total + newline + 1
            self._total += len(data)
            room = self._limits[0] - len(self._head)
            self._head += data[:room]
            if rest := data[room:] if room < len(data) else b"":
                self._tail.append(rest)
                self._tail_size += len(rest)
                while self._tail_size - len(self._tail[0]) >= self._limits[1]:
                    self._tail_size -= len(self._tail.popleft())
            self._changed.notify_all()

    def close(self) -> None:
        """Say that nothing will follow."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether nothing will follow."""
        return self._closed

    def mark(self) -> int:
        """The present position, at the start of a line: one that is half printed is still ahead."""
        with self._changed:
            return self._line_start

    def text(self, since: int = 0) -> str:
        """What was printed from position ``since`` on, with a note where something was dropped."""
        return self._bytes(since).decode(errors="replace").replace("\r\n", "\n")

    def tail(self, lines: int, since: int = 0) -> str:
        """The last lines that are not blank."""
        kept = [line for line in self.text(since).splitlines() if line.strip()]
        return "\n".join(kept[-lines:])

    def splats(self, since: int = 0) -> tuple[Splat, ...]:
        """The kernel's reports from position ``since`` on."""
        return find_splats(self.text(since))

    def settle(self, deadline: Deadline) -> None:
        """Wait until the console is silent for a moment, so that a report in print is complete."""
        with self._changed:
            seen = -1
            while seen != self._total and not self._closed and not deadline.expired:
                seen = self._total
                self._changed.wait_for(
                    lambda: self._closed, min(_QUIET_SECONDS, deadline.remaining)
                )

    def follow(self, deadline: Deadline, since: int = 0) -> Iterator[str]:
        """Each line from position ``since`` on as it comes, until the console closes.

        The unfinished last line comes when it closes. Raises DeadlineError when time runs out.
        """
        position = since
        pending = b""
        while True:
            data, closed, more = self._news(position, deadline)
            position += more
            *lines, pending = (pending + data).split(b"\n")
            if len(pending) > _LONGEST_LINE or (closed and pending):
                lines.append(pending)
                pending = b""
            for line in lines:
                yield line.decode(errors="replace").rstrip("\r")
            if closed:
                return
            if not more:
                raise deadline.error()

    def _news(self, position: int, deadline: Deadline) -> tuple[bytes, bool, int]:
        """What follows a position, once there is some or time is out: text, closed, its length.

        Where something was dropped, the text is shorter than its length.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._total > position or self._closed, deadline.remaining
            )
            return self._bytes(position), self._closed, self._total - position

    def _bytes(self, since: int) -> bytes:
        with self._changed:
            tail_start = self._total - self._tail_size
            dropped = tail_start - len(self._head)
            tail = b"".join(self._tail)
            if since >= tail_start:
                return tail[since - tail_start :] if self._tail else bytes(self._head[since:])
            note = b"\n[%d bytes are not kept]\n" % dropped if dropped > 0 else b""
            return bytes(self._head[since:]) + note + tail


def pump(stream: IO[bytes], log: ConsoleLog) -> threading.Thread:
    """Start a thread that appends a stream to the log until its end, and then closes the log."""

    def run() -> None:
        try:
            # read1 returns what is there; read would wait for a whole chunk.
            while chunk := _read(stream):
                log.append(chunk)
                # QEMU hands over single characters; taking each by itself would keep a CPU of
                # L0 busy that the emulation needs.
                time.sleep(_BATCH_SECONDS)
        finally:
            log.close()

    thread = threading.Thread(target=run, name="console", daemon=True)
    thread.start()
    return thread


def _read(stream: IO[bytes]) -> bytes:
    try:
        return stream.read1(_CHUNK)  # type: ignore[attr-defined,no-any-return]
    except (OSError, ValueError):  # closed under us: the same as its end
        return b""
