# SPDX-License-Identifier: GPL-2.0-only
"""Packages are found, followed, fetched and unpacked, with programs that stand for apt's."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from fake_kernels import bzimage

from harness.errors import (
    CommandError,
    ImageError,
    InfrastructureError,
    MachineUnfitError,
    SourceError,
)
from harness.kernel.build import obtain
from harness.kernel.debian import Apt
from harness.kernel.reference import DebianImage
from harness.progress import Silent
from harness.store import Store

# As apt does, an unknown name is a regular expression, and the order of the answers is apt's.
_APT_CACHE = """#!/bin/sh
cd "$(dirname "$0")/../packages" || exit 1
while [ "$1" = -o ]; do shift 2; done
case $1 in
pkgnames) ls | sed 's/_.*//' | grep "^$2" | sort -u;;
show) shift 2; for name; do
        for file in "${name}"_* "${name}"*_*; do [ -e "$file" ] && cat "$file" && echo; done
        echo "apt: asked for $name" >&2
      done;;
esac
exit 0
"""
# Lists of our own come from the archive's mirror, where there is one; the machine's stay.
_APT_GET = """#!/bin/sh
packages=$(dirname "$0")/../packages
while [ "$1" = -o ]; do
        case $2 in Dir::State::Lists=*) ours=yes;; esac
        shift 2
done
case "$*" in *update)
        echo update >> "$packages/../updates"
        [ "$ours" ] && cp "$packages"/../mirror/* "$packages"/
        exit;;
esac
case $1 in
indextargets) [ -e "$packages/../lists" ] && echo "MetaKey: x"; exit 0;;
-q) echo "$3" >> "$packages/../downloads"; own="$packages/../${3%%:*}.deb"
        [ -e "$own" ] || own="$packages/../archive.deb"
        cp "$own" ./x.deb;;
esac
"""


@dataclasses.dataclass
class Archive:
    """What the apt of the test knows; ``apt`` is the one under test."""

    root: Path
    apt: Apt
    store: Store

    def add(
        self, name: str, version: str, depends: str = "kmod", sha256: str | None = "0" * 64
    ) -> None:
        record = (
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nSize: 10\n"
            f"Depends: {depends}\nDescription: x\n more: text\n ."
        )
        if sha256 is not None:
            record += f"\nSHA256: {sha256}"
        (self.root / "packages" / f"{name}_{version}").write_text(record + "\n")

    def pack(self, *files: tuple[str, bytes], package: str = "archive") -> str:
        """Make the archive that is downloaded, or that of one package; returns its sha256."""
        tree = self.root / f"deb-{package}"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN/control").write_text(
            "Package: x\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@x>\nDescription: x\n"
        )
        for name, data in files:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(data)
        archive = self.root / f"{package}.deb"
        subprocess.run(
            ["dpkg-deb", "-Znone", "-b", str(tree), str(archive)], check=True, capture_output=True
        )
        return hashlib.sha256(archive.read_bytes()).hexdigest()

    def publish(self, name: str, version: str) -> None:
        """Have a package in the archive that the machine's lists do not know yet."""
        self.add(name, version)
        mirror = self.root / "mirror"
        mirror.mkdir(exist_ok=True)
        (self.root / "packages" / f"{name}_{version}").rename(mirror / f"{name}_{version}")

    @property
    def updates(self) -> int:
        path = self.root / "updates"
        return len(path.read_text().split()) if path.exists() else 0

    @property
    def downloads(self) -> list[str]:
        path = self.root / "downloads"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    for name in ("bin", "packages", "machine"):
        (tmp_path / name).mkdir()
    (tmp_path / "machine/main_Packages").touch()
    (tmp_path / "lists").touch()
    for name, text in (("apt-cache", _APT_CACHE), ("apt-get", _APT_GET)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    store = Store(tmp_path / "a cache")
    return Archive(tmp_path, Apt(store, tmp_path / "machine"), store)


def _series(archive: Archive) -> None:
    for name, version in (
        ("linux-image-6.1.0-9-amd64", "6.1.9-1"),
        ("linux-image-6.1.0-10-amd64", "6.1.10-1"),
        ("linux-image-6.1.0-10-cloud-amd64", "6.1.10-1"),
        ("linux-image-6.1.0-11-rt-amd64", "6.1.11-1"),
        ("linux-image-6.1.0-11-amd64-dbg", "6.1.11-1"),
        ("linux-image-6.1.0-11-amd64-unsigned", "6.1.11-1"),
        ("linux-image-6.12.5+deb13-amd64", "6.12.5-1"),
        ("linux-image-6.12.5+deb13-cloud-amd64", "6.12.5-1"),
        ("linux-image-6.18.1+deb13-cloud-amd64", "6.18.1-1"),
    ):
        archive.add(name, version)
    archive.add("linux-image-6.12-amd64", "6.12.5-1", "linux-image-6.12.5+deb13-amd64 (= 6.12.5-1)")
    archive.add("linux-image-amd64", "6.12.5-1", "kmod, linux-image-6.12-amd64 (= 6.12.5-1)")


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("6.1", "linux-image-6.1.0-10-amd64"),
        ("6.12", "linux-image-6.12.5+deb13-amd64"),
        ("6.18", "linux-image-6.18.1+deb13-cloud-amd64"),
        ("amd64", "linux-image-6.12.5+deb13-amd64"),
        ("6.12-amd64", "linux-image-6.12.5+deb13-amd64"),
        ("6.1.0-9-amd64", "linux-image-6.1.0-9-amd64"),
        ("6.1.0-11-rt-amd64", "linux-image-6.1.0-11-rt-amd64"),
    ],
)
def test_which_image_is_meant(archive: Archive, asked: str, name: str) -> None:
    _series(archive)
    assert archive.apt.image(asked).name == name


def test_source_package(archive: Archive) -> None:
    archive.add("linux-source-6.1", "6.1.9-1")
    archive.add("linux-source-6.12", "6.12.5-1")
    package = archive.apt.source("6.1")
    assert package.title == "linux-source-6.1 6.1.9-1"
    assert package.size == 10


def test_unknown_packages_name_what_there_is(archive: Archive) -> None:
    archive.add("linux-source-6.12", "6.12.5-1")
    with pytest.raises(SourceError, match=r"no package linux-source-6\.1 .*knows linux-source-6"):
        archive.apt.source("6.1")
    with pytest.raises(SourceError, match=r"no kernel image of series 6\.1 .*check /etc/apt"):
        archive.apt.image("6.1")
    with pytest.raises(SourceError, match=r"no package linux-image-none .*check /etc/apt"):
        archive.apt.image("none")


def test_what_is_only_installed_cannot_be_fetched(archive: Archive) -> None:
    archive.add("linux-source-6.12", "6.12.5-1", sha256=None)
    with pytest.raises(SourceError, match="that can be downloaded"):
        archive.apt.source("6.12")


def test_a_package_newer_than_the_machines_lists_is_found_in_lists_of_our_own(
    archive: Archive,
) -> None:
    archive.publish("linux-source-6.12", "6.12.5-1")
    assert archive.apt.source("6.12").version == "6.12.5-1"
    assert archive.updates == 1
    with pytest.raises(SourceError, match="no package linux-source-7"):
        archive.apt.source("7")
    assert archive.updates == 1  # ours are fresh, so they are not fetched for it again


def test_lists_of_the_machine_that_are_old_are_not_believed(archive: Archive) -> None:
    archive.add("linux-source-6.12", "6.12.5-1")
    archive.publish("linux-source-6.12", "6.12.6-1")
    old = time.time() - 30 * 24 * 3600
    os.utime(archive.root / "machine/main_Packages", (old, old))
    archive.apt.source("6.12")
    assert archive.updates == 1


def test_old_lists_do_where_new_ones_cannot_be_fetched(archive: Archive) -> None:
    archive.add("linux-source-6.12", "6.12.5-1")
    (archive.root / "machine/main_Packages").unlink()
    assert archive.apt.source("6.12").version == "6.12.5-1"


def test_without_lists_the_machine_is_not_ready(archive: Archive) -> None:
    (archive.root / "lists").unlink()
    for ask in (archive.apt.source, archive.apt.image):
        with pytest.raises(MachineUnfitError, match="could fetch none; check /etc/apt"):
            ask("6.12")


def test_without_apt_the_machine_is_not_fit(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(MachineUnfitError, match="Debian package apt"):
        archive.apt.source("6.12")


def test_metapackages_that_lead_in_a_circle(archive: Archive) -> None:
    archive.add("linux-image-a", "1", "linux-image-b")
    archive.add("linux-image-b", "1", "linux-image-a")
    with pytest.raises(SourceError, match="leads to no kernel"):
        archive.apt.image("a")


def test_fetched_once_and_unpacked(archive: Archive) -> None:
    archive.add("linux-source-6.12", "6.12.5-1", sha256=archive.pack(("usr/src/x", b"source")))
    package = archive.apt.source("6.12")
    unpacked = archive.apt.unpacked(package, Silent())
    assert (unpacked / "usr/src/x").read_bytes() == b"source"
    assert list(unpacked.glob("*.deb")) == []
    assert archive.apt.unpacked(package, Silent()) == unpacked
    assert archive.downloads == ["linux-source-6.12:amd64=6.12.5-1"]


def test_wrong_archive_is_not_kept(archive: Archive) -> None:
    archive.pack(("x", b""))
    archive.add("linux-source-6.12", "6.12.5-1")
    with pytest.raises(InfrastructureError, match="not the one that apt's lists promise"):
        archive.apt.unpacked(archive.apt.source("6.12"), Silent())
    assert list(archive.store.root.glob("debian/*")) == []


def test_failing_download_says_what_to_do(archive: Archive) -> None:
    archive.add("linux-source-6.12", "6.12.5-1")
    with pytest.raises(CommandError, match="could not be downloaded; check /etc/apt"):
        archive.apt.unpacked(archive.apt.source("6.12"), Silent())


_CONFIG = b"CONFIG_KVM=m\nCONFIG_MMU_NOTIFIER=y\n"


@pytest.mark.parametrize("prefix", ["", "usr/"])
def test_prebuilt_kernel(archive: Archive, prefix: str) -> None:
    digest = archive.pack(
        ("boot/vmlinuz-6.1.0-9-amd64", bzimage("6.1.0-9-amd64")),
        ("boot/config-6.1.0-9-amd64", _CONFIG),
        (f"{prefix}lib/modules/6.1.0-9-amd64/kernel/x.ko", b""),
    )
    archive.add("linux-image-6.1.0-9-amd64", "6.1.9-1", sha256=digest)
    reference = DebianImage("deb:linux-image-6.1", "6.1")
    kernel = obtain(reference, [], archive.store, Silent())
    assert kernel.release == "6.1.0-9-amd64"
    assert kernel.origin == "deb:linux-image-6.1"
    assert kernel.symbol("KVM") == "m"
    assert kernel.vmlinux is None
    assert kernel.modules is not None
    assert (kernel.modules / "6.1.0-9-amd64/kernel/x.ko").exists()
    assert (kernel.modules / "6.1.0-9-amd64/modules.dep").exists()
    assert obtain(reference, [], archive.store, Silent()) == kernel
    assert len(archive.downloads) == 1


def _split(archive: Archive, modules_version: str = "7.2.13-1") -> None:
    """A kernel as Debian packs them from 6.19 on: the image depends on where the files are."""
    release, version = "7.2.13+deb14-amd64", "7.2.13-1"
    directory = f"usr/lib/modules/{release}"
    parts = {
        "base": ((f"{directory}/config", _CONFIG), (f"{directory}/modules.order", b"")),
        "binary": ((f"{directory}/vmlinuz", bzimage(release)),),
        "modules": ((f"{directory}/kernel/x.ko", b""),),
    }
    for kind, files in parts.items():
        name = f"linux-{kind}-{release}"
        known = modules_version if kind == "modules" else version
        archive.add(name, known, sha256=archive.pack(*files, package=name))
    names = [f"linux-{kind}-{release} (= {version})" for kind in parts]
    archive.add(
        f"linux-image-{release}",
        version,
        ", ".join(["dracut | linux-initramfs-tool", "linux-base (>= 4.3~)", *names]),
        sha256=archive.pack(("usr/share/doc/x", b""), package=f"linux-image-{release}"),
    )


def test_a_prebuilt_kernel_in_several_packages(archive: Archive) -> None:
    _split(archive)
    reference = DebianImage("deb:linux-image-7.2", "7.2")
    kernel = obtain(reference, [], archive.store, Silent())
    assert kernel.release == "7.2.13+deb14-amd64"
    assert kernel.symbol("KVM") == "m"
    assert kernel.modules is not None
    assert {path.name for path in (kernel.modules / kernel.release).iterdir()} >= {
        "kernel",
        "modules.order",
        "modules.dep",
    }
    assert not (kernel.modules / kernel.release / "vmlinuz").exists(), "a host needs no image"
    assert len(archive.downloads) == 4
    assert obtain(reference, [], archive.store, Silent()) == kernel
    assert len(archive.downloads) == 4


def test_parts_of_another_build_are_not_taken(archive: Archive) -> None:
    _split(archive, modules_version="7.2.14-1")
    with pytest.raises(SourceError, match=r"linux-modules-\S+ 7\.2\.13-1, but .* version 7\.2\.14"):
        obtain(DebianImage("deb:linux-image-7.2", "7.2"), [], archive.store, Silent())
    assert archive.downloads == []


def test_a_missing_part_is_named(archive: Archive) -> None:
    _split(archive)
    next((archive.root / "packages").glob("linux-modules-*")).unlink()
    with pytest.raises(SourceError, match="no package linux-modules-7"):
        obtain(DebianImage("deb:linux-image-7.2", "7.2"), [], archive.store, Silent())


@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        ([("boot/config-1", b"")], SourceError, "holds no kernel image"),
        ([("boot/vmlinuz-1", bzimage("1")), ("boot/config-1", b"")], SourceError, "no modules for"),
        ([("boot/vmlinuz-1", bzimage("1"))], SourceError, "no configuration of 1"),
        ([("boot/vmlinuz-1", b"x")], ImageError, "truncated"),
    ],
)
def test_packages_without_a_kernel(
    archive: Archive, files: list[tuple[str, bytes]], error: type[Exception], says: str
) -> None:
    archive.add("linux-image-1-amd64", "1", sha256=archive.pack(*files))
    with pytest.raises(error, match=says):
        obtain(DebianImage("deb:x", "1-amd64"), [], archive.store, Silent())
    assert list(archive.store.root.glob("prebuilt/*")) == []
