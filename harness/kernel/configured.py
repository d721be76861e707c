# SPDX-License-Identifier: GPL-2.0-only
"""Remember how a build tree was configured, so that a neighbour need not be configured again.

Asking make takes several seconds, a fifth of an incremental build. The answer depends on what was
requested, on the tools, and on a few files of the source only.
"""

from __future__ import annotations

import contextlib
import json
import re

from harness.kernel.fingerprint import digest, fingerprint, write_atomically
from harness.kernel.make import Toolchain
from harness.kernel.tree import BuildTree

_DECIDING = re.compile(r"(?:.*/)?Kconfig[^/]*|Makefile|arch/x86/Makefile.*|scripts/.*")
"""Kconfig files, and what their macros call or take variables from."""


class Configured:
    """What is known of the configuration of a tree; ``requested`` is the text of the requests."""

    def __init__(self, tree: BuildTree, requested: str, tools: Toolchain) -> None:
        self._stamp = tree.home / "configured.json"
        self._config = tree.root / ".config"
        self._known = {
            "requested": requested,
            "compiler": tools.compiler,
            "linker": tools.linker,
            "source": digest(tree.fingerprints(_DECIDING)),
        }

    def holds(self) -> bool:
        """Whether the tree's .config is what make made of just this, and was found right."""
        with contextlib.suppress(OSError, ValueError):
            said = json.loads(self._stamp.read_text())
            return bool(said == {**self._known, "config": fingerprint(self._config)})
        return False

    def remember(self) -> None:
        """Say that it is."""
        known = {**self._known, "config": fingerprint(self._config)}
        write_atomically(self._stamp, json.dumps(known))
