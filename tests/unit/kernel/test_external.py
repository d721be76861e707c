# SPDX-License-Identifier: GPL-2.0-only
"""Headers out of a tree, and modules built with them; a Makefile stands for the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import BuildError
from harness.kernel import headers
from harness.kernel.external import external_module
from harness.kernel.model import Kernel
from harness.progress import Silent
from harness.store import Store

_MAKEFILE = """\
modules:
\techo "$(M)" >> "$(CURDIR)/calls"
\t! grep -q mistake "$(M)/it.c" || { echo "it.c:1: error: a mistake"; exit 1; }
\tgrep -q nothing "$(M)/it.c" || cp "$(M)/it.c" "$(M)/it.ko"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree as make leaves it: what modules need, and a good deal more."""
    tree = tmp_path / "tree"
    for name in (
        "Makefile", ".config", "Module.symvers", "vmlinux", "mm/memory.c", "mm/memory.o",
        "include/linux/mm.h", "include/generated/autoconf.h", "include/config/auto.conf",
        "include/config/MMU_NOTIFIER", "include/config/kernel.release",
        "arch/x86/Makefile", "arch/x86/Makefile_32.cpu", "arch/x86/include/asm/page.h",
        "arch/x86/kvm/kvm.ko", "scripts/mod/modpost", "scripts/mod/modpost.o",
        "scripts/mod/.modpost.o.cmd", "tools/objtool/objtool", "tools/objtool/check.c",
    ):  # fmt: skip
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("6.12.1\n" if name.endswith("release") else name)
    (tree / "scripts/mod/modpost").chmod(0o755)
    return tree


def test_headers_are_what_modules_need_and_no_more(tree: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    headers.take(tree, taken)
    files = {str(path.relative_to(taken)) for path in taken.rglob("*") if path.is_file()}
    assert files == {
        "Makefile", ".config", "Module.symvers", "include/linux/mm.h",
        "include/generated/autoconf.h", "include/config/auto.conf",
        "include/config/kernel.release", "arch/x86/Makefile", "arch/x86/Makefile_32.cpu",
        "arch/x86/include/asm/page.h", "scripts/mod/modpost", "tools/objtool/objtool",
    }  # fmt: skip
    assert (taken / "scripts/mod/modpost").stat().st_mode & 0o100
    assert headers.complete(taken, "6.12.1")


@pytest.mark.parametrize("lacking", ["Makefile", "Module.symvers", "include/config/kernel.release"])
def test_headers_that_lack_something_are_not_complete(tree: Path, lacking: str) -> None:
    assert headers.complete(tree, "6.12.1")
    (tree / lacking).unlink()
    assert not headers.complete(tree, "6.12.1")


def test_headers_of_another_release_are_not_complete(tree: Path, tmp_path: Path) -> None:
    assert not headers.complete(tree, "6.12.2")
    assert not headers.complete(tmp_path / "nowhere", "6.12.1")


class World:
    """A kernel with its headers, a store, and a module's source."""

    def __init__(self, tmp_path: Path) -> None:
        self.headers = tmp_path / "headers"
        self.headers.mkdir()
        (self.headers / "Makefile").write_text(_MAKEFILE)
        self.source = tmp_path / "source"
        self.source.mkdir()
        (self.source / "Kbuild").write_text("obj-m := it.o\n")
        (self.source / "it.c").write_text("one\n")
        (self.source / "it.py").write_text("not of the module\n")
        self.store = Store(tmp_path / "cache")

    def build(self, digest: str = "d1") -> Path:
        kernel = Kernel(Path("/image"), "6.12.1", digest, "a tree")
        return external_module(self.source, "it", kernel, self.headers, self.store, Silent())

    @property
    def builds(self) -> int:
        calls = self.headers / "calls"
        return len(calls.read_text().splitlines()) if calls.exists() else 0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_module_is_built_once_for_each_kernel_and_source(world: World) -> None:
    module = world.build()
    assert module.read_text() == "one\n"
    assert sorted(path.name for path in module.parent.iterdir()) == [
        "build.log", "it.ko", "key.json"
    ]  # fmt: skip
    assert world.build() == module
    assert world.builds == 1
    assert world.build("d2") != module
    (world.source / "it.py").write_text("still not\n")
    assert world.build() == module
    assert world.builds == 2
    (world.source / "it.c").write_text("two\n")
    assert world.build().read_text() == "two\n"
    assert world.builds == 3
    assert not list(world.source.glob("*.ko")), "nothing is written beside the source"


@pytest.mark.parametrize(
    ("text", "said"), [("mistake\n", "it.c:1: error: a mistake"), ("nothing\n", "left no it.ko")]
)
def test_a_module_that_does_not_build_says_why(world: World, text: str, said: str) -> None:
    (world.source / "it.c").write_text(text)
    with pytest.raises(BuildError) as caught:
        world.build()
    assert said in str(caught.value)
    assert caught.value.exit_code == 125
    log = next(world.store.root.glob("logs/it-*.log"))
    assert str(log) in str(caught.value)
    (world.source / "it.c").write_text("well\n")
    assert world.build().read_text() == "well\n"
