# SPDX-License-Identifier: GPL-2.0-only
"""Directories of modules that a host can use as its /lib/modules."""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness.command import require, run
from harness.deadline import Deadline

_INDEX_SECONDS = 120.0


def take(installed: Path, modules: Path, release: str) -> None:
    """Move ``installed``, a directory of one release, to ``modules``/``release``; index it."""
    modules.mkdir()
    installed.rename(modules / release)
    for link in ("build", "source"):
        # They lead to the tree that the modules were built in.
        (modules / release / link).unlink(missing_ok=True)
    index(modules, release)


def index(modules: Path, release: str) -> None:
    """Write modules.dep and its kin for ``modules``/``release``."""
    with tempfile.TemporaryDirectory(dir=modules.parent, prefix=".index-") as name:
        base = Path(name)
        # Which of the two depmod looks into was decided when kmod was built.
        for place in ("lib", "usr/lib"):
            (base / place).mkdir(parents=True)
            (base / place / "modules").symlink_to(modules)
        run(
            [require("depmod", "kmod"), "-b", base, release],
            Deadline.after(_INDEX_SECONDS, "Indexing the modules"),
        )
