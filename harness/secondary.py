# SPDX-License-Identifier: GPL-2.0-only
"""Brings the module with secondary MMUs in software into the hosts of a run."""

from __future__ import annotations

from pathlib import Path

from harness import secondary_mmu
from harness.deadline import Deadline
from harness.errors import HarnessError, OracleUnavailable
from harness.guest.session import Session
from harness.kernel import reference
from harness.kernel.build import headers_for
from harness.kernel.external import external_module
from harness.progress import Progress
from harness.store import Store
from harness.workbench import Parts, Wish

_NAME = "notifier_user"
_PLACE = f"/run/{_NAME}.ko"
_LOAD_SECONDS = 20.0


class SecondaryMmus:
    """The module for the kernel of a run. It is built once, and loaded once into each host."""

    def __init__(self, wish: Wish, parts: Parts, store: Store, progress: Progress) -> None:
        self._module: Path | None = None
        self._error: HarnessError | None = None
        try:
            self._module = _built(wish, parts, store, progress)
        except HarnessError as error:
            # Only the tests that need it are the worse for it.
            self._error = error

    def require(self) -> Path:
        """The module's file.

        Raises OracleUnavailable for a kernel that takes no modules or came without its headers,
        and BuildError when the module does not build.
        """
        if self._error is not None:
            raise self._error
        assert self._module is not None, "it is built, or there is an error"
        return self._module

    def load(self, session: Session) -> None:
        """Have /dev/notifier_user on a host; raises CommandError when the module does not load."""
        module = self.require()
        if session.ask("exists", path=f"/sys/module/{_NAME}"):
            return
        deadline = Deadline.after(_LOAD_SECONDS * session.host.facts.pace, f"Loading {_NAME}")
        session.host.put(_PLACE, module.read_bytes(), deadline)
        session.host.run(["insmod", _PLACE], deadline)


def _built(wish: Wish, parts: Parts, store: Store, progress: Progress) -> Path:
    kernel = parts.kernel
    if kernel.config is not None and kernel.symbol("MODULES") != "y":
        raise OracleUnavailable(
            f"The kernel {kernel.origin} takes no modules (CONFIG_MODULES), so {_NAME} cannot be "
            "loaded into it."
        )
    series = parts.control.patches if parts.control else ()
    headers = headers_for(
        kernel,
        reference.parse(wish.kernel),
        (*series, *wish.patches),
        store,
        progress,
        wish.jobs,
        fragments=wish.fragments,
    )
    if headers is None:
        raise OracleUnavailable(
            f"The kernel {kernel.origin} was built elsewhere and came without the headers that "
            f"{_NAME} is compiled with; give the image in its build tree, or the kernel's source."
        )
    source = Path(secondary_mmu.__file__).parent
    return external_module(source, _NAME, kernel, headers, store, progress)
