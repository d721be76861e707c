# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that somebody else has built: Debian's, and a bzImage of the user."""

from __future__ import annotations

import mmap
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from harness.errors import ImageError, SourceError, UsageError
from harness.kernel import headers, modules
from harness.kernel.debian import Apt, Package
from harness.kernel.header import ImageHeader, read_header
from harness.kernel.model import Kernel, image_digest, read_config, require_kvm
from harness.kernel.reference import ImageFile
from harness.progress import Progress
from harness.store import Store

_RECIPE = 1
"""Part of the keys of entries; increase it when their layout changes."""


def from_package(
    origin: str,
    package: Package,
    apt: Apt,
    store: Store,
    progress: Progress,
    vmlinux: Path | None = None,
) -> Kernel:
    """Debian's kernel with its modules indexed.

    ``vmlinux`` is a file with debug information, as the -dbg package has it. Raises SourceError
    for a package without a kernel or modules, ImageError for a vmlinux of another build.
    """
    parts = apt.parts(package)

    def make(directory: Path) -> None:
        _assemble(package, [apt.unpacked(part, progress) for part in parts], directory, progress)

    key: dict[str, object] = {
        "recipe": _RECIPE,
        "package": package.title,
        "sha256": package.sha256,
    }
    if len(parts) > 1:
        key["parts"] = [part.sha256 for part in parts]
    entry = store.entry("prebuilt", key, make)
    image, config = entry / "bzImage", entry / "config"
    require_kvm(read_config(config), f"The kernel {package.title}")
    header = read_header(image)
    return Kernel(
        image=image,
        release=header.release,
        digest=image_digest(image),
        origin=origin,
        config=config,
        vmlinux=None if vmlinux is None else _given(vmlinux, header, image),
        modules=entry / "modules",
        debug_modules=None if vmlinux is None else _debug_modules([vmlinux.parent], header),
        entry=entry,
    )


def _assemble(package: Package, roots: Sequence[Path], directory: Path, progress: Progress) -> None:
    """Fill a store entry with a kernel whose files lie below ``roots``, where packages put them."""
    found = [*(root / "boot" for root in roots), *_of_modules(roots, "*")]
    images = [image for place in found for image in sorted(place.glob("vmlinuz*"))]
    if len(images) != 1:
        raise SourceError(f"The package {package.title} holds no kernel image.")
    release = read_header(images[0]).release
    installed = _of_modules(roots, release)
    config = _first(
        *(root / f"boot/config-{release}" for root in roots),
        *(place / "config" for place in installed),
    )
    if config is None:
        raise SourceError(f"The package {package.title} holds no configuration of {release}.")
    if not any((place / "kernel").is_dir() for place in installed):
        raise SourceError(f"The package {package.title} holds no modules for {release}.")
    shutil.copy(images[0], directory / "bzImage")
    shutil.copy(config, directory / "config")
    with progress.phase(f"Index the modules of {release}"):
        copied = directory / "installed"
        for place in installed:
            # Both are entries of the store, which nobody changes, so they can share the files.
            shutil.copytree(
                place,
                copied,
                symlinks=True,
                ignore=shutil.ignore_patterns("vmlinuz", "System.map", "config"),
                copy_function=os.link,
                dirs_exist_ok=True,
            )
        modules.take(copied, directory / "modules", release)


def _of_modules(roots: Sequence[Path], release: str) -> list[Path]:
    """The directories of modules of a release, or of any (``*``), below ``roots``."""
    places = (root / prefix / "modules" for root in roots for prefix in ("lib", "usr/lib"))
    return [path for place in places for path in sorted(place.glob(release)) if path.is_dir()]


def from_image(reference: ImageFile, progress: Progress, vmlinux: Path | None = None) -> Kernel:
    """A bzImage, with what belongs to it where a build tree or /boot has it.

    What is there but belongs to another kernel is left out, with a note that says so. A
    ``vmlinux`` of the user's is taken instead of one beside the image; raises ImageError if it
    belongs to another.
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
        vmlinux=(
            _vmlinux(header, places, progress)
            if vmlinux is None
            else _given(vmlinux, header, image)
        ),
        modules=_modules(header.release, image.parent, progress),
        debug_modules=_debug_modules(
            [*places, *_debug_places(places)] if vmlinux is None else [vmlinux.parent], header
        ),
        headers=_headers(header.release, places),
    )


def _given(path: Path, header: ImageHeader, image: Path) -> Path:
    """The vmlinux that the user gave, if it is of the same build as the image."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UsageError(f"The vmlinux {path} cannot be read: {error.strerror}.") from error
    if start != b"\x7fELF":
        raise ImageError(
            f"{path} is no ELF file, so no vmlinux; give the uncompressed vmlinux of the build, "
            "or the one of the package with debug information."
        )
    if not _same_build(path, header):
        raise ImageError(
            f"{path} is of another build than {image} ({header.banner}), so what it says of "
            "addresses and types would be wrong; give the vmlinux of this build."
        )
    return path.absolute()


def _debug_places(places: Sequence[Path]) -> list[Path]:
    """Where packages with debug information put it, for images in these directories."""
    roots = [place.parent for place in places if place.name == "boot"]
    return [root / "usr/lib/debug" / name for root in roots for name in ("boot", "lib/modules")]


def _vmlinux(header: ImageHeader, places: Sequence[Path], progress: Progress) -> Path | None:
    release = header.release
    names = [place / name for place in places for name in ("vmlinux", f"vmlinux-{release}")]
    for place in _debug_places(places):
        names += [place / f"vmlinux-{release}", place / release / "vmlinux"]
    for path in names:
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
    if directory.name == release:
        # Some distributions keep the image among its modules.
        candidates.append(directory.parent)
    for candidate in candidates:
        if (candidate / release / "modules.dep").is_file():
            return candidate
        if (candidate / release).is_dir():
            progress.note(
                f"{candidate / release} has no modules.dep and is not used; run depmod for it."
            )
    return None


def _headers(release: str, places: Sequence[Path]) -> Path | None:
    """Where ``make M=`` builds modules: the build tree, or what a package has installed for it."""
    links = [place.parent / "lib/modules" / release / "build" for place in places]
    found = (place for place in (*places, *links) if headers.complete(place, release))
    return next(found, None)


def _debug_modules(places: Sequence[Path], header: ImageHeader) -> Path | None:
    """Where a build tree, or a package with debug information, has the unstripped KVM modules."""
    kvm = "arch/x86/kvm"
    names = (f"{kvm}/kvm.ko", f"kernel/{kvm}/kvm.ko", f"{header.release}/kernel/{kvm}/kvm.ko")
    # /usr/lib/debug/boot has only vmlinux; its modules are in the directory beside it.
    beside = [place.parent / "lib/modules" for place in places if place.name == "boot"]
    found = _first(*(place / name for place in (*places, *beside) for name in names))
    return None if found is None else found.parent


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)
