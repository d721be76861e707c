# SPDX-License-Identifier: GPL-2.0-only
"""What this machine can run, and what it lacks."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
import sys
from pathlib import Path

from harness.command import require, run
from harness.deadline import Deadline
from harness.errors import HarnessError, MachineUnfitError
from harness.machine.accelerator import choose
from harness.store import Store

_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "fakeroot": "fakeroot",
    "gcc": "gcc",
    "ld": "binutils",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "perl": "perl",
    "depmod": "kmod",
    "git": "git",
    "tar": "tar",
    "xz": "xz-utils",
    "zstd": "zstd",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}
_QEMU = "qemu-system-x86_64"
_SOUND_QEMU = 10
_SECONDS = 30.0
_GIB = 1 << 30
_DISK_GIB = 10
"""A kernel tree with its objects, two built kernels with debug information, and an image."""

_MEMORY_GIB = 4
"""One host of 2 GiB and the compiler's needs."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``fatal`` when nothing can be tested because of it."""

    what: str
    good: bool
    text: str
    fatal: bool = True


def examine(store: Store) -> tuple[Finding, ...]:
    """Everything that the harness needs of this machine, found or missing."""
    return (
        _python(),
        _architecture(),
        *(_program(name, package) for name, package in _PROGRAMS.items()),
        _optional("ccache", "ccache", "builds are repeated in full without it"),
        _accelerator(),
        _emulator(),
        _memory(),
        _disk(store),
    )


def _python() -> Finding:
    version = platform.python_version()
    return Finding("Python", sys.version_info >= (3, 11), f"{version}; 3.11 or newer is needed")


def _architecture() -> Finding:
    machine = platform.machine()
    return Finding("architecture", machine == "x86_64", f"{machine}; x86_64 is needed")


def _program(name: str, package: str) -> Finding:
    try:
        return Finding(name, True, require(name, package))
    except MachineUnfitError as error:
        return Finding(name, False, str(error))


def _optional(name: str, package: str, otherwise: str) -> Finding:
    found = _program(name, package)
    text = found.text if found.good else f"{found.text} Not needed, but {otherwise}."
    return Finding(name, found.good, text, fatal=False)


def _accelerator() -> Finding:
    try:
        chosen = choose("auto")
    except HarnessError as error:
        return Finding("accelerator", False, str(error))
    return Finding("accelerator", True, f"{chosen.name}: {chosen.reason}")


def _emulator() -> Finding:
    """Whether QEMU, where it has to emulate, is one that was not seen to get it wrong."""
    try:
        words = run(
            [require(_QEMU, _PROGRAMS[_QEMU]), "--version"], Deadline.after(_SECONDS, _QEMU)
        )
        emulates = choose("auto").name == "tcg"
    except HarnessError as error:
        return Finding("emulator", False, str(error), fatal=False)
    found = re.search(r"version (\d+)[.\d]*", words.stdout)
    version = f"QEMU {found[0]}" if found else "QEMU of an unknown version"
    if not emulates:
        return Finding("emulator", True, f"{version}; not needed, there is nested KVM")
    if found and int(found[1]) >= _SOUND_QEMU:
        return Finding("emulator", True, version)
    text = (
        f"{version}; of version 7.2 it is known that now and then it runs code which the kernel "
        f"has changed, of {_SOUND_QEMU} it is not (docs/emulation.md)"
    )
    return Finding("emulator", False, text, fatal=False)


def _memory() -> Finding:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    text = f"{size:.1f} GiB; {_MEMORY_GIB} GiB are needed"
    # A machine of 4 GiB has a little less for its programs.
    return Finding("memory", size >= _MEMORY_GIB * 0.9, text)


def _disk(store: Store) -> Finding:
    place = _existing(store.root)
    free = shutil.disk_usage(place).free / _GIB
    writable = os.access(place, os.W_OK)
    text = f"{free:.0f} GiB free for {store.root}; {_DISK_GIB} GiB are needed to build a kernel"
    if not writable:
        text = f"{place} is not writable; set XDG_CACHE_HOME to a directory that is"
    return Finding("cache", writable and free >= _DISK_GIB, text)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
