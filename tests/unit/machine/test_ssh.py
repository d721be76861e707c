# SPDX-License-Identifier: GPL-2.0-only
"""SSH against a server of paramiko's: pinned keys, deadlines, floods, and loss."""

from __future__ import annotations

import contextlib
import io
import shlex
import socket
import threading
from collections.abc import Callable, Iterator

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_CONNECT_FAILED,
    OPEN_SUCCEEDED,
)

from harness.deadline import Deadline
from harness.errors import CommandError, DeadlineError, HostLostError
from harness.machine.ssh import RunKeys, Ssh

Command = Callable[[paramiko.Channel, list[str]], None]


def soon(seconds: float = 10.0) -> Deadline:
    return Deadline.after(seconds, "the test")


class Server(paramiko.ServerInterface):
    def __init__(self, keys: RunKeys, command: Command) -> None:
        self._keys = keys
        self._command = command
        self.transport: paramiko.Transport | None = None

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        known = username == "root" and key == self._keys.user
        return AUTH_SUCCESSFUL if known else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        words = shlex.split(command.decode())
        if words[0] == "refused":
            return False
        # The reply to the request leaves after this function; a command must not overtake it.
        threading.Timer(0.03, self._run, [channel, words]).start()
        return True

    def check_channel_direct_tcpip_request(
        self, chanid: int, origin: tuple[str, int], destination: tuple[str, int]
    ) -> int:
        """Let a client through to a server of this machine, as sshd does."""
        try:
            wire = socket.create_connection(destination)
        except OSError:
            return OPEN_FAILED_CONNECT_FAILED
        threading.Thread(target=self._join, args=(chanid, wire), daemon=True).start()
        return OPEN_SUCCEEDED

    def _join(self, chanid: int, wire: socket.socket) -> None:
        assert self.transport is not None
        channel = self.transport.accept(5)
        assert channel is not None
        assert channel.chanid == chanid
        threading.Thread(target=self._copy, args=(channel, wire), daemon=True).start()
        with contextlib.suppress(OSError, EOFError):
            while data := wire.recv(65536):
                channel.sendall(data)

    def _copy(self, channel: paramiko.Channel, wire: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            while data := channel.recv(65536):
                wire.sendall(data)

    def _run(self, channel: paramiko.Channel, words: list[str]) -> None:
        with contextlib.suppress(OSError, EOFError):  # a client that is gone already
            self._command(channel, words)


@contextlib.contextmanager
def serving(keys: RunKeys, command: Command) -> Iterator[tuple[int, list[paramiko.Transport]]]:
    transports: list[paramiko.Transport] = []

    def serve() -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            wire, _ = listener.accept()
            transport = paramiko.Transport(wire)
            transports.append(transport)
            transport.set_log_channel("harness.ssh")
            text = io.StringIO(keys.host_private.decode())
            key = paramiko.Ed25519Key.from_private_key(text)
            transport.add_server_key(key)
            server = Server(keys, command)
            server.transport = transport
            transport.start_server(server=server)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], transports
        finally:
            for transport in transports:
                transport.close()


@pytest.fixture(scope="module")
def keys() -> RunKeys:
    return RunKeys.generate()


@contextlib.contextmanager
def connection(keys: RunKeys, command: Command) -> Iterator[Ssh]:
    with (
        serving(keys, command) as (port, _),
        contextlib.closing(Ssh.connect(port, keys, soon())) as ssh,
    ):
        yield ssh


def echo(channel: paramiko.Channel, words: list[str]) -> None:
    channel.sendall("\0".join(words).encode())
    channel.sendall_stderr(b"aside")
    channel.send_exit_status(7)
    channel.close()


def test_words_arrive_as_they_are(keys: RunKeys) -> None:
    words = ["printf", "a b", "$HOME", "'", "", "*", "-x", ";reboot"]
    with connection(keys, echo) as ssh:
        completed = ssh.run(words, soon())
        assert completed.stdout.split("\0") == words
        assert completed.stderr == "aside"
        assert completed.status == 7
        with pytest.raises(CommandError, match="aside"):
            completed.checked()


def test_input_is_sent_while_output_is_read(keys: RunKeys) -> None:
    def cat(channel: paramiko.Channel, _: list[str]) -> None:
        while data := channel.recv(65536):
            channel.sendall(data)
        channel.send_exit_status(0)
        channel.close()

    data = b"0123456789abcdef" * 400_000  # beyond any window
    with connection(keys, cat) as ssh:
        assert ssh.run(["cat"], soon(30), data).stdout.encode() == data


def test_flood_on_both_outputs_does_not_block(keys: RunKeys) -> None:
    def flood(channel: paramiko.Channel, _: list[str]) -> None:
        for _count in range(100):
            channel.sendall_stderr(b"e" * 50_000)
            channel.sendall(b"o" * 50_000)
        channel.send_exit_status(0)
        channel.close()

    with connection(keys, flood) as ssh:
        completed = ssh.run(["flood"], soon(30))
    assert len(completed.stdout) == 5_000_000
    assert 0 < len(completed.stderr) <= 65536


def test_command_that_does_not_end_is_a_deadline(keys: RunKeys) -> None:
    with (
        connection(keys, lambda channel, _: channel.sendall(b"busy")) as ssh,
        pytest.raises(DeadlineError, match="sleep in the host"),
    ):
        ssh.run(["sleep"], soon(0.2))


def test_command_that_cannot_be_started_is_said(keys: RunKeys) -> None:
    with (
        connection(keys, echo) as ssh,
        pytest.raises(HostLostError, match="did not start refused"),
    ):
        ssh.run(["refused"], soon())


def test_host_that_answers_no_request_is_a_deadline(
    keys: RunKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def hang(*_: object) -> bool:
        return release.wait(10)

    monkeypatch.setattr(Server, "check_channel_exec_request", hang)
    with connection(keys, echo) as ssh:
        with pytest.raises(DeadlineError, match="did not start true"):
            ssh.run(["true"], soon(0.2))
        release.set()


def test_output_that_ends_without_a_status_is_a_deadline(keys: RunKeys) -> None:
    def closing(channel: paramiko.Channel, _: list[str]) -> None:
        channel.shutdown_write()

    with (
        connection(keys, closing) as ssh,
        pytest.raises(DeadlineError, match="did not end"),
    ):
        ssh.run(["daemon"], soon(0.2))


def test_other_host_key_is_refused(keys: RunKeys) -> None:
    other = RunKeys.generate()
    impostor = RunKeys(host=keys.host, host_private=other.host_private, user=keys.user)
    with (
        serving(impostor, echo) as (port, _),
        pytest.raises(HostLostError, match="No SSH connection"),
    ):
        Ssh.connect(port, keys, soon())


def test_our_key_is_the_only_one_offered(keys: RunKeys) -> None:
    stranger = RunKeys(keys.host, keys.host_private, RunKeys.generate().user)
    with serving(keys, echo) as (port, _), pytest.raises(HostLostError, match="Authentication"):
        Ssh.connect(port, stranger, soon())


def test_port_that_accepts_and_says_nothing_is_no_host(keys: RunKeys) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(HostLostError, match="No SSH connection"),
    ):
        Ssh.connect(listener.getsockname()[1], keys, soon(0.3))


def test_nothing_listens(keys: RunKeys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(HostLostError, match="refused"):
        Ssh.connect(port, keys, soon())


def test_lost_connection_is_told_from_a_command_that_ends(keys: RunKeys) -> None:
    def lines(channel: paramiko.Channel, _: list[str]) -> None:
        channel.sendall(b"one\ntwo\n")

    with serving(keys, lines) as (port, transports):
        ssh = Ssh.connect(port, keys, soon())
        channel = ssh.open(["agent"], soon())
        assert channel.receive_line(soon()) == b"one"
        transports[0].close()
        assert channel.receive_line(soon()) == b"two"
        with pytest.raises(HostLostError, match="connection was lost while agent ran"):
            channel.receive_line(soon())
        assert not ssh.alive
        with pytest.raises(HostLostError):
            ssh.run(["true"], soon())


def test_channel_of_a_command_that_died_carries_its_last_words(keys: RunKeys) -> None:
    def die(channel: paramiko.Channel, _: list[str]) -> None:
        channel.sendall(b"hello\npart of a line")
        channel.sendall_stderr(b"Traceback: out of luck")
        channel.send_exit_status(1)
        channel.close()

    with connection(keys, die) as ssh:
        channel = ssh.open(["agent"], soon())
        assert channel.receive_line(soon()) == b"hello"
        with pytest.raises(HostLostError, match=r"status 1[^$]*out of luck"):
            channel.receive_line(soon())
        assert ssh.alive


def test_conversation_over_a_channel(keys: RunKeys) -> None:
    def upper(channel: paramiko.Channel, _: list[str]) -> None:
        for line in channel.makefile("rb"):
            channel.sendall(line.upper())

    with connection(keys, upper) as ssh:
        channel = ssh.open(["upper"], soon())
        for word in (b"a", b"bc", b"d" * 100_000):
            channel.send(word + b"\n")
            assert channel.receive_line(soon()) == word.upper()
        with pytest.raises(DeadlineError):
            channel.receive_line(soon(0.05))
        channel.send(b"still here\n")
        assert channel.receive_line(soon()) == b"STILL HERE"
        channel.close()


def test_a_guest_is_reached_through_its_host(keys: RunKeys) -> None:
    inner = RunKeys.generate()
    with (
        connection(keys, echo) as host,
        serving(inner, echo) as (port, _),
        contextlib.closing(host.through(port, inner, soon())) as guest,
    ):
        assert guest.run(["a", "b c"], soon()).stdout.split("\0") == ["a", "b c"]
        assert guest.alive
        assert host.alive


def test_a_guest_with_another_key_than_ours_is_refused(keys: RunKeys) -> None:
    with (
        connection(keys, echo) as host,
        serving(RunKeys.generate(), echo) as (port, _),
        pytest.raises(HostLostError, match="No SSH connection to the guest"),
    ):
        host.through(port, RunKeys.generate(), soon())


def test_a_guest_that_does_not_listen_is_told(keys: RunKeys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        connection(keys, echo) as host,
        pytest.raises(HostLostError, match=f"No way through the host to its port {port}"),
    ):
        host.through(port, keys, soon())


def test_dropbear_is_given_the_seed_and_the_public_key(keys: RunKeys) -> None:
    data = keys.host_dropbear
    name, raw = data[4:15], data[19:]
    assert data[:4] == (11).to_bytes(4, "big")
    assert name == b"ssh-ed25519"
    assert data[15:19] == (64).to_bytes(4, "big")
    private = Ed25519PrivateKey.from_private_bytes(raw[:32])
    public = private.public_key().public_bytes_raw()
    assert raw[32:] == public
    assert keys.host.asbytes().endswith(public)
