# SPDX-License-Identifier: GPL-2.0-only
"""Makes files that look like kernels to whoever reads only their headers."""

from __future__ import annotations

import struct
from pathlib import Path


def bzimage(
    release: str = "6.12.1",
    *,
    protocol: int = 0x020F,
    xloadflags: int = 0x23,
    missing: int = 0,
    build: str = "#1 SMP @0",
) -> bytes:
    """A bzImage with two setup sectors and 4 KiB of payload, ``missing`` bytes short."""
    data = bytearray(3 * 512 + 4096)
    data[0x1F1] = 2
    struct.pack_into("<I", data, 0x1F4, 4096 // 16)
    data[0x1FE:0x200] = b"\x55\xaa"
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, protocol)
    struct.pack_into("<H", data, 0x20E, 0x100)
    struct.pack_into("<H", data, 0x236, xloadflags)
    banner = f"{release} (user@host) {build}\0".encode()
    data[0x300 : 0x300 + len(banner)] = banner
    return bytes(data[: len(data) - missing])


def kernel_tree(root: Path) -> Path:
    """A directory that passes for a kernel source tree."""
    (root / "arch/x86").mkdir(parents=True)
    (root / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 0\n")
    (root / "Kconfig").write_text('source "arch/$(SRCARCH)/Kconfig"\n')
    (root / "arch/x86/Kconfig").write_text("")
    return root
