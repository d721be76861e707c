# SPDX-License-Identifier: GPL-2.0-only
"""What Linux guests boot: Debian's cloud kernel, and an initramfs made from guest-images/linux/.

The kernel is always the same one, whatever kernel the host runs: what goes wrong in a guest is then
the host's doing.
"""

from __future__ import annotations

import dataclasses
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from harness.command import require, run, run_logged
from harness.deadline import Deadline
from harness.errors import BootError, CommandError, HarnessError
from harness.image import layout, modules, recipe
from harness.image.cpio import Archive
from harness.image.rootfs import running_suite
from harness.kernel import reference
from harness.kernel.build import obtain
from harness.kernel.model import Kernel
from harness.progress import Progress
from harness.store import Store

_RECIPE = recipe.RECIPES / "linux"
_KERNEL = "deb:linux-image-cloud-amd64"

_VERSION = 1
"""Raise it when the code below makes a different image from the same recipe."""

_BOOTSTRAP_SECONDS = 900.0
_COMPILE_SECONDS = 60.0

_LOADER = "ld-linux-x86-64.so.2"
_PASSWD = "root:x:0:0:root:/root:/bin/sh\n"  # noqa: S105 - no password, but the table of users


@dataclasses.dataclass(frozen=True)
class LinuxImage:
    """What a Linux guest boots: a bzImage, and an initramfs that lacks the seed of its host."""

    kernel: Path
    initramfs: Path
    release: str
    digest: str


def linux_image(store: Store, progress: Progress, suite: str | None = None) -> LinuxImage:
    """The image for the running (or the given) suite, made now if the store has none.

    Raises CommandError when mmdebstrap or the compiler fails, and MachineUnfitError when a tool
    is missing.
    """
    suite = suite or running_suite()
    kernel = obtain(reference.parse(_KERNEL), (), store, progress)
    packages = recipe.entries(_RECIPE / "packages")
    files = _modules(kernel)
    init = recipe.render(
        _RECIPE / "init.sh.j2",
        {**layout.TEMPLATE_VARIABLES, **layout.LINUX_VARIABLES, "modules": list(files)},
    )
    tree = {"suite": suite, "machine": "amd64", "packages": packages}
    key = {
        "version": _VERSION,
        "kernel": kernel.identity,
        "tree": tree,
        "libraries": recipe.entries(_RECIPE / "libraries"),
        "modules": {name: str(path) for name, path in files.items()},
        "init": init,
        "workload": recipe.read(_RECIPE / "workload.c"),
    }

    def make(scratch: Path) -> None:
        packed = store.entry(
            "linux-guest-tree", tree, lambda inner: _extract(inner, suite, packages, progress)
        )
        with progress.phase("image of Linux guests"):
            data = _initramfs(packed / "tree.tar", init, files, scratch)
        (scratch / "initramfs.cpio").write_bytes(data)

    entry = store.entry("linux-guest", key, make)
    return LinuxImage(kernel.image, entry / "initramfs.cpio", kernel.release, entry.name)


def linux_seed(files: Mapping[str, bytes]) -> bytes:
    """What is new in each run, to be appended to the initramfs: the kernel unpacks both.

    ``files`` maps absolute paths in the guest to contents, which only root may read.
    """
    archive = Archive()
    for path, data in files.items():
        archive.file(path.removeprefix("/"), data, 0o600)
    return archive.finished()


def _modules(kernel: Kernel) -> dict[str, Path]:
    """The files of the modules that the guest loads, by the name they get there, in order."""
    if kernel.modules is None:
        raise BootError(f"The kernel {_KERNEL} came without modules, so no guest can use it.")
    directory = modules.release_directory(kernel.modules, kernel.release)
    table = modules.parse_dependencies((directory / "modules.dep").read_text())
    wanted = modules.closure(recipe.entries(_RECIPE / "modules"), table)
    return {f"{modules.name_of(file)}.ko": directory / file for file in wanted}


def _extract(scratch: Path, suite: str, packages: tuple[str, ...], progress: Progress) -> None:
    """Make tree.tar of the packages with all that they depend on; nothing is configured."""
    log = scratch / "mmdebstrap.log"
    argv = [
        require("mmdebstrap", "mmdebstrap"),
        "--mode=auto",
        "--variant=extract",
        "--architectures=amd64",
        "--format=tar",
        '--aptopt=APT::Install-Recommends "false"',
        f"--include={','.join(packages)}",
        suite,
        "tree.tar",
    ]
    with progress.phase(f"Debian {suite} for Linux guests"):
        deadline = Deadline.after(_BOOTSTRAP_SECONDS, "Fetching the programs of Linux guests")
        completed = run_logged(argv, deadline, log, cwd=scratch, on_line=progress.update)
    if completed.status != 0:
        raise CommandError(
            completed.argv,
            completed.status,
            log.read_text(errors="replace"),
            "Check that apt can download packages (apt-get update).",
        )


def _initramfs(tree: Path, init: str, files: Mapping[str, Path], scratch: Path) -> bytes:
    archive = Archive()
    for name in ("dev", "proc", "sys", "run", "tmp", "bin"):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    with tarfile.open(tree) as packed:
        members = _Members(packed)
        archive.file("bin/busybox", members.content("busybox"), 0o755)
        archive.file("sbin/dropbear", members.content("dropbear"), 0o755)
        archive.file(f"lib64/{_LOADER}", members.content(_LOADER), 0o755)
        for name in recipe.entries(_RECIPE / "libraries"):
            archive.file(f"lib/{name}", members.content(name), 0o755)
    archive.file("sbin/workload", _workload(scratch), 0o755)
    for name, path in files.items():
        archive.file(f"modules/{name}", modules.content(path, scratch))
    archive.file("etc/passwd", _PASSWD.encode())
    archive.symlink("bin/sh", "busybox")
    archive.file("init", init.encode(), 0o755)
    return archive.finished()


class _Members:
    """The programs and libraries of an archive by their names alone, wherever they are."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        members = [member for member in archive if member.isfile() or member.issym()]
        # Of two that share a name, a file beats a link to it, and a program its settings.
        members.sort(key=lambda member: (member.isfile(), member.size))
        self._by_name = {PurePosixPath(member.name).name: member for member in members}

    def content(self, name: str) -> bytes:
        """The bytes of a file, also through symbolic links; HarnessError if it is not there."""
        member = self._by_name.get(name)
        for _ in range(4):
            if member is None or not member.issym():
                break
            member = self._by_name.get(PurePosixPath(member.linkname).name)
        file = self._archive.extractfile(member) if member and member.isfile() else None
        if file is None:
            raise HarnessError(
                f"The packages of Linux guests hold no {name}; correct guest-images/linux/."
            )
        return file.read()


def _workload(scratch: Path) -> bytes:
    """The workload, compiled; statically, because the guest has few libraries."""
    program = scratch / "workload"
    flags = ("-O2", "-Wall", "-Wextra", "-Werror", "-static")
    run(
        [require("gcc", "gcc"), *flags, "-o", program, _RECIPE / "workload.c"],
        Deadline.after(_COMPILE_SECONDS, "Compiling the workload of Linux guests"),
    )
    try:
        return program.read_bytes()
    finally:
        program.unlink()
