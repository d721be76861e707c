# SPDX-License-Identifier: GPL-2.0-only
"""Cross compilers are found where they are installed, or put together from packages."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from harness.errors import MachineUnfitError, SourceError, UsageError
from harness.kernel.architecture import ARCHITECTURES, cross_toolchain, named
from harness.kernel.debian import Apt, Package
from harness.progress import Progress, Silent
from harness.store import Store

ARM64 = named("arm64")
PROGRAM = """\
#!/bin/sh
[ -z "$NEEDS_LIBRARIES" ] || [ "$LD_LIBRARY_PATH" ] || exit 127
echo "NAME 12.2.0"
"""


def program(path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PROGRAM.replace("NAME", name))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


PACKAGES = {
    "gcc-aarch64-linux-gnu": "cpp-aarch64-linux-gnu (= 4:12), gcc-12-aarch64-linux-gnu",
    "cpp-aarch64-linux-gnu": "cpp-12-aarch64-linux-gnu",
    "gcc-12-aarch64-linux-gnu": "cpp-12-aarch64-linux-gnu, gcc-12-aarch64-linux-gnu-base, "
    "binutils-aarch64-linux-gnu (>= 2.40), libgcc-12-dev-arm64-cross, libc6 (>= 2.36)",
    "cpp-12-aarch64-linux-gnu": "libc6, libmpfr6",
    "binutils-aarch64-linux-gnu": "binutils-common, libbinutils",
    "libgcc-12-dev-arm64-cross": "libgcc-s1-arm64-cross",
}


class Archive(Apt):
    """Packages of the compiler as Debian has them, each with a program or a library."""

    def __init__(self, root: Path, lacks: str = "") -> None:
        self.root = root
        self.lacks = lacks
        self.fetched: list[str] = []

    def package(self, name: str) -> Package:
        if name == self.lacks:
            raise SourceError(f"apt knows no package {name}.")
        return Package(name, "12", "amd64", name, 1, PACKAGES[name])

    def unpacked(self, package: Package, progress: Progress) -> Path:
        self.fetched.append(package.name)
        root = self.root / package.name
        if package.name.startswith("binutils"):
            for name in ("aarch64", "x86_64"):
                (root / f"usr/lib/{name}-linux-gnu").mkdir(parents=True)
            (root / "usr/lib/x86_64-linux-gnu/libbfd-2.40-arm64.so").touch()
            program(root / "usr/bin/aarch64-linux-gnu-ld", "ld")
        elif package.name == "gcc-12-aarch64-linux-gnu":
            program(root / "usr/bin/aarch64-linux-gnu-gcc-12", "gcc")
        elif package.name == "gcc-aarch64-linux-gnu":
            (root / "usr/bin").mkdir(parents=True)
            (root / "usr/bin/aarch64-linux-gnu-gcc").symlink_to("aarch64-linux-gnu-gcc-12")
        else:
            (root / "usr/share").mkdir(parents=True)
        return root


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which

    def which(name: str, path: str | None = None) -> str | None:
        return real(name, path=path) if os.sep in name else None

    monkeypatch.setattr(shutil, "which", which)


@pytest.mark.usefixtures("nothing_installed")
def test_a_compiler_is_put_together_from_its_packages_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEEDS_LIBRARIES", "yes")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    store, archive = Store(tmp_path / "cache"), Archive(tmp_path / "debian")
    tools = cross_toolchain(ARM64, archive, store, Silent())
    assert set(archive.fetched) == set(PACKAGES)
    (entry,) = store.root.glob("compiler/*")
    assert tools.prefix == f"{entry}/usr/bin/aarch64-linux-gnu-"
    assert (tools.compiler, tools.linker) == ("gcc 12.2.0", "ld 12.2.0")
    assert tools.architecture == "arm64"
    assert tools.environment == {"LD_LIBRARY_PATH": f"{entry}/usr/lib/x86_64-linux-gnu"}
    again = Archive(tmp_path / "debian")
    assert cross_toolchain(ARM64, again, store, Silent()) == tools
    assert again.fetched == []


def test_an_installed_compiler_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gcc", "ld", "nm"):
        program(tmp_path / f"bin/aarch64-linux-gnu-{name}", name)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    archive = Archive(tmp_path / "debian")
    tools = cross_toolchain(ARM64, archive, Store(tmp_path / "cache"), Silent())
    assert (tools.prefix, tools.compiler) == ("aarch64-linux-gnu-", "gcc 12.2.0")
    assert tools.environment == {}
    assert archive.fetched == []


@pytest.mark.usefixtures("nothing_installed")
def test_without_packages_it_says_what_to_install(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "debian", lacks="binutils-aarch64-linux-gnu")
    with pytest.raises(
        MachineUnfitError, match=r"no compiler for arm64.*install the Debian package gcc-aarch64"
    ):
        cross_toolchain(ARM64, archive, Store(tmp_path / "cache"), Silent())


def test_a_compiler_that_is_there_in_part_only_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin/aarch64-linux-gnu-gcc", "gcc")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    if shutil.which("aarch64-linux-gnu-ld"):
        pytest.skip("this machine has binutils for arm64")
    archive = Archive(tmp_path / "debian")
    tools = cross_toolchain(ARM64, archive, Store(tmp_path / "cache"), Silent())
    assert os.sep in tools.prefix


@pytest.mark.parametrize("name", ["", "amd64", "aarch64", "ppc64", "ARM64", "--help"])
def test_an_unknown_architecture_is_bad_usage_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError, match=r"choose arm64, ppc64el\.$") as caught:
        named(name)
    assert repr(name) in str(caught.value)


def test_a_package_of_another_architecture_is_not_a_part() -> None:
    arm64, ppc64el = ARCHITECTURES
    assert ppc64el.owns("gcc-12-powerpc64le-linux-gnu")
    assert ppc64el.owns("libgcc-14-dev-ppc64el-cross")
    for name in ("gcc-12-powerpc64le-linux-gnu", "libgcc-12-dev-armhf-cross", "gcc-12",
                 "gcc-12-aarch64-linux-gnu-base", "libc6-dev-arm64-cross"):  # fmt: skip
        assert not arm64.owns(name)
