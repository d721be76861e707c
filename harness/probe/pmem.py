# SPDX-License-Identifier: GPL-2.0-only
"""The file system on the host's persistent memory, for files that are mapped straight from it."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path

from harness.probe.system import checked, libc

_DEVICE = Path("/dev/pmem0")
_DIRECTORY = Path("/mnt")

_MODULES = ("virtio_pmem", "nd_pmem")
"""What drives it; Debian's kernels have both as modules, which nobody loads by himself here."""

_APPEARS_SECONDS = 10.0
_LOOK_SECONDS = 0.02


def directory() -> Path:
    """Where the file system is mounted with DAX; made when it is first asked for.

    Raises OSError with ENODEV on a host without such a device, and what mount(2) says where its
    kernel has no DAX.
    """
    if not _DIRECTORY.is_mount():
        if not _appears():
            raise OSError(errno.ENODEV, f"there is no {_DEVICE}")
        # All of it at once: a kernel thread would go on writing to it during the tests. And files
        # in stretches of 2 MiB, or no large page could be mapped.
        how = "lazy_itable_init=0,lazy_journal_init=0,stride=512,stripe_width=512"
        argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-E", how, os.fspath(_DEVICE)]
        subprocess.run(argv, check=True, capture_output=True)
        words = [os.fspath(_DEVICE), os.fspath(_DIRECTORY), "ext4"]
        checked(libc.mount(*[word.encode() for word in words], 0, b"dax"))
    return _DIRECTORY


def _appears() -> bool:
    """Whether there is a device, once the modules for it have been loaded and have found it."""
    if _DEVICE.exists():
        return True
    argv = ["modprobe", "--all", *_MODULES]
    if subprocess.run(argv, check=False, capture_output=True).returncode != 0:
        return False
    until = time.monotonic() + _APPEARS_SECONDS
    while not _DEVICE.exists() and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
    return _DEVICE.exists()
