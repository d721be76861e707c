# SPDX-License-Identifier: GPL-2.0-only
"""Disks of a host, read back with the tools of their formats."""

from __future__ import annotations

import json
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from harness.command import require
from harness.errors import BootError, CommandError
from harness.image.disk import make_overlay, modules_disk, write_seed, write_swap
from harness.image.ext4 import make_ext4
from harness.kernel.model import Kernel
from harness.store import Store


def dumped(image: Path, *requests: str) -> str:
    """What debugfs answers about an ext4 image."""
    argv = [require("debugfs", "e2fsprogs"), "-f", "-", str(image)]
    done = subprocess.run(argv, input="\n".join(requests), text=True, capture_output=True)
    return done.stdout


@pytest.mark.parametrize("name", ["tree", "a b", "a,b", "-tree"])
def test_ext4_image_of_a_directory(tmp_path: Path, name: str) -> None:
    tree = tmp_path / name
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (tree / "sh").symlink_to("dash")
    image = tmp_path / f"{name}.ext4"
    make_ext4(tree, image, free_mib=4)
    seen = dumped(image, "cat /etc/passwd", "stat /sh", "stats")
    assert "root:x:0:0::/root:/bin/sh" in seen
    assert 'Fast link dest: "dash"' in seen
    features = next(line for line in seen.splitlines() if "features" in line.lower())
    for feature in ("has_journal", "orphan_file", "metadata_csum"):
        assert feature not in features


def test_ext4_image_has_room(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(500):
        (tree / f"file{number}").write_bytes(b"x" * 5000)
    make_ext4(tree, tmp_path / "image", free_mib=64)
    stats = dumped(tmp_path / "image", "stats")
    free = next(line for line in stats.splitlines() if line.startswith("Free blocks:"))
    assert int(free.split()[-1]) >= 64 * 256 * 0.9
    used = (tmp_path / "image").stat().st_blocks * 512
    assert used < (tmp_path / "image").stat().st_size / 2


def test_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CommandError):
        make_ext4(tmp_path / "nothing", tmp_path / "image")


def test_seed_is_a_tar_for_us_only(tmp_path: Path) -> None:
    path = tmp_path / "seed"
    write_seed(path, {"nonce": b"abc\n", "key": b"secret" * 1000})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size % 512 == 0
    with tarfile.open(path) as archive:
        members = {member.name: member for member in archive}
        assert set(members) == {"nonce", "key"}
        assert members["key"].mode == 0o600
        file = archive.extractfile("key")
        assert file is not None
        assert file.read() == b"secret" * 1000


def test_swap_is_sparse(tmp_path: Path) -> None:
    write_swap(tmp_path / "swap", 64)
    status = (tmp_path / "swap").stat()
    assert status.st_size == 64 << 20
    assert status.st_blocks == 0


@pytest.mark.parametrize("name", ["base", "a b", "a,b", "a:b", "json:{}", "-b", "ü"])
def test_overlay_refers_to_its_base(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    base = directory / name
    base.write_bytes(bytes(1 << 20))
    make_overlay(directory / "overlay", base)
    argv = ["qemu-img", "info", "--output=json", "-f", "qcow2", str(directory / "overlay")]
    told = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert told["format"] == "qcow2"
    assert told["virtual-size"] == 1 << 20
    assert told["full-backing-filename"] == str(base)
    assert told["backing-filename-format"] == "raw"


def test_missing_base_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="nothing"):
        make_overlay(tmp_path / "overlay", tmp_path / "nothing")


def modules_of(path: Path, release: str) -> Path:
    directory = path / release
    directory.mkdir(parents=True)
    (directory / "modules.dep").write_text("kernel/kvm.ko:\n")
    return path


def test_modules_disk_is_made_once_for_a_kernel(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    modules = modules_of(tmp_path / "modules", "6.12.0")
    kernel = Kernel(tmp_path, "6.12.0", "digest", "", modules=modules)
    disk = modules_disk(kernel, store)
    assert disk is not None
    assert disk == modules_disk(kernel, store)
    assert "kernel/kvm.ko:" in dumped(disk, "cat /6.12.0/modules.dep")


def test_modules_that_are_not_the_kernels_own(tmp_path: Path) -> None:
    modules = modules_of(tmp_path / "modules", "6.1.0")
    kernel = Kernel(tmp_path, "6.12.0", "digest", "", modules=modules)
    with pytest.raises(BootError, match="do not fit the kernel"):
        modules_disk(kernel, Store(tmp_path / "store"))


def test_kernel_without_modules_needs_no_disk(tmp_path: Path) -> None:
    assert modules_disk(Kernel(tmp_path, "6.12.0", "", ""), Store(tmp_path / "store")) is None
