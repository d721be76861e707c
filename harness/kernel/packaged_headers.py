# SPDX-License-Identifier: GPL-2.0-only
"""What modules for a prebuilt kernel of Debian are compiled with, put together from its packages.

Three packages belong to a kernel: its own headers (configuration, symbols), those that all kernels
of the version share, and the programs of the build. Installed, they refer to each other by
absolute paths; here they become one directory like a prepared source tree.

The programs are those of the kernel's suite, and the configuration says what its compiler could do.
Programs get the libraries of their suite where they need them, and an option is left out that this
machine's compiler does not know. Whether that is enough is not guessed from versions: an empty
module is built.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from harness.command import require, run
from harness.deadline import Deadline
from harness.errors import BuildError, OracleUnavailable, SourceError
from harness.kernel import headers
from harness.kernel.debian import Apt, Package
from harness.kernel.foreign_programs import make_startable
from harness.kernel.make import Make, Toolchain, check_path, toolchain
from harness.kernel.model import Kernel
from harness.progress import Progress
from harness.store import Store

_RECIPE = 2
"""Part of each entry's key; increase it when what is put together changes."""

_SHARED = re.compile(
    r"(?:^|,)\s*(linux-(?:headers-[a-z0-9.+~-]+-common(?:-rt)?|kbuild-[a-z0-9.+~-]+))"
)
"""The packages that a kernel's own headers depend on; the rest are compilers and the kernel."""

_UTS_RELEASE = re.compile(r'#define UTS_RELEASE "([^"]+)"')

_OPTIONS = {"CC_HAS_MIN_FUNCTION_ALIGNMENT": "-fmin-function-alignment=16"}
"""What the kernel's Makefile asks of the compiler because of a symbol, without trying it."""

_COMPILER_SECONDS = 30.0

_ELSEWHERE = ("scripts", "tools")
"""In the headers these lead to the programs of the build by paths of an installed system."""

_LEFT_OUT = {".kernelvariables", "Makefile", "vmlinux"}
"""Of a kernel's own headers: what names the compiler of the suite; what leads to the Makefile that
all share; and what BTF would be made from for modules, by a program that few have (pahole)."""

_PROOF = "mmu_harness_proof"
_PROOF_SOURCE = f"""\
// SPDX-License-Identifier: GPL-2.0-only
#include <linux/mmu_notifier.h>
#include <linux/module.h>

static int __init {_PROOF}_init(void)
{{
\treturn 0;
}}
module_init({_PROOF}_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Builds if modules can be built at all");
"""


def fetched_headers(
    kernel: Kernel, image: Package, apt: Apt, store: Store, progress: Progress
) -> Path:
    """A directory in which ``make M=`` builds modules for the kernel of an image's package.

    Raises OracleUnavailable where apt knows no headers of this very build, or where modules cannot
    be built with them on this machine, with the reason; CommandError when a download fails.
    """
    try:
        packages = _packages(image, apt)
    except SourceError as error:
        raise OracleUnavailable(
            f"No module can be built for {kernel.origin}: its headers cannot be had. {error}"
        ) from error
    tools = toolchain()
    # What is proved here, is proved of these tools.
    key = {
        "recipe": _RECIPE,
        "packages": [[package.title, package.sha256] for package in packages],
        "compiler": tools.compiler,
        "linker": tools.linker,
    }

    def make(directory: Path) -> None:
        roots = [apt.unpacked(package, progress) for package in packages]
        with progress.phase(f"Put together the headers of {kernel.release}"):
            assemble(roots, directory)
            _start_programs(kernel, directory, packages, apt, progress)
            _fit_compiler(directory)
            _say_release(directory)
            if not headers.complete(directory, kernel.release):
                raise SourceError(
                    f"{packages[0].title} and what it depends on are no headers of "
                    f"{kernel.release}; one of the packages holds something else."
                )
            log = store.directory("logs") / f"headers-{store.digest(key)[:12]}.log"
            _prove(kernel, directory, tools, log)

    return store.entry(
        "headers",
        key,
        make,
        waiting=lambda: progress.note(f"Another run fetches {packages[0].title}; waiting for it."),
    )


def _packages(image: Package, apt: Apt) -> tuple[Package, ...]:
    """A kernel's own headers, and what they share with others; SourceError if one lacks."""
    own = apt.package(image.name.replace("linux-image-", "linux-headers-", 1))
    if own.version != image.version:
        raise SourceError(
            f"{image.title} was built with other headers than apt knows, {own.title}."
        )
    return (own, *(apt.package(name) for name in _SHARED.findall(own.depends)))


def assemble(roots: Sequence[Path], directory: Path) -> None:
    """Fill a directory from unpacked packages so that it looks like a prepared source tree."""
    found = [path for root in roots for path in sorted(root.glob("usr/src/linux-headers-*"))]
    # What all kernels share comes first: of the two Makefiles, that is the kernel's.
    for place in sorted(found, key=lambda path: (path / ".config").exists()):
        _link(place, directory)
    for root in roots:
        for place in (*root.glob("lib/linux-kbuild-*"), *root.glob("usr/lib/linux-kbuild-*")):
            _link(place, directory)


def _link(place: Path, directory: Path) -> None:
    def left_out(path: str, names: list[str]) -> set[str]:
        if Path(path) != place:
            return set()
        ours = {name for name in _ELSEWHERE if (place / name).is_symlink()}
        return ours | (_LEFT_OUT if (place / ".config").exists() else set())

    # Both are entries of the store, which nobody changes, so they can share the files.
    shutil.copytree(
        place,
        directory,
        symlinks=True,
        ignore=left_out,
        copy_function=os.link,
        dirs_exist_ok=True,
    )


def _start_programs(
    kernel: Kernel, directory: Path, packages: Sequence[Package], apt: Apt, progress: Progress
) -> None:
    """Have the programs of the build start on this machine."""
    programs = next((one for one in packages if one.name.startswith("linux-kbuild-")), packages[0])
    try:
        make_startable(directory, programs, apt, progress)
    except SourceError as error:
        raise OracleUnavailable(
            f"No module can be built for {kernel.origin} on this machine: the libraries of "
            f"{programs.title} cannot be had. {error}"
        ) from error


def _fit_compiler(directory: Path) -> None:
    """Forget of the configuration what the compiler of this machine does not know."""
    path = directory / "include/config/auto.conf"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    unknown = {
        f"CONFIG_{symbol}=y\n"
        for symbol, option in _OPTIONS.items()
        if f"CONFIG_{symbol}=y\n" in lines and not _compiles_with(option)
    }
    if unknown:
        path.unlink()
        path.write_text("".join(line for line in lines if line not in unknown))


def _compiles_with(option: str) -> bool:
    deadline = Deadline.after(_COMPILER_SECONDS, f"gcc {option}")
    argv = [require("gcc", "gcc"), option, "-E", "-x", "c", "/dev/null"]
    return run(argv, deadline, check=False).status == 0


def _say_release(directory: Path) -> None:
    """Have the release where make looks for it, which the packages leave to their own Makefile."""
    told = directory / "include/generated/utsrelease.h"
    found = _UTS_RELEASE.search(told.read_text() if told.is_file() else "")
    if found is not None:
        target = directory / "include/config/kernel.release"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_text(f"{found[1]}\n")


def _prove(kernel: Kernel, directory: Path, tools: Toolchain, log: Path) -> None:
    """Raise OracleUnavailable unless an empty module builds."""
    log.unlink(missing_ok=True)
    check_path(directory)
    place = directory / _PROOF
    place.mkdir()
    (place / "Kbuild").write_text(f"obj-m := {_PROOF}.o\n")
    (place / f"{_PROOF}.c").write_text(_PROOF_SOURCE)
    try:
        Make(directory, log, tools).external(place, os.cpu_count() or 1)
        if not (place / f"{_PROOF}.ko").is_file():
            raise BuildError(f"make left no module. The log is {log}.")
    except BuildError as error:
        raise OracleUnavailable(
            f"No module can be built for {kernel.origin} on this machine with {tools.compiler}: "
            f"not even an empty one builds. {error} Take the kernel's source, "
            "deb:linux-source-V, or a machine of the kernel's suite."
        ) from error
    shutil.rmtree(place)
    log.unlink(missing_ok=True)
