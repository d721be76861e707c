# SPDX-License-Identifier: GPL-2.0-only
"""Worker processes that take pieces of work as they become free.

They are forked off this process, so that all that was made before is theirs as well, and die with
it. A worker is given pieces of one kind as long as there are any, because changing costs it a boot.
"""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import Any

_PDEATHSIG = 1
_END_SECONDS = 60.0
"""How long workers that are told to stop may take to end what they run."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of work: its kind, and what the worker knows it by."""

    kind: str
    numbers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Lost:
    """A worker ended before its time; ``piece`` is what it had been given last."""

    worker: int
    status: int | None
    piece: Piece | None


class _Ready:
    """A worker says that it is free."""


class _Done:
    """A worker says that it has nothing more to say."""


class Given:
    """What a worker is given: an iterator of pieces, until there are none."""

    def __init__(self, connection: Connection, over: Event) -> None:
        self._connection = connection
        self._over = over

    @property
    def over(self) -> bool:
        """Whether it should stop after what it is just doing, in the middle of a piece, too."""
        return self._over.is_set()

    def __iter__(self) -> Iterator[Piece]:
        while not self.over:
            self._connection.send(_Ready())
            piece = self._connection.recv()
            if piece is None:
                return
            yield piece


Serve = Callable[[int, Given, Callable[[object], None]], None]
"""What a worker does: it is given its number, the pieces, and how to tell of what came of them."""


def die_with(parent: int) -> None:
    """Have this process end when its parent does, or now if that has happened already.

    Whoever kills the parent for good must not leave us, or the janitor would wait for us.
    """
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def pieces(kinds: Sequence[str], longest: int) -> list[Piece]:
    """The numbers of ``kinds`` in pieces of one kind and of at most ``longest``, in order."""
    groups: dict[str, list[int]] = {}
    for number, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(number)
    return [
        Piece(kind, tuple(numbers[begin : begin + longest]))
        for kind, numbers in groups.items()
        for begin in range(0, len(numbers), longest)
    ]


class Crew:
    """So many workers on these pieces; a context manager that leaves none behind."""

    def __init__(self, workers: int, work: Sequence[Piece], serve: Serve) -> None:
        self._left = list(work)
        self._serve = serve
        self._size = workers
        self._workers: dict[Connection, _Worker] = {}
        self._context = multiprocessing.get_context("fork")
        self._over = self._context.Event()
        self._stopped = False

    def messages(self) -> Iterator[Any]:
        """What the workers tell, until all have ended; Lost for one that ended before its time."""
        while self._workers:
            for connection in wait(list(self._workers)):
                assert isinstance(connection, Connection)
                worker = self._workers[connection]
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    del self._workers[connection]
                    if not worker.done:
                        worker.process.join()
                        yield Lost(worker.number, worker.process.exitcode, worker.piece)
                    continue
                if isinstance(message, _Ready):
                    worker.piece = self._next(worker)
                    connection.send(worker.piece)
                elif isinstance(message, _Done):
                    worker.done = True
                else:
                    yield message

    def finish(self) -> None:
        """Have all workers end after what they are just doing."""
        self._over.set()
        self._left.clear()

    def stop(self) -> None:
        """Tell all workers, once, to end what they do, and give out nothing more."""
        if self._stopped:
            return
        self._stopped = True
        self.finish()
        for worker in self._workers.values():
            worker.process.terminate()

    def __enter__(self) -> Crew:
        for number in range(1, self._size + 1):
            ours, theirs = self._context.Pipe()
            # A worker must not keep the connections of those before it open.
            inherited = [*self._workers, ours]
            arguments = (number, Given(theirs, self._over), theirs, inherited, self._serve)
            process = self._context.Process(target=_work, args=(*arguments, os.getpid()))
            process.start()
            theirs.close()
            self._workers[ours] = _Worker(number, process)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        remaining = [worker.process for worker in self._workers.values()]
        if remaining:
            self.stop()
        for process in remaining:
            process.join(_END_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()

    def _next(self, worker: _Worker) -> Piece | None:
        """A piece of the worker's kind, or else of the kind of which most is left."""
        if not self._left:
            return None
        kinds = [piece.kind for piece in self._left]
        kind = worker.piece.kind if worker.piece else None
        if kind not in kinds:
            taken = {other.piece.kind for other in self._workers.values() if other.piece}
            # Where nobody is at work yet first, so that as few as possible share a kind.
            kind = max(
                dict.fromkeys(kinds), key=lambda each: (each not in taken, kinds.count(each))
            )
        return self._left.pop(kinds.index(kind))


@dataclasses.dataclass
class _Worker:
    """What is known of a worker."""

    number: int
    process: BaseProcess
    piece: Piece | None = None
    done: bool = False


def _work(
    number: int,
    given: Given,
    connection: Connection,
    inherited: list[Connection],
    serve: Serve,
    parent: int,
) -> None:
    """Be a worker."""
    die_with(parent)
    for other in inherited:
        other.close()
    serve(number, given, connection.send)
    connection.send(_Done())
