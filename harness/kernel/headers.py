# SPDX-License-Identifier: GPL-2.0-only
"""What modules are compiled with: the part of a built tree that ``make M=`` reads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_TREES = ("include", "arch/x86/include", "scripts")
_FILES = ("Makefile", ".config", "Module.symvers", "tools/objtool/objtool")
_MAKEFILES = "arch/x86/Makefile*"

_STAMPS = "include/config"
_NOT_STAMPS = ("auto.conf", "kernel.release")
"""Of include/config the rest are empty files, by which make knows what to compile anew."""


def take(tree: Path, directory: Path) -> None:
    """Copy what is needed from a tree after ``make modules_prepare`` into a directory.

    A copy, because the tree goes on to be that of other kernels.
    """
    stamps = tree / _STAMPS

    def left_out(path: str, names: list[str]) -> set[str]:
        if Path(path) == stamps:
            return {name for name in names if name not in _NOT_STAMPS}
        return {name for name in names if name.endswith((".o", ".cmd"))}

    for name in _TREES:
        shutil.copytree(tree / name, directory / name, symlinks=True, ignore=left_out)
    files = [tree / name for name in _FILES if (tree / name).exists()]
    for file in (*files, *tree.glob(_MAKEFILES)):
        target = directory / file.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)


def complete(directory: Path, release: str) -> bool:
    """Whether modules for the kernel of this release can be built in a directory of somebody's."""
    needed = ("Makefile", "Module.symvers", "include/generated/autoconf.h")
    if not all((directory / name).is_file() for name in needed):
        return False
    told = directory / "include/config/kernel.release"
    try:
        return told.read_text().strip() == release and os.access(directory, os.R_OK | os.X_OK)
    except OSError:
        return False
