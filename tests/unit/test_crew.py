# SPDX-License-Identifier: GPL-2.0-only
"""Workers that are forked off, take pieces of work, and die with whoever forked them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.crew import Crew, Given, Lost, Piece, pieces

KINDS = ["tdp"] * 7 + ["shadow"] * 5
SECONDS = 10.0


def report_all(number: int, given: Given, tell: Callable[[object], None]) -> None:
    for piece in given:
        tell((number, os.getpid(), piece.kind, piece.numbers))


def alive(pid: int) -> bool:
    """Whether a process runs, and is not only a name that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_pieces_are_of_one_kind_and_hold_every_number_once() -> None:
    work = pieces(["a", "b", "a", "a", "b"], 2)
    assert work == [Piece("a", (0, 2)), Piece("a", (3,)), Piece("b", (1, 4))]
    assert pieces([], 2) == []


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_piece_is_done_once_by_processes_of_their_own(workers: int) -> None:
    with Crew(workers, pieces(KINDS, 2), report_all) as crew:
        told = list(crew.messages())
    done = sorted(number for _, _, _, numbers in told for number in numbers)
    assert done == list(range(len(KINDS)))
    assert os.getpid() not in {pid for _, pid, _, _ in told}
    assert {number for number, *_ in told} <= set(range(1, workers + 1))


def test_a_worker_keeps_to_its_kind_as_long_as_there_is_any() -> None:
    with Crew(1, pieces(KINDS, 2), report_all) as crew:
        kinds = [kind for _, _, kind, _ in crew.messages()]
    assert kinds == ["tdp"] * 4 + ["shadow"] * 3


def test_workers_begin_with_different_kinds() -> None:
    def wait_for_all(number: int, given: Given, tell: Callable[[object], None]) -> None:
        for piece in given:
            tell((number, piece.kind))
            time.sleep(0.1)

    with Crew(2, pieces(["tdp"] * 2 + ["shadow"] * 2, 1), wait_for_all) as crew:
        told = list(crew.messages())
    assert sorted(told) == [(1, "tdp"), (1, "tdp"), (2, "shadow"), (2, "shadow")] or sorted(
        told
    ) == [(1, "shadow"), (1, "shadow"), (2, "tdp"), (2, "tdp")]


def test_a_worker_that_is_killed_is_told_with_what_it_had() -> None:
    def die(number: int, given: Given, tell: Callable[[object], None]) -> None:
        for piece in given:
            tell(piece.numbers)
            if 0 in piece.numbers:
                os.kill(os.getpid(), signal.SIGKILL)

    with Crew(2, pieces(KINDS, 3), die) as crew:
        told = list(crew.messages())
    (lost,) = [message for message in told if isinstance(message, Lost)]
    assert (lost.status, lost.piece) == (-signal.SIGKILL, Piece("tdp", (0, 1, 2)))
    rest = [message for message in told if isinstance(message, tuple)]
    assert sorted(number for numbers in rest for number in numbers) == list(range(len(KINDS)))


def test_a_worker_that_fails_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(number: int, given: Given, tell: Callable[[object], None]) -> None:
        raise ValueError("of a worker")

    with Crew(1, pieces(KINDS, 3), fail) as crew:
        assert list(crew.messages()) == [Lost(1, 1, None)]
    assert "ValueError: of a worker" in capfd.readouterr().err


def test_workers_that_are_stopped_may_still_say_something() -> None:
    def work(number: int, given: Given, tell: Callable[[object], None]) -> None:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, stop)
        try:
            for piece in given:
                tell(piece.kind)
                time.sleep(SECONDS)
        except KeyboardInterrupt:
            tell("stopped")

    started = time.monotonic()
    with Crew(2, pieces(KINDS, 1), work) as crew:
        told = []
        for message in crew.messages():
            told.append(message)
            if len(told) == 2:
                crew.stop()
    assert sorted(told) == ["shadow", "stopped", "stopped", "tdp"]
    assert time.monotonic() - started < SECONDS


def test_workers_that_are_to_finish_end_what_they_do() -> None:
    def work(number: int, given: Given, tell: Callable[[object], None]) -> None:
        for piece in given:
            for each in piece.numbers:
                tell(each)
                if given.over:
                    break

    with Crew(1, pieces(["tdp"] * 5000, 1000), work) as crew:
        told = []
        for message in crew.messages():
            told.append(message)
            crew.finish()
    assert 1 <= len(told) < 1000


def test_no_worker_is_left_when_whoever_listens_fails() -> None:
    def hang(number: int, given: Given, tell: Callable[[object], None]) -> None:
        tell(os.getpid())
        time.sleep(SECONDS)

    def listen() -> None:
        with Crew(2, pieces(KINDS, 1), hang) as crew:
            for pid in crew.messages():
                pids.append(pid)
                if len(pids) == 2:
                    raise RuntimeError("of the first process")

    pids: list[int] = []
    with pytest.raises(RuntimeError, match="of the first process"):
        listen()
    assert not any(alive(pid) for pid in pids)


def test_workers_die_with_the_process_that_is_killed() -> None:
    def hang(number: int, given: Given, tell: Callable[[object], None]) -> None:
        os.write(writing, f"{os.getpid()}\n".encode())
        time.sleep(SECONDS)

    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        with Crew(2, pieces(KINDS, 1), hang) as crew:
            list(crew.messages())
        os._exit(0)
    pids: list[int] = []
    while len(pids) < 2:
        pids += map(int, os.read(reading, 100).split())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    until = time.monotonic() + SECONDS
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.01)
    os.close(reading)
    os.close(writing)
