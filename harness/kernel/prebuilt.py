# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that somebody else has built: Debian's, and a bzImage of the user."""

from __future__ import annotations

import mmap
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from harness.errors import SourceError
from harness.kernel import modules
from harness.kernel.debian import Apt, Package
from harness.kernel.header import ImageHeader, read_header
from harness.kernel.model import Kernel, image_digest, read_config, require_kvm
from harness.kernel.reference import ImageFile
from harness.progress import Progress
from harness.store import Store

_RECIPE = 1
"""Part of the keys of entries; increase it when their layout changes."""


def from_package(
    origin: str, package: Package, apt: Apt, store: Store, progress: Progress
) -> Kernel:
    """Debian's kernel with its modules indexed; raises SourceError for a package without them."""

    def make(directory: Path) -> None:
        unpacked = apt.unpacked(package, progress)
        images = sorted(unpacked.glob("boot/vmlinuz-*"))
        if len(images) != 1:
            raise SourceError(f"The package {package.title} holds no kernel image.")
        release = read_header(images[0]).release
        shutil.copy(images[0], directory / "bzImage")
        shutil.copy(unpacked / f"boot/config-{release}", directory / "config")
        installed = _first(unpacked / "lib/modules", unpacked / "usr/lib/modules")
        if installed is None or not (installed / release).is_dir():
            raise SourceError(f"The package {package.title} holds no modules for {release}.")
        with progress.phase(f"Index the modules of {release}"):
            copied = directory / "installed"
            # Both are entries of the store, which nobody changes, so they can share the files.
            shutil.copytree(installed / release, copied, symlinks=True, copy_function=os.link)
            modules.take(copied, directory / "modules", release)

    key = {"recipe": _RECIPE, "package": package.title, "sha256": package.sha256}
    entry = store.entry("prebuilt", key, make)
    image, config = entry / "bzImage", entry / "config"
    require_kvm(read_config(config), f"The kernel {package.title}")
    return Kernel(
        image=image,
        release=read_header(image).release,
        digest=image_digest(image),
        origin=origin,
        config=config,
        modules=entry / "modules",
        entry=entry,
    )


def from_image(reference: ImageFile, progress: Progress) -> Kernel:
    """A bzImage, with what belongs to it where a build tree or /boot has it.

    What is there but belongs to another kernel is left out, with a note that says so.
    """
    image = reference.path
    header = read_header(image)
    # What arch/x86_64/boot/bzImage links to lies in arch/x86/boot; both are at the same depth.
    places = [image.parent]
    if image.parent.name == "boot" and image.parent.parent.parent.name == "arch":
        places.append(image.parents[3])
    config = _first(
        *(place / name for place in places for name in (".config", f"config-{header.release}")),
        image.parent / "config",
    )
    if config is not None:
        require_kvm(read_config(config), f"The kernel {image}")
    return Kernel(
        image=image,
        release=header.release,
        digest=image_digest(image),
        origin=reference.text,
        config=config,
        vmlinux=_vmlinux(header, places, progress),
        modules=_modules(header.release, image.parent, progress),
        debug_modules=_debug_modules(places),
    )


def _vmlinux(header: ImageHeader, places: Iterable[Path], progress: Progress) -> Path | None:
    for place in places:
        path = place / "vmlinux"
        if not path.is_file() or path.stat().st_size == 0:
            continue
        if _same_build(path, header):
            return path
        progress.note(f"{path} is of another build than the image, and is not used.")
    return None


def _same_build(vmlinux: Path, header: ImageHeader) -> bool:
    """Whether the banner in vmlinux names the release and the build that the header names.

    The header says "RELEASE (user@host) #1 SMP date", the banner has the compiler before the "#".
    """
    build = header.banner.partition("#")[2].strip()
    with (
        vmlinux.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        # Since v6.1 there is a first banner without the build number, from before the last link.
        wanted = re.escape(f"Linux version {header.release} (".encode()) + rb"[^\n\0#]*#([^\n\0]*)"
        builds = {
            found[1].decode("ascii", "replace").strip() for found in re.finditer(wanted, data)
        }
    return build in builds


def _modules(release: str, directory: Path, progress: Progress) -> Path | None:
    candidates = [directory / "modules", directory / "lib/modules"]
    if directory.name == "boot":
        candidates += [directory.parent / "lib/modules", directory.parent / "usr/lib/modules"]
    for candidate in candidates:
        if (candidate / release / "modules.dep").is_file():
            return candidate
        if (candidate / release).is_dir():
            progress.note(
                f"{candidate / release} has no modules.dep and is not used; run depmod for it."
            )
    return None


def _debug_modules(places: Iterable[Path]) -> Path | None:
    """Where a build tree has the unstripped modules of KVM."""
    found = _first(*(place / "arch/x86/kvm/kvm.ko" for place in places))
    return None if found is None else found.parent


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)
