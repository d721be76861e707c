# SPDX-License-Identifier: GPL-2.0-only
"""The file system on persistent memory is made and mounted once, where there is any."""

from __future__ import annotations

import errno
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.probe import pmem


class Host:
    """Programs that were run and mounts that were made."""

    def __init__(self) -> None:
        self.log: list[list[str]] = []
        self.mounts: list[tuple[object, ...]] = []
        self.modules = True
        self.driven: Path | None = None

    def run(self, argv: list[str], **options: object) -> SimpleNamespace:
        self.log.append(argv)
        if argv[0] != "modprobe":
            assert options["check"] is True
        elif self.driven:
            threading.Timer(0.05, self.driven.touch).start()
        return SimpleNamespace(returncode=0 if self.modules else 1)

    def mount(self, *arguments: object) -> int:
        self.mounts.append(arguments)
        return 0


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    device = tmp_path / "pmem0"
    device.touch()
    monkeypatch.setattr(pmem, "_DEVICE", device)
    monkeypatch.setattr(pmem, "_DIRECTORY", tmp_path)
    monkeypatch.setattr(subprocess, "run", host.run)
    monkeypatch.setattr(pmem, "libc", SimpleNamespace(mount=host.mount))
    monkeypatch.setattr(Path, "is_mount", lambda path: bool(host.mounts))
    return host


def test_it_is_made_for_the_first_guest_only(host: Host, tmp_path: Path) -> None:
    assert pmem.directory() == tmp_path
    assert pmem.directory() == tmp_path
    (argv,) = host.log
    assert (argv[0], argv[-1]) == ("mke2fs", str(tmp_path / "pmem0"))
    (mount,) = host.mounts
    assert mount == (
        str(tmp_path / "pmem0").encode(), str(tmp_path).encode(), b"ext4", 0, b"dax",
    )  # fmt: skip


def test_its_modules_are_loaded_where_it_has_no_driver_yet(host: Host, tmp_path: Path) -> None:
    (tmp_path / "pmem0").unlink()
    host.driven = tmp_path / "pmem0"
    assert pmem.directory() == tmp_path
    assert [argv[0] for argv in host.log] == ["modprobe", "mke2fs"]
    assert host.log[0][2:] == ["virtio_pmem", "nd_pmem"]


@pytest.mark.parametrize("modules", [True, False])
def test_a_host_without_it_says_so(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: bool
) -> None:
    monkeypatch.setattr(pmem, "_APPEARS_SECONDS", 0.1)
    (tmp_path / "pmem0").unlink()
    host.modules = modules
    with pytest.raises(OSError, match="there is no") as caught:
        pmem.directory()
    assert caught.value.errno == errno.ENODEV
    assert [argv[0] for argv in host.log] == ["modprobe"]
