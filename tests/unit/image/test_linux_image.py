# SPDX-License-Identifier: GPL-2.0-only
"""The image of Linux guests without the network: what goes into it, and from where."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_cpio import read

from harness.command import Completed
from harness.errors import BootError, CommandError, HarnessError
from harness.image import layout, linux_guest
from harness.image.linux_guest import linux_image, linux_seed
from harness.kernel.model import Kernel
from harness.progress import Silent
from harness.store import Store

RELEASE = "6.1.0-56-cloud-amd64"
LIBRARIES = ("libc.so.6", "libcrypt.so.1", "libtomcrypt.so.1", "libtommath.so.1", "libz.so.1")
FILES = {
    "bin/busybox": b"the program of that name",
    "usr/share/initramfs-tools/busybox": b"settings",
    "usr/sbin/dropbear": b"server",
    "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": b"loader",
    "usr/lib/x86_64-linux-gnu/libgmp.so.10.4.1": b"numbers",
    **{f"lib/x86_64-linux-gnu/{name}": name.encode() for name in LIBRARIES},
}
LINKS = {
    "lib64/ld-linux-x86-64.so.2": "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "usr/lib/x86_64-linux-gnu/libgmp.so.10": "libgmp.so.10.4.1",
}


def _tree(path: Path, without: str = "") -> None:
    with tarfile.open(path, "w") as archive:
        for name, target in LINKS.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
        for name, data in FILES.items():
            if not without or without not in name:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    directory = tmp_path / "modules" / RELEASE
    directory.mkdir(parents=True)
    (directory / "modules.dep").write_text(
        "kernel/virtio.ko:\nkernel/virtio_pci.ko: kernel/virtio.ko\nkernel/virtio_net.ko:\n"
    )
    for name in ("virtio", "virtio_pci", "virtio_net"):
        (directory / "kernel").mkdir(exist_ok=True)
        (directory / "kernel" / f"{name}.ko").write_bytes(name.encode())
    return Kernel(
        image=tmp_path / "bzImage",
        release=RELEASE,
        digest="d",
        origin="deb:x",
        modules=tmp_path / "modules",
    )


@pytest.fixture
def missing() -> str:
    """What mmdebstrap leaves out of the tree."""
    return ""


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, missing: str) -> list[tuple[str, ...]]:
    """Stand-ins for mmdebstrap and for apt; the list is what was asked of mmdebstrap."""
    asked: list[tuple[str, ...]] = []

    def bootstrap(argv: Sequence[str], deadline: object, log: Path, **_: object) -> Completed:
        asked.append(tuple(argv))
        log.write_text("E: no such suite\n")
        _tree(log.parent / "tree.tar", missing)
        return Completed(tuple(argv), 25 if "sarge" in argv else 0, "", "", 0.0)

    monkeypatch.setattr(linux_guest, "run_logged", bootstrap)
    monkeypatch.setattr(linux_guest, "require", lambda program, package: program)
    monkeypatch.setattr(linux_guest, "obtain", lambda *_: kernel)
    monkeypatch.setattr(linux_guest, "_workload", lambda scratch: b"workload")
    return asked


def test_the_initramfs_holds_what_a_guest_needs(
    tmp_path: Path, kernel: Kernel, tools: list[tuple[str, ...]]
) -> None:
    image = linux_image(Store(tmp_path / "store"), Silent(), "bookworm")
    files = {name: data for name, (_, data, _) in read(image.initramfs.read_bytes()).items()}
    assert image.kernel == kernel.image
    assert files["bin/busybox"] == b"the program of that name"
    assert files["sbin/dropbear"] == b"server"
    assert files["lib64/ld-linux-x86-64.so.2"] == b"loader"
    assert files["lib/libgmp.so.10"] == b"numbers"
    assert files["bin/sh"] == b"busybox"
    assert files["sbin/workload"] == b"workload"
    # In the order in which they can be loaded.
    modules = [name for name in files if name.startswith("modules/")]
    assert modules == ["modules/virtio.ko", "modules/virtio_pci.ko", "modules/virtio_net.ko"]
    init = files["init"].decode()
    loaded = [line.split()[1] for line in init.splitlines() if line.startswith("insmod ")]
    assert loaded == [f"/{name}" for name in modules]
    assert layout.LINUX_ORDER in init
    (words,) = tools
    assert "--variant=extract" in words
    assert any(word.startswith("--include=") and "dropbear-bin" in word for word in words)


def test_it_is_made_once(tmp_path: Path, tools: list[tuple[str, ...]]) -> None:
    store = Store(tmp_path / "store")
    assert linux_image(store, Silent(), "bookworm") == linux_image(store, Silent(), "bookworm")
    assert len(tools) == 1


@pytest.mark.parametrize("missing", ["dropbear", "libtomcrypt"])
def test_a_package_without_its_program_is_told(tmp_path: Path, missing: str) -> None:
    with pytest.raises(HarnessError, match=missing):
        linux_image(Store(tmp_path / "store"), Silent(), "bookworm")


def test_a_failing_mmdebstrap_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no such suite"):
        linux_image(Store(tmp_path / "store"), Silent(), "sarge")


def test_a_kernel_without_modules_is_none_for_guests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: Kernel
) -> None:
    bare = Kernel(image=kernel.image, release=RELEASE, digest="d", origin="deb:x")
    monkeypatch.setattr(linux_guest, "obtain", lambda *_: bare)
    with pytest.raises(BootError, match="without modules"):
        linux_image(Store(tmp_path / "store"), Silent(), "bookworm")


def test_the_seed_can_follow_the_initramfs_and_is_readable_by_root_only() -> None:
    seed = linux_seed({"/etc/x/nonce": b"abc\n"})
    entries = read(seed)
    assert entries["etc/x/nonce"][1] == b"abc\n"
    assert entries["etc/x/nonce"][0] & 0o777 == 0o600
    assert len(seed) % 4 == 0
