# SPDX-License-Identifier: GPL-2.0-only
"""Write to the memory of a QEMU machine through its GDB stub, since QMP can only read.

The protocol is that of the GDB manual, appendix "GDB Remote Serial Protocol"; of it, one packet
that has addresses taken for physical ones (QEMU's own), one that writes, and one that detaches.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import QemuError


class GdbStub:
    """A connection to a GDB stub; the machine stands still while it is open."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""

    def write_physical(self, address: int, data: bytes) -> None:
        """Write bytes at a physical address; raises QemuError when the stub refuses."""
        self._expect_ok("Qqemu.PhyMemMode:1")
        self._expect_ok(f"M{address:x},{len(data):x}:{data.hex()}")

    def detach(self) -> None:
        """Let the machine run again."""
        self._expect_ok("D")

    def _expect_ok(self, packet: str) -> None:
        checksum = sum(packet.encode()) % 256
        self._connection.sendall(f"${packet}#{checksum:02x}".encode())
        answer = self._answer()
        if answer != "OK":
            raise QemuError(f"QEMU's GDB stub answered {answer!r} to {packet[:20]!r}.")

    def _answer(self) -> str:
        """The next packet that answers something."""
        # A stub says by itself that the machine stands still, because we came.
        while (packet := self._packet()).startswith(("T", "S")):
            pass
        return packet

    def _packet(self) -> str:
        while True:
            begin = self._received.find(b"$")
            end = self._received.find(b"#", begin + 1)
            # Two digits of a checksum follow; a UNIX socket loses nothing.
            if 0 <= begin < end and len(self._received) >= end + 3:
                break
            try:
                chunk = self._connection.recv(4096)
            except TimeoutError:
                raise QemuError("QEMU's GDB stub does not answer.") from None
            if not chunk:
                raise QemuError("QEMU's GDB stub hung up.")
            self._received += chunk
        packet = self._received[begin + 1 : end]
        self._received = self._received[end + 3 :]
        self._connection.sendall(b"+")
        return packet.decode(errors="replace")


@contextlib.contextmanager
def attached(path: Path, deadline: Deadline) -> Iterator[GdbStub]:
    """A connection to the stub that listens at ``path``; it is detached at the end."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(max(deadline.remaining, 0.1))
        try:
            connection.connect(str(path))
        except OSError as error:
            raise QemuError(f"QEMU's GDB stub cannot be reached: {error.strerror}.") from error
        stub = GdbStub(connection)
        try:
            yield stub
        except BaseException:
            # What failed matters more than whether the machine goes on.
            with contextlib.suppress(QemuError, OSError):
                stub.detach()
            raise
        stub.detach()
