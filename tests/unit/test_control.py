# SPDX-License-Identifier: GPL-2.0-only
"""Controls are found by name and kernel, and the series that the project has are in order."""

from __future__ import annotations

import itertools
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import control
from harness.control import Control
from harness.errors import ExitCode, PatchError, SourceError, UsageError
from harness.kernel import origin
from harness.kernel.reference import (
    DebianImage,
    DebianSource,
    Download,
    ImageFile,
    KernelReference,
    Revision,
    SourceTree,
    Tarball,
)
from harness.kernel.tarball import TarballSource
from harness.progress import Silent
from harness.store import Store

SERIES = sorted(control._CONTROLS.glob("*/series"))
DECLARED = re.compile(r'^\+\s*\[MMU_CONTROL_\w+\] = "([^"]*)"', re.MULTILINE)
"""More generous than the code's own expression, which must see no less."""


Find = Callable[[str, KernelReference], Control]


@pytest.fixture
def find_control(tmp_path: Path) -> Find:
    """find_control() with a store of the test."""
    store = Store(tmp_path / "cache")
    return lambda text, reference: control.find_control(text, reference, store, Silent())


def debian(version: str) -> DebianSource:
    return DebianSource(f"deb:linux-source-{version}", version)


def tree(path: Path, version: int, patchlevel: int) -> SourceTree:
    path.mkdir(parents=True, exist_ok=True)
    (path / "Makefile").write_text(
        f"# SPDX\nVERSION = {version}\nPATCHLEVEL = {patchlevel}\nSUBLEVEL = 3\nEXTRAVERSION =\n"
    )
    (path / "Kconfig").write_text("")
    (path / "arch/x86").mkdir(parents=True, exist_ok=True)
    (path / "arch/x86/Kconfig").write_text("")
    return SourceTree(str(path), path)


def revision(source: SourceTree) -> Revision:
    """The tree as it is, in a commit."""
    identity = ("-c", "user.name=x", "-c", "user.email=x@x")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run(["git", *identity, *words], cwd=source.path, check=True)
    return Revision(f"{source.path}@HEAD", source.path, "HEAD")


def tarball(source: SourceTree) -> Tarball:
    path = source.path.with_name("linux.tar")
    with tarfile.open(path, "w") as tar:
        tar.add(source.path, "linux")
    return Tarball(str(path), path)


def patch(*names: str) -> str:
    lines = [f'+\t[MMU_CONTROL_{name.replace("-", "_").upper()}] = "{name}",' for name in names]
    return "\n".join(["--- /dev/null", "+++ b/mm/mmu_control.c", *lines, ""])


@pytest.fixture
def controls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two series: of two patches for 6.6 to 6.12, and of one for 6.12 and 6.13."""
    directory = tmp_path / "controls"
    for name, bounds, patches in (
        ("6.6", "[6.6, 6.12)", {"1.patch": patch("old"), "2.patch": patch("both")}),
        ("6.12", "[6.12, 6.14)", {"1.patch": patch("both", "new")}),
    ):
        (directory / name).mkdir(parents=True)
        lines = [f"# kernels: {bounds}", "# first comes first", "", *patches, ""]
        (directory / name / "series").write_text("\n".join(lines))
        for file, text in patches.items():
            (directory / name / file).write_text(text)
    monkeypatch.setattr(control, "_CONTROLS", directory)
    return directory


@pytest.mark.parametrize(
    ("version", "name", "series", "files"),
    [
        ("6.6", "old", "6.6", ["1.patch", "2.patch"]),
        ("6.11", "both", "6.6", ["1.patch", "2.patch"]),
        ("6.12", "both", "6.12", ["1.patch"]),
        ("6.13", "new", "6.12", ["1.patch"]),
    ],
)
def test_a_control_has_the_patches_of_its_kernels_series(
    controls: Path,
    tmp_path: Path,
    find_control: Find,
    version: str,
    name: str,
    series: str,
    files: list[str],
) -> None:
    major, minor = map(int, version.split("."))
    source = tree(tmp_path / "linux", major, minor)
    for reference in (debian(version), source, revision(source), tarball(source)):
        found = find_control(name, reference)
        assert found.name == name
        assert found.patches == tuple(controls / series / file for file in files)


@pytest.mark.usefixtures("controls")
def test_a_tarball_at_an_address_has_controls_too(
    tmp_path: Path, find_control: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tarball(tree(tmp_path / "linux", 6, 13))
    monkeypatch.setattr(origin, "fetch", lambda *_: archive.path)
    url = "https://example.org/linux.tar"
    assert find_control("new", Download(f"{url}#sha256=", url, "0" * 64)).patches


@pytest.mark.usefixtures("controls")
def test_a_makefile_may_be_written_otherwise(tmp_path: Path, find_control: Find) -> None:
    # Whatever harness.kernel.reference takes for a kernel tree.
    source = tree(tmp_path / "linux", 6, 12)
    (source.path / "Makefile").write_text("VERSION=6\nPATCHLEVEL\t=\t13 \nSUBLEVEL=0\n")
    assert find_control("new", source).patches


def test_a_control_is_one_word_on_the_kernels_command_line() -> None:
    found = control.Control("sptes-survive-unmap", ())
    assert found.parameter == "mmu_control=sptes-survive-unmap"
    assert found.confirmation == "mmu_control: sptes-survive-unmap is on"


@pytest.mark.parametrize("name", ["nope", "", "old,both", "OLD", "--help", "mmu_control=old"])
@pytest.mark.usefixtures("controls")
def test_an_unknown_control_is_bad_usage_that_lists_the_known_ones(
    find_control: Find, name: str
) -> None:
    with pytest.raises(UsageError, match=r"choose one of both, new, old\.$") as caught:
        find_control(name, debian("6.12"))
    assert caught.value.exit_code == ExitCode.USAGE
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("version", "name"),
    [("6.5", "old"), ("6.14", "new"), ("7.0", "new"), ("5.12", "both"), ("6.11", "new"),
     ("6.12", "old")],
)  # fmt: skip
def test_a_kernel_without_a_series_cannot_be_tested(
    controls: Path, find_control: Find, version: str, name: str
) -> None:
    told = rf"no control(s| {name}) for kernels of version {re.escape(version)};"
    with pytest.raises(PatchError, match=told) as caught:
        find_control(name, debian(version))
    assert caught.value.exit_code == ExitCode.UNTESTABLE
    assert str(controls) in str(caught.value), "it says where to add one"


@pytest.mark.parametrize(
    "reference",
    [
        ImageFile("/boot/vmlinuz", Path("/boot/vmlinuz")),
        DebianImage("deb:linux-image-amd64", "amd64"),
    ],
)
@pytest.mark.usefixtures("controls")
def test_a_kernel_that_is_built_already_cannot_be_broken(
    find_control: Find, reference: ImageFile | DebianImage
) -> None:
    with pytest.raises(UsageError, match="is built already") as caught:
        find_control("both", reference)
    assert reference.text in str(caught.value)
    assert "deb:linux-source-V" in str(caught.value)


@pytest.mark.usefixtures("controls")
def test_an_unknown_name_is_told_before_a_source_is_looked_at(find_control: Find) -> None:
    missing = Path("/nowhere/linux.tar")
    with pytest.raises(UsageError, match="There is no control 'nope'"):
        find_control("nope", Tarball(str(missing), missing))
    with pytest.raises(SourceError, match="cannot be read"):
        find_control("both", Tarball(str(missing), missing))


@pytest.mark.usefixtures("controls")
def test_the_version_of_a_tarball_is_remembered_for_as_long_as_it_is_the_same(
    tmp_path: Path, find_control: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tarball(tree(tmp_path / "linux", 6, 13))
    assert find_control("new", archive).patches
    with monkeypatch.context() as patched:
        patched.setattr(TarballSource, "peek", lambda *_: pytest.fail("it is unpacked again"))
        assert find_control("new", archive).patches
    tarball(tree(tmp_path / "linux", 6, 6))
    with pytest.raises(PatchError, match=r"no control new for kernels of version 6\.6"):
        find_control("new", archive)


@pytest.mark.usefixtures("controls")
@pytest.mark.parametrize("makefile", ["", "VERSION =\nPATCHLEVEL =\n", "all:\n"])
def test_a_source_that_names_no_version_has_no_controls(
    tmp_path: Path, find_control: Find, makefile: str
) -> None:
    source = tree(tmp_path / "linux", 6, 12)
    (source.path / "Makefile").write_text(makefile)
    with pytest.raises(SourceError, match="names no version"):
        find_control("both", source)


def test_a_series_says_for_which_kernels_it_is(controls: Path, find_control: Find) -> None:
    (controls / "6.6" / "series").write_text("1.patch\n")
    with pytest.raises(UsageError, match="does not say for which kernels") as caught:
        find_control("both", debian("6.12"))
    assert str(controls / "6.6" / "series") in str(caught.value)


# The controls that the project has.


def test_there_are_controls() -> None:
    assert SERIES


@pytest.mark.parametrize("series", SERIES, ids=lambda path: path.parent.name)
def test_a_series_is_in_order(series: Path) -> None:
    read = control._read(series)
    assert read.first < read.until
    assert read.patches
    for path in read.patches:
        assert path.is_file()
        assert path.parent == series.parent
        assert path.read_text(), path
    named = {path.name for path in read.patches}
    assert {path.name for path in series.parent.glob("*.patch")} == named, "none lies about unused"
    lowest = ".".join(map(str, read.first))
    assert series.parent.name == lowest, "a directory is named for the first kernel of its range"


@pytest.mark.parametrize("series", SERIES, ids=lambda path: path.parent.name)
def test_the_names_in_a_series_are_unique_and_all_seen(series: Path) -> None:
    read = control._read(series)
    declared = [name for path in read.patches for name in DECLARED.findall(path.read_text())]
    assert declared
    assert list(read.names) == declared
    assert max(Counter(declared).values()) == 1
    for name in declared:
        # One word without quoting, in a kernel's command line and in a shell.
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)


@pytest.mark.parametrize("series", SERIES, ids=lambda path: path.parent.name)
def test_each_control_of_a_series_has_a_place_in_the_kernel(series: Path) -> None:
    text = "\n".join(path.read_text() for path in control._read(series).patches)
    added = "\n".join(line[1:] for line in text.splitlines() if line.startswith("+"))
    enumerators = re.findall(r"^\tMMU_CONTROL_(\w+),$", added, re.MULTILINE)
    assert [name.lower().replace("_", "-") for name in enumerators] == list(
        control._read(series).names
    )
    for enumerator in enumerators:
        assert f"mmu_control({enumerator})" in added, f"{enumerator} breaks nothing"


def test_the_kernel_says_what_the_harness_waits_for() -> None:
    prefix, rest = control.Control("%s", ()).confirmation.split(" ", maxsplit=1)
    for series in SERIES:
        text = "".join(path.read_text() for path in control._read(series).patches)
        assert f'+#define pr_fmt(fmt) "{prefix} " fmt' in text
        assert f'pr_info("{rest}\\n", name);' in text
        assert f'__setup("{control.Control("", ()).parameter}", ' in text


def test_no_two_series_are_for_one_kernel() -> None:
    ranges = sorted((read.first, read.until) for read in map(control._read, SERIES))
    for (_, until), (first, _) in itertools.pairwise(ranges):
        assert until <= first


def test_the_default_kernel_has_every_control(find_control: Find) -> None:
    for name in {name for series in SERIES for name in control._read(series).names}:
        assert find_control(name, debian("6.12")).patches
