# SPDX-License-Identifier: GPL-2.0-only
"""Code is compiled for other architectures, and what does not compile or call is told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fake_kernels import kernel_tree

from harness.errors import KconfigError, MachineUnfitError
from harness.kernel import portability as portability_module
from harness.kernel.architecture import ARCHITECTURES, Architecture
from harness.kernel.portability import Compiled, Portability, table
from harness.kernel.reference import SourceTree
from harness.kernel.source import UserTree
from harness.progress import Silent
from harness.store import Store

ARM64, PPC64EL = ARCHITECTURES
MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 12

allnoconfig:
\tcat "$(KCONFIG_ALLCONFIG)" > $(O)/.config
\tif grep -q '^CONFIG_KVM' $(O)/.config; then echo CONFIG_MMU_NOTIFIER=y >> $(O)/.config; fi
\techo "configure $(ARCH) $(CROSS_COMPILE)" >> ../calls
\tO=$(O) sh ./after-configure

mm/ kernel/fork.o arch/$(ARCH)/kvm/: compiled

compiled:
\techo "compile $(ARCH) $(MAKECMDGOALS)" >> ../calls
\tO=$(O) CC="$(CROSS_COMPILE)gcc" sh ./build
\tO=$(O) CC="$(CROSS_COMPILE)gcc" ARCH=$(ARCH) sh ./after-build
"""
BUILD = """\
mkdir -p $O/kernel $O/mm
echo 'void f(void) {}' > $O/f.c
if grep -q ^CONFIG_MMU_NOTIFIER=y $O/.config; then
        mkdir -p $O/virt/kvm
        echo 'void __mmu_notifier_x(void); void f(void) { __mmu_notifier_x(); }' > $O/f.c
        $CC -c -o $O/virt/kvm/kvm_main.o $O/f.c
fi
for name in kernel/fork mm/memory mm/rmap mm/mmap; do $CC -c -o $O/$name.o $O/f.c; done
"""


class World:
    """A tree that can be compiled for any architecture, and compilers that are this machine's."""

    def __init__(self, root: Path) -> None:
        self.tree = kernel_tree(root / "linux")
        self.store = Store(root / "cache")
        for name, text in (
            ("Makefile", MAKEFILE), ("build", BUILD), ("after-configure", ""), ("after-build", ""),
        ):  # fmt: skip
            (self.tree / name).write_text(text)
        self.bin = root / "bin"
        self.bin.mkdir()
        for one in ARCHITECTURES:
            for program in ("gcc", "ld", "nm"):
                found = shutil.which(program)
                assert found is not None
                (self.bin / f"{one.triplet}-{program}").symlink_to(found)

    def check(self, *architectures: Architecture) -> tuple[Compiled, ...]:
        source = UserTree(SourceTree("", self.tree), self.store)
        return Portability(source, (), self.store, Silent(), 1).check(architectures)

    def calls(self) -> list[str]:
        (path,) = self.store.root.glob("trees/*/calls")
        lines = path.read_text().splitlines()
        path.write_text("")
        return lines


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(portability_module, "_BYTES", 1)
    made = World(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    return made


def problems(found: tuple[Compiled, ...]) -> dict[str, tuple[str, ...]]:
    return {f"{o.architecture} {o.configuration}": o.problems for o in found if o.problems}


def test_each_architecture_is_compiled_with_kvm_and_without_a_user(world: World) -> None:
    found = world.check(ARM64, PPC64EL)
    assert problems(found) == {}
    assert [(one.architecture, one.kvm, one.notifier) for one in found] == [
        ("arm64", True, "y"),
        ("arm64", False, "n"),
        ("ppc64el", True, "y"),
        ("ppc64el", False, "n"),
    ]
    assert found[0].objects == {"mm": 3, "kernel/fork.o": 1, "virt/kvm": 1}
    assert found[1].objects == {"mm": 3, "kernel/fork.o": 1, "virt/kvm": 0}
    assert found[0].calls == dict.fromkeys(
        ("kernel/fork.o", "mm/memory.o", "mm/rmap.o"), ("__mmu_notifier_x",)
    )
    assert set(found[1].calls.values()) == {()}
    assert table(found)[1] == ("arm64", "KVM=y", "y", "3", "1", "1", "3 of 3", "compiles")
    assert table(found)[2] == ("arm64", "no user", "n", "3", "1", "0", "0 of 3", "compiles")
    assert world.calls() == [
        "configure arm64 aarch64-linux-gnu-",
        "compile arm64 mm/ kernel/fork.o arch/arm64/kvm/",
        "configure arm64 aarch64-linux-gnu-",
        "compile arm64 mm/ kernel/fork.o",
        "configure powerpc powerpc64le-linux-gnu-",
        "compile powerpc mm/ kernel/fork.o arch/powerpc/kvm/",
        "configure powerpc powerpc64le-linux-gnu-",
        "compile powerpc mm/ kernel/fork.o",
    ]


def test_what_was_compiled_is_not_compiled_again(world: World) -> None:
    found = world.check(ARM64)
    world.calls()
    assert world.check(ARM64) == found
    assert world.calls() == []
    (world.tree / "new.c").write_text("int x;\n")
    assert problems(world.check(ARM64)) == {}
    assert len(world.calls()) == 4, "another source is another question"


def test_objects_are_neither_kept_nor_left_in_the_tree(world: World) -> None:
    world.check(ARM64)
    assert list(world.store.root.rglob("*.o")) == []
    assert len(list(world.store.root.glob("cross/*/config"))) == 2
    assert not (world.tree / "calls").exists()


def test_code_that_does_not_compile_is_told_with_its_error(world: World) -> None:
    (world.tree / "after-build").write_text(
        "[ $ARCH != powerpc ] || { echo 'mm/x.c:1: error: no sched.h here'; exit 1; }\n"
    )
    found = world.check(ARM64, PPC64EL)
    assert set(problems(found)) == {"ppc64el KVM=y", "ppc64el no user"}
    (problem,) = problems(found)["ppc64el no user"]
    assert "does not build: mm/x.c:1: error: no sched.h here" in problem
    assert problem in table(found)[-1][-1]


@pytest.mark.parametrize(
    ("file", "text", "wrong"),
    [
        (
            "after-configure",
            "sed -i /MMU_NOTIFIER=y/d $O/.config",
            {
                "arm64 KVM=y": (
                    "CONFIG_MMU_NOTIFIER is n instead of y",
                    "nothing was compiled of virt/kvm",
                    "kernel/fork.o calls no MMU notifier",
                    "mm/memory.o calls no MMU notifier",
                    "mm/rmap.o calls no MMU notifier",
                )
            },
        ),
        (
            "after-configure",
            "grep -q CONFIG_KVM $O/.config || echo CONFIG_MMU_NOTIFIER=y >> $O/.config",
            {
                "arm64 no user": (
                    "CONFIG_MMU_NOTIFIER is y instead of n",
                    "kernel/fork.o calls __mmu_notifier_x",
                    "mm/memory.o calls __mmu_notifier_x",
                    "mm/rmap.o calls __mmu_notifier_x",
                )
            },
        ),
        (
            "after-build",
            "rm $O/kernel/fork.o",
            {
                "arm64 KVM=y": (
                    "nothing was compiled of kernel/fork.o",
                    "kernel/fork.o calls no MMU notifier",
                ),
                "arm64 no user": ("nothing was compiled of kernel/fork.o",),
            },
        ),
    ],
)
def test_objects_that_are_not_as_they_should_be(
    world: World, file: str, text: str, wrong: dict[str, tuple[str, ...]]
) -> None:
    (world.tree / file).write_text(text + "\n")
    assert problems(world.check(ARM64)) == wrong


def test_a_configuration_that_cannot_be_had_is_no_finding(world: World) -> None:
    (world.tree / "after-configure").write_text("sed -i /CONFIG_KVM=/d $O/.config\n")
    with pytest.raises(KconfigError, match=r"CONFIG_KVM \(\S+arm64-kvm\.config:5\)"):
        world.check(ARM64)


def test_without_a_compiler_nothing_is_compiled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.bin / "aarch64-linux-gnu-gcc").unlink()
    (world.bin / "apt-cache").write_text("#!/bin/sh\nexit 0\n")
    (world.bin / "apt-get").write_text("#!/bin/sh\nexit 0\n")
    for name in ("apt-cache", "apt-get"):
        (world.bin / name).chmod(0o755)
    with pytest.raises(
        MachineUnfitError, match=r"no compiler for arm64.*Debian package gcc-aarch64-linux-gnu"
    ):
        world.check(PPC64EL, ARM64)
    assert list(world.store.root.glob("trees/*")) == [], "not even for the other"
