# SPDX-License-Identifier: GPL-2.0-only
"""Attaches drgn to a running host from outside, through a QMP socket of its own."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import OracleUnavailable
from harness.image.modules import name_of
from harness.kernel.model import Kernel

if TYPE_CHECKING:
    import drgn


def attach(socket: Path, kernel: Kernel, modules: Collection[str]) -> drgn.Program:
    """A drgn program that reads the memory of the host behind ``socket``.

    ``modules`` are the names of loaded modules whose types and symbols are wanted too.
    Needs vmlinux with DWARF, and a kernel that fills in QEMU's vmcoreinfo device
    (CONFIG_FW_CFG_SYSFS, CONFIG_VMCORE_INFO). Raises OracleUnavailable that says what is missing.
    """
    if kernel.vmlinux is None:
        raise OracleUnavailable(
            f"The kernel {kernel.release} has no vmlinux with debug information, so its memory "
            "cannot be read from outside."
        )
    # drgn takes a tenth of a second to load; hosts that are not examined should not wait for it.
    import drgn

    program = drgn.Program()
    try:
        program.set_qemu_qmp(str(socket))
        program.load_debug_info([str(path) for path in _debug_files(kernel, modules)])
    except drgn.MissingDebugInfoError as error:
        # KVM's modules may lack theirs; what an oracle then misses, it says itself.
        if not _has_types(program):
            raise OracleUnavailable(_cannot(error)) from error
    except (OSError, ValueError, LookupError, drgn.FaultError) as error:
        raise OracleUnavailable(_cannot(error)) from error
    return program


def _debug_files(kernel: Kernel, modules: Collection[str]) -> list[Path]:
    """vmlinux, and the modules that are loaded: drgn complains aloud about any other."""
    files = [kernel.vmlinux] if kernel.vmlinux is not None else []
    if kernel.debug_modules is not None:
        found = sorted(kernel.debug_modules.rglob("*.ko*"))
        files += [path for path in found if name_of(path.name) in modules]
    return files


def _has_types(program: drgn.Program) -> bool:
    try:
        program.type("struct page")
    except LookupError:
        return False
    return True


def _cannot(error: Exception) -> str:
    return f"drgn cannot read the host's memory: {str(error).strip().rstrip('.')}."
