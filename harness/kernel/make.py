# SPDX-License-Identifier: GPL-2.0-only
"""Run the kernel's make: reproducible, with ccache where there is one, and with a readable end."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.command import Completed, require, run, run_logged
from harness.deadline import Deadline
from harness.errors import (
    BuildError,
    InfrastructureError,
    KconfigError,
    MachineUnfitError,
    StoreError,
)
from harness.progress import Progress

_CONFIGURE_SECONDS = 600.0
_BUILD_SECONDS = 6 * 3600.0
_INSTALL_SECONDS = 600.0
_PREPARE_SECONDS = 1800.0
_EXTERNAL_SECONDS = 600.0

_FIRST_BUILD_STEPS = 1950
"""Lines with a compiler or linker step in a first build of 6.12 with kernel-config/."""

_TOOLS = {
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "perl": "perl",
    "depmod": "kmod",
}
_HEADERS = {"gelf.h": "libelf-dev", "libelf.h": "libelf-dev", "openssl/": "libssl-dev"}

# A user's shell, a hook or an outer make may have set these, and each changes the build.
_INHERITED = (
    *("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS"),
    *("ARCH", "CROSS_COMPILE", "LLVM", "LLVM_IAS", "O", "KBUILD_OUTPUT", "KBUILD_SRC"),
    *("KCFLAGS", "KAFLAGS", "KCPPFLAGS", "CFLAGS_KERNEL", "KCONFIG_CONFIG", "KERNELVERSION"),
    *(
        "V",
        "KBUILD_VERBOSE",
        "W",
        "C",
        "CF",
        "M",
        "LOCALVERSION",
        "INSTALL_PATH",
        "INSTALL_MOD_PATH",
    ),
    *("CC", "LD", "AS", "AR", "NM", "HOSTCC", "HOSTCFLAGS", "KBUILD_EXTRA_WARN", "KBUILD_EXTMOD"),
)

_STEP = re.compile(r"  ([A-Z]+)(?: \[M\])? +(\S+)")
_ERROR = re.compile(r"(?:\berror\b|\bfatal\b|undefined reference|No rule to make target|not found)")
_MAKE_ERROR = re.compile(r"make(\[\d+\])?: \*\*\* ")
_KILLED = re.compile(
    r"make(\[\d+\])?: \*\*\* .* (Terminated|Killed|Hangup|Interrupt)$"
    r"|Killed signal terminated program"
)
_NO_SPACE = "No space left on device"


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """What compiles: the versions are part of a kernel's key; the rest is not.

    ``architecture`` is what the kernel's make calls it. ``prefix`` begins the names of the programs
    of a cross compiler, and ``libraries`` is where they have libraries of their own, or None.
    """

    compiler: str
    linker: str
    ccache: bool
    architecture: str = "x86_64"
    prefix: str = ""
    libraries: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What the programs need to find their libraries."""
        if self.libraries is None:
            return {}
        others = os.environ.get("LD_LIBRARY_PATH", "")
        return {"LD_LIBRARY_PATH": f"{self.libraries}{':' if others else ''}{others}"}


def toolchain(
    architecture: str = "x86_64", prefix: str = "", libraries: Path | None = None
) -> Toolchain:
    """The compiler of this machine, or a cross compiler; MachineUnfitError where there is none."""
    tools = Toolchain("", "", shutil.which("ccache") is not None, architecture, prefix, libraries)
    compiler, linker = (
        _version(require(f"{prefix}{program}", _TOOLS[program]), tools.environment)
        for program in ("gcc", "ld")
    )
    return dataclasses.replace(tools, compiler=compiler, linker=linker)


def require_tools() -> None:
    """Raise MachineUnfitError, naming the package, if a program that a build needs lacks."""
    for program, package in _TOOLS.items():
        require(program, package)


def check_path(tree: Path) -> None:
    """Raise StoreError if the kernel cannot be built at this path."""
    if strange := re.search(r"[\s:$#%'\"\\;&|()<>*?`]", str(tree)):
        raise StoreError(
            f'A kernel cannot be built below {tree}, because of the "{strange[0]}" in that path; '
            "point XDG_CACHE_HOME to a directory without blanks and special characters."
        )


class Make:
    """The kernel's make in one tree, with all output in one log.

    ``objects`` is a directory for all that is made, where that is not to be the tree.
    """

    def __init__(
        self, tree: Path, log: Path, tools: Toolchain, objects: Path | None = None
    ) -> None:
        self._tree = tree
        self._log = log
        self._tools = tools
        self._objects = objects

    def configure(self, requested: Path) -> None:
        """Make a .config: everything off, except what ``requested`` says and selects."""
        done = self._run(
            ["allnoconfig"],
            Deadline.after(_CONFIGURE_SECONDS, "Configuring the kernel"),
            {"KCONFIG_ALLCONFIG": str(requested)},
        )
        if done.status != 0:
            watch = _Watch(lambda _: None)
            for line in self._log.read_text(errors="replace").splitlines():
                watch(line)
            raise KconfigError(f"make allnoconfig failed: {watch.reason}. The log is {self._log}.")

    def build(self, jobs: int, progress: Progress) -> None:
        """Build the image and the modules; raises BuildError with the first error and the log."""
        first = not (self._tree / "vmlinux").exists()
        estimate = f" of about {_FIRST_BUILD_STEPS}" if first else ""
        self.compile(("bzImage", "modules"), jobs, progress, estimate)

    def compile(
        self, targets: Sequence[str], jobs: int, progress: Progress, estimate: str = ""
    ) -> None:
        """Make these targets, as mm/ or kernel/fork.o; raises as build() does."""
        watch = _Watch(lambda count: progress.update(f"{count}{estimate} steps"))
        done = self._run(
            [f"-j{jobs}", *targets],
            Deadline.after(_BUILD_SECONDS, "Building the kernel"),
            on_line=watch,
        )
        if done.status == 0:
            return
        self._raise_ours(watch, done)
        for header, package in _HEADERS.items():
            if header in watch.reason and "No such file" in watch.reason:
                raise MachineUnfitError(
                    f"The kernel's build needs {header}; install the Debian package {package}."
                )
        raise BuildError(f"The kernel does not build: {watch.reason}. The log is {self._log}.")

    def install_modules(self, directory: Path) -> None:
        """Install the stripped modules, without an index, below ``directory``/lib/modules."""
        done = self._run(
            [
                "modules_install",
                f"INSTALL_MOD_PATH={directory}",
                "INSTALL_MOD_STRIP=1",
                # The index is made later, in the same way for all kinds of kernels.
                "DEPMOD=true",
            ],
            Deadline.after(_INSTALL_SECONDS, "Installing the modules"),
        )
        if done.status != 0:
            raise BuildError(f"The modules cannot be installed; the log is {self._log}.")

    def prepare_modules(self, jobs: int) -> None:
        """Make what external modules are compiled with, and nothing of the kernel itself."""
        self._short(
            [f"-j{jobs}", "modules_prepare"],
            Deadline.after(_PREPARE_SECONDS, "Preparing the kernel's tree for a module"),
            "The kernel's tree cannot be prepared for a module",
        )

    def external(self, directory: Path, jobs: int) -> None:
        """Build the modules whose source and Kbuild are in ``directory``, in that directory."""
        self._short(
            [f"-j{jobs}", f"M={directory}", "modules"],
            Deadline.after(_EXTERNAL_SECONDS, "Building a module for the kernel"),
            f"The module in {directory.name} does not build for this kernel",
        )

    def _short(self, targets: list[str], deadline: Deadline, what: str) -> None:
        """Run make; raises BuildError that begins with ``what``."""
        watch = _Watch(lambda _: None)
        done = self._run(targets, deadline, on_line=watch)
        if done.status == 0:
            return
        self._raise_ours(watch, done)
        raise BuildError(f"{what}: {watch.reason}. The log is {self._log}.")

    def _raise_ours(self, watch: _Watch, done: Completed) -> None:
        """Raise an error of ours if a make that failed was stopped by this machine."""
        if watch.full:
            raise StoreError(
                f"No space is left for building in {self._tree}; free some, or point "
                f"XDG_CACHE_HOME to a larger disk. The log is {self._log}."
            )
        if watch.killed or done.status < 0:
            raise InfrastructureError(
                "The build was ended from outside, perhaps because memory ran out; "
                f"run it again, with fewer jobs if need be. The log is {self._log}."
            )

    def _run(
        self,
        targets: list[str],
        deadline: Deadline,
        environment: dict[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        unset = [word for name in _INHERITED for word in ("-u", name)]
        return run_logged(
            ["env", *unset, require("make", "make"), *self._variables(), *targets],
            deadline,
            self._log,
            cwd=self._tree,
            env={**self._environment(), **(environment or {})},
            on_line=on_line,
        )

    def _variables(self) -> tuple[str, ...]:
        prefix = self._tools.prefix
        compiler = (f"CC=ccache {prefix}gcc", "HOSTCC=ccache gcc") if self._tools.ccache else ()
        # The same source gives the same image: no time, no user, no host, no count of builds.
        return (
            f"ARCH={self._tools.architecture}",
            *([f"CROSS_COMPILE={prefix}"] if prefix else []),
            *([f"O={self._objects}"] if self._objects else []),
            "LOCALVERSION=",
            "KBUILD_BUILD_TIMESTAMP=@0",
            "KBUILD_BUILD_USER=mmu-harness",
            "KBUILD_BUILD_HOST=mmu-harness",
            "KBUILD_BUILD_VERSION=1",
            *compiler,
        )

    def _environment(self) -> dict[str, str]:
        # Build trees of several kernels have different paths, and most of their files in common.
        return {
            **self._tools.environment,
            "LC_ALL": "C",
            "CCACHE_BASEDIR": str(self._tree),
            "CCACHE_NOHASHDIR": "1",
            # The compiler's own list of headers instead of a second run of the preprocessor, which
            # cost a quarter of a first build. Generated headers are as old as the build itself.
            "CCACHE_DEPEND": "1",
            "CCACHE_SLOPPINESS": "include_file_mtime,include_file_ctime",
            "GIT_CEILING_DIRECTORIES": str(self._tree.parent),
        }


class _Watch:
    """Reads the output of make as it comes: counts steps, keeps the first error."""

    def __init__(self, counted: Callable[[int], None]) -> None:
        self._counted = counted
        self._count = 0
        self._error = ""
        self._make_error = ""
        self.full = False
        self.killed = False

    @property
    def reason(self) -> str:
        """The first line that tells of an error."""
        return (self._error or self._make_error or "make gave no reason").strip().rstrip(".")

    def __call__(self, line: str) -> None:
        self.full = self.full or _NO_SPACE in line
        self.killed = self.killed or _KILLED.search(line) is not None
        if _STEP.match(line):
            self._count += 1
            self._counted(self._count)
        elif _MAKE_ERROR.match(line):
            self._make_error = self._make_error or line
        elif _ERROR.search(line):
            self._error = self._error or line


def _version(program: str, environment: Mapping[str, str]) -> str:
    deadline = Deadline.after(30.0, f"{program} --version")
    told = run([program, "--version"], deadline, env={**environment, "LC_ALL": "C"})
    return told.stdout.partition("\n")[0]
