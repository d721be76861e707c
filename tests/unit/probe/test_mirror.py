# SPDX-License-Identifier: GPL-2.0-only
"""The make-believe device, as a file with a driver that answers its requests."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

import pytest

from harness.probe import mirror
from harness.probe.mirror import Mirror

DEVICES = "Character devices:\n  1 mem\n240 HMM_DMIRROR\n\nBlock devices:\n254 virtblk\n"


class Driver:
    """What the driver got and gave."""

    def __init__(self, taken: int = 0, refusal: int = 0) -> None:
        self.requests: list[tuple[int, tuple[int, ...]]] = []
        self._taken = taken
        self._refusal = refusal

    def ioctl(self, fd: int, request: int, address: int) -> int:
        words = struct.unpack("<5Q", ctypes.string_at(address, 40))
        self.requests.append((request, words))
        if self._refusal:
            raise OSError(self._refusal, os.strerror(self._refusal))
        ctypes.memmove(address + 24, struct.pack("<Q", self._taken), 8)
        return 0


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hmm_dmirror0"
    path.touch()
    monkeypatch.setattr(mirror, "_NODE", str(path))
    return path


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize(("how", "request_"), [("private", 2), ("exclusive", 5)])
def test_a_device_is_told_where_and_says_how_many(
    monkeypatch: pytest.MonkeyPatch, how: str, request_: int
) -> None:
    driver = Driver(taken=3)
    monkeypatch.setattr("harness.probe.kvm.ioctl", driver.ioctl)
    ours = Mirror()
    assert ours.take(0x7000, 4, how) == 3
    ours.close()
    ((number, (address, room, pages, taken, faults)),) = driver.requests
    # _IOWR('H', n, struct of five 64-bit words)
    assert number == 3 << 30 | 40 << 16 | ord("H") << 8 | request_
    assert (address, pages, taken, faults) == (0x7000, 4, 0, 0)
    assert room, "it copies what it took to there"


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EBUSY])
def test_a_device_that_did_not_get_all_got_none(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("harness.probe.kvm.ioctl", Driver(refusal=number).ioctl)
    assert Mirror().take(0x7000, 4, "private") == 0
    monkeypatch.setattr("harness.probe.kvm.ioctl", Driver(refusal=errno.EINVAL).ioctl)
    with pytest.raises(OSError, match="Invalid argument"):
        Mirror().take(0x7000, 4, "private")


def test_a_node_that_is_missing_is_made(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node.unlink()
    made: list[tuple[str, int, int]] = []

    def mknod(path: str, mode: int, device: int) -> None:
        made.append((path, mode, device))
        node.touch()

    monkeypatch.setattr(os, "mknod", mknod)
    monkeypatch.setattr(Path, "read_text", lambda path: DEVICES)
    Mirror().close()
    assert made == [(str(node), 0o020600, os.makedev(240, 0))]


def test_a_kernel_without_the_driver_has_no_such_device(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.unlink()
    monkeypatch.setattr(Path, "read_text", lambda path: DEVICES.replace("HMM", "XYZ"))
    with pytest.raises(FileNotFoundError, match="HMM_DMIRROR"):
        Mirror()
