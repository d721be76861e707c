# SPDX-License-Identifier: GPL-2.0-only
"""The other disks of a host: its modules, the seed of a run, swap, and overlays."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from harness.command import require, run
from harness.deadline import Deadline
from harness.image import modules
from harness.image.ext4 import make_ext4
from harness.kernel.model import Kernel
from harness.store import Store

_OVERLAY_SECONDS = 30.0
_MIB = 1 << 20


def modules_disk(kernel: Kernel, store: Store) -> Path | None:
    """A read-only ext4 image for the host's /lib/modules, or None if the kernel has no modules.

    Raises BootError when the modules do not belong to the kernel.
    """
    directory = kernel.modules
    if directory is None:
        return None
    table = modules.release_directory(directory, kernel.release) / "modules.dep"
    key = {"kernel": kernel.identity, "modules": table.read_text()}

    def make(scratch: Path) -> None:
        make_ext4(directory, scratch / "modules.ext4", free_mib=1)

    return store.entry("modules", key, make) / "modules.ext4"


def write_seed(path: Path, files: Mapping[str, bytes]) -> None:
    """Write the seed disk of a run: a tar without a file system, readable by us only."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o600
            archive.addfile(member, io.BytesIO(data))
    path.touch(mode=0o600)
    path.write_bytes(buffer.getvalue())


def write_swap(path: Path, mib: int) -> None:
    """Make a swap disk of ``mib`` MiB: a sparse file that the host's init formats."""
    with path.open("wb") as file:
        file.truncate(mib * _MIB)


def make_overlay(path: Path, base: Path) -> None:
    """Make a qcow2 file that keeps what a host writes away from ``base``, a raw image.

    Raises CommandError when qemu-img fails.
    """
    # QEMU takes what stands before a colon for a protocol, but not in an absolute path.
    argv = [require("qemu-img", "qemu-utils"), "create", "-q", "-f", "qcow2", "-F", "raw"]
    argv += ["-b", str(base.absolute()), str(path.absolute())]
    run(argv, Deadline.after(_OVERLAY_SECONDS, "Making the host's disk overlay"))
