# SPDX-License-Identifier: GPL-2.0-only
"""The console keeps within bounds, and those who wait for it are told."""

from __future__ import annotations

import os
import threading

import pytest

from harness.deadline import Deadline
from harness.errors import DeadlineError
from harness.machine.console import ConsoleLog, pump


def soon(seconds: float = 5.0) -> Deadline:
    return Deadline.after(seconds, "the test")


def test_text_from_a_position() -> None:
    log = ConsoleLog()
    log.append(b"first\r\n")
    mark = log.mark()
    log.append(b"second\r\n")
    assert log.text() == "first\nsecond\n"
    assert log.text(mark) == "second\n"


def test_mark_leaves_a_half_printed_line_ahead() -> None:
    log = ConsoleLog()
    log.append(b"done\nBUG: KAS")
    mark = log.mark()
    log.append(b"AN: use-after-free\n")
    assert [splat.kind for splat in log.splats(mark)] == ["kasan"]


def test_flood_is_kept_within_bounds_with_head_and_tail() -> None:
    log = ConsoleLog(head=100, tail=100)
    log.append(b"beginning\n")
    for number in range(10_000):
        log.append(b"line %d\n" % number)
    log.append(b"end\n")
    text = log.text()
    assert text.startswith("beginning\n")
    assert text.endswith("line 9999\nend\n")
    assert "bytes are not kept" in text
    assert len(text) < 400


def test_positions_stay_valid_after_a_flood() -> None:
    log = ConsoleLog(head=10, tail=1000)
    log.append(b"x" * 100_000 + b"\n")
    mark = log.mark()
    log.append(b"news\n")
    assert log.text(mark) == "news\n"


def test_position_in_what_was_dropped_gives_what_is_left() -> None:
    log = ConsoleLog(head=4, tail=4)
    for letter in b"abcdefghij":
        log.append(bytes([letter]))
    assert log.text(5).endswith("ghij")
    assert log.text(9) == "j"


def test_one_large_chunk_spans_head_and_tail() -> None:
    log = ConsoleLog(head=4, tail=100)
    log.append(b"abcdefgh")
    assert log.text() == "abcdefgh"
    assert log.text(2) == "cdefgh"
    assert log.text(6) == "gh"


def test_tail_skips_blank_lines() -> None:
    log = ConsoleLog()
    log.append(b"one\n\n\ntwo\nthree\n\n")
    assert log.tail(2) == "two\nthree"


def test_undecodable_bytes_do_no_harm() -> None:
    log = ConsoleLog()
    log.append(b"\xff\xfe ok\n")
    assert "ok" in log.text()


def test_follow_gives_lines_as_they_come_and_the_rest_at_the_end() -> None:
    log = ConsoleLog()
    log.append(b"one\r\ntw")
    lines = log.follow(soon())
    assert next(lines) == "one"
    log.append(b"o\nthr")
    assert next(lines) == "two"
    log.append(b"ee")
    log.close()
    assert list(lines) == ["three"]


def test_follow_wakes_up_when_another_thread_appends() -> None:
    log = ConsoleLog()
    lines = log.follow(soon())
    threading.Timer(0.05, log.append, [b"late\n"]).start()
    assert next(lines) == "late"


def test_follow_gives_up_at_the_deadline() -> None:
    with pytest.raises(DeadlineError, match="the test"):
        next(ConsoleLog().follow(soon(0.05)))


def test_settle_waits_for_a_report_in_print() -> None:
    log = ConsoleLog()
    log.append(b"------------[ cut here ]------------\n")
    threading.Timer(0.1, log.append, [b"WARNING: CPU: 0 PID: 1 at mm/x.c:1 f+0x1/0x2\n"]).start()
    log.settle(soon())
    assert [splat.kind for splat in log.splats()] == ["warning"]


def test_pump_closes_the_log_at_the_end_of_the_stream() -> None:
    reader, writer = os.pipe()
    log = ConsoleLog()
    thread = pump(os.fdopen(reader, "rb"), log)
    os.write(writer, b"hello\n")
    os.close(writer)
    assert list(log.follow(soon())) == ["hello"]
    thread.join(5)
    assert log.closed
