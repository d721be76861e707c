# SPDX-License-Identifier: GPL-2.0-only
"""The console of a Linux guest: what is a beat, what is none, and how silence shows."""

from __future__ import annotations

import json
import queue

import pytest

from harness.deadline import Deadline
from harness.errors import HostLostError, LinuxGuestError
from harness.linux_guest.beats import Counters, Serial

FIELDS = {
    "up": 12.5, "passes": 3, "pages": 256, "verified": 8192, "errors": 0,
    "page": 0, "word": 0, "expected": 0, "seen": 0,
}  # fmt: skip


def beat(**changes: object) -> bytes:
    return b"mmu-guest: beat " + json.dumps({**FIELDS, **changes}).encode() + b"\r"


class Console:
    """A channel that gives the lines that are put in, and ends at None."""

    stderr_tail = ""

    def __init__(self) -> None:
        self.lines: queue.Queue[bytes | None] = queue.Queue()

    def send(self, data: bytes) -> None:
        raise NotImplementedError

    def receive_line(self, deadline: Deadline) -> bytes:
        line = self.lines.get()
        if line is None:
            raise HostLostError("tail in the host ended with status 0.")
        return line

    def close(self) -> None:
        self.lines.put(None)

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@pytest.fixture
def serial() -> Serial:
    """A console on which nothing was said yet."""
    return Serial(Console())


def test_counters_are_read_from_json() -> None:
    counters = Counters.parsed(json.dumps(FIELDS))
    assert (counters.up, counters.passes, counters.verified) == (12.5, 3, 8192)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"up": 1', '"up"', '{"up": "x"}'])
def test_what_is_no_json_of_a_workload_is_an_error(text: str) -> None:
    with pytest.raises(LinuxGuestError):
        Counters.parsed(text)


def test_wrong_words_come_out_as_oracles_judge_them() -> None:
    text = json.dumps({**FIELDS, "errors": 2, "page": 5, "word": 6, "expected": 7, "seen": 8})
    visit = Counters.parsed(text).visit
    assert (visit.end, visit.done, visit.bad) == ("done", 2, 2)
    assert (visit.bad_page, visit.bad_word, visit.bad_expected, visit.bad_seen) == (5, 6, 7, 8)


def test_the_last_beat_counts_and_the_log_has_all(serial: Serial) -> None:
    serial.take(beat())
    serial.take(beat(up=13.0, passes=4))
    assert serial.last is not None
    assert serial.last.passes == 4
    assert serial.log.text().count("mmu-guest: beat") == 2


def test_a_gap_is_measured_by_the_guests_own_clock(serial: Serial) -> None:
    for up in (1.0, 1.5, 13.5, 14.0):
        serial.take(beat(up=up))
    assert serial.longest_gap == 12.0


@pytest.mark.parametrize(
    "line", [b"mmu-guest: beat {oops}", beat()[:40], b"[ 1.0] BUG: " + beat(), b"\xff\xfe"]
)
def test_what_is_no_beat_stays_in_the_log_alone(serial: Serial, line: bytes) -> None:
    serial.take(line)
    assert serial.last is None
    assert serial.log.text()


def test_silence_is_counted_from_the_last_beat(
    serial: Serial, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("harness.linux_guest.beats.time.monotonic", lambda: now[0])
    serial.take(beat())
    now[0] += 7
    assert serial.silence == 7
    serial.take(b"another line")
    assert serial.silence == 7
    serial.forgive()
    assert serial.silence == 0


def test_a_thread_follows_the_console_to_its_end() -> None:
    console = Console()
    serial = Serial(console)
    console.lines.put(b"mmu-guest: ready abc\r")
    console.lines.put(beat())
    console.lines.put(None)
    deadline = Deadline.after(5, "the end of the console")
    lines = list(serial.log.follow(deadline))
    assert lines[0] == "mmu-guest: ready abc"
    assert serial.last is not None
