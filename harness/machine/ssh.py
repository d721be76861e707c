# SPDX-License-Identifier: GPL-2.0-only
"""Commands in a host over SSH: one connection, keys of this run only, a deadline for each wait."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import select
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from harness.command import Completed
from harness.deadline import Deadline
from harness.errors import HostLostError

_NAME = "host"
"""What the host is called among known keys: it has one, so its name and port do not matter."""

_USER = "root"
_CHUNK = 32768
_SOONEST = 0.01
"""A time limit of 0 means none to paramiko."""
_MOST_OUTPUT = 16 << 20
_MOST_LINE = 64 << 20
_MOST_STDERR = 65536

_KEX = ("curve25519-sha256@libssh.org",)
_CIPHERS = ("aes128-ctr",)
"""The cheapest for a host with an emulated CPU; nothing listens between us and the host."""

_LOG = "harness.ssh"


@dataclasses.dataclass(frozen=True)
class RunKeys:
    """The keys of one run: ``host`` proves the host to us, ``user`` proves us to the host."""

    host: paramiko.PKey
    host_private: bytes
    user: paramiko.PKey

    @classmethod
    def generate(cls) -> RunKeys:
        """Make new ed25519 keys."""
        host_private, host = _new_key()
        _, user = _new_key()
        return cls(host, host_private, user)

    @property
    def host_dropbear(self) -> bytes:
        """The host's private key as dropbear keeps it: the name, the seed and the public key."""
        private = serialization.load_ssh_private_key(self.host_private, None)
        assert isinstance(private, Ed25519PrivateKey)
        raw = private.private_bytes_raw() + private.public_key().public_bytes_raw()
        parts = (self.host.get_name().encode(), raw)
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    @property
    def authorized(self) -> bytes:
        """The contents of the host's authorized_keys."""
        return f"{self.user.get_name()} {self.user.get_base64()} mmu-harness\n".encode()


class Ssh:
    """A connection to a host. Every method may raise HostLostError when it is gone."""

    def __init__(self, client: paramiko.SSHClient) -> None:
        self._client = client

    @classmethod
    def connect(cls, port: int, keys: RunKeys, deadline: Deadline) -> Ssh:
        """Connect to a port on L0's loopback; agents and files in ~/.ssh are not asked.

        Raises HostLostError when the host does not answer, or does not have the pinned key.
        """
        try:
            wire = socket.create_connection(("127.0.0.1", port), deadline.remaining)
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise HostLostError(f"No SSH connection to the host: {error}.") from error
        return cls._over(wire, keys, deadline, "the host")

    def through(self, port: int, keys: RunKeys, deadline: Deadline) -> Ssh:
        """A connection to a port on the host's loopback, inside of this one: to a guest.

        Raises HostLostError when nobody answers there, or not with the pinned key.
        """
        transport = self._live()
        try:
            wire = transport.open_channel(
                "direct-tcpip",
                ("127.0.0.1", port),
                ("127.0.0.1", 0),
                timeout=max(deadline.remaining, _SOONEST),
            )
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise HostLostError(f"No way through the host to its port {port}: {error}.") from error
        return type(self)._over(wire, keys, deadline, "the guest")

    @classmethod
    def _over(
        cls, wire: socket.socket | paramiko.Channel, keys: RunKeys, deadline: Deadline, whom: str
    ) -> Ssh:
        # Without a handler, paramiko's complaints would go to standard error.
        logging.getLogger(_LOG).addHandler(logging.NullHandler())
        client = paramiko.SSHClient()
        client.set_log_channel(_LOG)
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        client.get_host_keys().add(_NAME, keys.host.get_name(), keys.host)
        seconds = max(deadline.remaining, _SOONEST)
        try:
            client.connect(
                _NAME,
                username=_USER,
                pkey=keys.user,
                sock=wire,
                allow_agent=False,
                look_for_keys=False,
                timeout=seconds,
                banner_timeout=seconds,
                auth_timeout=seconds,
                transport_factory=_transport,  # type: ignore[arg-type]
            )
        except (paramiko.SSHException, OSError, EOFError) as error:
            client.close()
            raise HostLostError(f"No SSH connection to {whom}: {error}.") from error
        return cls(client)

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, as far as we know."""
        transport = self._client.get_transport()
        return transport is not None and transport.is_active()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def run(self, argv: Sequence[str], deadline: Deadline, stdin: bytes | None = None) -> Completed:
        """Run a command in the host to its end; words arrive as they are.

        Of each output at most 16 MiB are kept. Raises DeadlineError when time runs out; the
        command may then still run in the host.
        """
        started = time.monotonic()
        with contextlib.closing(self.open(argv, deadline)) as channel:
            if stdin is not None:
                channel.send_in_background(stdin)
            out, err = channel.drain(deadline)
            status = channel.status(deadline)
        return Completed(
            tuple(argv),
            status,
            out.decode(errors="replace"),
            err.decode(errors="replace"),
            time.monotonic() - started,
        )

    def open(self, argv: Sequence[str], deadline: Deadline) -> SshChannel:
        """Start a command in the host and keep talking to it; without a terminal."""
        channel = self._session(deadline)
        try:
            with _closed_at(deadline, channel):
                channel.exec_command(shlex.join(argv))
        except (paramiko.SSHException, OSError, EOFError) as error:
            _close(channel)
            if deadline.expired:
                raise deadline.error(f"The host did not start {argv[0]}.") from error
            raise HostLostError(f"The host did not start {argv[0]}: {error}.") from error
        return SshChannel(channel, argv[0])

    def terminal(self, term: str, columns: int, rows: int, deadline: Deadline) -> paramiko.Channel:
        """An interactive shell on a terminal in the host."""
        channel = self._session(deadline)
        with _closed_at(deadline, channel):
            channel.get_pty(term, columns, rows)
            channel.exec_command("exec /bin/bash -l")
        return channel

    def _live(self) -> paramiko.Transport:
        transport = self._client.get_transport()
        if transport is None or not transport.is_active():
            raise HostLostError("The SSH connection to the host is gone.")
        return transport

    def _session(self, deadline: Deadline) -> paramiko.Channel:
        transport = self._live()
        try:
            channel = transport.open_session(timeout=deadline.remaining)
        except (paramiko.SSHException, OSError, EOFError) as error:
            if deadline.expired:
                raise deadline.error("The host does not open an SSH session.") from error
            raise HostLostError(f"The SSH connection to the host is gone: {error}.") from error
        channel.settimeout(None)
        return channel


class SshChannel:
    """A command that runs in the host. Sending and receiving may be done by different threads."""

    def __init__(self, channel: paramiko.Channel, what: str) -> None:
        self._channel = channel
        self._what = what
        self._pending = bytearray()
        self._errors = bytearray()
        self._searched = 0

    def send(self, data: bytes) -> None:
        """Send bytes to the command's standard input; raises HostLostError if it has ended."""
        try:
            self._channel.sendall(data)
        except (OSError, EOFError) as error:
            raise self._lost() from error

    def send_in_background(self, data: bytes) -> None:
        """Send bytes and the end of input, while the caller reads what comes back."""

        def run() -> None:
            with contextlib.suppress(OSError, EOFError):  # a command need not read its input
                self._channel.sendall(data)
                self._channel.shutdown_write()

        threading.Thread(target=run, name="ssh-stdin", daemon=True).start()

    def receive_line(self, deadline: Deadline) -> bytes:
        """The next line of its standard output, without the newline.

        Raises HostLostError when the command has ended, and DeadlineError when no line comes.
        """
        while (end := self._pending.find(b"\n", self._searched)) < 0:
            self._searched = len(self._pending)
            if self._searched > _MOST_LINE:
                raise HostLostError(f"{self._what} in the host sends a line without an end.")
            data = self._receive(deadline)
            if data is None:
                raise self._lost()
            self._pending += data
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        self._searched = 0
        return line

    def drain(self, deadline: Deadline) -> tuple[bytes, bytes]:
        """All of its standard output and standard error, to their end."""
        out = bytearray(self._pending)
        while (data := self._receive(deadline)) is not None:
            # The rest is read and dropped: a command must not hang because we are full.
            out += data[: _MOST_OUTPUT - len(out)]
        return bytes(out), bytes(self._errors)

    def status(self, deadline: Deadline) -> int:
        """Its exit status; raises HostLostError when the connection broke before it came."""
        # paramiko's own recv_exit_status() waits for ever.
        if not self._channel.status_event.wait(deadline.remaining):
            raise deadline.error(f"{self._what} in the host did not end.")
        status = self._channel.exit_status
        if status < 0 and not self._transport_alive():
            raise self._lost()
        return status

    @property
    def stderr_tail(self) -> str:
        """The end of what the command wrote to its standard error."""
        self._take_errors()
        return self._errors.decode(errors="replace")

    def close(self) -> None:
        """Close the channel; the command sees the end of its input."""
        _close(self._channel)

    def __enter__(self) -> SshChannel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _receive(self, deadline: Deadline) -> bytes | None:
        """Some of its standard output, or None at the end; standard error is taken in meanwhile."""
        while True:
            ended = self._channel.eof_received or self._channel.closed
            self._take_errors()
            if self._channel.recv_ready():
                return self._channel.recv(_CHUNK)
            if ended:
                return None
            ready, _, _ = select.select([self._channel], [], [], deadline.remaining)
            if not ready:
                raise deadline.error(f"{self._what} in the host was waited for.")

    def _take_errors(self) -> None:
        while self._channel.recv_stderr_ready():
            self._errors += self._channel.recv_stderr(_CHUNK)
            del self._errors[:-_MOST_STDERR]

    def _transport_alive(self) -> bool:
        transport = self._channel.get_transport()
        return bool(transport.is_active())

    def _lost(self) -> HostLostError:
        if not self._transport_alive():
            return HostLostError(f"The SSH connection was lost while {self._what} ran in the host.")
        self._channel.status_event.wait(1.0)
        status = self._channel.exit_status
        words = self.stderr_tail.strip()
        return HostLostError(
            f"{self._what} in the host ended with status {status}."
            + (f" It said:\n{words}" if words else "")
        )


def _close(channel: paramiko.Channel) -> None:
    """Close a channel, also one whose connection is gone, where paramiko's own close() raises."""
    with contextlib.suppress(OSError, EOFError):
        channel.close()


@contextlib.contextmanager
def _closed_at(deadline: Deadline, channel: paramiko.Channel) -> Iterator[None]:
    """Close the channel when time runs out: paramiko waits for a host's answer for ever."""
    timer = threading.Timer(deadline.remaining, _close, [channel])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _transport(sock: socket.socket, **options: Any) -> paramiko.Transport:
    """A transport that asks for what is cheapest under emulation.

    paramiko's default would try a post-quantum key exchange first.
    """
    transport = paramiko.Transport(sock, **options)
    security = transport.get_security_options()
    security.kex = _KEX
    security.ciphers = _CIPHERS
    security.key_types = ("ssh-ed25519",)
    return transport


def _new_key() -> tuple[bytes, paramiko.PKey]:
    private = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    return private, paramiko.Ed25519Key.from_private_key(io.StringIO(private.decode()))
