# SPDX-License-Identifier: GPL-2.0-only
"""From a reference to a kernel that is ready to be booted."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.errors import BuildError, UsageError
from harness.kernel import headers, kconfig, modules, packaged_headers, prebuilt
from harness.kernel.configured import Configured
from harness.kernel.fragments import Request, merged, project_fragments, read_fragments
from harness.kernel.header import read_header
from harness.kernel.make import Make, Toolchain, check_path, require_tools, toolchain
from harness.kernel.model import Kernel as Kernel
from harness.kernel.model import image_digest, read_config, require_kvm
from harness.kernel.origin import resolve, source_of
from harness.kernel.reference import DebianImage, ImageFile, KernelReference
from harness.kernel.series import Patch, read_series
from harness.kernel.source import Source
from harness.kernel.suite import apt_of
from harness.kernel.tree import BuildTree
from harness.progress import Progress
from harness.store import Store

_RECIPE = 1
"""Part of every built kernel's key; increase it when what is built or kept changes."""

_HEADERS_RECIPE = 1
"""The same for the key of what modules are compiled against."""

_LOGS_KEPT = 20

_GIB = 1 << 30
_FIRST_BUILD_BYTES = 6 * _GIB
_NEXT_BUILD_BYTES = 2 * _GIB


def obtain(
    reference: KernelReference,
    patches: Sequence[Path],
    store: Store,
    progress: Progress,
    jobs: int | None = None,
    *,
    fragments: Sequence[Path] = (),
    vmlinux: Path | None = None,
) -> Kernel:
    """The kernel that a reference means, built if that was not done before.

    ``patches`` are applied in order to a copy of the source; ``fragments`` are configuration of
    the user on top of kernel-config/; ``jobs`` is for make, by default the number of CPUs;
    ``vmlinux`` has the debug information of a kernel that is built already. Raises UsageError for
    patches or fragments on such a kernel, or a vmlinux for another, the subclasses of
    KernelUntestableError when there is no kernel to be had from this input, and those of
    InfrastructureError when it is not the input's fault.
    """
    reference = resolve(reference, store, progress)
    if isinstance(reference, (ImageFile, DebianImage)):
        _refuse(reference, patches, fragments)
        if isinstance(reference, ImageFile):
            return prebuilt.from_image(reference, progress, vmlinux)
        apt = apt_of(store, reference.suite)
        package = apt.image(reference.version)
        return prebuilt.from_package(reference.text, package, apt, store, progress, vmlinux)
    if vmlinux is not None:
        raise UsageError(
            f"A vmlinux ({vmlinux}) is for a kernel that is built already; {reference.text} is "
            "built here, with debug information of its own."
        )
    return _build(reference, patches, store, progress, jobs, fragments).kernel(reference.text)


def headers_for(
    kernel: Kernel,
    reference: KernelReference,
    patches: Sequence[Path],
    store: Store,
    progress: Progress,
    jobs: int | None = None,
    *,
    fragments: Sequence[Path] = (),
) -> Path | None:
    """A directory in which ``make M=`` builds modules for a kernel that obtain() gave.

    The other arguments are those that obtain() had. None for an image that came without. Raises
    BuildError when they cannot be made, OracleUnavailable where Debian's packages have none that
    can be used on this machine.
    """
    reference = resolve(reference, store, progress)
    if isinstance(reference, ImageFile):
        return kernel.headers
    if isinstance(reference, DebianImage):
        apt = apt_of(store, reference.suite)
        image = apt.image(reference.version)
        return packaged_headers.fetched_headers(kernel, image, apt, store, progress)
    return _build(reference, patches, store, progress, jobs, fragments).headers(kernel)


def _build(
    reference: KernelReference,
    patches: Sequence[Path],
    store: Store,
    progress: Progress,
    jobs: int | None,
    fragments: Sequence[Path],
) -> _Build:
    series = read_series(patches)
    requests = read_fragments((*project_fragments(), *fragments))
    source = source_of(reference, store, progress)
    return _Build(source, series, requests, store, progress, jobs or os.cpu_count() or 1)


class _Build:
    """One source, patched and configured, on its way into the store."""

    def __init__(
        self,
        source: Source,
        patches: Sequence[Patch],
        requests: Sequence[Request],
        store: Store,
        progress: Progress,
        jobs: int,
    ) -> None:
        self._source = source
        self._patches = patches
        self._requests = requests
        self._store = store
        self._progress = progress
        self._jobs = jobs
        self._tools = toolchain()

    def kernel(self, origin: str) -> Kernel:
        """The kernel from its store entry, which is made first if need be."""
        entry = self._store.entry("kernel", self._key(), self._make, waiting=self._say_wait)
        image = entry / "bzImage"
        return Kernel(
            image=image,
            release=read_header(image).release,
            digest=image_digest(image),
            origin=origin,
            patches=tuple(patch.name for patch in self._patches),
            config=entry / "config",
            vmlinux=_existing(entry / "vmlinux"),
            modules=_existing(entry / "modules"),
            debug_modules=_existing(entry / "debug"),
            log=entry / "build.log",
            entry=entry,
        )

    def _key(self) -> dict[str, object]:
        """What decides how the kernel comes out.

        The requested symbols stand for the final .config, because source, compiler and requests
        decide that, and asking make for it would cost a second at every start.
        """
        return {
            "recipe": _RECIPE,
            "source": self._source.digest,
            "patches": [patch.digest for patch in self._patches],
            "config": {request.symbol: request.value for request in self._requests},
            "optional": sorted(r.symbol for r in self._requests if r.optional),
            "compiler": self._tools.compiler,
            "linker": self._tools.linker,
        }

    def headers(self, kernel: Kernel) -> Path:
        """The store entry with what ``make M=`` needs to build modules for the kernel."""
        key = {"recipe": _HEADERS_RECIPE, "kernel": kernel.identity}
        return self._store.entry("headers", key, self._make_headers, waiting=self._say_wait)

    def _make(self, directory: Path) -> None:
        with self._tree("") as (make, tree, log):
            self._compile(make, tree, directory)
        shutil.move(log, directory / "build.log")

    def _make_headers(self, directory: Path) -> None:
        with (
            self._tree("-headers") as (make, tree, log),
            self._progress.phase("Prepare headers for modules"),
        ):
            make.prepare_modules(self._jobs)
            # It is of what was built there last, perhaps another kernel. Only modpost reads it, and
            # a symbol that it lacks is an error of the module's build.
            if not (tree / "Module.symvers").exists():
                raise BuildError(f"{tree} has no Module.symvers, so no module can be built there.")
            headers.take(tree, directory)
        shutil.move(log, directory / "build.log")

    @contextlib.contextmanager
    def _tree(self, suffix: str) -> Iterator[tuple[Make, Path, Path]]:
        """The build tree, patched and configured, with a make for it and the log of that."""
        require_tools()
        lineage = self._source.lineage
        with self._store.lock(f"tree-{lineage}", waiting=self._say_wait):
            home = self._store.directory(f"trees/{lineage}")
            tree = BuildTree(home)
            check_path(tree.root)
            built = (tree.root / "vmlinux").exists()
            self._store.require_space(
                _NEXT_BUILD_BYTES if built else _FIRST_BUILD_BYTES,
                f"Building {self._source.title}",
            )
            tree.become(self._source, self._patches, self._progress)
            # Outside of the entry, because it must survive a failure.
            name = f"{lineage}-{self._store.digest(self._key())[:12]}{suffix}.log"
            log = _new_log(self._store.directory("logs"), name)
            with tree.being_made():
                make = Make(tree.root, log, self._tools)
                self._configure(make, tree)
                yield make, tree.root, log

    def _configure(self, make: Make, tree: BuildTree) -> None:
        text = merged(self._requests)
        configured = Configured(tree, text, self._tools)
        if configured.holds():
            return
        with self._progress.phase("Configure"):
            requested = tree.home / "requested.config"
            requested.write_text(text)
            make.configure(requested)
            kconfig.check(tree.root, self._requests, self._progress)
        configured.remember()

    def _compile(self, make: Make, tree: Path, directory: Path) -> None:
        tools = _describe(self._tools, self._jobs)
        with self._progress.phase(f"Build {self._source.title} ({tools})"):
            make.build(self._jobs, self._progress)
            image = tree / "arch/x86/boot/bzImage"
            release = read_header(image).release
            shutil.copy(image, directory / "bzImage")
            shutil.copy(tree / "vmlinux", directory / "vmlinux")
            shutil.copy(tree / ".config", directory / "config")
            config = read_config(directory / "config")
            require_kvm(config, "The built kernel")
            if config.get("MODULES") == "y":
                self._keep_modules(make, tree, directory, release)

    def _keep_modules(self, make: Make, tree: Path, directory: Path, release: str) -> None:
        self._progress.update("installing the modules")
        installed = directory / "installed"
        make.install_modules(installed)
        made = installed / "lib/modules" / release
        if not made.is_dir():
            raise BuildError(f"make modules_install left no modules for {release} in {installed}.")
        modules.take(made, directory / "modules", release)
        shutil.rmtree(installed)
        debug = directory / "debug"
        debug.mkdir()
        for module in (*tree.glob("arch/x86/kvm/*.ko"), *tree.glob("virt/lib/*.ko")):
            shutil.copy(module, debug / module.name)

    def _say_wait(self) -> None:
        self._progress.note(f"Another run builds {self._source.title}; waiting for it.")


def _refuse(reference: KernelReference, patches: Sequence[Path], fragments: Sequence[Path]) -> None:
    for what, given in (("A patch", patches), ("A configuration fragment", fragments)):
        if given:
            raise UsageError(
                f"{what} ({given[0]}) needs kernel source, but {reference.text} is built already; "
                "give a source tree, TREE@REV, a tarball or deb:linux-source-V."
            )


def _new_log(directory: Path, name: str) -> Path:
    """The path of a log that does not exist; of the logs of failures only the newest stay."""
    log = directory / name
    log.unlink(missing_ok=True)
    older = sorted(directory.glob("*.log"), key=lambda path: path.stat().st_mtime_ns)
    for path in older[: max(0, len(older) - _LOGS_KEPT + 1)]:
        path.unlink(missing_ok=True)
    return log


def _describe(tools: Toolchain, jobs: int) -> str:
    return f"make -j{jobs}, {'with' if tools.ccache else 'without'} ccache"


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None
