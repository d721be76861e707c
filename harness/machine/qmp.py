# SPDX-License-Identifier: GPL-2.0-only
"""QMP for callers that wait: each command has a deadline, and the traffic is on record."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError, Runstate
from qemu.qmp.message import Message

from harness.deadline import Deadline
from harness.errors import DeadlineError, HarnessError, QmpError
from harness.machine.host import Channel

_Answer = TypeVar("_Answer")

_MOST_LOGGED = 1 << 20
"""Bytes of traffic after which the record ends; a run makes a few KiB."""

_MOST_EVENTS = 100_000
"""Events after which no more are taken in; a run makes a few dozen."""

_LEAVE_SECONDS = 2.0
_CHUNK = 32768
_FOREVER_SECONDS = 1e8
"""Three years; select(2) takes no infinite time."""


class Qmp:
    """A QMP connection, made by ``connected``."""

    def __init__(self, record: Path) -> None:
        self._client = QMPClient("mmu-harness")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._record = record
        self._recorded = 0
        self._listener = EventListener()
        self._events: list[Mapping[str, Any]] = []
        self._arrived = threading.Condition()

    @property
    def version(self) -> str:
        """QEMU's version, from its greeting."""
        greeting = self._client.greeting
        assert greeting is not None
        qemu = cast(Mapping[str, int], greeting.QMP.version["qemu"])
        return f"{qemu['major']}.{qemu['minor']}.{qemu['micro']}"

    @property
    def ended(self) -> bool:
        """Whether the connection is gone, as when QEMU is."""
        return self._client.runstate is not Runstate.RUNNING

    def execute(
        self, command: str, deadline: Deadline, arguments: Mapping[str, object] | None = None
    ) -> Any:
        """Run a QMP command and return its answer.

        Raises QmpError when QEMU answers with an error or not as QMP promises, and DeadlineError
        when it does not answer in time.
        """
        self._log("->", {"execute": command, "arguments": dict(arguments or {})})
        request = None if arguments is None else dict(arguments)
        try:
            answer = self._wait(self._client.execute(command, request), deadline)
        except ExecuteError as error:
            self._log("<-", {"error": str(error)})
            raise QmpError(f"QEMU refused the QMP command {command}: {error}.") from error
        except QMPError as error:
            raise QmpError(f"The QMP command {command} failed: {error}.") from error
        self._log("<-", answer)
        return answer

    def human(self, line: str, deadline: Deadline) -> str:
        """The answer of QEMU's human monitor, for what QMP cannot tell."""
        answer = self.execute("human-monitor-command", deadline, {"command-line": line})
        return str(answer)

    def events(self) -> tuple[Mapping[str, Any], ...]:
        """All events so far, oldest first; subscribe by counting before the command."""
        with self._arrived:
            return tuple(self._events)

    def wait_event(self, name: str, deadline: Deadline, since: int = 0) -> Mapping[str, Any]:
        """The first event of this name among those after the first ``since``."""
        found: list[Mapping[str, Any]] = []

        def look() -> bool:
            found[:] = [event for event in self._events[since:] if event["event"] == name]
            return bool(found)

        with self._arrived:
            if not self._arrived.wait_for(look, deadline.remaining):
                raise deadline.error(f"QEMU did not send the event {name}.")
        return found[0]

    def _open(self, wire: socket.socket, deadline: Deadline, where: str) -> None:
        self._thread.start()
        self._client.register_listener(self._listener)
        try:
            self._wait(self._client.connect(wire), deadline)
        except QMPError as error:
            raise QmpError(f"QEMU does not speak QMP{where}: {error}.") from error
        asyncio.run_coroutine_threadsafe(self._collect(), self._loop)

    def _close(self) -> None:
        # A QEMU that is gone already shows as EOFError or OSError here, and one that sends what no
        # stream takes as ValueError.
        with contextlib.suppress(QMPError, DeadlineError, EOFError, OSError, ValueError):
            self._wait(self._client.disconnect(), Deadline.after(_LEAVE_SECONDS, "Closing QMP"))
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop)
        self._thread.join(_LEAVE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    async def _collect(self) -> None:
        async for event in self._listener:
            self._log("<-", event)
            with self._arrived:
                self._events.append(dict(event))
                self._arrived.notify_all()
            if len(self._events) == _MOST_EVENTS:
                self._client.remove_listener(self._listener)
                self._log("--", f"{_MOST_EVENTS} events; no more are taken in")
                return

    def _wait(self, work: Coroutine[Any, Any, _Answer], deadline: Deadline) -> _Answer:
        # The limit is kept inside the loop, so that the work has tidied up when we go on.
        limited = asyncio.wait_for(work, deadline.remaining)
        future = asyncio.run_coroutine_threadsafe(limited, self._loop)
        try:
            return future.result(deadline.remaining + _LEAVE_SECONDS)
        except TimeoutError:
            raise deadline.error("QEMU does not answer on its QMP socket.") from None

    def _log(self, direction: str, message: object) -> None:
        """Put one message on record, with the wall clock as in QEMU's own time stamps."""
        if isinstance(message, Message):
            message = dict(message)
        line = f"{time.time():.3f} {direction} {json.dumps(message, default=str)}\n"
        self._recorded += len(line)
        if self._recorded <= _MOST_LOGGED:
            with self._record.open("a") as file:
                file.write(line)


@contextlib.contextmanager
def connected(
    path: Path, record: Path, deadline: Deadline, alive: Callable[[], None]
) -> Iterator[Qmp]:
    """A connection to the QMP socket at ``path``, its traffic written to ``record``.

    ``alive`` is asked while nobody listens there yet, and raises if nobody ever will. Raises
    DeadlineError when no greeting comes: a stopped QEMU accepts connections and never sends it.
    """

    def dial() -> socket.socket | None:
        alive()
        wire = socket.socket(socket.AF_UNIX)
        try:
            wire.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            # The socket is made before anybody listens on it.
            wire.close()
            return None
        return wire

    wire = deadline.poll(dial, f"QEMU does not listen on its QMP socket {path}.")
    with _connected(wire, record, deadline, f" on {path}") as qmp:
        yield qmp


@contextlib.contextmanager
def connected_over(channel: Channel, record: Path, deadline: Deadline) -> Iterator[Qmp]:
    """A connection to a QEMU in a host whose monitor is the standard input and output of a channel.

    Two threads pass on what either side says. When the channel ends, so does the connection, and
    commands under way raise QmpError.
    """
    ours, theirs = socket.socketpair()
    relays = [
        threading.Thread(target=relay, args=(channel, theirs), name="qmp-relay", daemon=True)
        for relay in (_pass_in, _pass_out)
    ]
    for relay in relays:
        relay.start()
    try:
        with _connected(ours, record, deadline) as qmp:
            yield qmp
    finally:
        # Wakes the thread that waits for what we say.
        with contextlib.suppress(OSError):
            theirs.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _connected(
    wire: socket.socket, record: Path, deadline: Deadline, where: str = ""
) -> Iterator[Qmp]:
    qmp = Qmp(record)
    try:
        qmp._open(wire, deadline, where)
        yield qmp
    finally:
        qmp._close()


def _pass_out(channel: Channel, wire: socket.socket) -> None:
    """Hand on what QEMU says until it has ended, or the connection is cut."""
    forever = Deadline.after(_FOREVER_SECONDS, "QEMU's next word")
    with contextlib.suppress(HarnessError, OSError):
        while True:
            wire.sendall(channel.receive_line(forever) + b"\n")
    with contextlib.suppress(OSError):
        wire.shutdown(socket.SHUT_RDWR)


def _pass_in(channel: Channel, wire: socket.socket) -> None:
    """Hand on what we say."""
    with contextlib.suppress(HarnessError, OSError):
        while data := wire.recv(_CHUNK):
            channel.send(data)


async def _cancel_all() -> None:
    loop = asyncio.get_running_loop()
    own = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks(loop) if task is not own]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    loop.stop()
