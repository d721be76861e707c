# SPDX-License-Identifier: GPL-2.0-only
"""L0's side of the conversation with the agent of a host."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.deadline import Deadline
from harness.errors import GuestEmulationError, OracleUnavailable, ProbeError, Violation
from harness.machine.host import Channel, Host

_ANSWER_SECONDS = 30.0
"""How long an answer may take on a fast machine; the host's pace stretches it."""

_PATH = "/run/mmu-harness/probe.pyz"
_LOADER = (
    "import runpy, sys; size, path = sys.argv[2:]; "
    "open(path, 'wb').write(sys.stdin.buffer.read(int(size))); "
    "runpy.run_path(path, run_name='__main__')"
)
"""Receives the agent and becomes it: a command that only writes a file takes half a second."""


class GuestLost(Exception):
    """A guest's VMM is gone; ``status`` is its wait status, ``said`` its last words."""

    def __init__(self, name: str, status: int, said: str) -> None:
        self.name = name
        self.status = status
        self.said = said
        super().__init__(f"The VMM of guest {name} is gone (wait status {status}). {said}".strip())


class Session:
    """One agent on one host, which has ``cpus`` CPUs; requests go one at a time."""

    def __init__(self, host: Host, channel: Channel, cpus: int) -> None:
        self.host = host
        self.cpus = cpus
        self._channel = channel
        self._numbers = itertools.count(1)

    def new_name(self, kind: str) -> str:
        """A name that nothing else on this host has."""
        return f"{kind}{next(self._numbers)}"

    @property
    def patience(self) -> float:
        """Seconds that an answer may take on this host."""
        return _ANSWER_SECONDS * self.host.facts.pace

    def ask(self, op: str, **arguments: Any) -> Any:
        """Ask the agent itself.

        Raises OSError for a system call that failed on the host, ProbeError for anything else
        that the agent could not do, HostLostError or DeadlineError when there is no answer.
        """
        return self._value(op, self._exchange({"op": op, **arguments}, self.patience))

    def wait(self, op: str, seconds: float, **arguments: Any) -> Any:
        """Ask the agent itself for something that may take so many seconds longer; see ask()."""
        return self._value(op, self._exchange({"op": op, **arguments}, self.patience + seconds))

    def ask_all(self, *requests: tuple[str, dict[str, Any]]) -> list[Any]:
        """Ask the agent several things in order, in one exchange; raises for the first failure."""
        wanted = [{"op": op, **arguments} for op, arguments in requests]
        replies = self.ask("all", requests=wanted)
        # The agent stops at the first failure, which is then the last reply and raises here.
        values = [self._value(op, reply) for (op, _), reply in zip(requests, replies, strict=False)]
        if len(values) != len(requests):
            raise ProbeError(f"The agent answered {len(values)} of {len(requests)} requests.")
        return values

    def ask_guest(self, name: str, op: str, /, **arguments: Any) -> Any:
        """Ask a guest's VMM.

        Raises Violation when the VMM hangs in the kernel while the agent beside it answers, and
        GuestLost when it is gone.
        """
        return self._ask_guest(name, op, arguments, self.patience)

    def wait_guest(self, name: str, op: str, seconds: float, /, **arguments: Any) -> Any:
        """Ask a guest's VMM for something that may take as long as its argument ``seconds``."""
        return self._ask_guest(name, op, {**arguments, "seconds": seconds}, self.patience + seconds)

    def read(self, path: str) -> str:
        """The text of a file of the host."""
        return str(self.ask("read", path=path))

    @contextlib.contextmanager
    def setting(self, path: str, value: str) -> Iterator[None]:
        """A control file of the host says ``value`` while the context is open."""
        before = self.read(path)
        self.ask("write", path=path, text=value)
        with undone(lambda: self.ask("write", path=path, text=before)):
            yield

    def _ask_guest(self, name: str, op: str, arguments: dict[str, Any], seconds: float) -> Any:
        request = {"guest": name, "within": seconds, "op": op, **arguments}
        reply = self._exchange(request, seconds + self.patience)
        if "late" in reply:
            raise Violation(
                "progress",
                f"{op} of guest {name} to return within {seconds:.0f} s",
                f"nothing, while the agent beside it answered. Its threads:\n{reply['late']}",
            )
        if "died" in reply:
            raise GuestLost(name, reply["died"]["status"], reply["died"]["said"])
        return self._value(f"{op} of guest {name}", reply)

    def _exchange(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        deadline = Deadline.after(seconds, f"The answer of the host's agent to {request['op']}")
        self._channel.send(json.dumps(request).encode() + b"\n")
        return parse(self._channel.receive_line(deadline))

    @staticmethod
    def _value(what: str, reply: dict[str, Any]) -> Any:
        if "ok" in reply:
            return reply["ok"]
        error = reply.get("error", {})
        if error.get("errno") is not None:
            raise OSError(error["errno"], f"{what} on the host: {error['text']}")
        if error.get("kind") == "ChildKilled":
            raise Violation("VMM", f"the forked child to live through {what}", error["text"])
        raise ProbeError(f"The probe could not do {what}: {error or reply}.")


@contextlib.contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """Something done to the host, which ``undo`` undoes when the context is left.

    After OracleUnavailable, too: it skips a test, and the next one gets the same host. And after a
    guest that the emulator reset, which a soak replaces. After any other error the host is thrown
    away, and may not answer any more.
    """
    try:
        yield
    except (OracleUnavailable, GuestEmulationError):
        undo()
        raise
    undo()


def parse(line: bytes) -> dict[str, Any]:
    """A message of the agent; raises ProbeError when it is none."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise ProbeError(f"The host's agent said something that is no message: {line[:200]!r}.")
    return message


@contextlib.contextmanager
def session(host: Host, zipapp: Path) -> Iterator[Session]:
    """An agent on ``host`` for as long as the context is open; it ends its guests with itself."""
    deadline = Deadline.after(_ANSWER_SECONDS * host.facts.pace, "Starting the agent on the host")
    archive = zipapp.read_bytes()
    # Without -I and -S Python would look for what people have installed.
    words = ["python3", "-I", "-S", "-c", _LOADER, host.nonce, str(len(archive)), _PATH]
    with host.channel(words) as channel:
        channel.send(archive)
        hello = parse(channel.receive_line(deadline))
        if hello.get("hello") != host.nonce:
            raise ProbeError(
                f"The host's agent greeted with {hello!r} instead of this run's nonce."
            )
        yield Session(host, channel, int(hello["cpus"]))
