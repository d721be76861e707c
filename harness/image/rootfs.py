# SPDX-License-Identifier: GPL-2.0-only
"""The root file system that hosts boot into: Debian, made from guest-images/host/."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from harness.command import require, run, run_logged
from harness.deadline import Deadline
from harness.errors import CommandError, MachineUnfitError
from harness.image import layout, recipe
from harness.image.ext4 import make_ext4
from harness.progress import Progress
from harness.store import Store

_RECIPE = recipe.RECIPES / "host"

_VERSION = 1
"""Raise it when the code below makes a different image from the same recipe."""

_BOOTSTRAP_SECONDS = 1800.0
_UNPACK_SECONDS = 300.0

_BYTES = 1 << 30
"""What the packages, the archive of them and the image take at most."""

_FREE_MIB = 768
"""Room for what a test writes; the image is sparse, so it costs nothing on L0."""


@dataclasses.dataclass(frozen=True)
class HostImage:
    """A root file system for hosts: a raw ext4 image that must never be written to."""

    root: Path
    digest: str
    suite: str
    packages: tuple[str, ...]
    busybox: Path


def running_suite() -> str:
    """The codename of the Debian release that L0 runs; raises MachineUnfitError if it has none."""
    try:
        release = platform.freedesktop_os_release()
    except OSError as error:
        raise MachineUnfitError(
            "This machine has no /etc/os-release; the harness runs on Debian and its likes."
        ) from error
    codename = release.get("VERSION_CODENAME")
    if not codename or release.get("ID") != "debian":
        raise MachineUnfitError(
            f"This machine runs {release.get('PRETTY_NAME', 'an unknown system')}; making the "
            "host image needs Debian with a VERSION_CODENAME in /etc/os-release."
        )
    return codename


def host_image(store: Store, progress: Progress, suite: str | None = None) -> HostImage:
    """The image for the running (or the given) suite, made now if the store has none.

    Raises CommandError when mmdebstrap fails and MachineUnfitError when a tool is missing.
    """
    suite = suite or running_suite()
    packages = recipe.entries(_RECIPE / "packages")
    excluded = recipe.entries(_RECIPE / "exclude")
    key = {
        "version": _VERSION,
        "suite": suite,
        "machine": "amd64",
        "packages": packages,
        "excluded": excluded,
    }
    files = _own_files()

    def make(scratch: Path) -> None:
        # Without room, mmdebstrap tells of lists that it could not fetch.
        store.require_space(_BYTES, "Making the image of hosts")
        tree = store.entry(
            "root", key, lambda inner: _bootstrap(inner, suite, packages, excluded, progress)
        )
        _assemble(scratch, tree, files, progress)

    entry = store.entry("host", {"version": _VERSION, "root": key, "files": files}, make)
    installed = (entry / "packages").read_text().splitlines()
    return HostImage(
        root=entry / "root.ext4",
        digest=entry.name,
        suite=suite,
        packages=tuple(installed),
        busybox=entry / "busybox",
    )


def _own_files() -> dict[str, tuple[str, int]]:
    """What we put on top of the packages: path -> (text, mode)."""
    init = recipe.render(_RECIPE / "init.sh.j2", layout.TEMPLATE_VARIABLES)
    return {
        layout.HOST_INIT: (init, 0o755),
        layout.SSHD_CONFIG: (recipe.read(_RECIPE / "sshd_config"), 0o644),
    }


def _bootstrap(
    scratch: Path,
    suite: str,
    packages: tuple[str, ...],
    excluded: tuple[str, ...],
    progress: Progress,
) -> None:
    """Make root.tar with mmdebstrap; it picks root, unshare or fakechroot mode by itself."""
    log = scratch / "mmdebstrap.log"
    argv = [
        require("mmdebstrap", "mmdebstrap"),
        "--mode=auto",
        "--variant=essential",
        "--architectures=amd64",
        "--format=tar",
        # /dev is a devtmpfs in a host, and device nodes in a tar cannot be unpacked without root.
        "--skip=output/dev",
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in excluded),
        f"--include={','.join(packages)}",
        suite,
        "root.tar",
    ]
    with progress.phase(f"Debian {suite} for the host"):
        completed = run_logged(
            argv,
            Deadline.after(_BOOTSTRAP_SECONDS, "Making the host's root with mmdebstrap"),
            log,
            cwd=scratch,
            env=_bootstrap_environment(scratch),
            on_line=progress.update,
        )
    if completed.status != 0:
        raise CommandError(
            completed.argv,
            completed.status,
            log.read_text(errors="replace"),
            "Check that apt can download packages (apt-get update), and, when not root, that "
            "the packages uidmap or fakechroot are installed.",
        )


def _bootstrap_environment(scratch: Path) -> Mapping[str, str]:
    """As root, have the half-made tree where the store cleans up; otherwise it is left in /tmp.

    In unshare mode its files belong to a subordinate user, who may not reach the store.
    """
    return {"TMPDIR": str(scratch)} if os.geteuid() == 0 else {}


def _assemble(
    scratch: Path, tree: Path, files: Mapping[str, tuple[str, int]], progress: Progress
) -> None:
    """Make root.ext4 from root.tar and our own files, and put busybox beside it."""
    root = scratch / "tree"
    root.mkdir()
    deadline = Deadline.after(_UNPACK_SECONDS, "Unpacking the host's root")
    with progress.phase("host image"):
        saving, loading = _ownership(scratch / "owners")
        tar = ["tar", "--extract", "--file", str(tree / "root.tar"), "--directory", str(root)]
        run([*saving, *tar, "--same-owner", "--preserve-permissions"], deadline)
        for path, (text, mode) in files.items():
            target = root / path.removeprefix("/")
            target.write_text(text)
            target.chmod(mode)
        for name in ("dev", "proc", "sys", "run", "tmp", "usr/lib/modules"):
            (root / name).mkdir(exist_ok=True)
        _use_plain_shell(root / "etc/passwd")
        shutil.copyfile(root / "usr/bin/busybox", scratch / "busybox")
        (scratch / "packages").write_text(_installed(root / "var/lib/dpkg/status"))
        make_ext4(root, scratch / "root.ext4", free_mib=_FREE_MIB, wrapper=loading)
    shutil.rmtree(root)
    (scratch / "owners").unlink(missing_ok=True)


def _ownership(state: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What to put before commands so that owners in the image are right without being root."""
    if os.geteuid() == 0:
        return (), ()
    fakeroot = require("fakeroot", "fakeroot")
    return (fakeroot, "-s", str(state), "--"), (fakeroot, "-i", str(state), "--")


def _use_plain_shell(passwd: Path) -> None:
    """Give root /bin/sh: under emulation bash takes tens of ms longer for each command."""
    lines = passwd.read_text().splitlines()
    lines = [
        line.rpartition(":")[0] + ":/bin/sh" if line.startswith("root:") else line for line in lines
    ]
    passwd.write_text("\n".join(lines) + "\n")


def _installed(status: Path) -> str:
    """The packages in dpkg's status file, one a line with its version."""
    names = re.findall(r"^Package: (.+)$", text := status.read_text(), re.MULTILINE)
    versions = re.findall(r"^Version: (.+)$", text, re.MULTILINE)
    pairs = zip(names, versions, strict=True)
    return "".join(f"{name} {version}\n" for name, version in sorted(pairs))
