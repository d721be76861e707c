# SPDX-License-Identifier: GPL-2.0-only
"""The product as users run it, while all sorts of things go wrong: exit code, message, leftovers.

Kernels are files that look like one, and QEMU is a program that pretends (fake_qemu.py). The image
of the host is the user's own, and everything else in the cache is new.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_qemu import Faults, install

from harness.deadline import Deadline
from harness.image.rootfs import host_image
from harness.progress import Silent
from harness.store import Store

COMMAND = [sys.executable, "-m", "harness"]
ROOT = Path(__file__).parents[2]
SECONDS = 120.0
PANIC = "[    1.0] Kernel panic - not syncing: no init\n"


def bzimage() -> bytes:
    """What passes for a bzImage of 9.9.9."""
    data = bytearray(3 * 512 + 4096)
    data[0x1F1] = 2
    struct.pack_into("<I", data, 0x1F4, 4096 // 16)
    data[0x1FE:0x200] = b"\x55\xaa"
    data[0x202:0x206] = b"HdrS"
    for offset, value in ((0x206, 0x020F), (0x20E, 0x100), (0x236, 1)):
        struct.pack_into("<H", data, offset, value)
    data[0x300:0x310] = b"9.9.9-fake (a@b)"
    return bytes(data)


@dataclasses.dataclass(frozen=True)
class Ended:
    code: int
    said: str
    results: Any


class World:
    """A machine to run on: a cache, a temporary directory, and a QEMU with faults."""

    def __init__(self, base: Path, temporary: Path) -> None:
        self.base = base
        self.temporary = temporary
        self.started: list[subprocess.Popen[bytes]] = []
        self.cache = base / "cache"
        self.kernel = base / "bzImage"
        self.kernel.write_bytes(bzimage())
        mine = Store()
        host_image(mine, Silent())
        ours = self.cache / "mmu-harness"
        ours.mkdir(parents=True)
        for kind in ("host", "root"):
            (ours / kind).symlink_to(mine.root / kind)

    def environment(self, faults: Faults, changes: Mapping[str, str | None]) -> dict[str, str]:
        environment = {
            **os.environ,
            **install(self.base / "bin", faults),
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(self.cache),
            "TMPDIR": str(self.temporary),
            "CI": "true",
        }
        for name, value in changes.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        return environment

    def words(self, *words: str, kernel: Path | None = None) -> list[str]:
        options = [f"--kernel={kernel or self.kernel}", "--mmu=tdp", "--accel=tcg", "--hosts=1"]
        return ["check", *options, "-kidle", f"--results={self.base / 'results'}", *words]

    def start(
        self,
        faults: Faults,
        *words: str,
        before: tuple[str, ...] = (),
        kernel: Path | None = None,
        log: str = "log",
        **changes: str | None,
    ) -> subprocess.Popen[bytes]:
        with (self.base / log).open("wb") as sink:
            process = subprocess.Popen(
                [*before, *COMMAND, *self.words(*words, kernel=kernel)],
                env=self.environment(faults, changes),
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def ended(self, process: subprocess.Popen[bytes], log: str = "log") -> Ended:
        code = process.wait(SECONDS)
        results = self.base / "results" / "latest" / "results.json"
        said = (self.base / log).read_text(errors="replace")
        print(said)
        return Ended(code, said, json.loads(results.read_text()) if results.exists() else None)

    def check(self, faults: Faults, *words: str, **changes: Any) -> Ended:
        return self.ended(self.start(faults, *words, **changes))

    def left(self) -> list[str]:
        """Processes, directories and half-made entries that a run should have taken with it."""
        found = [str(path) for path in self.temporary.iterdir()]
        # Not rglob(), which does not bear that what it walks goes away meanwhile.
        for place, directories, files in os.walk(self.cache):
            made = [name for name in (*directories, *files) if name.endswith(".making")]
            found += [str(Path(place, name)) for name in made]
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                if f"TMPDIR={self.temporary}".encode() in variables:
                    found.append((entry / "cmdline").read_bytes().decode().replace("\0", " "))
        return found

    def nothing_is_left(self) -> None:
        deadline = Deadline.after(30, "Cleaning up")
        deadline.poll(lambda: not self.left(), str(self.left()))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    # Short enough for sockets, or the harness would look for another.
    with tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp") as temporary:
        world = World(tmp_path, Path(temporary))
        yield world
        for process in world.started:
            if process.poll() is None:
                process.kill()
                process.wait()


# What the machine does.

FAULTS: dict[str, tuple[Faults, int, str]] = {
    "panic, then reset": (Faults(console=PANIC, ends=True), 125, "not syncing: no init"),
    "boot loop": (Faults(ends=True), 125, "reset it without a word"),
    "strange bytes": (
        Faults(console="\x1b[2J\0\xff mmu-harness: boot failed: \x1b[2J\n" + PANIC, ends=True),
        125,
        "not syncing: no init",
    ),
    "port taken": (
        Faults(status=1, words="Could not set up host forwarding rule\n"),
        200,
        "Could not set up host forwarding rule",
    ),
    "QMP ends in mid-JSON": (Faults(qmp="ends in mid-JSON"), 200, "QEMU cannot be controlled"),
    "a stale nonce": (Faults(nonce="stale"), 200, "Another host than ours answers"),
    "sshd refuses": (Faults(ssh="refuses"), 125, "No SSH connection to the host"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_machine_that_goes_wrong_is_no_verdict_on_a_guarantee(world: World, name: str) -> None:
    faults, code, says = FAULTS[name]
    ended = world.check(faults)
    assert (ended.code, ended.results["verdict"]["exit_code"]) == (code, code)
    assert says in ended.said
    assert any(says in reason for reason in ended.results["verdict"]["reasons"])
    assert {test["outcome"] for test in ended.results["tests"]} == {"error"}
    assert "\x1b" not in ended.said
    world.nothing_is_left()


# Signals, in each phase.


def tree(base: Path) -> Path:
    """Source of a kernel whose build hangs."""
    root = base / "linux"
    (root / "arch/x86").mkdir(parents=True)
    rules = "allnoconfig:\n\techo hanging >hanging\n\tsleep 1000\n"
    (root / "Makefile").write_text(f"VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 0\n\n{rules}")
    (root / "Kconfig").write_text("")
    (root / "arch/x86/Kconfig").write_text("")
    return root


def building(world: World) -> subprocess.Popen[bytes]:
    process = world.start(Faults(), kernel=tree(world.base))
    reached = Deadline.after(SECONDS, "The build")
    reached.poll(lambda: list(world.cache.glob("mmu-harness/trees/*/source/hanging")))
    return process


def booting(world: World) -> subprocess.Popen[bytes]:
    process = world.start(Faults(ssh="stalls"))
    Deadline.after(SECONDS, "The boot").poll(lambda: list(world.temporary.glob("*/*/qmp.log")))
    return process


def starting(world: World) -> subprocess.Popen[bytes]:
    process = world.start(Faults(ssh="stalls"))
    Deadline.after(SECONDS, "The start").poll(lambda: list(world.temporary.iterdir()))
    return process


PHASES: dict[str, Callable[[World], subprocess.Popen[bytes]]] = {
    "starting": starting,
    "building": building,
    "booting": booting,
}
SIGNALS = {
    "SIGKILL": ([signal.SIGKILL], -9, ""),
    "SIGTERM": ([signal.SIGTERM], 143, "Interrupted by SIGTERM."),
    "SIGINT": ([signal.SIGINT], 130, "Interrupted by SIGINT."),
    "SIGINT twice": ([signal.SIGINT, signal.SIGINT], 130, "Interrupted by SIGINT."),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_ends_all_of_it(world: World, phase: str, name: str) -> None:
    signals, code, says = SIGNALS[name]
    process = PHASES[phase](world)
    for signum in signals:
        process.send_signal(signum)
    ended = world.ended(process)
    assert ended.code == code
    assert says in ended.said
    assert "Traceback" not in ended.said
    world.nothing_is_left()


def test_a_second_signal_does_not_wait_for_what_takes_its_time(world: World) -> None:
    process = world.start(Faults(ssh="stalls", stubborn=True))
    deadline = Deadline.after(SECONDS, "The boot")
    deadline.poll(lambda: list(world.temporary.glob("*/*/qmp.log")))
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)  # QEMU is being waited for
    process.send_signal(signal.SIGINT)
    ended = world.ended(process)
    assert ended.code == 130
    assert "It was the second time: no results." in ended.said
    world.nothing_is_left()


# The machine that we run on.


def test_a_long_tmpdir_is_no_obstacle(world: World) -> None:
    deep = world.base / ("x" * 110)
    deep.mkdir()
    ended = world.check(Faults(console=PANIC, ends=True), TMPDIR=str(deep))
    assert ended.code == 125
    assert "not syncing: no init" in ended.said
    assert list(deep.iterdir()) == []


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null"])
def test_a_home_that_cannot_be_written_to_is_said(world: World, home: str) -> None:
    ended = world.check(Faults(), HOME=home, XDG_CACHE_HOME=None)
    assert ended.code == 200
    assert f"Cannot write {home}" in ended.said
    assert "XDG_CACHE_HOME" in ended.said
    world.nothing_is_left()


def small_disk(directory: Path) -> tuple[str, ...]:
    """Words before a command that give it a full disk of 256 KiB at a directory."""
    script = 'mount -t tmpfs -o size=256k none "$0" && dd if=/dev/zero of="$0/full" bs=1k'
    script += ' count=200 2>/dev/null && exec "$@"'
    words = ("unshare", "--mount", "--map-root-user", "sh", "-c", script, str(directory))
    probe = subprocess.run([*words, "true"], capture_output=True, check=False)
    if shutil.which("unshare") is None or probe.returncode != 0:
        pytest.skip("this machine lets nobody mount a small disk")
    return words


def test_a_full_disk_of_the_cache_is_said(world: World) -> None:
    full = world.base / "small"
    full.mkdir()
    ended = world.check(Faults(), before=small_disk(full), XDG_CACHE_HOME=str(full))
    assert ended.code == 200
    assert f"Making the image of hosts needs about 1.0 GiB in {full}" in ended.said
    assert "only 0.0 GiB are free" in ended.said
    world.nothing_is_left()


def test_a_full_disk_of_the_results_is_said(world: World) -> None:
    full = world.base / "results"
    full.mkdir()
    # The log of this machine alone is larger.
    ended = world.check(Faults(PANIC, flood_mib=1, ends=True), before=small_disk(full))
    assert ended.code == 200
    assert f"The results cannot be written to {full}" in ended.said
    assert "Traceback" not in ended.said
    world.nothing_is_left()


def test_ten_runs_at_once_share_one_cache(world: World) -> None:
    faults = Faults(console=PANIC, ends=True)
    runs = [world.start(faults, log=f"log{number}") for number in range(10)]
    for number, process in enumerate(runs):
        ended = world.ended(process, f"log{number}")
        assert ended.code == 125
        assert "not syncing: no init" in ended.said
        assert "damaged" not in ended.said
    assert len(list((world.base / "results").glob("2*/results.json"))) == 10
    assert len(list((world.cache / "mmu-harness" / "probe").iterdir())) == 1
    world.nothing_is_left()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def intact(entry: Path) -> bool:
    with zipfile.ZipFile(next(entry.glob("*.pyz"))) as archive:
        return archive.testzip() is None and (entry / "key.json").exists()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda entry: os.truncate(next(entry.glob("*.pyz")), 100),
    "bit-flipped": lambda entry: flip(next(entry.glob("*.pyz"))),
    "half-written": lambda entry: (entry / "key.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_of_the_cache_is_made_again(world: World, damage: str) -> None:
    faults = Faults(console=PANIC, ends=True)
    assert world.check(faults).code == 125
    (entry,) = (world.cache / "mmu-harness" / "probe").iterdir()
    assert intact(entry)
    DAMAGE[damage](entry)
    ended = world.check(faults)
    assert ended.code == 125
    assert ("is damaged" in ended.said) == (damage != "half-written")
    assert intact(entry)


def test_a_clock_that_is_set_in_mid_run_does_not_show_in_its_length(
    world: World, tmp_path: Path
) -> None:
    # Python reads this when it starts; the wall clock of this process alone leaps at each look.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import itertools, time\nreal, count = time.time, itertools.count()\n"
        "time.time = lambda: real() + (86400 if next(count) % 2 else -86400)\n"
    )
    ended = world.check(Faults(console=PANIC, ends=True), PYTHONPATH=f"{tmp_path / 'site'}:{ROOT}")
    assert ended.code == 125
    assert "not syncing: no init" in ended.said
    assert 0 < ended.results["seconds"] < SECONDS
