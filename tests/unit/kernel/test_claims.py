# SPDX-License-Identifier: GPL-2.0-only
"""The claims about MMU_NOTIFIER are checked on what was configured and built, and can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_kernels import kernel_tree

from harness.errors import KconfigError
from harness.kernel import claims as claims_module
from harness.kernel.claims import Claims, Finding, selection, table
from harness.kernel.reference import SourceTree
from harness.kernel.source import UserTree
from harness.progress import Silent
from harness.store import Store

MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 12

allnoconfig:
\tcat "$(KCONFIG_ALLCONFIG)" > .config
\tif grep -q '^CONFIG_KVM=' .config; then echo CONFIG_MMU_NOTIFIER=y >> .config; fi
\techo configure >> ../calls
\tsh ./after-configure

bzImage:
\techo build >> ../calls
\tsh ./build
\tsh ./after-build

modules: bzImage
"""
BUILD = """\
mkdir -p kernel mm
echo 'void f(void) {}' > f.c
echo 'ffffffff81000000 T f' > System.map
if grep -q ^CONFIG_MMU_NOTIFIER=y .config; then
        echo 'void __mmu_notifier_x(void); void f(void) { __mmu_notifier_x(); }' > f.c
        echo 'ffffffff81000010 T __mmu_notifier_x' >> System.map
fi
for name in kernel/fork mm/memory mm/mmap; do gcc -c -o $name.o f.c; done
"""
KCONFIG = """\
config MMU_NOTIFIER
\tbool
config KVM_GENERIC_MMU_NOTIFIER
\tselect MMU_NOTIFIER
\tbool
config KVM
\ttristate "KVM"
\tselect KVM_GENERIC_MMU_NOTIFIER if X86
config OTHER
\tbool "x"
\tselect MMU_NOTIFIER
"""


class World:
    def __init__(self, root: Path) -> None:
        self.tree = kernel_tree(root / "linux")
        self.store = Store(root / "cache")
        for name, text in (
            ("Makefile", MAKEFILE), ("build", BUILD), ("Kconfig", KCONFIG),
            ("after-configure", ""), ("after-build", ""),
        ):  # fmt: skip
            (self.tree / name).write_text(text)

    def check(self, *, build: bool = True) -> list[Finding]:
        source = UserTree(SourceTree("", self.tree), self.store)
        return list(Claims(source, (), self.store, Silent(), 1).check(build=build)[1])

    def calls(self) -> list[str]:
        (path,) = self.store.root.glob("trees/*/calls")
        lines = path.read_text().split()
        path.write_text("")
        return lines


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(claims_module, "_BYTES", 1)
    return World(tmp_path)


def problems(findings: list[Finding]) -> dict[str, tuple[str, ...]]:
    return {finding.case.name: finding.problems for finding in findings if finding.problems}


def test_they_hold(world: World) -> None:
    findings = world.check()
    assert problems(findings) == {}
    assert [(f.case.name, f.kvm, f.notifier) for f in findings] == [
        ("KVM=y", "y", "y"),
        ("KVM=m", "m", "y"),
        ("no user", "n", "n"),
    ]
    with_kvm, _, without = findings
    assert with_kvm.symbols == ("__mmu_notifier_x",)
    assert with_kvm.calls is not None
    assert with_kvm.calls["mm/memory.o"] == ("__mmu_notifier_x",)
    assert without.symbols == ()
    assert without.calls == {"kernel/fork.o": (), "mm/memory.o": (), "mm/mmap.o": ()}
    assert table(findings)[-1] == (
        "no user", "n", "n", "yes", "0 symbols", "0 of 3 objects call", "holds",
    )  # fmt: skip


def test_what_was_built_is_not_built_again(world: World) -> None:
    findings = world.check()
    assert world.calls() == ["configure", "build"] * 3
    assert world.check() == findings
    assert world.calls() == []


def test_without_building_only_the_configurations_are_looked_at(world: World) -> None:
    findings = world.check(build=False)
    assert world.calls() == ["configure"] * 3
    assert problems(findings) == {}
    assert {finding.symbols for finding in findings} == {None}
    assert table(findings)[1][3:6] == ("-", "-", "-")


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        (
            "after-configure",
            "sed -i s/CONFIG_MMU_NOTIFIER=y// .config",
            dict.fromkeys(
                ("KVM=y", "KVM=m"),
                (
                    "CONFIG_MMU_NOTIFIER is n instead of y",
                    "System.map has no symbol of MMU notifiers",
                    "kernel/fork.o calls no MMU notifier",
                    "mm/memory.o calls no MMU notifier",
                ),
            ),
        ),
        (
            "after-configure",
            "grep -q CONFIG_KVM= .config || echo CONFIG_MMU_NOTIFIER=y >> .config",
            {
                "no user": (
                    "CONFIG_MMU_NOTIFIER is y instead of n",
                    "System.map has __mmu_notifier_x",
                    "kernel/fork.o calls __mmu_notifier_x",
                    "mm/memory.o calls __mmu_notifier_x",
                    "mm/mmap.o calls __mmu_notifier_x",
                )
            },
        ),
        (
            "after-build",
            "grep -q CONFIG_KVM= .config || echo 'f T mmu_notifier_register' >> System.map",
            {"no user": ("System.map has mmu_notifier_register",)},
        ),
        (
            "after-build",
            "grep -q CONFIG_KVM= .config || { echo 'int __mmu_notifier_y(void);"
            " int g(void) { return __mmu_notifier_y(); }' > g.c; gcc -c -o mm/mmap.o g.c; }",
            {"no user": ("mm/mmap.o calls __mmu_notifier_y",)},
        ),
    ],
)
def test_they_can_fail(
    world: World, file: str, text: str, found: dict[str, tuple[str, ...]]
) -> None:
    (world.tree / file).write_text(text + "\n")
    assert problems(world.check()) == found


def test_a_kernel_that_does_not_build_without_notifiers(world: World) -> None:
    (world.tree / "after-build").write_text(
        "grep -q CONFIG_KVM= .config || { echo 'mm/x.c:1: error: no notifiers'; exit 1; }\n"
    )
    ((name, (problem,)),) = problems(world.check()).items()
    assert name == "no user"
    assert "it does not build" in problem
    assert "mm/x.c:1: error: no notifiers" in problem


def test_kvm_that_cannot_be_had_is_no_finding(world: World) -> None:
    (world.tree / "after-configure").write_text("sed -i /CONFIG_KVM=/d .config\n")
    with pytest.raises(KconfigError, match="CONFIG_KVM=y"):
        world.check(build=False)


def test_who_selects_it(world: World) -> None:
    found = selection(world.tree)
    assert found.chain == ("KVM", "KVM_GENERIC_MMU_NOTIFIER", "MMU_NOTIFIER")
    assert found.selectors == ("KVM_GENERIC_MMU_NOTIFIER", "OTHER")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("config MMU_NOTIFIER", "config NOTHING", "has no CONFIG_MMU_NOTIFIER"),
        (
            "\tbool\nconfig KVM_G",
            '\tbool "by hand"\nconfig KVM_G',
            "can be set by hand at Kconfig:1",
        ),
        ("select KVM_GENERIC", "select ANY", "No symbol of KVM selects"),
    ],
)
def test_trees_of_which_it_cannot_be_claimed(world: World, old: str, new: str, says: str) -> None:
    (world.tree / "Kconfig").write_text(KCONFIG.replace(old, new))
    with pytest.raises(KconfigError, match=says):
        world.check(build=False)
