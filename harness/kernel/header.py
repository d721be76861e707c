# SPDX-License-Identifier: GPL-2.0-only
"""Read and check the header of a bzImage.

The fields are those of the x86 boot protocol, Documentation/arch/x86/boot.rst in the kernel.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import struct
from pathlib import Path

from harness.errors import ImageError

_SETUP_SECTS = 0x1F1
_SYSSIZE = 0x1F4
_BOOT_FLAG = 0x1FE
_MAGIC = 0x202
_VERSION = 0x206
_KERNEL_VERSION = 0x20E
_XLOADFLAGS = 0x236
_HEADER_END = 0x268

_SECTOR = 512
_XLF_KERNEL_64 = 1 << 0
_XLF_SINCE = (2, 12)
"""xloadflags exist since this version of the protocol, which every 64-bit kernel since 3.8 has."""

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
}
_LONGEST_VERSION = 512
_HOW = "give the bzImage of an x86-64 kernel, as in arch/x86/boot/bzImage."


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """What a bzImage says of itself; ``banner`` begins with the release, sizes are bytes."""

    release: str
    banner: str
    protocol: tuple[int, int]
    size: int


def read_header(path: Path) -> ImageHeader:
    """The header of a complete x86-64 bzImage; raises ImageError that says what is wrong."""
    start, size = _beginning(path)
    if start.startswith(b"\x7fELF"):
        raise ImageError(f"{path} is an ELF file, perhaps a vmlinux; {_HOW}")
    if start[56:60] == b"ARM\x64":
        raise ImageError(f"{path} is a kernel image for arm64; {_HOW}")
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise ImageError(
                f"{path} is {name} data, perhaps a tarball without .tar in its name; {_HOW}"
            )
    if len(start) < _HEADER_END and size < _HEADER_END:
        raise ImageError(f"{path} is truncated: {size} bytes cannot hold a boot header; {_HOW}")
    if start[_BOOT_FLAG : _BOOT_FLAG + 2] != b"\x55\xaa" or start[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise ImageError(f"{path} is not a Linux kernel image for x86 (no HdrS magic); {_HOW}")
    protocol = (start[_VERSION + 1], start[_VERSION])
    if protocol < _XLF_SINCE or not _word(start, _XLOADFLAGS) & _XLF_KERNEL_64:
        raise ImageError(
            f"{path} is not a 64-bit kernel (boot protocol {protocol[0]}.{protocol[1]:02}); {_HOW}"
        )
    setup = ((start[_SETUP_SECTS] or 4) + 1) * _SECTOR
    expected = setup + struct.unpack_from("<I", start, _SYSSIZE)[0] * 16
    # A signature may follow, so only what is missing is an error.
    if size < expected:
        raise ImageError(
            f"{path} is truncated: it has {size} bytes, its header promises {expected}; "
            "build or copy it again."
        )
    banner = _banner(start, setup)
    if not banner:
        raise ImageError(f"{path} does not say its release (no kernel_version string); {_HOW}")
    return ImageHeader(banner.split()[0], banner, protocol, size)


def _beginning(path: Path) -> tuple[bytes, int]:
    try:
        # Not to hang on a FIFO that somebody gave as a kernel.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ImageError(f"There is no kernel image {path}; check the path.") from None
    except OSError as error:
        raise ImageError(f"The kernel image {path} cannot be read: {error.strerror}.") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{path} is a directory, not a kernel image; {_HOW}")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path} is not a regular file; {_HOW}")
        if status.st_size == 0:
            raise ImageError(f"{path} is empty; build or copy it again.")
        # The setup part has at most 256 sectors, and the banner lies in it.
        return os.read(descriptor, 256 * _SECTOR), status.st_size
    finally:
        os.close(descriptor)


def _banner(start: bytes, setup: int) -> str:
    pointer = _word(start, _KERNEL_VERSION)
    if pointer == 0 or pointer + 0x200 >= setup:
        return ""
    text = start[pointer + 0x200 :][:_LONGEST_VERSION]
    return text.split(b"\0", 1)[0].decode("ascii", errors="replace").strip()


def _word(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")
