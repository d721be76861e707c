# SPDX-License-Identifier: GPL-2.0-only
"""Headers of prebuilt kernels, from packages that a fake apt hands out; make is the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import CommandError, InfrastructureError, OracleUnavailable, SourceError
from harness.kernel import make, packaged_headers
from harness.kernel.debian import Package
from harness.kernel.model import Kernel
from harness.kernel.packaged_headers import fetched_headers
from harness.progress import Silent
from harness.store import Store

RELEASE = "6.1.0-9-amd64"
VERSION = "6.1.9-1"
_MAKEFILE = """\
modules:
\t@test -x scripts/mod/modpost || { echo "no modpost: error"; exit 1; }
\t@test ! -e include/strange || { echo "gcc: error: unrecognized option"; exit 1; }
\t@touch "$(M)/mmu_harness_proof.ko"
"""
_DEPENDS = (
    f"linux-headers-6.1.0-9-common (= {VERSION}), linux-kbuild-6.1 (>= {VERSION}), "
    "linux-compiler-gcc-12-x86"
)


class FakeApt:
    """Packages that are unpacked already, below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: dict[str, Package] = {}
        self.fetched: list[str] = []
        self.broken = False

    def add(
        self, name: str, files: dict[str, str], depends: str = "", version: str = VERSION
    ) -> None:
        for path, text in files.items():
            target = self.root / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("-> "):
                target.symlink_to(text[3:])
            else:
                target.write_text(text)
                target.chmod(0o755 if "mod/" in path else 0o644)
        self.known[name] = Package(name, version, "amd64", "0" * 64, 10, depends)

    def package(self, name: str) -> Package:
        if name not in self.known:
            raise SourceError(f"apt knows no package {name}.")
        return self.known[name]

    def unpacked(self, package: Package, progress: object) -> Path:
        if self.broken:
            raise CommandError(["apt-get"], 100, "no network")
        self.fetched.append(package.name)
        return self.root / package.name


@pytest.fixture
def apt(tmp_path: Path) -> FakeApt:
    """An archive with the headers of one kernel, as bookworm packs them."""
    apt = FakeApt(tmp_path / "unpacked")
    own, shared = f"usr/src/linux-headers-{RELEASE}", "usr/src/linux-headers-6.1.0-9-common"
    apt.add(
        f"linux-headers-{RELEASE}",
        {
            f"{own}/Makefile": f"include /{shared}/Makefile\n",
            f"{own}/.config": "CONFIG_KVM=m\n",
            f"{own}/.kernelvariables": "CC = gcc-12\n",
            f"{own}/Module.symvers": "",
            f"{own}/include/config/auto.conf": "",
            f"{own}/include/generated/utsrelease.h": f'#define UTS_RELEASE "{RELEASE}"\n',
            f"{own}/include/generated/autoconf.h": "",
            f"{own}/scripts": "-> ../../lib/linux-kbuild-6.1/scripts",
            "lib/modules/x/build": "-> /usr/src",
        },
        _DEPENDS,
    )
    apt.add(
        "linux-headers-6.1.0-9-common",
        {
            f"{shared}/Makefile": _MAKEFILE,
            f"{shared}/include/linux/mmu_notifier.h": "",
            f"{shared}/scripts": "-> ../../lib/linux-kbuild-6.1/scripts",
            f"{shared}/arch/x86/Makefile": "",
        },
    )
    apt.add("linux-kbuild-6.1", {"usr/lib/linux-kbuild-6.1/scripts/mod/modpost": ""}, version="7")
    return apt


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def fetch(apt: FakeApt, store: Store) -> Path:
    kernel = Kernel(Path("/image"), RELEASE, "d1", "deb:linux-image-6.1")
    image = Package(f"linux-image-{RELEASE}", VERSION, "amd64", "0" * 64, 10, "")
    return fetched_headers(kernel, image, apt, store, Silent())  # type: ignore[arg-type]


def test_three_packages_become_one_tree(apt: FakeApt, store: Store) -> None:
    found = fetch(apt, store)
    files = {str(path.relative_to(found)) for path in found.rglob("*") if not path.is_dir()}
    assert files == {
        "Makefile", ".config", "Module.symvers", "include/config/kernel.release",
        "include/config/auto.conf", "include/generated/utsrelease.h",
        "include/generated/autoconf.h", "include/linux/mmu_notifier.h", "arch/x86/Makefile",
        "scripts/mod/modpost", "key.json",
    }  # fmt: skip
    assert (found / "Makefile").read_text() == _MAKEFILE
    assert not (found / "scripts").is_symlink()
    assert not list(store.root.glob("logs/*"))


def test_it_is_put_together_and_proved_once(apt: FakeApt, store: Store) -> None:
    assert fetch(apt, store) == fetch(apt, store)
    assert len(apt.fetched) == 3


def test_headers_that_this_machine_cannot_use_say_why(apt: FakeApt, store: Store) -> None:
    own = apt.root / f"linux-headers-{RELEASE}/usr/src/linux-headers-{RELEASE}"
    (own / "include/strange").write_text("")
    with pytest.raises(OracleUnavailable, match="gcc: error: unrecognized option"):
        fetch(apt, store)
    (own / "include/strange").unlink()
    assert fetch(apt, store).is_dir(), "nothing is left of the attempt"


@pytest.mark.parametrize("knows", [True, False])
def test_an_option_that_the_compiler_does_not_know_is_left_out(
    apt: FakeApt, store: Store, monkeypatch: pytest.MonkeyPatch, knows: bool
) -> None:
    own = apt.root / f"linux-headers-{RELEASE}/usr/src/linux-headers-{RELEASE}"
    packed = own / "include/config/auto.conf"
    packed.write_text("CONFIG_A=y\nCONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=y\nCONFIG_Z=m\n")
    monkeypatch.setattr(
        packaged_headers, "_compiles_with", lambda option: knows or "alignment" not in option
    )
    there = (fetch(apt, store) / "include/config/auto.conf").read_text()
    assert there == (packed.read_text() if knows else "CONFIG_A=y\nCONFIG_Z=m\n")
    assert "MIN_FUNCTION" in packed.read_text(), "the package is as it was"


def test_the_compiler_is_asked_for_options() -> None:
    assert packaged_headers._compiles_with("-O2")
    assert not packaged_headers._compiles_with("-fno-such-option")


def test_programs_whose_libraries_cannot_be_had_say_so(
    apt: FakeApt, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(directory: Path, package: Package, *_: object) -> None:
        assert package.name == "linux-kbuild-6.1"
        raise SourceError("apt knows no package libelf9.")

    monkeypatch.setattr(packaged_headers, "make_startable", lacks)
    with pytest.raises(OracleUnavailable, match=r"libraries of linux-kbuild-6\.1 .*libelf9"):
        fetch(apt, store)


def test_headers_that_apt_does_not_know_are_named(apt: FakeApt, store: Store) -> None:
    del apt.known["linux-kbuild-6.1"]
    with pytest.raises(OracleUnavailable, match=r"apt knows no package linux-kbuild-6\.1"):
        fetch(apt, store)
    del apt.known[f"linux-headers-{RELEASE}"]
    with pytest.raises(OracleUnavailable, match=f"apt knows no package linux-headers-{RELEASE}"):
        fetch(apt, store)


def test_headers_of_another_build_are_not_taken(apt: FakeApt, store: Store) -> None:
    apt.add(f"linux-headers-{RELEASE}", {}, _DEPENDS, version="6.1.10-1")
    with pytest.raises(OracleUnavailable, match=r"6\.1\.9-1 was built with other headers"):
        fetch(apt, store)
    assert not apt.fetched


def test_a_package_with_something_else_is_an_error_and_no_skip(apt: FakeApt, store: Store) -> None:
    own = apt.root / f"linux-headers-{RELEASE}/usr/src/linux-headers-{RELEASE}"
    (own / "include/generated/utsrelease.h").write_text('#define UTS_RELEASE "6.1.0-8-amd64"')
    with pytest.raises(SourceError, match=f"no headers of {RELEASE}"):
        fetch(apt, store)


def test_a_download_that_fails_is_no_skip(apt: FakeApt, store: Store) -> None:
    apt.broken = True
    with pytest.raises(CommandError, match="no network"):
        fetch(apt, store)


def test_a_make_that_is_killed_is_no_skip(apt: FakeApt, store: Store) -> None:
    shared = apt.root / "linux-headers-6.1.0-9-common/usr/src/linux-headers-6.1.0-9-common"
    (shared / "Makefile").write_text("modules:\n\tkill -9 $$$$\n")
    with pytest.raises(InfrastructureError, match="ended from outside"):
        fetch(apt, store)


def test_a_make_that_leaves_nothing_builds_nothing(
    apt: FakeApt, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make.Make, "external", lambda *_: None)
    with pytest.raises(OracleUnavailable, match="make left no module"):
        fetch(apt, store)
