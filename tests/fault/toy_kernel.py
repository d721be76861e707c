# SPDX-License-Identifier: GPL-2.0-only
"""Kernels of a few hundred bytes: they print a text on the serial port and then do one thing.

To QEMU they are bzImages: it loads their setup code and runs it in real mode, as the boot protocol
says (Documentation/arch/x86/boot.rst). So what a kernel can do to us is tried in no time.
"""

from __future__ import annotations

import struct
from pathlib import Path

_SETUP = 0x200
_CODE = 0x280
_TEXT = 0x300
_SECTORS = 7

_PRINT = bytes.fromhex(
    "0e 1f"  # push cs; pop ds
    "be 00 01"  # mov si, 0x100: the text
    "ac"  # next: lodsb
    "84 c0"  # test al, al
    "74 11"  # jz done
    "88 c4"  # mov ah, al
    "ba fd 03"  # mov dx, 0x3fd
    "ec"  # wait: in al, dx
    "a8 20"  # test al, 0x20: room for a character
    "74 fb"  # jz wait
    "b2 f8"  # mov dl, 0xf8: port 0x3f8
    "88 e0"  # mov al, ah
    "ee"  # out dx, al
    "eb ea"  # jmp next
)

HANG = bytes.fromhex("fa f4 eb fd")  # done: cli; hlt; jmp back to hlt
RESET = bytes.fromhex("b0 fe e6 64") + HANG  # as the kernel does it: through the keyboard port
REPEAT = bytes.fromhex("e9") + struct.pack("<h", -(len(_PRINT) + 3))  # from the start


def toy_kernel(path: Path, text: str, ending: bytes) -> Path:
    """Write a kernel that prints ``text`` and ends in one of the ways above."""
    data = bytearray(_SETUP + _SECTORS * 512 + 4096)
    data[0x1F1] = _SECTORS
    struct.pack_into("<I", data, 0x1F4, 4096 // 16)
    data[0x1FE:0x200] = b"\x55\xaa"
    data[_SETUP : _SETUP + 2] = bytes([0xEB, _CODE - _SETUP - 2])  # jmp to the code
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, 0x020F)
    data[0x211] = 1  # loaded high
    struct.pack_into("<I", data, 0x214, 0x100000)
    struct.pack_into("<I", data, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<H", data, 0x236, 0x1)
    struct.pack_into("<I", data, 0x238, 2047)  # the longest command line
    code = _PRINT + ending
    data[_CODE : _CODE + len(code)] = code
    message = text.replace("\n", "\r\n").encode() + b"\0"
    assert len(message) < _SECTORS * 512 - (_TEXT - _SETUP)
    data[_TEXT : _TEXT + len(message)] = message
    path.write_bytes(bytes(data))
    return path
