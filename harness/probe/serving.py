# SPDX-License-Identifier: GPL-2.0-only
"""How a process of the probe answers requests, and passes them on to children forked off it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

Handler = Callable[..., Any]


class ChildKilled(Exception):
    """A forked child ended in the middle of a request, as when the kernel kills it by SIGBUS."""


def serve(connection: socket.socket, handlers: dict[str, Handler]) -> None:
    """Answer JSON lines until the peer hangs up.

    A request is {"op": NAME, ...arguments}; the answer is {"ok": VALUE} or {"error": {...}}.
    """
    with connection.makefile("rwb") as stream:
        for line in stream:
            stream.write(json.dumps(answer(handlers, json.loads(line))).encode() + b"\n")
            stream.flush()


def answer(handlers: dict[str, Handler], request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request; errors become data, because the peer is another machine."""
    try:
        handler = handlers[request.pop("op")]
        return {"ok": handler(**request)}
    except OSError as error:
        return {"error": {"kind": "OSError", "errno": error.errno, "text": str(error)}}
    except Exception as error:  # a VMM that dies would look like the kernel's doing
        return {"error": {"kind": type(error).__name__, "errno": None, "text": str(error)}}


class Children:
    """The children forked off a process, which share its memory copy-on-write.

    ``handlers`` gives the requests that a child answers.
    """

    def __init__(self, handlers: Callable[[], dict[str, Handler]]) -> None:
        self._handlers = handlers
        self._children: dict[str, tuple[int, socket.socket]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._children))

    def requests(self) -> dict[str, Handler]:
        """The requests about children, by name."""
        return {"fork": self.fork, "child": self.child, "end_child": self.end_child}

    def fork(self, name: str) -> int:
        """Fork a child that shares the memory copy-on-write and answers under ``name``."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            # A sibling ends when its connection is closed, which it is not while we have it too.
            for _, connection in self._children.values():
                connection.close()
            serve(theirs, self._handlers())
            os._exit(0)
        theirs.close()
        self._children[name] = (pid, ours)
        return pid

    def child(self, name: str, request: dict[str, Any]) -> Any:
        """Pass a request on to a forked child."""
        _, connection = self._children[name]
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
        except (BrokenPipeError, ConnectionResetError):
            line = b""
        if not line:
            status = self.end_child(name)
            raise ChildKilled(f"the forked child ended with wait status {status}")
        reply = json.loads(line)
        if "error" in reply:
            error = reply["error"]
            raise OSError(error["errno"], f"in the forked child: {error['text']}")
        return reply["ok"]

    def end_child(self, name: str) -> int:
        """Let a forked child exit, and return its wait status."""
        pid, connection = self._children.pop(name)
        connection.close()
        return os.waitpid(pid, 0)[1]
