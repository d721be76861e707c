# SPDX-License-Identifier: GPL-2.0-only
"""Memory is written through a GDB stub: a peer of a few lines, well-behaved and otherwise."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import QemuError
from harness.machine.gdbstub import attached

Answer = Callable[[str], bytes]


def packet(text: str) -> bytes:
    return f"${text}#{sum(text.encode()) % 256:02x}".encode()


def well(asked: str) -> bytes:
    return b"+" + packet("OK")


class Stub:
    """A stub that answers each packet as it is told, and remembers what it was asked."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.asked: list[str] = []
        self.checksums: list[bool] = []
        self._answer = answer
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        received = b""
        with connection, contextlib.suppress(OSError):
            while chunk := connection.recv(4096):
                received += chunk
                while b"#" in received and len(received) >= received.index(b"#") + 3:
                    begin, end = received.index(b"$"), received.index(b"#")
                    text, checksum = received[begin + 1 : end], received[end + 1 : end + 3]
                    received = received[end + 3 :]
                    self.asked.append(text.decode())
                    self.checksums.append(int(checksum, 16) == sum(text) % 256)
                    answer = self._answer(text.decode())
                    if not answer:
                        return
                    connection.sendall(answer)

    def close(self) -> None:
        self._thread.join(5)
        self._server.close()


@contextlib.contextmanager
def stub(tmp_path: Path, answer: Answer = well) -> Iterator[tuple[Stub, Path]]:
    path = tmp_path / "gdb"
    peer = Stub(path, answer)
    try:
        yield peer, path
    finally:
        peer.close()


def soon(seconds: float = 5.0) -> Deadline:
    return Deadline.after(seconds, "Writing")


def test_bytes_are_written_at_a_physical_address_and_the_machine_goes_on(tmp_path: Path) -> None:
    with stub(tmp_path) as (peer, path), attached(path, soon()) as writer:
        writer.write_physical(0x1234, b"\x01\xff")
    assert peer.asked == ["Qqemu.PhyMemMode:1", "M1234,2:01ff", "D"]
    assert all(peer.checksums)


def test_answers_that_come_in_pieces_or_after_noise_are_understood(tmp_path: Path) -> None:
    # A stub says at any time why the machine stopped.
    def noisy(asked: str) -> bytes:
        return packet("T02thread:01;") + b"+" * 3 + packet("OK")

    with stub(tmp_path, noisy) as (peer, path), attached(path, soon()) as writer:
        writer.write_physical(0, b"\x00")
        writer.write_physical(8, b"\x00")
    assert len(peer.asked) == 5


@pytest.mark.parametrize("refusal", ["E22", ""])
def test_a_refusal_is_an_error_of_ours(tmp_path: Path, refusal: str) -> None:
    def refuse(asked: str) -> bytes:
        return packet(refusal) if asked.startswith("M") else well(asked)

    with (
        stub(tmp_path, refuse) as (_, path),
        pytest.raises(QemuError, match=f"answered '{refusal}' to 'M10,1:00'"),
        attached(path, soon()) as writer,
    ):
        writer.write_physical(0x10, b"\x00")


def test_a_stub_that_hangs_up_is_an_error(tmp_path: Path) -> None:
    with (
        stub(tmp_path, lambda asked: b"") as (_, path),
        pytest.raises(QemuError, match="hung up"),
        attached(path, soon()) as writer,
    ):
        writer.write_physical(0, b"\x00")


def test_a_stub_that_is_silent_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with (
        stub(tmp_path, lambda asked: b"+") as (_, path),
        pytest.raises(QemuError, match="does not answer"),
        attached(path, soon(0.2)) as writer,
    ):
        writer.write_physical(0, b"\x00")


def test_no_stub_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(QemuError, match="cannot be reached: No such file"),
        attached(tmp_path / "gdb", soon()),
    ):
        raise AssertionError("nothing is attached")
