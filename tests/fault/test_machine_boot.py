# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that do not come up, and a QEMU that does not last: each is told for what it is."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toy_kernel import HANG, REPEAT, RESET, toy_kernel

from harness.errors import (
    BootError,
    CommandError,
    ExitCode,
    HarnessError,
    MachineUnfitError,
    QemuError,
)
from harness.kernel.model import Kernel
from harness.machine.accelerator import Accelerator
from harness.machine.boot import boot
from harness.machine.spec import HostSpec
from harness.progress import Silent

TCG = Accelerator("tcg", "the test says so")


@pytest.fixture
def run_directory() -> Iterator[Path]:
    """Private, and short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="mmu-", dir="/tmp") as path:
        yield Path(path)


def try_boot(image: Path, run: Path, *, root: Path | None = None, seconds: float = 20) -> str:
    """The message of the error that this kernel's boot ends with, which must be a BootError."""
    with pytest.raises(BootError) as caught:
        _boot(image, run, root=root, seconds=seconds)
    assert caught.value.exit_code == ExitCode.UNTESTABLE
    return str(caught.value)


def _boot(image: Path, run: Path, *, root: Path | None = None, seconds: float = 20) -> None:
    if root is None:
        root = run / "root.img"
        root.write_bytes(bytes(1 << 20))
    spec = HostSpec(kernel=image, root=root, accelerator=TCG, memory_mib=64, swap_mib=1)
    kernel = Kernel(image, "9.9.9-toy", "", str(image))
    started = time.monotonic()
    with boot(spec, run, kernel, Silent(), seconds=seconds):
        pytest.fail("it came up")
    assert time.monotonic() - started < seconds + 10


def qemu_of(run: Path) -> int | None:
    """The id of the QEMU that uses a run directory."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(run / "qmp") in (entry / "cmdline").read_bytes():
                return int(entry.name)
    return None


def test_panic_is_quoted(run_directory: Path) -> None:
    text = (
        "[    1.000000] Kernel panic - not syncing: No working init found.\n"
        "[    1.000001] ---[ end Kernel panic - not syncing: No working init found. ]---\n"
    )
    started = time.monotonic()
    message = try_boot(toy_kernel(run_directory / "k", text, RESET), run_directory)
    assert "9.9.9-toy did not come up: Kernel panic - not syncing: No working init" in message
    assert time.monotonic() - started < 10


def test_reset_without_a_word(run_directory: Path) -> None:
    message = try_boot(toy_kernel(run_directory / "k", "hello\n", RESET), run_directory)
    assert "reset it without a word" in message
    assert "hello" in message


def test_hang_ends_at_the_deadline(run_directory: Path) -> None:
    image = toy_kernel(run_directory / "k", "the last thing I did\n", HANG)
    message = try_boot(image, run_directory, seconds=2)
    assert "took longer than 2 s" in message
    assert "the last thing I did" in message


def test_silent_hang(run_directory: Path) -> None:
    message = try_boot(toy_kernel(run_directory / "k", "", HANG), run_directory, seconds=2)
    assert message.endswith("(nothing)")


def test_endless_output_ends_at_the_deadline(run_directory: Path) -> None:
    image = toy_kernel(run_directory / "k", "nonsense " * 100 + "\n", REPEAT)
    message = try_boot(image, run_directory, seconds=3)
    assert "took longer than 3 s" in message
    assert len(message) < 30_000


def test_init_says_why(run_directory: Path) -> None:
    text = "mmu-harness: network\nmmu-harness: boot failed: this kernel has no KVM: not found\n"
    started = time.monotonic()
    message = try_boot(toy_kernel(run_directory / "k", text, HANG), run_directory)
    assert "did not come up: this kernel has no KVM: not found." in message
    assert time.monotonic() - started < 10


def test_console_cannot_drive_our_terminal(run_directory: Path) -> None:
    text = "\x1b]0;owned\x07mmu-harness: boot failed\nmmu-harness: boot failed: \x1b[2Jx\n"
    message = try_boot(toy_kernel(run_directory / "k", text, HANG), run_directory)
    assert "\x1b" not in message
    assert "\x07" not in message


def test_host_that_claims_to_listen_and_does_not(run_directory: Path) -> None:
    text = "mmu-harness: network\nmmu-harness: listening\nmmu-harness: ready nonce\n"
    image = toy_kernel(run_directory / "k", text, HANG)
    assert "No SSH connection" in try_boot(image, run_directory, seconds=3)


def test_file_that_qemu_does_not_take_for_a_kernel(run_directory: Path) -> None:
    image = run_directory / "k"
    image.write_bytes(b"")
    with pytest.raises(QemuError, match="ended with status 1") as caught:
        _boot(image, run_directory)
    assert caught.value.exit_code == ExitCode.INFRASTRUCTURE


def test_missing_root_image(run_directory: Path) -> None:
    image = toy_kernel(run_directory / "k", "", HANG)
    with pytest.raises(CommandError, match=r"qemu-img[^$]*nowhere"):
        _boot(image, run_directory, root=run_directory / "nowhere")


def test_missing_qemu_names_the_package(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = toy_kernel(run_directory / "k", "", HANG)
    here = run_directory / "bin"
    here.mkdir()
    (here / "qemu-img").symlink_to(shutil.which("qemu-img") or "/nonexistent")
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(MachineUnfitError, match="qemu-system-x86"):
        _boot(image, run_directory)


@pytest.mark.parametrize("name", ["a b", "a,b,,c", "-a", "a'b\"c", "a:b", "json:{}", "%s"])
def test_hostile_names(run_directory: Path, name: str) -> None:
    base = run_directory / name
    base.mkdir()
    text = "[    1.000000] Kernel panic - not syncing: as expected\n"
    image = toy_kernel(base / name, text, RESET)
    assert "as expected" in try_boot(image, base)


def _to_qemu(run: Path, act: Callable[[int], None]) -> threading.Thread:
    """Do something to the QEMU of a run directory as soon as the toy kernel speaks."""

    def wait_and_act() -> None:
        for _ in range(1000):
            pid = qemu_of(run)
            if pid is not None and (run / "qmp.log").exists():
                act(pid)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait_and_act, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_killed_qemu_is_our_loss(run_directory: Path, signum: signal.Signals) -> None:
    image = toy_kernel(run_directory / "k", "hello\n", HANG)
    killer = _to_qemu(run_directory, lambda pid: os.kill(pid, signum))
    with pytest.raises(QemuError) as caught:
        _boot(image, run_directory)
    killer.join()
    assert caught.value.exit_code == ExitCode.INFRASTRUCTURE
    assert "QEMU" in str(caught.value)


def test_stopped_qemu_is_given_up_and_ended(run_directory: Path) -> None:
    image = toy_kernel(run_directory / "k", "hello\n", HANG)
    pids: list[int] = []

    def stop(pid: int) -> None:
        pids.append(pid)
        os.kill(pid, signal.SIGSTOP)

    stopper = _to_qemu(run_directory, stop)
    with pytest.raises(HarnessError):
        _boot(image, run_directory, seconds=2)
    stopper.join()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_nothing_is_left_after_any_of_this(run_directory: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with contextlib.suppress(BootError):
        _boot(toy_kernel(run_directory / "k", "", RESET), run_directory)
    assert qemu_of(run_directory) is None
    assert {thread.name for thread in threading.enumerate()} <= before
