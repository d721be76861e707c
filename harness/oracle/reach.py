# SPDX-License-Identifier: GPL-2.0-only
"""Count how often a host's kernel passes each of its notifier sites, with kprobes.

A kprobe sits on each call instruction itself, so that a count belongs to a site without a look at
stacks, tail calls included. Nothing is written to a trace buffer: the counts that the kernel
keeps of each probe (kprobe_profile) are enough, and cost one read. One more probe sits on the
first instruction of each notifier; what it counts and no site explains came from modules.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from harness.deadline import Deadline
from harness.errors import CommandError, OracleUnavailable
from harness.guest.session import Session
from harness.oracle.callsites import CallSites
from harness.result.coverage import MODULES, Site

_TRACING = "/sys/kernel/tracing"
_GROUP = "mmu_coverage"
_DEFINITIONS = f"{_TRACING}/kprobe_events"
_PROFILE = f"{_TRACING}/kprobe_profile"
_INSTANCE = f"{_TRACING}/instances/mmu-coverage"
_COUNTS = re.compile(rf"^\s*({_GROUP}_\d+)\s+(\d+)\s+(\d+)\s*$", re.MULTILINE)
_DEFINED = re.compile(rf"^p:{_GROUP}/({_GROUP}_\d+)\s", re.MULTILINE)
_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Reading:
    """Counts since the host was watched: of each site, and calls that came from no known site.

    ``missed`` are hits that the kernel could not count, because another probe was being handled.
    """

    hits: Mapping[Site, int]
    unexplained: Mapping[str, int] = dataclasses.field(default_factory=dict)
    missed: int = 0

    def since(self, before: Reading) -> dict[Site, int]:
        """What was passed after ``before``, without sites that were not."""
        more = {site: count - before.hits.get(site, 0) for site, count in self.hits.items()}
        return {site: count for site, count in more.items() if count > 0}


class Reach:
    """The probes on one host; ``unwatched`` are the sites that this kernel lets nobody probe."""

    def __init__(self, session: Session, sites: CallSites) -> None:
        """Set all probes; raises OracleUnavailable on a host whose kernel has no kprobe events."""
        self._session = session
        self._sites = sites
        # The beginnings come first, here and in the profile: a call is then counted at its site
        # before it is at the beginning, and no snapshot has calls from nowhere.
        places = [*sites.entries.values()]
        places += [offset for site in sites.sites for offset in site.offsets]
        wanted = {
            f"{_GROUP}_{number}": offset for number, offset in enumerate(dict.fromkeys(places))
        }
        try:
            refused = _define(session, wanted)
            _enable(session)
        except OSError as error:
            raise OracleUnavailable(f"The host's kernel has no usable kprobes: {error}.") from error
        self._probes = {offset: name for name, offset in wanted.items() if name not in refused}
        self.unwatched = tuple(
            site
            for site in sites.sites
            if any(offset not in self._probes for offset in site.offsets)
        )

    def read(self) -> Reading:
        """The present counts; raises OracleUnavailable when somebody removed the probes."""
        text = self._session.read(_PROFILE)
        counts, missed = profile(text)
        if lost := self._probes.values() - counts.keys():
            raise OracleUnavailable(
                f"{len(lost)} of the {len(self._probes)} kprobes on notifier sites are gone."
            )
        at = {offset: counts[name] for offset, name in self._probes.items()}
        hits = {
            site: sum(at.get(offset, 0) for offset in site.offsets) for site in self._sites.sites
        }
        left = self._unexplained(at, hits)
        for site in self._sites.sites:
            if site.function == MODULES:
                hits[site] = left.pop(site.notifier, 0)
        return Reading(hits, {name: count for name, count in left.items() if count}, missed)

    def _unexplained(self, at: Mapping[int, int], hits: Mapping[Site, int]) -> dict[str, int]:
        """Of each notifier, the calls that no site in vmlinux explains."""
        blind = {site.notifier for site in self.unwatched}
        left = {}
        for notifier, entry in self._sites.entries.items():
            if entry in at and notifier not in blind:
                known = sum(count for site, count in hits.items() if site.notifier == notifier)
                left[notifier] = max(0, at[entry] - known)
        return left


def profile(text: str) -> tuple[dict[str, int], int]:
    """The counts in a kprobe_profile of our probes, by name, and how many hits were missed."""
    found = _COUNTS.findall(text)
    return {name: int(hits) for name, hits, _ in found}, sum(int(missed) for *_, missed in found)


def _define(session: Session, wanted: Mapping[str, int]) -> set[str]:
    """Define the probes, and return the names of those that the kernel refused."""
    if not session.ask("exists", path=_DEFINITIONS):
        raise OracleUnavailable("The host's kernel has no kprobe events (KPROBE_EVENTS).")
    refused: set[str] = set()
    left = dict(wanted)
    while left:
        complaint = _append(session, left)
        there = set(_DEFINED.findall(session.read(_DEFINITIONS)))
        left = {name: offset for name, offset in left.items() if name not in there}
        if left:
            # The kernel stops at the first that it refuses.
            name = next(iter(left))
            del left[name]
            refused.add(name)
            if len(refused) == len(wanted):
                raise OracleUnavailable(f"The host's kernel refuses kprobes: {complaint}")
    return refused


def _append(session: Session, probes: Mapping[str, int]) -> str:
    """Have the kernel read definitions, in one write; what it complained of, if it did.

    The file must be neither truncated, which removes all probes that there are, nor written in
    pieces, which could end in the middle of a line.
    """
    lines = "".join(f"p:{_GROUP}/{name} _text+{offset}\n" for name, offset in probes.items())
    argv = ["dd", f"of={_DEFINITIONS}", "bs=1M", "iflag=fullblock", "oflag=append", "conv=notrunc"]
    deadline = Deadline.after(
        _SECONDS * session.host.facts.pace, "Setting kprobes on the notifier sites"
    )
    try:
        session.host.run(argv, deadline, stdin=lines.encode())
    except CommandError as error:
        return str(error)
    return ""


def _enable(session: Session) -> None:
    """Have the probes count, in a trace instance of their own that records nothing."""
    session.ask("make_directory", path=_INSTANCE)
    session.ask("write", path=f"{_INSTANCE}/tracing_on", text="0")
    session.ask("write", path=f"{_INSTANCE}/events/{_GROUP}/enable", text="1")
