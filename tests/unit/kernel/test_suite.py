# SPDX-License-Identifier: GPL-2.0-only
"""One suite of several, asked of the real apt, which knows only an archive of the test."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.errors import InfrastructureError, SourceError
from harness.kernel import suite as suite_module
from harness.kernel.debian import Apt
from harness.kernel.suite import ForeignApt, SuiteApt, apt_of
from harness.store import Store

SUITES = {
    ("oldstable", "bookworm"): {"linux-image-amd64": "6.1.170-1", "linux-source-6.1": "6.1.170-1"},
    ("stable", "trixie"): {"linux-image-amd64": "6.12.90-1", "linux-source-6.12": "6.12.90-1"},
    ("oldstable-security", "bookworm-security"): {"linux-image-amd64": "6.1.176-1"},
    ("unstable", "sid"): {"linux-image-amd64": "7.2.13-1", "linux-source-7.2": "7.2.13-1"},
}
UNUSED = ("unstable", "sid")
"""In the archive, but not among the machine's sources."""


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
        if (suite, code) != UNUSED:
            sources.append(f"deb [trusted=yes arch=amd64] file://{root}/archive {code} main\n")
    # As archives have it: a suite is a name of a release.
    (root / "archive/dists/unstable").symlink_to("sid")
    for name in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "var/lib/dpkg",
                 "var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):  # fmt: skip
        (root / name).mkdir(parents=True)
    (root / "etc/apt/sources.list").write_text("".join(sources))
    (root / "var/lib/dpkg/status").write_text("")
    (root / "apt.conf").write_text(
        f'Dir "{root}";\nDir::State::status "{root}/var/lib/dpkg/status";\n'
        # The archive of the test is not signed.
        'Acquire::AllowInsecureRepositories "true";\n'
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
    monkeypatch.setattr(suite_module, "_KEYRING", tmp_path / "none")
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


def foreign(machine: Path, store: Store, suite: str) -> ForeignApt:
    return ForeignApt(store, suite, apt(machine, store, suite))


@pytest.mark.parametrize("suite", ["sid", "unstable"])
def test_a_suite_that_the_machine_does_not_use_comes_from_its_archive(
    machine: Path, store: Store, suite: str
) -> None:
    before = state(machine)
    found = foreign(machine, store, suite)
    assert found.image("amd64").name == "linux-image-7.2.13-amd64"
    assert found.source("7.2").version == "7.2.13-1"
    with pytest.raises(SourceError, match=rf"In the suite {suite}: .* linux-source-6\.12"):
        found.source("6.12")
    assert state(machine) == before, "the machine keeps its own lists and sources"


def test_its_lists_are_fetched_once(machine: Path, store: Store) -> None:
    foreign(machine, store, "sid").image("amd64")
    marks = [path.stat().st_mtime_ns for path in store.root.rglob("fetched")]
    assert foreign(machine, store, "sid").image("amd64").version == "7.2.13-1"
    assert [path.stat().st_mtime_ns for path in store.root.rglob("fetched")] == marks


def test_a_suite_that_no_archive_has_names_those_that_are_known(
    machine: Path, store: Store
) -> None:
    with pytest.raises(
        SourceError, match=r"knows no suite forky .*; it knows bookworm, .*trixie.*archive"
    ):
        foreign(machine, store, "forky").image("amd64")


def test_an_archive_that_cannot_be_reached_is_no_missing_suite(
    machine: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SuiteApt, "archives", lambda _: ["http://127.0.0.1:1/debian/"])
    with pytest.raises(InfrastructureError, match=r"suite sid cannot be fetched.*127\.0\.0\.1"):
        foreign(machine, store, "sid").image("amd64")


def test_updates_of_security_are_looked_for_in_their_own_archive_first(
    machine: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = f"file:{machine}/archive/"
    monkeypatch.setattr(SuiteApt, "archives", lambda _: [archive, "http://127.0.0.1:1/security/"])
    with pytest.raises(InfrastructureError, match="127"):
        foreign(machine, store, "x-security").image("amd64")
    assert foreign(machine, store, "sid").image("amd64").version == "7.2.13-1"


def test_who_answers_for_a_suite(
    machine: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert type(apt_of(store, None)) is Apt
    assert type(apt_of(store, "trixie")) is SuiteApt
    assert type(apt_of(store, "sid")) is ForeignApt


def state(machine: Path) -> dict[str, int]:
    # apt locks its directories of lists, which is no change.
    return {
        str(path): path.stat().st_mtime_ns
        for path in machine.rglob("*")
        if path.is_file() and path.name != "lock"
    }
