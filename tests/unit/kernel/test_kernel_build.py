# SPDX-License-Identifier: GPL-2.0-only
"""From a reference to a kernel, with a Makefile that stands for the kernel's."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_kernels import bzimage, kernel_tree

from harness.errors import (
    BuildError,
    ImageError,
    InfrastructureError,
    KconfigError,
    MachineUnfitError,
    PatchError,
    StoreError,
    UsageError,
)
from harness.kernel import build as build_module
from harness.kernel.build import Kernel, obtain
from harness.kernel.make import toolchain
from harness.kernel.reference import DebianImage, parse
from harness.store import Store

_MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 12

allnoconfig:
\tcat "$(KCONFIG_ALLCONFIG)" > .config
\techo CONFIG_MMU_NOTIFIER=y >> .config
\tsed -i '/CONFIG_DROPPED/d' .config
\techo configure >> ../calls

bzImage:
\techo "  CC      mm/memory.o"
\techo build $(MAKEFLAGS) $(KBUILD_BUILD_TIMESTAMP) $(KCFLAGS) >> ../calls
\tsh ./hook
\tmkdir -p arch/x86/boot
\tcp image arch/x86/boot/bzImage
\tcat mm/memory.c > vmlinux

modules: bzImage
\tmkdir -p arch/x86/kvm
\techo kvm > arch/x86/kvm/kvm.ko
\ttouch Module.symvers

modules_prepare:
\techo prepare >> ../calls
\tmkdir -p include/generated arch/x86/include scripts
\tcat mm/memory.c > include/memory.h

modules_install:
\tmkdir -p "$(INSTALL_MOD_PATH)/lib/modules/6.12.1/kernel"
\tln -s / "$(INSTALL_MOD_PATH)/lib/modules/6.12.1/build"
\ttouch "$(INSTALL_MOD_PATH)/lib/modules/6.12.1/kernel/x.ko"
"""


class _Heard:
    def __init__(self) -> None:
        self.said: list[str] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.said.append(name)
        yield

    def update(self, text: str) -> None:
        self.said.append(text)

    def ended(self, name: str, seconds: float, *, well: bool) -> None:
        """Not of interest."""

    def note(self, text: str) -> None:
        self.said.append(text)


@dataclasses.dataclass
class World:
    """A tree of the user, a store, and what was heard."""

    tree: Path
    store: Store
    heard: _Heard
    fragment: Path

    def obtain(self, *patches: Path, fragments: tuple[Path, ...] = (), origin: str = "") -> Kernel:
        reference = parse(origin or str(self.tree))
        return obtain(reference, patches, self.store, self.heard, 2, fragments=fragments)

    @property
    def calls(self) -> list[str]:
        """What make was called for since the last time that somebody asked."""
        found = list(self.store.root.glob("trees/*/calls"))
        lines = [line for path in found for line in path.read_text().splitlines()]
        for path in found:
            path.unlink()
        return [line.split()[0] for line in lines]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tree = kernel_tree(tmp_path / "my linux")
    (tree / "Makefile").write_text(_MAKEFILE)
    (tree / "image").write_bytes(bzimage())
    (tree / "hook").write_text("")
    (tree / "mm").mkdir()
    (tree / "mm/memory.c").write_text("one\ntwo\nthree\n")
    (tree / "Kconfig").write_text(
        'config DROPPED\n\tbool "x"\n\tdepends on NEVER\nconfig KVM\n\ttristate "KVM"\n'
    )
    fragment = tmp_path / "project.config"
    fragment.write_text("# Why.\nCONFIG_KVM=m\nCONFIG_MODULES=y\n")
    monkeypatch.setattr(build_module, "project_fragments", lambda: (fragment,))
    monkeypatch.setattr(build_module, "_FIRST_BUILD_BYTES", 1)
    monkeypatch.setattr(build_module, "_NEXT_BUILD_BYTES", 1)
    return World(tree, Store(tmp_path / "cache"), _Heard(), fragment)


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    path = tmp_path / "x.patch"
    hunk = "@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"
    path.write_text(f"--- a/mm/memory.c\n+++ b/mm/memory.c\n{hunk}")
    return path


def _logs(world: World) -> list[Path]:
    return list(world.store.root.glob("logs/*"))


def test_a_tree_becomes_a_kernel(world: World) -> None:
    kernel = world.obtain()
    assert kernel.entry is not None
    assert kernel.release == "6.12.1"
    assert kernel.origin == str(world.tree)
    assert kernel.image == kernel.entry / "bzImage"
    assert kernel.symbol("KVM") == kernel.symbol("CONFIG_KVM") == "m"
    assert kernel.symbol("NONE") is None
    assert kernel.vmlinux is not None
    assert kernel.vmlinux.read_text() == "one\ntwo\nthree\n"
    assert kernel.modules is not None
    assert (kernel.modules / "6.12.1/modules.dep").exists()
    assert not (kernel.modules / "6.12.1/build").is_symlink()
    assert kernel.debug_modules is not None
    assert (kernel.debug_modules / "kvm.ko").exists()
    assert kernel.log is not None
    assert "CC      mm/memory.o" in kernel.log.read_text()
    assert _logs(world) == []
    assert sorted(path.name for path in kernel.entry.iterdir()) == [
        *("build.log", "bzImage", "config", "debug", "key.json", "modules", "vmlinux"),
    ]
    assert not (world.tree / ".config").exists()
    assert any("1 of about" in said for said in world.heard.said)


def test_a_built_tree_gives_the_headers_of_each_kernel(world: World, patch: Path) -> None:
    def headers(*patches: Path) -> Path | None:
        kernel = world.obtain(*patches)
        world.calls.clear()
        reference = parse(str(world.tree))
        return build_module.headers_for(kernel, reference, patches, world.store, world.heard, 2)

    (world.tree / "arch/x86").mkdir(exist_ok=True, parents=True)
    (world.tree / "arch/x86/Makefile").write_text("# x86\n")
    plain, patched = headers(), headers(patch)
    assert plain is not None
    assert patched is not None
    assert (plain / "include/memory.h").read_text() == "one\ntwo\nthree\n"
    assert (patched / "include/memory.h").read_text() == "one\n2\nthree\n"
    assert (plain / "arch/x86/Makefile").exists()
    assert not (plain / "vmlinux").exists()
    # The tree is the patched one now; what was taken out of it is not asked for again.
    world.calls.clear()
    assert headers() == plain
    assert world.calls == []
    assert _logs(world) == []


def test_a_tree_without_symbols_gives_no_headers(world: World) -> None:
    kernel = world.obtain()
    next(world.store.root.glob("trees/*/source/Module.symvers")).unlink()
    reference = parse(str(world.tree))
    with pytest.raises(BuildError, match=r"Module\.symvers"):
        build_module.headers_for(kernel, reference, (), world.store, world.heard, 2)


def test_the_second_time_builds_nothing(world: World) -> None:
    first = world.obtain()
    assert world.calls == ["configure", "build"]
    assert world.obtain() == first
    assert world.calls == []


def test_a_change_of_any_input_makes_another_kernel(world: World, patch: Path) -> None:
    entries = [world.obtain().identity, world.obtain(patch).identity]
    more = patch.with_name("more.config")
    more.write_text("CONFIG_MORE=y\n")
    entries.append(world.obtain(fragments=(more,)).identity)
    (world.tree / "mm/memory.c").write_text("changed\n")
    entries.append(world.obtain().identity)
    assert len(set(entries)) == 4
    # Only the image counts as its digest, and that is the same in all of them.
    assert len({world.obtain().digest, world.obtain(fragments=(more,)).digest}) == 1


@pytest.mark.parametrize(
    ("name", "text", "calls"),
    [
        ("mm/memory.c", "changed\n", ["build"]),
        ("mm/Kconfig.new", "config X\n", ["configure", "build"]),
        ("scripts/cc.sh", "true\n", ["configure", "build"]),
        ("Makefile", _MAKEFILE + "# x\n", ["configure", "build"]),
    ],
)
def test_a_neighbour_is_configured_only_if_that_may_come_out_different(
    world: World, name: str, text: str, calls: list[str]
) -> None:
    world.obtain()
    assert world.calls == ["configure", "build"]
    (world.tree / name).parent.mkdir(exist_ok=True)
    (world.tree / name).write_text(text)
    world.obtain()
    assert world.calls == calls


def test_a_configuration_is_not_believed_when_it_was_changed_or_refused(
    world: World, patch: Path
) -> None:
    world.obtain()
    (config,) = world.store.root.glob("trees/*/source/.config")
    config.write_text(config.read_text() + "CONFIG_ODD=y\n")
    world.obtain(patch)
    assert world.calls == ["configure", "build"] * 2
    kconfig = patch.with_name("kconfig.patch")
    kconfig.write_text("--- /dev/null\n+++ b/mm/Kconfig\n@@ -0,0 +1 @@\n+config X\n")
    world.obtain(kconfig)
    assert world.calls == ["configure", "build"]
    refused = patch.with_name("user.config")
    refused.write_text("CONFIG_DROPPED=y\n")
    for _ in range(2):
        with pytest.raises(KconfigError):
            world.obtain(fragments=(refused,))
    assert world.calls == ["configure"] * 2


def test_comments_in_fragments_do_not_count(world: World) -> None:
    first = world.obtain()
    world.fragment.write_text("# Another reason.\n" + world.fragment.read_text())
    assert world.obtain() == first


def test_patches_go_to_the_copy(world: World, patch: Path) -> None:
    kernel = world.obtain(patch)
    assert kernel.patches == ("x.patch",)
    assert kernel.vmlinux is not None
    assert kernel.vmlinux.read_text() == "one\n2\nthree\n"
    assert (world.tree / "mm/memory.c").read_text() == "one\ntwo\nthree\n"
    plain = world.obtain()
    assert plain.vmlinux is not None
    assert plain.vmlinux.read_text() == "one\ntwo\nthree\n"


def test_patch_that_does_not_apply_builds_nothing(world: World, patch: Path) -> None:
    patch.write_text(patch.read_text().replace(" one", " eins"))
    with pytest.raises(PatchError, match=r"mm/memory\.c: hunk #1"):
        world.obtain(patch)
    assert world.calls == []
    assert list(world.store.root.glob("kernel/*")) == []


def test_failing_build_names_the_first_error_and_keeps_the_log(world: World) -> None:
    (world.tree / "hook").write_text(
        "echo 'mm/x.c:1:2: warning: odd' >&2\n"
        "echo 'mm/x.c:3:4: error: first'\necho 'mm/x.c:5:6: error: second'\nexit 1\n"
    )
    with pytest.raises(BuildError, match=r"mm/x\.c:3:4: error: first\.") as caught:
        world.obtain()
    (log,) = _logs(world)
    assert str(log) in str(caught.value)
    assert "error: second" in log.read_text()
    assert list(world.store.root.glob("kernel/.*")) == []
    (world.tree / "hook").write_text("")
    assert world.obtain().release == "6.12.1"
    assert _logs(world) == [log]


@pytest.mark.parametrize(
    ("hook", "error", "says"),
    [
        ("echo 'x: No space left on device'; exit 1", StoreError, "No space is left"),
        (
            "echo 'a.c:1: fatal error: gelf.h: No such file or directory'; exit 1",
            MachineUnfitError,
            "install the Debian package libelf-dev",
        ),
        ("kill -9 $$", InfrastructureError, "ended from outside"),
        (
            "echo 'gcc: fatal error: Killed signal terminated program cc1'; exit 1",
            InfrastructureError,
            "ended from outside",
        ),
        ("exit 1", BuildError, r"make: \*\*\* .*bzImage"),
        ("printf x > image", ImageError, "truncated"),
    ],
)
def test_what_a_failing_build_means(
    world: World, hook: str, error: type[Exception], says: str
) -> None:
    (world.tree / "hook").write_text(hook + "\n")
    with pytest.raises(error, match=says):
        world.obtain()


def test_dropped_symbol_builds_nothing(world: World) -> None:
    fragment = world.tree.parent / "user.config"
    fragment.write_text("CONFIG_DROPPED=y\n")
    with pytest.raises(KconfigError, match=r"user\.config:1.* depends on NEVER"):
        world.obtain(fragments=(fragment,))
    assert world.calls == ["configure"]


def test_kernel_without_kvm(world: World) -> None:
    fragment = world.tree.parent / "user.config"
    fragment.write_text("# CONFIG_KVM is not set\n")
    with pytest.raises(KconfigError, match="has no CONFIG_KVM"):
        world.obtain(fragments=(fragment,))


def test_failing_configuration_says_why(world: World) -> None:
    makefile = world.tree / "Makefile"
    makefile.write_text(
        makefile.read_text().replace(
            'cat "$(KCONFIG_ALLCONFIG)" > .config', "@echo 'scripts/x.c:1: error: no'; exit 1"
        )
    )
    with pytest.raises(KconfigError, match=r"allnoconfig failed: scripts/x\.c:1: error: no"):
        world.obtain()


def test_environment_of_the_user_does_not_reach_make(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KCFLAGS", "-DODD")
    monkeypatch.setenv("MAKEFLAGS", "n")
    monkeypatch.setenv("KBUILD_OUTPUT", "/nowhere")
    world.obtain()
    (calls,) = world.store.root.glob("trees/*/calls")
    assert "@0" in calls.read_text()
    assert "ODD" not in calls.read_text()


@pytest.mark.parametrize("present", [True, False])
def test_ccache_is_used_when_present(
    world: World, monkeypatch: pytest.MonkeyPatch, present: bool
) -> None:
    tools = dataclasses.replace(toolchain(), ccache=present)
    monkeypatch.setattr(build_module, "toolchain", lambda: tools)
    (world.tree / "hook").write_text('echo "CC is $CC, from $CCACHE_BASEDIR"\n')
    makefile = (world.tree / "Makefile").read_text()
    (world.tree / "Makefile").write_text("export CC\n" + makefile)
    log = world.obtain().log
    assert log is not None
    assert (f"CC is ccache gcc, from {world.store.root}/trees/" in log.read_text()) is present


def test_only_the_newest_logs_of_failures_stay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "_LOGS_KEPT", 2)
    for number in range(4):
        (world.tree / "hook").write_text(f"echo 'error: number-{number}'; exit 1\n")
        with pytest.raises(BuildError):
            world.obtain()
    texts = "".join(path.read_text() for path in _logs(world))
    assert [f"number-{number}" in texts for number in range(4)] == [False, False, True, True]


def test_no_space_is_said_before_the_build(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "_FIRST_BUILD_BYTES", 1 << 60)
    with pytest.raises(StoreError, match=r"needs about .* GiB are free"):
        world.obtain()
    assert world.calls == []


def test_a_cache_that_make_cannot_stand(world: World, tmp_path: Path) -> None:
    world.store = Store(tmp_path / "a cache")
    with pytest.raises(StoreError, match="without blanks"):
        world.obtain()


def test_missing_build_tool(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("gcc", "ld", "make", "git"):
        (tools / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(MachineUnfitError, match="install the Debian package flex"):
        world.obtain()


def _built_tree(root: Path, build: str = "#1 SMP @0") -> Path:
    boot = root / "arch/x86/boot"
    boot.mkdir(parents=True)
    (boot / "bzImage").write_bytes(bzimage(build="#1 SMP @0"))
    (root / ".config").write_text("CONFIG_KVM=m\nCONFIG_MMU_NOTIFIER=y\n")
    (root / "vmlinux").write_bytes(
        b"x" * 5000 + f"Linux version 6.12.1 (user@host) (gcc 12) {build}\n\0".encode() + b"y"
    )
    (root / "arch/x86/kvm").mkdir()
    (root / "arch/x86/kvm/kvm.ko").write_text("")
    return boot / "bzImage"


def test_image_in_a_build_tree_finds_its_kin(world: World, tmp_path: Path) -> None:
    image = _built_tree(tmp_path / "-built, here")
    modules = image.parent / "modules/6.12.1"
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("")
    kernel = world.obtain(origin=str(image))
    root = tmp_path / "-built, here"
    assert kernel.vmlinux == root / "vmlinux"
    assert kernel.config == root / ".config"
    assert kernel.modules == image.parent / "modules"
    assert kernel.debug_modules == root / "arch/x86/kvm"
    assert kernel.entry is None
    assert kernel.identity == kernel.digest


def test_kin_of_another_build_is_left_out_with_a_note(world: World, tmp_path: Path) -> None:
    image = _built_tree(tmp_path / "built", build="#2 SMP later")
    (image.parent / "modules/6.12.1").mkdir(parents=True)
    kernel = world.obtain(origin=str(image))
    assert kernel.vmlinux is None
    assert kernel.modules is None
    assert any("is of another build" in said for said in world.heard.said)
    assert any("has no modules.dep" in said for said in world.heard.said)


def test_bare_image_is_enough(world: World, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bzimage())
    kernel = world.obtain(origin=str(tmp_path / "image"))
    assert (kernel.release, kernel.config, kernel.vmlinux) == ("6.12.1", None, None)
    assert kernel.builtin_or_unknown("EXT4_FS", "VIRTIO_BLK")


_BANNER = b"Linux version 6.12.1 (user@host) (gcc 12) #1 SMP @0\n\0"


def test_a_vmlinux_of_the_user_is_taken(world: World, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bzimage())
    debug = tmp_path / "debug"
    (debug / "kernel/arch/x86/kvm").mkdir(parents=True)
    (debug / "kernel/arch/x86/kvm/kvm.ko").write_text("")
    (debug / "vmlinux").write_bytes(b"\x7fELF" + _BANNER)
    kernel = obtain(
        parse(str(tmp_path / "image")), (), world.store, world.heard, vmlinux=debug / "vmlinux"
    )
    assert kernel.vmlinux == debug / "vmlinux"
    assert kernel.debug_modules == debug / "kernel/arch/x86/kvm"


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (None, UsageError, "cannot be read: No such file"),
        (b"", ImageError, "is no ELF file"),
        (bzimage(), ImageError, "is no ELF file"),
        (b"\x7fELF" + _BANNER.replace(b"#1", b"#2"), ImageError, "is of another build than"),
        (b"\x7fELF" + _BANNER.replace(b"6.12.1", b"6.12.2"), ImageError, "of another build"),
        (b"\x7fELF", ImageError, "is of another build than"),
    ],
)
def test_a_vmlinux_that_does_not_belong(
    world: World, tmp_path: Path, content: bytes | None, error: type[Exception], says: str
) -> None:
    (tmp_path / "image").write_bytes(bzimage())
    path = tmp_path / "vmlinux, given"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=says):
        obtain(parse(str(tmp_path / "image")), (), world.store, world.heard, vmlinux=path)


def test_a_vmlinux_is_not_for_what_is_built_here(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="for a kernel that is built already"):
        obtain(parse(str(world.tree)), (), world.store, world.heard, vmlinux=tmp_path / "vmlinux")
    assert world.calls == []


@pytest.mark.parametrize(
    ("image", "vmlinux", "modules", "kvm"),
    [
        (
            "boot/vmlinuz-6.12.1",
            "usr/lib/debug/boot/vmlinux-6.12.1",
            "lib/modules",
            "usr/lib/debug/lib/modules/6.12.1/kernel/arch/x86/kvm",
        ),
        ("boot/vmlinuz-6.12.1", "boot/vmlinux-6.12.1", "usr/lib/modules", None),
        (
            "boot/vmlinuz-6.12.1",
            "usr/lib/debug/lib/modules/6.12.1/vmlinux",
            "lib/modules",
            "usr/lib/debug/lib/modules/6.12.1/kernel/arch/x86/kvm",
        ),
        ("lib/modules/6.12.1/vmlinuz", "lib/modules/6.12.1/vmlinux", "lib/modules", None),
    ],
)
def test_what_distributions_lay_beside_an_image_is_found(
    world: World, tmp_path: Path, image: str, vmlinux: str, modules: str, kvm: str | None
) -> None:
    root = tmp_path / "root"
    for name, content in (
        (image, bzimage()),
        (vmlinux, b"\x7fELF" + _BANNER),
        (f"{modules}/6.12.1/modules.dep", b""),
        *([(f"{kvm}/kvm.ko", b"")] if kvm else []),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    kernel = world.obtain(origin=str(root / image))
    assert kernel.vmlinux == root / vmlinux
    assert kernel.modules == root / modules
    assert kernel.debug_modules == (root / kvm if kvm else None)


def test_image_without_kvm(world: World, tmp_path: Path) -> None:
    image = _built_tree(tmp_path / "built")
    (tmp_path / "built/.config").write_text("CONFIG_MMU_NOTIFIER=y\n")
    with pytest.raises(KconfigError, match="has no CONFIG_KVM"):
        world.obtain(origin=str(image))


def test_what_is_built_takes_no_patches_and_fragments(world: World, patch: Path) -> None:
    image = _built_tree(patch.parent / "built")
    with pytest.raises(UsageError, match=r"A patch .* needs kernel source"):
        world.obtain(patch, origin=str(image))
    with pytest.raises(UsageError, match=r"A configuration fragment .* needs kernel source"):
        world.obtain(fragments=(patch,), origin=str(image))
    with pytest.raises(UsageError, match="deb:linux-image-amd64 is built already"):
        obtain(DebianImage("deb:linux-image-amd64", "amd64"), [patch], world.store, world.heard)


def _git(tree: Path, *words: str) -> None:
    identity = ("-c", "user.name=x", "-c", "user.email=x@x")
    subprocess.run(["git", *identity, *words], cwd=tree, check=True, capture_output=True)


def test_a_revision_and_its_checkout_are_one_kernel_and_one_build_tree(world: World) -> None:
    _git(world.tree, "init", "-q")
    _git(world.tree, "add", ".")
    _git(world.tree, "commit", "-q", "-m", "x")
    _git(world.tree, "tag", "v1")
    built = world.obtain()
    assert world.calls == ["configure", "build"]
    kernel = world.obtain(origin=f"{world.tree}@v1")
    assert kernel.entry == built.entry
    assert world.calls == []
    (world.tree / "mm/memory.c").write_text("four\n")
    _git(world.tree, "commit", "-q", "-a", "-m", "y")
    _git(world.tree, "checkout", "-q", "v1")
    newer = world.obtain(origin=f"{world.tree}@HEAD@{{1}}")
    assert newer.vmlinux is not None
    assert newer.vmlinux.read_text() == "four\n"
    assert len(list(world.store.root.glob("trees/*"))) == 1


def test_a_tarball_becomes_a_kernel(world: World, patch: Path) -> None:
    tarball = patch.parent / "linux-6.12.1.tar.gz"
    subprocess.run(
        ["tar", "-czf", str(tarball), f"--directory={world.tree.parent}", world.tree.name],
        check=True,
    )
    kernel = world.obtain(patch, origin=str(tarball))
    assert kernel.vmlinux is not None
    assert kernel.vmlinux.read_text() == "one\n2\nthree\n"
    assert [path.name for path in world.store.root.glob("trees/*")] == ["tarball-linux-6.12"]


def test_two_processes_build_once(world: World) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from harness.kernel import build\n"
        "from harness.kernel.reference import parse\n"
        "from harness.progress import Silent\n"
        "from harness.store import Store\n"
        "build.project_fragments = lambda: (Path(sys.argv[3]),)\n"
        "build._FIRST_BUILD_BYTES = 1\n"
        "kernel = build.obtain(parse(sys.argv[1]), [], Store(Path(sys.argv[2])), Silent(), 1)\n"
        "print(kernel.entry)\n"
    )
    (world.tree / "hook").write_text("sleep 0.5\n")
    argv = [sys.executable, "-c", script, str(world.tree), str(world.store.root)]
    argv.append(str(world.fragment))
    with (
        subprocess.Popen(argv, stdout=subprocess.PIPE) as one,
        subprocess.Popen(argv, stdout=subprocess.PIPE) as two,
    ):
        answers = {one.communicate(timeout=30)[0], two.communicate(timeout=30)[0]}
    assert len(answers) == 1
    assert answers != {b""}
    assert world.calls == ["configure", "build"]
