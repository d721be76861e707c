# SPDX-License-Identifier: GPL-2.0-only
"""Packages of one suite only, of those that apt knows: ``deb:linux-image-amd64/bookworm``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from harness.errors import SourceError
from harness.kernel.debian import Apt, Package
from harness.kernel.fingerprint import write_atomically
from harness.store import Store

_SECONDS = 60.0

# apt_preferences(5): of what is pinned below zero there is no candidate. The first pin that fits
# a version counts.
_PINS = """\
Package: *
Pin: release a={suite}
Pin-Priority: 990

Package: *
Pin: release n={suite}
Pin-Priority: 990

Package: *
Pin: release a=*
Pin-Priority: -1
"""


def apt_of(store: Store, suite: str | None) -> Apt:
    """The apt that answers for one suite, or for all that the machine uses."""
    return Apt(store) if suite is None else SuiteApt(store, suite)


class SuiteApt(Apt):
    """An apt that knows only the packages of one suite (stable) or code name (bookworm)."""

    def __init__(self, store: Store, suite: str, lists: Path = Path("/var/lib/apt/lists")) -> None:
        super().__init__(store, lists)
        self._suite = suite
        self._pins = store.directory("apt") / f"only-{suite}"
        write_atomically(self._pins, _PINS.format(suite=suite))

    def _known(self, find: Callable[[], Package]) -> Package:
        try:
            return super()._known(find)
        except SourceError as error:
            names = sorted(self._suites())
            if self._suite in names:
                raise SourceError(f"In the suite {self._suite}: {error}") from error
            raise SourceError(
                f"apt knows no suite {self._suite} on this machine; it knows "
                f"{', '.join(names) or 'none'}. Add it to /etc/apt to use it."
            ) from error

    def _suites(self) -> set[str]:
        """The suites and code names that apt has lists of."""
        told = self._run(["apt-cache", *self._options(), "policy"], _SECONDS).stdout
        found = re.findall(r"^\s+release (.*)", told, re.M)
        fields = [field.partition("=") for line in found for field in line.split(",")]
        return {value for key, _, value in fields if key in ("a", "n") and value != "now"}

    def _options(self, *, ours: bool | None = None) -> tuple[str, ...]:
        return (
            *super()._options(ours=ours),
            *("-o", f"Dir::Etc::Preferences={self._pins}"),
            *("-o", "Dir::Etc::PreferencesParts=/dev/null"),
        )
