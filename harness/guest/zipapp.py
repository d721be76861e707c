# SPDX-License-Identifier: GPL-2.0-only
"""Pack the probe for the host: one zipapp with the compiled payload in it."""

from __future__ import annotations

import hashlib
import importlib.util
import py_compile
import shutil
import zipapp
from pathlib import Path

import harness
from harness import probe
from harness.command import require, run
from harness.deadline import Deadline
from harness.store import Store

_FLAGS = (
    "-O2", "-Wall", "-Wextra", "-Werror",
    # Code for a bare vcpu: no C library, no position independence, no SSE state, no stack guard.
    "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-mcmodel=large",
    "-mgeneral-regs-only", "-mno-red-zone", "-fno-stack-protector", "-fcf-protection=none",
    "-Wl,--build-id=none", "-Wl,--oformat=binary",
)  # fmt: skip

_MAIN = "from harness.probe.agent import main\n\nmain()\n"


def probe_zipapp(store: Store) -> Path:
    """The probe as one file that the host's Python runs; made once for each state of its source.

    It has the code of this Python, too, which a Python of the same version in the host need not
    compile, and any other leaves alone. Raises MachineUnfitError without gcc and CommandError when
    the payload does not compile.
    """
    source = Path(probe.__file__).parent
    python = importlib.util.MAGIC_NUMBER.hex()
    key = {"probe": _digest(source), "flags": _FLAGS, "python": python}
    return store.entry("probe", key, lambda scratch: _pack(source, scratch)) / "probe.pyz"


def _pack(source: Path, scratch: Path) -> None:
    tree = scratch / "tree"
    package = tree / "harness" / "probe"
    package.mkdir(parents=True)
    shutil.copy(Path(harness.__file__), package.parent)
    for module in source.glob("*.py"):
        shutil.copy(module, package)
    _compile_payload(source / "payload", package / "payload.bin")
    (tree / "__main__.py").write_text(_MAIN)
    _compile_modules(tree)
    zipapp.create_archive(tree, scratch / "probe.pyz")
    shutil.rmtree(tree)


def _compile_modules(tree: Path) -> None:
    """Put compiled code beside each module: to compile them takes an emulated host a second."""
    for module in tree.rglob("*.py"):
        py_compile.compile(
            str(module),
            cfile=str(module.with_suffix(".pyc")),
            dfile=str(module.relative_to(tree)),
            doraise=True,
            # They are packed together, so nobody needs to compare.
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )


def _compile_payload(source: Path, target: Path) -> None:
    run(
        [
            require("gcc", "gcc"),
            *_FLAGS,
            "-Wl,-T",
            f"-Wl,{source / 'payload.lds'}",
            "-o",
            target,
            source / "payload.c",
        ],
        Deadline.after(60, "Compiling the payload of the probe guest"),
    )


def _digest(source: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.suffix in (".py", ".c", ".h", ".lds"):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(source)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
