# SPDX-License-Identifier: GPL-2.0-only
"""One suite of several, asked of the real apt, which knows only an archive of the test."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.errors import SourceError
from harness.kernel.debian import Apt
from harness.kernel.suite import SuiteApt, apt_of
from harness.store import Store

SUITES = {
    ("oldstable", "bookworm"): {"linux-image-amd64": "6.1.170-1", "linux-source-6.1": "6.1.170-1"},
    ("stable", "trixie"): {"linux-image-amd64": "6.12.90-1", "linux-source-6.12": "6.12.90-1"},
    ("oldstable-security", "bookworm-security"): {"linux-image-amd64": "6.1.176-1"},
}


def record(name: str, version: str) -> str:
    release = f"linux-image-{version.rpartition('-')[0]}-amd64"
    depends = f"Depends: {release}\n" if name == "linux-image-amd64" else ""
    return (
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: x <x@x>\n"
        f"{depends}Filename: pool/{name}.deb\nSize: 10\nSHA256: {'0' * 64}\nDescription: x\n\n"
    )


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine whose apt uses three suites of an archive on its disk."""
    if shutil.which("apt-get") is None:
        pytest.skip("there is no apt on this machine")
    root = tmp_path_factory.mktemp("machine")
    sources = []
    for (suite, code), packages in SUITES.items():
        binary = root / f"archive/dists/{code}/main/binary-amd64/Packages"
        binary.parent.mkdir(parents=True)
        text = ""
        for name, version in packages.items():
            text += record(name, version)
            if name == "linux-image-amd64":
                text += record(f"linux-image-{version.rpartition('-')[0]}-amd64", version)
        binary.write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        binary.parents[2].joinpath("Release").write_text(
            f"Origin: Test\nSuite: {suite}\nCodename: {code}\nArchitectures: amd64\n"
            f"Components: main\nSHA256:\n {digest} {len(text)} main/binary-amd64/Packages\n"
        )
        sources.append(f"deb [trusted=yes arch=amd64] file://{root}/archive {code} main\n")
    for name in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "var/lib/dpkg",
                 "var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):  # fmt: skip
        (root / name).mkdir(parents=True)
    (root / "etc/apt/sources.list").write_text("".join(sources))
    (root / "var/lib/dpkg/status").write_text("")
    (root / "apt.conf").write_text(
        f'Dir "{root}";\nDir::State::status "{root}/var/lib/dpkg/status";\n'
        'APT::Sandbox::User "root";\nAPT::Architecture "amd64";\nAPT::Architectures {"amd64";};\n'
    )
    subprocess.run(
        ["apt-get", "-q", "update"], env={"APT_CONFIG": str(root / "apt.conf"), "PATH": "/usr/bin"},
        check=True, capture_output=True,
    )  # fmt: skip
    return root


@pytest.fixture
def store(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("APT_CONFIG", str(machine / "apt.conf"))
    return Store(tmp_path / "cache")


def apt(machine: Path, store: Store, suite: str) -> SuiteApt:
    return SuiteApt(store, suite, machine / "var/lib/apt/lists")


@pytest.mark.parametrize(
    ("suite", "version"),
    [
        ("bookworm", "6.1.170-1"),
        ("oldstable", "6.1.170-1"),
        ("trixie", "6.12.90-1"),
        ("bookworm-security", "6.1.176-1"),
    ],
)
def test_an_image_of_each_suite(machine: Path, store: Store, suite: str, version: str) -> None:
    found = apt(machine, store, suite).image("amd64")
    assert (found.name, found.version) == (
        f"linux-image-{version.rpartition('-')[0]}-amd64",
        version,
    )


def test_the_newest_of_a_series_is_the_newest_of_the_suite(machine: Path, store: Store) -> None:
    assert apt(machine, store, "bookworm").image("6.1").version == "6.1.170-1"
    assert Apt(store, machine / "var/lib/apt/lists").image("6.1").version == "6.1.176-1"


def test_a_package_of_another_suite_is_not_taken(machine: Path, store: Store) -> None:
    assert apt(machine, store, "trixie").source("6.12").version == "6.12.90-1"
    with pytest.raises(
        SourceError, match=r"In the suite trixie: apt knows no package linux-source-6\.1"
    ):
        apt(machine, store, "trixie").source("6.1")


def test_an_unknown_suite_names_those_that_are_known(machine: Path, store: Store) -> None:
    with pytest.raises(SourceError, match=r"knows no suite sid .*; it knows bookworm, .*trixie"):
        apt(machine, store, "sid").image("amd64")


def test_no_suite_is_any_suite(store: Store) -> None:
    assert type(apt_of(store, None)) is Apt
    assert type(apt_of(store, "sid")) is SuiteApt
