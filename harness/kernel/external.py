# SPDX-License-Identifier: GPL-2.0-only
"""Modules that are not part of the kernel: built for one, and kept for as long as it is."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from harness.errors import BuildError
from harness.kernel.make import Make, check_path, toolchain
from harness.kernel.model import Kernel
from harness.progress import Progress
from harness.store import Store

_RECIPE = 1
"""Part of each module's key; increase it when what is built from the same source changes."""

_SOURCES = {".c", ".h", ""}
"""The suffixes of what belongs to a module's source; Kbuild has none."""


def external_module(
    source: Path, name: str, kernel: Kernel, headers: Path, store: Store, progress: Progress
) -> Path:
    """The module ``name``, built for a kernel from the C files and the Kbuild of ``source``.

    ``headers`` is what headers_for() gave for the kernel. Raises BuildError with the compiler's
    first error when it does not build; the log stays in the store.
    """
    tools = toolchain()
    files = _files(source)
    key = {
        "recipe": _RECIPE,
        "kernel": kernel.identity,
        "module": name,
        "source": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "compiler": tools.compiler,
        "linker": tools.linker,
    }

    def make(scratch: Path) -> None:
        # Beside the entry, because it must survive a failure.
        log = store.directory("logs") / f"{name}-{store.digest(key)[:12]}.log"
        log.unlink(missing_ok=True)
        directory = scratch / name
        check_path(directory)
        check_path(headers)
        directory.mkdir()
        for path in files:
            shutil.copy(path, directory)
        with progress.phase(f"Build {name}.ko for {kernel.release}"):
            Make(headers, log, tools).external(directory, os.cpu_count() or 1)
        built = directory / f"{name}.ko"
        if not built.is_file():
            raise BuildError(f"make left no {name}.ko. The log is {log}.")
        built.rename(scratch / built.name)
        shutil.rmtree(directory)
        shutil.move(log, scratch / "build.log")

    return store.entry("external", key, make) / f"{name}.ko"


def _files(source: Path) -> list[Path]:
    return sorted(path for path in source.iterdir() if path.is_file() and path.suffix in _SOURCES)
