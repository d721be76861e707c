# SPDX-License-Identifier: GPL-2.0-only
"""Programs of another release of Debian, started with the C library of that release.

A program that was built against a newer C library than this machine has is refused by the
machine's loader. Its own release's loader, unpacked anywhere, starts it with the libraries beside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from harness.command import run
from harness.deadline import Deadline
from harness.kernel.debian import Apt, Package
from harness.progress import Progress

_LOADER = "ld-linux-x86-64.so.2"
_MACHINES_LOADER = Path("/lib64") / _LOADER
_TRIPLET = "x86_64-linux-gnu"
_SECONDS = 30.0

_LIBRARY = re.compile(r"(?:^|,)\s*(lib(?!c-)[a-z0-9.+-]+|zlib1g)")
"""Packages with libraries; libc-bin and its like have none."""

_NOT_CALLED = {"sign-file", "extract-cert", "insert-sys-cert"}
"""Programs of a kernel's build that sign; they need OpenSSL, of which no two releases have one."""

_STARTER = """\
#!/bin/sh
# The program beside this file, with the libraries of its own release of Debian.
libraries=${{0%/*}}/{libraries}
exec "$libraries/{loader}" --library-path "$libraries" "$0.elf" "$@"
"""


def make_startable(directory: Path, package: Package, apt: Apt, progress: Progress) -> None:
    """Have the programs of a kernel's build below a directory start on this machine.

    They are of ``package``, which says what libraries they need. Where the machine's do, nothing
    is changed. The directory may be moved afterwards. Raises SourceError where apt does not know
    a library, CommandError when a download fails.
    """
    strangers = [program for program in _programs(directory) if _refused(program)]
    if not strangers:
        return
    libraries = directory / "libraries"
    libraries.mkdir()
    for needed in _needed(package, apt):
        for file in apt.unpacked(needed, progress).rglob("*.so*"):
            if file.parent.name == _TRIPLET and file.is_file():
                # Both are entries of the store, which nobody changes.
                os.link(file.resolve(), libraries / file.name)
    for program in strangers:
        program.rename(f"{program}.elf")
        where = os.path.relpath(libraries, program.parent)
        program.write_text(_STARTER.format(libraries=where, loader=_LOADER))
        program.chmod(0o755)


def _programs(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.name in _NOT_CALLED:
            continue
        if os.access(path, os.X_OK):
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def _refused(program: Path) -> bool:
    """Whether the machine's loader lacks a library of a program, or a version of one."""
    deadline = Deadline.after(_SECONDS, f"Looking for the libraries of {program.name}")
    told = run([_MACHINES_LOADER, "--list", program], deadline, env={"LC_ALL": "C"}, check=False)
    return "not found" in told.stdout + told.stderr or "cannot open shared" in told.stderr


def _needed(package: Package, apt: Apt) -> list[Package]:
    """The packages of libraries that a package depends on, and those that they depend on."""
    found: dict[str, Package] = {}
    wanted = _LIBRARY.findall(package.depends)
    for name in wanted:
        if name not in found:
            found[name] = apt.package(name)
            wanted += _LIBRARY.findall(found[name].depends)
    return [found[name] for name in sorted(found)]
