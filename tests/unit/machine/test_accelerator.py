# SPDX-License-Identifier: GPL-2.0-only
"""The accelerator follows from what KVM's CPU model offers, not from a device that opens."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from harness.errors import ExitCode, MachineUnfitError, UsageError
from harness.machine.accelerator import choose, nested_kvm, parse_cpuid


def leaf(function: int, ecx: int, index: int = 0) -> bytes:
    return struct.pack("<10I", function, index, 0, 0, 0, ecx, 0, 0, 0, 0)


def cpuid(*leaves: bytes) -> bytes:
    return struct.pack("<II", len(leaves), 0) + b"".join(leaves) + bytes(400)


PLAIN = (leaf(0, 0), leaf(1, 1 << 31), leaf(0x80000001, 1))


def offering(monkeypatch: pytest.MonkeyPatch, *leaves: bytes) -> None:
    answer = cpuid(*leaves)

    def ioctl(_handle: int, request: int, buffer: bytearray) -> int:
        assert request == 0xC008AE05
        (room,) = struct.unpack_from("<I", buffer)
        if room < len(leaves):
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        buffer[:] = answer[: len(buffer)].ljust(len(buffer), b"\0")
        return 0

    monkeypatch.setattr("harness.machine.accelerator.fcntl.ioctl", ioctl)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    return path


def test_parse_reads_as_many_entries_as_there_are() -> None:
    assert parse_cpuid(cpuid(leaf(1, 5), leaf(7, 9), leaf(7, 1, index=1))) == {1: 5, 7: 9}


@pytest.mark.parametrize(("bits", "name"), [((1, 5), "VMX"), ((0x80000001, 2), "SVM")])
def test_auto_takes_kvm_where_it_nests(
    monkeypatch: pytest.MonkeyPatch, device: Path, bits: tuple[int, int], name: str
) -> None:
    offering(monkeypatch, leaf(0, 0), leaf(bits[0], 1 << bits[1]))
    chosen = choose("auto", device)
    assert chosen.name == "kvm"
    assert name in chosen.reason
    assert choose("kvm", device) == chosen
    assert choose("tcg", device).name == "tcg"


def test_device_that_opens_proves_nothing(monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    offering(monkeypatch, *PLAIN)
    chosen = choose("auto", device)
    assert chosen.name == "tcg"
    assert "neither VMX nor SVM" in chosen.reason
    with pytest.raises(MachineUnfitError, match="neither VMX nor SVM") as caught:
        choose("kvm", device)
    assert caught.value.exit_code == ExitCode.UNFIT
    assert "--accel tcg" in str(caught.value)


def test_long_answer_is_asked_for_again(monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    many = [leaf(0x40000000 + number, 0) for number in range(200)]
    offering(monkeypatch, *many, leaf(1, 1 << 5))
    assert nested_kvm(device)[0]


def test_missing_device_is_said(tmp_path: Path) -> None:
    chosen = choose("auto", tmp_path / "kvm")
    assert chosen.name == "tcg"
    assert f"there is no {tmp_path / 'kvm'}" in chosen.reason


def test_not_a_kvm_device_is_said(device: Path) -> None:
    able, why = nested_kvm(device)
    assert not able
    assert "does not tell its CPU model" in why


def test_unknown_request_is_bad_usage() -> None:
    with pytest.raises(UsageError, match=r"'hvf'; choose one of auto, kvm, tcg"):
        choose("hvf")
