# SPDX-License-Identifier: GPL-2.0-only
"""The first root of kernels that have the drivers of the host's root as modules."""

from __future__ import annotations

from pathlib import Path

from harness.image import layout, modules, recipe
from harness.image.cpio import Archive
from harness.image.rootfs import HostImage
from harness.kernel.model import Kernel
from harness.store import Store

_TEMPLATE = recipe.RECIPES / "initramfs" / "init.sh.j2"

_DRIVERS = ("virtio_pci", "virtio_blk", "crc32c_generic", "crc32c_cryptoapi", "ext4")
"""What stands between the kernel and its root. ext4 asks the crypto API for crc32c by name, which
modules.dep does not show; the modules that provide it differ between versions."""


def initramfs(kernel: Kernel, image: HostImage, store: Store) -> Path | None:
    """An initramfs for ``kernel``, or None where it needs none.

    A kernel without modules must have its drivers built in. Raises BootError when the modules
    do not belong to the kernel.
    """
    if kernel.modules is None:
        return None
    directory = modules.release_directory(kernel.modules, kernel.release)
    table = modules.parse_dependencies((directory / "modules.dep").read_text())
    files = modules.closure(_DRIVERS, table)
    if not files:
        return None
    names = [modules.name_of(file) + ".ko" for file in files]
    init = recipe.render(_TEMPLATE, {**layout.TEMPLATE_VARIABLES, "modules": names})
    # The image stands for its modules: both come from one package or one build.
    key = {"kernel": kernel.identity, "files": files, "init": init, "host": image.digest}

    def make(scratch: Path) -> None:
        archive = Archive()
        for name in ("dev", "proc", "sys", "root"):
            archive.directory(name)
        archive.character_device("dev/console", 5, 1)
        archive.file("bin/busybox", image.busybox.read_bytes(), 0o755)
        archive.file("init", init.encode(), 0o755)
        for name, file in zip(names, files, strict=True):
            archive.file(f"modules/{name}", modules.content(directory / file, scratch))
        (scratch / "initramfs.cpio").write_bytes(archive.finished())

    return store.entry("initramfs", key, make) / "initramfs.cpio"
