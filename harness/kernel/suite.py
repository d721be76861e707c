# SPDX-License-Identifier: GPL-2.0-only
"""Packages of one suite only: ``deb:linux-image-amd64/bookworm``.

A suite that /etc/apt does not name is looked for in the archives that it does name, with a list of
sources of our own: kernels of any suite can be tested, and the machine keeps its configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from harness.command import Completed
from harness.errors import InfrastructureError, SourceError
from harness.kernel.debian import FRESH_SECONDS, WEEK_SECONDS, Apt, Package
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


_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""The keys of Debian's archive, where its package has put them; else apt trusts what it trusts."""

_ABSENT = re.compile(r"does not have a Release file|404 +Not Found")


def apt_of(store: Store, suite: str | None) -> Apt:
    """The apt that answers for one suite, or for all that the machine uses."""
    if suite is None:
        return Apt(store)
    machine = SuiteApt(store, suite)
    return machine if suite in machine.suites() else ForeignApt(store, suite, machine)


class SuiteApt(Apt):
    """An apt that knows only the packages of one suite (stable) or code name (bookworm)."""

    def __init__(
        self,
        store: Store,
        suite: str,
        lists: Path = Path("/var/lib/apt/lists"),
        home: str = "apt",
    ) -> None:
        super().__init__(store, lists, home)
        self._suite = suite
        self._pins = store.directory("apt") / f"only-{suite}"
        write_atomically(self._pins, _PINS.format(suite=suite))

    def suites(self) -> set[str]:
        """The suites and code names that apt has lists of, fetched if the machine has none."""
        return self._suites() or (self._suites() if self._fetch_lists(FRESH_SECONDS) else set())

    def archives(self) -> list[str]:
        """The addresses of the archives that /etc/apt names, once each."""
        # apt tells of those only of which it has lists, and the machine's may be of a part of them.
        self._fetch_lists(WEEK_SECONDS)
        argv = ["apt-get", *self._options(), "indextargets", "--format", "$(REPO_URI)"]
        told = self._run([*argv, "Created-By: Packages", "Component: main"], _SECONDS, check=False)
        return list(dict.fromkeys(told.stdout.split()))

    def _known(self, find: Callable[[], Package]) -> Package:
        try:
            return super()._known(find)
        except SourceError as error:
            raise SourceError(f"In the suite {self._suite}: {error}") from error

    def _suites(self) -> set[str]:
        told = self._ask("policy")
        found = re.findall(r"^\s+release (.*)", told, re.M)
        fields = [field.partition("=") for line in found for field in line.split(",")]
        return {value for key, _, value in fields if key in ("a", "n") and value != "now"}

    def _options(self, *, ours: bool | None = None) -> tuple[str, ...]:
        return (
            *super()._options(ours=ours),
            *("-o", f"Dir::Etc::Preferences={self._pins}"),
            *("-o", "Dir::Etc::PreferencesParts=/dev/null"),
        )


class ForeignApt(SuiteApt):
    """An apt of a suite that the machine does not use, from one of the archives that it uses."""

    def __init__(self, store: Store, suite: str, machine: SuiteApt) -> None:
        home = f"apt/suite-{suite}"
        super().__init__(store, suite, store.directory(f"{home}/lists"), home)
        self._machine = machine
        self._sources = store.directory(home) / "sources.list"

    def _known(self, find: Callable[[], Package]) -> Package:
        if not self._ours:
            self._fetch_lists(WEEK_SECONDS)
        return super()._known(find)

    def _update(self) -> Completed:
        """Fetch the lists from the first archive that has the suite; SourceError if none has."""
        archives = self._machine.archives()
        # Updates of security have an archive of their own.
        wanted = "security" in self._suite
        for archive in sorted(archives, key=lambda address: ("security" in address) != wanted):
            keys = f" signed-by={_KEYRING}" if _KEYRING.is_file() else ""
            line = f"deb [arch=amd64{keys}] {archive} {self._suite} main\n"
            write_atomically(self._sources, line)
            done = super()._update()
            if done.status == 0 or any(self._lists.glob("*Packages*")):
                return done
            if not _ABSENT.search(done.stdout + done.stderr):
                raise InfrastructureError(
                    f"The package lists of the suite {self._suite} cannot be fetched from "
                    f"{archive}: {_last_line(done)}. Check the network."
                )
        raise SourceError(
            f"apt knows no suite {self._suite} on this machine; it knows "
            f"{', '.join(sorted(self._machine.suites())) or 'none'}, and the archives "
            f"of these ({', '.join(archives) or 'none'}) do not have it. Check the name."
        )

    def _options(self, *, ours: bool | None = None) -> tuple[str, ...]:
        return (
            *super()._options(ours=ours),
            *("-o", f"Dir::Etc::SourceList={self._sources}"),
            *("-o", "Dir::Etc::SourceParts=/dev/null"),
            # Without it, an archive that cannot be reached is only warned of.
            *("-o", "APT::Update::Error-Mode=any"),
        )


def _last_line(done: Completed) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1].rstrip(".") if lines else f"apt-get exited with {done.status}"
