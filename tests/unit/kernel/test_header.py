# SPDX-License-Identifier: GPL-2.0-only
"""A file is a complete x86-64 bzImage, or the error says what it is instead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_kernels import bzimage

from harness.errors import ExitCode, ImageError
from harness.kernel.header import read_header


def _without_banner() -> bytes:
    data = bytearray(bzimage())
    data[0x20E:0x210] = b"\0\0"
    return bytes(data)


def test_reads_release_and_banner(tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage("6.12.117-test+"))
    header = read_header(path)
    assert header.release == "6.12.117-test+"
    assert header.banner == "6.12.117-test+ (user@host) #1 SMP @0"
    assert header.protocol == (2, 15)
    assert header.size == len(bzimage())


def test_a_signature_may_follow(tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage() + b"signature")
    assert read_header(path).release == "6.12.1"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (bzimage()[:0x200], "is truncated: 512 bytes cannot hold"),
        (bzimage(missing=1), "is truncated: it has 5631 bytes, its header promises 5632"),
        (bzimage(missing=4096), "is truncated"),
        (b"\0" * 8192, "no HdrS magic"),
        (b"\x7fELF" + b"\0" * 8192, "ELF file"),
        (b"\0" * 56 + b"ARM\x64" + b"\0" * 8192, "arm64"),
        (bzimage(xloadflags=0), "not a 64-bit kernel"),
        (_without_banner(), "does not say its release"),
        (bzimage(protocol=0x020B), r"not a 64-bit kernel \(boot protocol 2.11\)"),
    ],
)
def test_names_what_is_wrong(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "-a, b"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=says) as caught:
        read_header(path)
    assert caught.value.exit_code is ExitCode.UNTESTABLE
    assert str(path) in str(caught.value)


def test_missing_directory_and_fifo(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="There is no kernel image"):
        read_header(tmp_path / "none")
    with pytest.raises(ImageError, match="is a directory"):
        read_header(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="not a regular file"):
        read_header(tmp_path / "fifo")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage())
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        read_header(path)
