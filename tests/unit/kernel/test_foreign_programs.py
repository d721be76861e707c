# SPDX-License-Identifier: GPL-2.0-only
"""Programs that the machine's loader refuses, started by another that lies beside them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.errors import SourceError
from harness.kernel import foreign_programs as module
from harness.kernel.debian import Package
from harness.kernel.foreign_programs import make_startable
from harness.progress import Silent

LIBRARIES = Path("/lib/x86_64-linux-gnu")


class FakeApt:
    """Packages that are unpacked already."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.depends = {"libc6": "libgcc-s1, libc-bin", "libgcc-s1": "libc6 (>= 2.3)", "zlib1g": ""}
        self.asked: list[str] = []

    def package(self, name: str) -> Package:
        if name not in self.depends:
            raise SourceError(f"apt knows no package {name}.")
        self.asked.append(name)
        return Package(name, "1", "amd64", "0" * 64, 10, self.depends[name])

    def unpacked(self, package: Package, progress: object) -> Path:
        return self.root / package.name


@pytest.fixture
def apt(tmp_path: Path) -> FakeApt:
    """An archive whose C library is that of this machine."""
    if not (LIBRARIES / "libc.so.6").exists():
        pytest.skip("this machine keeps its libraries elsewhere")
    apt = FakeApt(tmp_path / "unpacked")
    place = apt.root / "libc6/usr/lib/x86_64-linux-gnu"
    place.mkdir(parents=True)
    shutil.copy(LIBRARIES / "libc.so.6", place / "libc-2.so")
    (place / "libc.so.6").symlink_to("libc-2.so")
    shutil.copy("/lib64/ld-linux-x86-64.so.2", place)
    (place / "gconv").mkdir()
    (place / "gconv/UTF-7.so").write_text("not for programs")
    return apt


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "made"
    (directory / "scripts/mod").mkdir(parents=True)
    shutil.copy("/bin/echo", directory / "scripts/mod/modpost")
    shutil.copy("/bin/echo", directory / "scripts/sign-file")
    (directory / "scripts/mod/link").symlink_to("modpost")
    (directory / "scripts/check.sh").write_text("#!/bin/sh\n")
    (directory / "scripts/check.sh").chmod(0o755)
    return directory


def bring(directory: Path, apt: FakeApt) -> None:
    package = Package("kbuild", "1", "amd64", "", 1, "pahole, libc6 (>= 2.38), zlib1g (>= 1:1)")
    make_startable(directory, package, apt, Silent())  # type: ignore[arg-type]


def test_programs_that_start_are_left_alone(directory: Path, apt: FakeApt) -> None:
    bring(directory, apt)
    assert apt.asked == []
    assert sorted(path.name for path in directory.rglob("*")) == [
        "check.sh", "link", "mod", "modpost", "scripts", "sign-file"
    ]  # fmt: skip


def test_a_program_that_is_refused_starts_with_libraries_of_its_own(
    directory: Path, apt: FakeApt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_refused", lambda program: True)
    bring(directory, apt)
    assert apt.asked == ["libc6", "zlib1g", "libgcc-s1"]
    libraries = {path.name for path in (directory / "libraries").iterdir()}
    assert libraries == {"libc-2.so", "libc.so.6", "ld-linux-x86-64.so.2"}
    moved = directory.rename(tmp_path / "elsewhere")
    said = subprocess.run(
        [moved / "scripts/mod/modpost", "two words", "$0"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert said.stdout == "two words $0\n"
    # They are those beside it, and not the machine's.
    (moved / "libraries/libc.so.6").unlink()
    (moved / "libraries/libc.so.6").write_text("no library")
    broken = subprocess.run(["./modpost"], cwd=moved / "scripts/mod", capture_output=True)
    assert broken.returncode != 0


def test_a_library_that_nobody_knows_is_named(
    directory: Path, apt: FakeApt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_refused", lambda program: True)
    del apt.depends["zlib1g"]
    with pytest.raises(SourceError, match="zlib1g"):
        bring(directory, apt)


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("libc.so.6 => /lib/libc.so.6 (0x1)", False),
        ("x: /lib/libc.so.6: version `GLIBC_2.38' not found (required by x)", True),
        ("\tlibelf.so.1 => not found", True),
        ("x: error while loading shared libraries: libelf.so.1: cannot open shared object", True),
    ],
)
def test_what_the_loader_says(
    said: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = tmp_path / "loader"
    loader.write_text(f"#!/bin/sh\ntest $1 = --list || exit 2\ncat >&2 <<'END'\n{said}\nEND\n")
    loader.chmod(0o755)
    monkeypatch.setattr(module, "_MACHINES_LOADER", loader)
    assert module._refused(tmp_path / "x") is refused
