# SPDX-License-Identifier: GPL-2.0-only
"""The host's image without the network: what is asked of mmdebstrap, and what becomes of it."""

from __future__ import annotations

import io
import platform
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from harness.command import Completed, require
from harness.deadline import Deadline
from harness.errors import CommandError, MachineUnfitError
from harness.image import layout, rootfs
from harness.image.initramfs import initramfs
from harness.image.rootfs import HostImage, host_image, running_suite
from harness.kernel.model import Kernel
from harness.progress import Silent
from harness.store import Store

STATUS = """\
Package: bash
Status: install ok installed
Version: 5.2.15-2+b7

Package: adduser
Status: install ok installed
Version: 3.134
"""


def release(**fields: str) -> Callable[[], dict[str, str]]:
    return lambda: fields


def test_suite_is_that_of_the_running_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        platform, "freedesktop_os_release", release(ID="debian", VERSION_CODENAME="trixie")
    )
    assert running_suite() == "trixie"


@pytest.mark.parametrize(
    "fields",
    [
        {"ID": "fedora", "PRETTY_NAME": "Fedora Linux 41", "VERSION_CODENAME": "x"},
        {"ID": "debian", "PRETTY_NAME": "Debian GNU/Linux forky/sid"},
    ],
)
def test_other_systems_are_unfit(monkeypatch: pytest.MonkeyPatch, fields: dict[str, str]) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", release(**fields))
    with pytest.raises(MachineUnfitError, match=fields["PRETTY_NAME"]):
        running_suite()


def _tiny_root(path: Path) -> None:
    """A root.tar with just the files that the image room looks at."""
    files = {
        "etc/passwd": "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/bin/bash\n",
        "usr/bin/busybox": "busybox",
        "var/lib/dpkg/status": STATUS,
        "etc/ssh/moduli": "",
    }
    with tarfile.open(path, "w") as archive:
        for name in ("etc", "etc/ssh", "usr", "usr/bin", "usr/sbin", "usr/lib", "var"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        link = tarfile.TarInfo("sbin")
        link.type, link.linkname = tarfile.SYMTYPE, "usr/sbin"
        archive.addfile(link)
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), 0o644
            archive.addfile(member, io.BytesIO(text.encode()))


class Mmdebstrap:
    """Stands in for the program; remembers how it was called."""

    def __init__(self, status: int = 0, said: str = "I: fine") -> None:
        self.calls: list[Sequence[str]] = []
        self._status = status
        self._said = said

    def __call__(
        self, argv: Sequence[str], deadline: Deadline, log: Path, *, cwd: Path, **_: object
    ) -> Completed:
        self.calls.append(argv)
        log.write_text(self._said)
        _tiny_root(cwd / "root.tar")
        return Completed(tuple(argv), self._status, "", "", 0.0)


@pytest.fixture
def mmdebstrap(monkeypatch: pytest.MonkeyPatch) -> Mmdebstrap:
    fake = Mmdebstrap()
    monkeypatch.setattr(rootfs, "run_logged", fake)
    # Only its file system must be right here, not its size.
    monkeypatch.setattr(rootfs, "_FREE_MIB", 4)
    return fake


def image_of(tmp_path: Path) -> HostImage:
    return host_image(Store(tmp_path / "store"), Silent(), "bookworm")


def in_image(image: Path, path: str) -> str:
    argv = [require("debugfs", "e2fsprogs"), "-R", f"cat {path}", str(image)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_image_is_made_once(tmp_path: Path, mmdebstrap: Mmdebstrap) -> None:
    first = image_of(tmp_path)
    assert image_of(tmp_path) == first
    assert len(mmdebstrap.calls) == 1
    assert first.suite == "bookworm"
    assert first.packages == ("adduser 3.134", "bash 5.2.15-2+b7")
    assert first.digest == first.root.parent.name
    assert sorted(path.name for path in first.root.parent.iterdir()) == [
        "busybox",
        "key.json",
        "packages",
        "root.ext4",
    ]


def test_mmdebstrap_is_asked_for_the_recipe_and_no_mirror(
    tmp_path: Path, mmdebstrap: Mmdebstrap
) -> None:
    image_of(tmp_path)
    (argv,) = mmdebstrap.calls
    assert argv[-2:] == ["bookworm", "root.tar"]
    (include,) = [word for word in argv if word.startswith("--include=")]
    assert {"openssh-server", "python3", "kmod"} <= set(include.partition("=")[2].split(","))
    assert "--dpkgopt=path-exclude=/usr/share/man/*" in argv
    assert not any("://" in word for word in argv)
    assert not any("hook" in word for word in argv)  # those would be shell strings on L0


def test_our_files_are_in_the_image(tmp_path: Path, mmdebstrap: Mmdebstrap) -> None:
    image = image_of(tmp_path)
    assert in_image(image.root, "/usr" + layout.HOST_INIT).startswith("#!/bin/busybox sh\n")
    assert "PermitRootLogin prohibit-password" in in_image(image.root, layout.SSHD_CONFIG)
    assert in_image(image.root, "/etc/passwd").splitlines() == [
        "root:x:0:0:root:/root:/bin/sh",
        "daemon:x:1:1::/:/bin/bash",
    ]
    assert image.busybox.read_text() == "busybox"


def test_changed_init_makes_a_new_image_from_the_same_root(
    tmp_path: Path, mmdebstrap: Mmdebstrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = image_of(tmp_path)
    monkeypatch.setattr(rootfs, "_own_files", lambda: {layout.HOST_INIT: ("new", 0o755)})
    second = image_of(tmp_path)
    assert second.digest != first.digest
    assert len(mmdebstrap.calls) == 1


def test_failing_mmdebstrap_is_quoted_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootfs, "run_logged", Mmdebstrap(25, "E: apt-get update failed"))
    with pytest.raises(CommandError, match="apt-get update failed") as caught:
        image_of(tmp_path)
    assert "uidmap" in str(caught.value)
    assert list((tmp_path / "store" / "root").iterdir()) == []


def test_initramfs_only_for_kernels_that_need_one(tmp_path: Path, mmdebstrap: Mmdebstrap) -> None:
    image = image_of(tmp_path)
    store = Store(tmp_path / "store")
    directory = tmp_path / "modules" / "6.1.0"
    directory.mkdir(parents=True)
    (directory / "modules.dep").write_text("kvm.ko:\n")
    kernel = Kernel(tmp_path, "6.1.0", "digest", "", modules=tmp_path / "modules")
    assert initramfs(Kernel(tmp_path, "6.1.0", "digest", ""), image, store) is None
    assert initramfs(kernel, image, store) is None
    (directory / "modules.dep").write_text("virtio_blk.ko: virtio.ko\nvirtio.ko:\n")
    (directory / "virtio_blk.ko").write_bytes(b"block")
    (directory / "virtio.ko").write_bytes(b"base")
    made = initramfs(kernel, image, store)
    assert made is not None
    data = made.read_bytes()
    for piece in (b"modules/virtio_blk.ko\0", b"block", b"base", b"busybox", b"insmod"):
        assert piece in data
    assert data.index(b"insmod /modules/virtio.ko") < data.index(b"insmod /modules/virtio_blk.ko")
    assert initramfs(kernel, image, store) == made
