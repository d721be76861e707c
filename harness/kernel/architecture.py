# SPDX-License-Identifier: GPL-2.0-only
"""Other architectures that kernels are compiled for, and the compilers that do it.

A compiler that is installed is taken. Where there is none, Debian's packages are fetched and
unpacked in the store, which needs no root: gcc finds its parts relative to where it lies.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path

from harness.errors import MachineUnfitError, SourceError, UsageError
from harness.kernel.debian import Apt, Package
from harness.kernel.make import Toolchain, toolchain
from harness.progress import Progress
from harness.store import Store

_RECIPE = 1
_DEPENDENCY = re.compile(r"(?:^|,)\s*([a-z0-9][a-z0-9.+-]+)")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One architecture as Debian calls it; ``kernel`` is what the kernel's make calls it.

    ``triplet`` begins the names of its compiler's programs.
    """

    name: str
    kernel: str
    triplet: str

    @property
    def compiler(self) -> str:
        """The Debian package that brings the compiler and the binutils."""
        return f"gcc-{self.triplet}"

    def owns(self, package: str) -> bool:
        """Whether a package is a part of the compiler, and not a library of this machine."""
        triplet, name = re.escape(self.triplet), re.escape(self.name)
        return bool(
            re.fullmatch(
                rf"(?:gcc|cpp|binutils)(?:-\d+)?-{triplet}|libgcc-\d+-dev-{name}-cross", package
            )
        )


ARCHITECTURES = (
    Architecture("arm64", "arm64", "aarch64-linux-gnu"),
    Architecture("ppc64el", "powerpc", "powerpc64le-linux-gnu"),
)


def named(name: str) -> Architecture:
    """The architecture of this name; raises UsageError with the known ones."""
    for known in ARCHITECTURES:
        if known.name == name:
            return known
    names = ", ".join(known.name for known in ARCHITECTURES)
    raise UsageError(f"Nothing is compiled for the architecture {name!r} here; choose {names}.")


def cross_toolchain(
    architecture: Architecture, apt: Apt, store: Store, progress: Progress
) -> Toolchain:
    """The compiler for an architecture, installed or fetched.

    Raises MachineUnfitError that names the package where there is none and apt knows none.
    """
    prefix = f"{architecture.triplet}-"
    if all(shutil.which(f"{prefix}{program}") for program in ("gcc", "ld", "nm")):
        return toolchain(architecture.kernel, prefix)
    root = _fetched(architecture, apt, store, progress)
    # The programs look for these libraries where the packages would have installed them.
    libraries = next((path.parent for path in root.glob("usr/lib/*/libbfd-*.so")), None)
    return toolchain(architecture.kernel, f"{root / 'usr/bin'}{os.sep}{prefix}", libraries)


def _fetched(architecture: Architecture, apt: Apt, store: Store, progress: Progress) -> Path:
    try:
        packages = _packages(architecture, apt)
    except (SourceError, MachineUnfitError) as error:
        raise MachineUnfitError(
            f"This machine has no compiler for {architecture.name}, and none can be fetched: "
            f"{error} Or install the Debian package {architecture.compiler}."
        ) from error

    def make(directory: Path) -> None:
        for package in packages:
            # Both are entries of the store, which nobody changes, so they can share the files.
            shutil.copytree(
                apt.unpacked(package, progress) / "usr",
                directory / "usr",
                symlinks=True,
                copy_function=os.link,
                dirs_exist_ok=True,
            )

    key = {
        "recipe": _RECIPE,
        "name": architecture.compiler,
        "packages": [[package.title, package.sha256] for package in packages],
    }
    return store.entry("compiler", key, make)


def _packages(architecture: Architecture, apt: Apt) -> list[Package]:
    """The compiler's package and all that it needs of its own kind."""
    found: dict[str, Package] = {}
    wanted = [architecture.compiler]
    for name in wanted:
        if name not in found:
            found[name] = apt.package(name)
            wanted += filter(architecture.owns, _DEPENDENCY.findall(found[name].depends))
    return [found[name] for name in sorted(found)]
