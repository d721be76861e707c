# SPDX-License-Identifier: GPL-2.0-only
"""A dump of a host's memory says of which kernel it is."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness.errors import QemuError
from harness.machine.dump import name_kernel

PAGE = b"KDUMP   " + struct.pack("<i", 6) + b"\0" * 260 + b"Unknown".ljust(130, b"\0") + b"rest"


def flattened(first: bytes, offset: int = 0) -> bytes:
    """A dump as QEMU writes it."""
    head = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    return head.ljust(4096, b"\0") + struct.pack(">qq", offset, len(first)) + first


def test_uname_is_entered_where_qemu_leaves_it_out(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(flattened(PAGE))
    path.chmod(0o400)
    name_kernel(path, "6.12.117" * 20)
    data = path.read_bytes()
    assert len(data) == len(flattened(PAGE))
    fields = [data[4096 + 16 + 12 + 65 * n :][:65] for n in range(6)]
    assert [field.rstrip(b"\0") for field in fields] == [
        b"Linux", b"host", (b"6.12.117" * 20)[:64], b"#1", b"x86_64", b"(none)",
    ]  # fmt: skip
    # What follows stays as it was.
    assert data[: 4096 + 16 + 12] == flattened(PAGE)[: 4096 + 16 + 12]


@pytest.mark.parametrize(
    "data", [b"", b"ELF", PAGE, flattened(b"other"), flattened(PAGE, 4096), flattened(PAGE)[:4100]]
)
def test_what_is_no_such_dump_is_told(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "dump"
    path.write_bytes(data)
    with pytest.raises(QemuError, match="no dump of memory"):
        name_kernel(path, "6.12")
    assert path.read_bytes() == data
