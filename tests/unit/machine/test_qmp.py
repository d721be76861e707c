# SPDX-License-Identifier: GPL-2.0-only
"""QMP against a fake QEMU that answers, refuses, falls silent, or goes away."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import DeadlineError, HostLostError, QemuError, QmpError
from harness.machine.qmp import connected, connected_over

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""},
        "capabilities": [],
    }
}

Answer = Callable[[dict[str, Any]], "list[dict[str, Any]] | None"]


def soon(seconds: float = 5.0) -> Deadline:
    return Deadline.after(seconds, "the test")


def _serve(listener: socket.socket, greeting: object, answer: Answer) -> None:
    with contextlib.suppress(OSError), listener.accept()[0] as wire:
        _converse(wire, greeting, answer)


def _converse(wire: socket.socket, greeting: object, answer: Answer) -> None:
    if greeting is not None:
        wire.sendall(json.dumps(greeting).encode() + b"\r\n")
    for request in _requests(wire):
        if request["execute"] == "qmp_capabilities":
            replies: list[dict[str, Any]] | None = [{"return": {}}]
        else:
            replies = answer(request)
        if replies is None:
            return
        for reply in replies:
            if "event" not in reply:
                reply = {**reply, "id": request.get("id")}
            wire.sendall(json.dumps(reply).encode() + b"\r\n")


def _requests(wire: socket.socket) -> Iterator[dict[str, Any]]:
    """JSON objects, which no newline need follow."""
    text = ""
    while data := wire.recv(65536):
        text += data.decode()
        while text.strip():
            try:
                request, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            yield request


@contextlib.contextmanager
def fake_qemu(path: Path, answer: Answer, greeting: object = GREETING) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_serve, args=(listener, greeting, answer), daemon=True)
        thread.start()
        yield


class Relayed:
    """A channel to a QEMU in a host: what goes in and out of its standard streams."""

    stderr_tail = ""

    def __init__(self, answer: Answer) -> None:
        self._ours, theirs = socket.socketpair()
        self._lines = self._ours.makefile("rb")
        serve = threading.Thread(target=self._serve, args=(theirs, answer), daemon=True)
        serve.start()

    def _serve(self, wire: socket.socket, answer: Answer) -> None:
        with contextlib.suppress(OSError), wire:
            _converse(wire, GREETING, answer)

    def send(self, data: bytes) -> None:
        self._ours.sendall(data)

    def receive_line(self, deadline: Deadline) -> bytes:
        line = self._lines.readline()
        if not line:
            raise HostLostError("qemu in the host ended with status 0.")
        return line.rstrip(b"\n")

    def close(self) -> None:
        self._ours.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Relayed:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def alive() -> None:
    """A QEMU that has not ended."""


def ok(_: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"return": {"enabled": False, "present": True}}]


def test_command_and_version(tmp_path: Path) -> None:
    with (
        fake_qemu(tmp_path / "qmp", ok),
        connected(tmp_path / "qmp", tmp_path / "log", soon(), alive) as qmp,
    ):
        assert qmp.version == "7.2.22"
        assert qmp.execute("query-kvm", soon())["enabled"] is False
    record = (tmp_path / "log").read_text().splitlines()
    assert '"execute": "query-kvm"' in record[0]
    assert '"present": true' in record[1]


def test_refused_command_is_an_error_with_qemus_words(tmp_path: Path) -> None:
    def refuse(_: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"error": {"class": "GenericError", "desc": "no such device"}}]

    with (
        fake_qemu(tmp_path / "qmp", refuse),
        connected(tmp_path / "qmp", tmp_path / "log", soon(), alive) as qmp,
        pytest.raises(QmpError, match="refused the QMP command eject: no such device"),
    ):
        qmp.execute("eject", soon())


def test_no_greeting_is_a_deadline_not_a_hang(tmp_path: Path) -> None:
    with (
        fake_qemu(tmp_path / "qmp", ok, greeting=None),
        pytest.raises(DeadlineError, match="does not answer"),
        connected(tmp_path / "qmp", tmp_path / "log", soon(0.3), alive),
    ):
        pytest.fail("there is no greeting")


def test_silence_is_a_deadline_and_the_connection_can_still_be_closed(tmp_path: Path) -> None:
    with (
        fake_qemu(tmp_path / "qmp", lambda _: []),
        connected(tmp_path / "qmp", tmp_path / "log", soon(), alive) as qmp,
        pytest.raises(DeadlineError),
    ):
        qmp.execute("stop", soon(0.2))


def test_other_protocol_is_an_error(tmp_path: Path) -> None:
    with (
        fake_qemu(tmp_path / "qmp", ok, greeting={"hello": 1}),
        pytest.raises(QmpError, match="does not speak QMP"),
        connected(tmp_path / "qmp", tmp_path / "log", soon(), alive),
    ):
        pytest.fail("that was no greeting")


def test_end_in_the_middle_of_a_command_is_an_error(tmp_path: Path) -> None:
    with (
        fake_qemu(tmp_path / "qmp", lambda _: None),
        connected(tmp_path / "qmp", tmp_path / "log", soon(), alive) as qmp,
        pytest.raises(QmpError, match="stop failed"),
    ):
        qmp.execute("stop", soon())


def test_events_may_come_between(tmp_path: Path) -> None:
    event = {"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}, "data": {}}

    def answer(_: dict[str, Any]) -> list[dict[str, Any]]:
        return [event, {"return": {}}]

    with (
        fake_qemu(tmp_path / "qmp", answer),
        connected(tmp_path / "qmp", tmp_path / "log", soon(), alive) as qmp,
    ):
        before = len(qmp.events())
        assert qmp.execute("stop", soon()) == {}
        assert qmp.wait_event("STOP", soon(), before)["event"] == "STOP"
        with pytest.raises(DeadlineError, match="RESUME"):
            qmp.wait_event("RESUME", soon(0.1))


def test_a_socket_that_nobody_listens_on_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        asked = 0

        def listening_at_the_third_look() -> None:
            nonlocal asked
            asked += 1
            if asked == 3:
                listener.listen()
                threading.Thread(target=_serve, args=(listener, GREETING, ok), daemon=True).start()

        with connected(path, tmp_path / "log", soon(), listening_at_the_third_look) as qmp:
            assert qmp.execute("query-kvm", soon())["present"]
    assert asked == 3


def test_a_socket_that_nobody_ever_listens_on_is_a_deadline(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "qmp"))
        with (
            pytest.raises(DeadlineError, match="does not listen on its QMP socket"),
            connected(tmp_path / "qmp", tmp_path / "log", soon(0.2), alive),
        ):
            pytest.fail("nobody listens")


def test_missing_socket_of_a_dead_qemu_is_said_at_once(tmp_path: Path) -> None:
    def dead() -> None:
        raise QemuError("QEMU ended with status 1.")

    with (
        pytest.raises(QemuError, match="status 1"),
        connected(tmp_path / "qmp", tmp_path / "log", soon(60), dead),
    ):
        pytest.fail("there is no socket")


def test_a_qemu_in_a_host_is_talked_to_through_a_channel(tmp_path: Path) -> None:
    with connected_over(Relayed(ok), tmp_path / "log", soon()) as qmp:
        assert qmp.version == "7.2.22"
        assert qmp.execute("query-kvm", soon())["present"] is True
        assert not qmp.ended
    assert '"execute": "query-kvm"' in (tmp_path / "log").read_text()


def test_a_relay_that_is_cut_in_the_middle_of_a_command_is_an_error(tmp_path: Path) -> None:
    with connected_over(Relayed(lambda _: None), tmp_path / "log", soon()) as qmp:
        with pytest.raises(QmpError, match="stop failed"):
            qmp.execute("stop", soon())
        assert qmp.ended


def test_a_relay_that_is_closed_ends_the_connection(tmp_path: Path) -> None:
    channel = Relayed(ok)
    with connected_over(channel, tmp_path / "log", soon()) as qmp:
        channel.close()
        soon().poll(lambda: qmp.ended, "The connection still stands.")
        with pytest.raises(QmpError):
            qmp.execute("query-kvm", soon())
