# SPDX-License-Identifier: GPL-2.0-only
"""The modules between a kernel and its root, in an order in which they load."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.errors import BootError
from harness.image.modules import (
    closure,
    content,
    name_of,
    parse_dependencies,
    release_directory,
)

# As depmod writes it for Debian's 6.1.
DEPENDENCIES = """\
kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko
kernel/fs/mbcache.ko:
kernel/fs/jbd2/jbd2.ko:
kernel/lib/crc16.ko:
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko \
kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_pci_modern_dev.ko \
kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci_modern_dev.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio.ko:
kernel/crypto/crc32c-generic.ko.xz:
"""


def test_names() -> None:
    assert name_of("kernel/arch/x86/kvm/kvm-amd.ko.xz") == "kvm_amd"
    assert name_of("kvm.ko") == "kvm"
    assert name_of("kvm.ko.debug") == "kvm"


def test_closure_is_complete_and_in_order() -> None:
    table = parse_dependencies(DEPENDENCIES)
    files = closure(("virtio_pci", "virtio_blk", "crc32c_generic", "ext4"), table)
    assert len(files) == len(set(files))
    assert {name_of(file) for file in files} == {name_of(file) for file in table}
    for path in files:
        for needed in table[path]:
            assert files.index(needed) < files.index(path), (needed, path)


def test_what_is_built_in_or_unknown_is_left_out() -> None:
    table = parse_dependencies(DEPENDENCIES)
    assert closure(("no_such", "crc32c_generic"), table) == ("kernel/crypto/crc32c-generic.ko.xz",)
    assert closure(("virtio_blk",), {}) == ()


def test_modules_of_another_release(tmp_path: Path) -> None:
    (tmp_path / "6.1.0").mkdir()
    with pytest.raises(BootError, match=r"6\.12\.0/modules\.dep"):
        release_directory(tmp_path, "6.12.0")
    with pytest.raises(BootError, match="after depmod"):
        release_directory(tmp_path, "6.1.0")
    (tmp_path / "6.1.0" / "modules.dep").touch()
    assert release_directory(tmp_path, "6.1.0") == tmp_path / "6.1.0"


def test_compressed_modules(tmp_path: Path) -> None:
    data = b"\x7fELF" * 100
    (tmp_path / "a.ko").write_bytes(data)
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(data))
    (tmp_path / "a.ko.gz").write_bytes(gzip.compress(data))
    for path in sorted(tmp_path.iterdir()):
        assert content(path, tmp_path) == data


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs zstd")
def test_zstd_module(tmp_path: Path) -> None:
    data = b"\x7fELF" * 100
    path = tmp_path / "kvm-amd.ko.zst"
    packed = subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True)
    path.write_bytes(packed.stdout)
    assert content(path, tmp_path) == data
    assert list(tmp_path.iterdir()) == [path]
