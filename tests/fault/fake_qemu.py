# SPDX-License-Identifier: GPL-2.0-only
"""A QEMU that pretends: a console, QMP, a forwarded port with an SSH server behind it, and faults.

As a program it takes QEMU's arguments and behaves as FAKE_QEMU says, which holds the fields of
``Faults`` as JSON. ``install`` makes a directory for PATH in which it is the only QEMU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

NAME = "qemu-system-x86_64"
FACTS = "release=9.9.9-fake\nvendor=kvm_amd\nkvm.tdp_mmu=Y\nkvm_amd.npt=Y\n"


@dataclasses.dataclass(frozen=True)
class Faults:
    """What goes wrong; by default nothing. ``console`` is latin-1 text before the milestones."""

    console: str = ""
    flood_mib: int = 0
    notes: int = 0
    ends: bool = False
    status: int | None = None
    words: str = ""
    qmp: str = "answers"
    ssh: str = "answers"
    nonce: str = "ours"
    stubborn: bool = False
    delay: float = 0.0


def install(directory: Path, faults: Faults) -> dict[str, str]:
    """The environment in which this file is QEMU, with these faults."""
    directory.mkdir(exist_ok=True)
    program = directory / NAME
    program.write_text(
        f"#!{sys.executable}\nimport runpy\n"
        f"runpy.run_path({str(Path(__file__).resolve())!r}, run_name='__main__')\n"
    )
    program.chmod(0o755)
    image_tool = shutil.which("qemu-img")
    assert image_tool is not None
    (directory / "qemu-img").unlink(missing_ok=True)
    (directory / "qemu-img").symlink_to(image_tool)
    return {
        "PATH": f"{directory}:{os.environ['PATH']}",
        "FAKE_QEMU": json.dumps(dataclasses.asdict(faults)),
    }


class Machine:
    """The pretended machine."""

    def __init__(self, argv: list[str], faults: Faults) -> None:
        self.faults = faults
        paths = [word for word in argv if word.startswith("socket,id=qmp,path=")]
        self.qmp = paths[0].removeprefix("socket,id=qmp,path=").partition(",")[0]
        blocks = [json.loads(word) for word in argv if word.startswith('{"driver"')]
        (self.seed,) = [one["file"]["filename"] for one in blocks if one["node-name"] == "seed"]
        self.port = 0

    def say(self, text: str) -> None:
        """Print on the console."""
        os.write(1, text.encode("latin-1"))

    def run(self) -> None:
        """Be there until somebody ends us."""
        if self.faults.status is not None:
            sys.stderr.write(self.faults.words)
            raise SystemExit(self.faults.status)
        self._serve_ssh()
        threading.Thread(target=self._serve_qmp, daemon=True).start()
        self.say(self.faults.console)
        line = "nonsense " * 100 + "\n"
        for _ in range(self.faults.flood_mib):
            self.say(line * ((1 << 20) // len(line)))
        if self.faults.ends:
            return
        time.sleep(self.faults.delay)
        for number in range(self.faults.notes):
            self.say(f"mmu-harness: note {number}\n")
        for word in ("network", "listening", f"ready {self._seed('nonce').strip()}"):
            self.say(f"mmu-harness: {word}\n")
        while True:
            time.sleep(3600)

    def facts(self) -> str:
        """What the host's init would have written down."""
        ours = f"nonce={self._seed('nonce').strip()}\n"
        other = f"nonce={'0' * 32}\n"
        lines = {"ours": ours, "stale": other, "twice": other + ours, "none": ""}
        return FACTS + lines[self.faults.nonce]

    def command(self, channel: Any, line: str) -> None:
        """Do what a command over SSH asks for."""
        if line.startswith("cat "):
            if self.faults.ssh == "dies before it tells":
                channel.get_transport().close()
                return
            channel.sendall(self.facts().encode())
        elif line.startswith("say "):
            self.say(line.partition(" ")[2].strip("'") + "\n")
        elif line == "sleep":
            return
        elif line == "drop":
            channel.sendall(b"half of an ans")
            channel.get_transport().close()
            return
        elif line.startswith("signal "):
            os.kill(os.getpid(), int(line.partition(" ")[2]))
            return  # it may take effect a moment later, and what is dead does not answer
        channel.send_exit_status(0)
        channel.close()

    def _seed(self, name: str) -> str:
        with tarfile.open(self.seed) as archive:
            member = archive.extractfile(name)
            assert member is not None
            return member.read().decode()

    def _serve_qmp(self) -> None:
        if self.faults.qmp == "no socket":
            return
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.qmp)
            listener.listen()
            wire = listener.accept()[0]
            with contextlib.suppress(OSError):
                self._talk(wire)

    def _talk(self, wire: socket.socket) -> None:
        how = self.faults.qmp
        if how == "silent":
            time.sleep(3600)
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
        self._send(wire, {"QMP": {"version": version, "capabilities": []}})
        if how == "talks nonsense":
            wire.sendall(b"\xff\x00{]\r\n")
        buffer = b""
        while data := wire.recv(65536):
            buffer += data
            while buffer.strip():
                try:
                    request, end = json.JSONDecoder().raw_decode(buffer.decode().lstrip())
                except ValueError:
                    break
                buffer = buffer.decode().lstrip()[end:].encode()
                self._answer(wire, request)

    def _answer(self, wire: socket.socket, request: dict[str, Any]) -> None:
        how, name = self.faults.qmp, request["execute"]
        if how == "ends in mid-JSON" and name != "qmp_capabilities":
            wire.sendall(b'{"return": {"ena')
            wire.close()
        elif how == "floods" and name != "qmp_capabilities":
            event = {"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}, "data": {}}
            lines = (json.dumps(event) + "\r\n").encode() * 1000
            for _ in range(20):
                wire.sendall(lines)
        elif how == "sends a line without end" and name != "qmp_capabilities":
            while True:
                wire.sendall(b"x" * 65536)
        if how == "falls silent" and name != "qmp_capabilities":
            return
        answers: dict[str, object] = {
            "query-kvm": {"enabled": False, "present": True},
            "human-monitor-command": f"Protocol\n  TCP[HOST_FORWARD]  9  127.0.0.1 {self.port} x\n",
        }
        self._send(wire, {"return": answers.get(name, {}), "id": request.get("id")})

    def _send(self, wire: socket.socket, message: object) -> None:
        wire.sendall(json.dumps(message).encode() + b"\r\n")

    def _serve_ssh(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        if self.faults.ssh == "refuses":
            listener.close()
        elif self.faults.ssh == "stalls":
            self._kept = listener  # it accepts, because the kernel does, and never says a word
        else:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        import io

        import paramiko

        machine = self

        class Server(paramiko.ServerInterface):
            def get_allowed_auths(self, username: str) -> str:
                return "publickey"

            def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
                return 0

            def check_channel_request(self, kind: str, chanid: int) -> int:
                return 0

            def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
                threading.Timer(0.05, machine.command, [channel, command.decode()]).start()
                return True

        text = io.StringIO(self._seed("ssh_host_ed25519_key"))
        key = paramiko.Ed25519Key.from_private_key(text)
        while True:
            wire, _ = listener.accept()
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                transport = paramiko.Transport(wire)
                transport.add_server_key(key)
                transport.start_server(server=Server())


if __name__ == "__main__":
    # As QEMU does, whatever a shell or a job left us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    given = Faults(**json.loads(os.environ["FAKE_QEMU"]))
    if given.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Machine(sys.argv[1:], given).run()
