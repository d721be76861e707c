# SPDX-License-Identifier: GPL-2.0-only
"""Makes a dump of a host's memory, as QEMU writes it, one that drgn opens."""

from __future__ import annotations

import struct
from pathlib import Path

from harness.errors import QemuError

# makedumpfile's flattened format: a header of this size, then records of where, how much, and what.
_HEADER = 4096
_RECORD = struct.Struct(">qq")
_FLATTENED = b"makedumpfile\0"

# struct disk_dump_header: a signature, a version, and what uname says in six fields.
_SIGNATURE = b"KDUMP   "
_NAMES = 12
_NAME_BYTES = 65


def name_kernel(path: Path, release: str) -> None:
    """Enter in a dump what uname said on its host.

    QEMU leaves that out, and says that the machine is "Unknown"; libkdumpfile, by which drgn reads
    such files, then does not know its architecture. Raises QemuError for what is no such dump.
    """
    words = ("Linux", "host", release, "#1", "x86_64", "(none)")
    names = b"".join(word.encode()[: _NAME_BYTES - 1].ljust(_NAME_BYTES, b"\0") for word in words)
    path.chmod(0o600)
    with path.open("r+b") as file:
        flattened = file.read(len(_FLATTENED)) == _FLATTENED
        file.seek(_HEADER)
        offset, _ = _RECORD.unpack(file.read(_RECORD.size).ljust(_RECORD.size, b"\xff"))
        if not flattened or offset != 0 or file.read(len(_SIGNATURE)) != _SIGNATURE:
            raise QemuError(f"What QEMU wrote to {path} is no dump of memory as kdump has it.")
        file.seek(_HEADER + _RECORD.size + _NAMES)
        file.write(names)
