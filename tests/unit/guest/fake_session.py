# SPDX-License-Identifier: GPL-2.0-only
"""A host whose agent is a Python function, and a clock that only moves when somebody waits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.deadline import Deadline
from harness.guest.session import Session
from harness.machine.mmu import Mmu

Request = dict[str, Any]
Agent = Callable[[Request], Any]
"""What answers a request: with an object for JSON, or with bytes that are sent as they are."""


class FakeClock:
    """Stands for the module ``time`` in harness.deadline."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeChannel:
    """A channel to an agent; ``deadlines`` are what each answer was given.

    ``archive`` is the zip file that came before all requests.
    """

    stderr_tail = ""

    def __init__(self, agent: Agent, greeting: bytes = b"") -> None:
        self.requests: list[Request] = []
        self.deadlines: list[float] = []
        self.closed = False
        self.archive = b""
        self._agent = agent
        self._lines = [greeting] if greeting else []

    def send(self, data: bytes) -> None:
        if data.startswith(b"PK"):
            assert not self.requests
            self.archive = data
            return
        assert data.endswith(b"\n")
        assert data.count(b"\n") == 1, "one request is one line"
        self.requests.append(json.loads(data))
        answer = self._agent(dict(self.requests[-1]))
        self._lines.append(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    def receive_line(self, deadline: Deadline) -> bytes:
        self.deadlines.append(deadline.seconds)
        assert self._lines, "nothing was asked"
        return self._lines.pop(0)

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> FakeChannel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class FakeHost:
    """As much of a host as sessions need."""

    def __init__(self, channel: FakeChannel, pace: float = 1.0, nonce: str = "n0nce") -> None:
        self.facts: Any = SimpleNamespace(pace=pace, mmu=Mmu.TDP)
        self.nonce = nonce
        self.log: Any = None
        self.directory = Path()
        self.files: dict[str, bytes] = {}
        self.started: list[tuple[str, ...]] = []
        self._channel = channel

    def put(self, path: str, data: bytes, deadline: Deadline, *, mode: int = 0o644) -> None:
        self.files[path] = data

    def channel(self, argv: Sequence[str], deadline: Deadline | None = None) -> FakeChannel:
        self.started.append(tuple(argv))
        return self._channel

    def run(self, argv: Sequence[str], deadline: Deadline, **_: Any) -> Any:
        raise NotImplementedError

    def background(self, argv: Sequence[str], deadline: Deadline) -> Any:
        raise NotImplementedError

    def through(self, port: int, keys: Any, deadline: Deadline) -> Any:
        raise NotImplementedError

    def dump(self, path: Path, deadline: Deadline) -> None:
        raise NotImplementedError

    def debugger(self) -> Any:
        raise NotImplementedError

    def write_physical(self, address: int, data: bytes) -> None:
        raise NotImplementedError

    def paused(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    def pausing_inside(self, still: Any) -> AbstractContextManager[None]:
        raise NotImplementedError

    def check(self) -> None:
        """Nothing happened."""


def session_with(agent: Agent, pace: float = 1.0) -> tuple[Session, FakeChannel]:
    """A session whose agent is a function, and the channel to it."""
    channel = FakeChannel(agent)
    return Session(FakeHost(channel, pace), channel, cpus=2), channel
