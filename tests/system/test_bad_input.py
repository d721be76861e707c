# SPDX-License-Identifier: GPL-2.0-only
"""Bad input gets one clear sentence and the right exit code, and nothing is left half-written."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from checking import check, command

PATCH = """--- a/arch/x86/kvm/mmu/mmu.c
+++ b/arch/x86/kvm/mmu/mmu.c
@@ -1,3 +1,3 @@
 no such line
-neither this
+something else
 nor that
"""


def image(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return f"--kernel={path}"


def test_there_is_no_such_kernel(tmp_path: Path) -> None:
    checked = check(tmp_path, f"--kernel={tmp_path / 'none'}")
    assert checked.code == 125
    assert "no kernel image" in checked.said


@pytest.mark.parametrize("content", [b"", b"MZ" * 700, bytes(4096)])
def test_a_file_that_is_no_kernel(tmp_path: Path, content: bytes) -> None:
    checked = check(tmp_path, image(tmp_path / "an image, -x", content))
    assert checked.code == 125
    assert "an image, -x" in checked.said


def test_a_directory_that_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    checked = check(tmp_path, f"--kernel={tmp_path / 'empty'}")
    assert checked.code == 125
    assert str(tmp_path / "empty") in checked.said


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("reference", "code", "says"),
    [
        ("{}/none@v6.12", 125, "no kernel image"),
        ("{}@", 201, "names no revision"),
        ("{}@v6.12", 125, "is not a git checkout"),
        ("{}/none.tar.xz", 125, "does not exist"),
        ("{}/empty.tar.xz", 125, "is empty"),
        ("{}/words.tar.gz", 125, "is not a tarball"),
        ("{}/cut.tar.xz", 125, "damaged or truncated"),
        ("https://localhost:1/x.tar.xz", 201, "without a digest"),
        ("https://localhost:1/x.tar.xz#sha256=12", 201, "without a digest"),
        (f"http://localhost:1/x.tar.xz#sha256={DIGEST}", 201, "not https"),
        (f"https://localhost:1/x.tar.xz#sha256={DIGEST}", 200, "cannot be fetched"),
        ("deb:linux-source-6.12/no-such-suite", 125, "knows no suite no-such-suite"),
        ("deb:linux-image-6.12/../x", 201, "not a Debian kernel package"),
        ("deb:linux-source-0.1", 125, "knows no package linux-source-0.1"),
    ],
)
def test_a_reference_that_leads_nowhere(
    tmp_path: Path, reference: str, code: int, says: str
) -> None:
    (tmp_path / "empty.tar.xz").write_bytes(b"")
    (tmp_path / "words.tar.gz").write_text("words\n")
    with tarfile.open(tmp_path / "cut.tar.xz", "w:xz") as tar:
        tar.add(Path(__file__), "linux/Makefile")
    whole = (tmp_path / "cut.tar.xz").read_bytes()
    (tmp_path / "cut.tar.xz").write_bytes(whole[: len(whole) // 2])
    checked = check(tmp_path, f"--kernel={reference.format(tmp_path)}")
    assert checked.code == code
    assert says in checked.said


def test_a_vmlinux_that_cannot_be_read_or_is_none(tmp_path: Path) -> None:
    for code, given in ((201, tmp_path / "none"), (125, Path(__file__))):
        checked = check(tmp_path, "--kernel=deb:linux-image-6.1", f"--vmlinux={given}")
        assert checked.code == code
        assert str(given) in checked.said


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (None, 201, "cannot be read"),
        ("", 125, "is empty"),
        ("only words\n", 125, "no diff in it"),
        (PATCH[:-30], 125, "damaged patch: hunk #1"),
    ],
)
def test_a_patch_that_is_none(tmp_path: Path, content: str | None, code: int, says: str) -> None:
    patch = tmp_path / "-a bad, patch"
    if content is not None:
        patch.write_text(content)
    checked = check(tmp_path, f"--patch={patch}")
    assert checked.code == code
    assert says in checked.said
    assert str(patch) in checked.said


def test_a_patch_that_does_not_apply_names_the_hunk(tmp_path: Path) -> None:
    patch = tmp_path / "-a bad, patch"
    patch.write_text(PATCH)
    checked = check(tmp_path, f"--patch={patch}")
    assert checked.code == 125
    assert "arch/x86/kvm/mmu/mmu.c" in checked.said
    assert "hunk" in checked.said.lower()


def test_a_symbol_that_does_not_exist(tmp_path: Path) -> None:
    fragment = tmp_path / "my.config"
    fragment.write_text("# why not\nCONFIG_NO_SUCH_SYMBOL=y\n")
    checked = check(tmp_path, f"--config={fragment}")
    assert checked.code == 125
    assert "NO_SUCH_SYMBOL" in checked.said
    assert "my.config" in checked.said


@pytest.mark.parametrize(
    ("option", "valid"),
    [("--mmu=ept", "shadow"), ("--accel=hvf", "tcg"), ("--control=none", "sptes-survive-unmap")],
)
def test_an_unknown_name_lists_the_known_ones(tmp_path: Path, option: str, valid: str) -> None:
    checked = check(tmp_path, option)
    assert checked.code == 201
    assert valid in checked.said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["no-such-control"], 201, "pre-notifier"),
        (["--kernel=deb:linux-image-6.1", "pre-notifier"], 201, "built already"),
        (["--mmu=ept"], 201, "shadow"),
    ],
)
def test_controls_that_cannot_be(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    checked = command(tmp_path, "controls", *words)
    assert checked.code == code
    assert said in checked.said


def test_a_control_that_does_not_apply_names_the_hunk(tmp_path: Path) -> None:
    patch = tmp_path / "moved.patch"
    patch.write_text(
        "--- a/mm/Makefile\n+++ b/mm/Makefile\n@@ -83,3 +83,2 @@\n"
        " obj-$(CONFIG_SPARSEMEM_VMEMMAP) += sparse-vmemmap.o\n"
        "-obj-$(CONFIG_MMU_NOTIFIER) += mmu_notifier.o\n obj-$(CONFIG_KSM) += ksm.o\n"
    )
    checked = check(tmp_path, "--control=pre-notifier", f"--patch={patch}")
    assert checked.code == 125
    assert "mm/Makefile: hunk #1" in checked.said


def test_a_selection_that_matches_nothing(tmp_path: Path) -> None:
    assert check(tmp_path, "-kno_such_test").code == 201


def test_kvm_is_asked_for_where_there_is_none(tmp_path: Path) -> None:
    from harness.machine.accelerator import nested_kvm

    possible, _ = nested_kvm()
    if possible:
        pytest.skip("this machine has nested KVM")
    assert check(tmp_path, "--accel=kvm").code == 202


def test_qemu_is_missing(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    checked = check(tmp_path, "-kmiddle", environment={"PATH": str(bare)})
    assert checked.code == 202
    assert "install the Debian package" in checked.said


def test_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where a directory should be")
    checked = check(tmp_path, environment={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert checked.code == 200
    assert str(tmp_path / "cache") in checked.said
