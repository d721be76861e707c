# SPDX-License-Identifier: GPL-2.0-only
"""Count how often a host's kernel passes each of its notifier sites, with kprobes.

A kprobe sits on each call instruction itself, so that a count belongs to a site without a look at
stacks, tail calls included. The kernel adds up by itself, in histograms by instruction and by the
power of two that the address rounds up to: guests' memory is where a VMM has nothing else
(HVA_FIRST in probe/layout.py), so that says whether a guest was concerned, or only its VMM. Of a
range it is the end that counts, because a process that exits unmaps all from its lowest address
on, after KVM was released. One more probe sits on the first instruction of each notifier; what it
counts and no site explains came from modules.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from harness.deadline import Deadline
from harness.errors import CommandError, OracleUnavailable
from harness.guest.session import Session
from harness.oracle.callsites import CallSites
from harness.probe.layout import HVA_LAST
from harness.result.coverage import MODULES, Site

_TRACING = "/sys/kernel/tracing"
_GROUP = "mmu_coverage"
_DEFINITIONS = f"{_TRACING}/kprobe_events"
_PROFILE = f"{_TRACING}/kprobe_profile"
_INSTANCE = f"{_TRACING}/instances/mmu-coverage"
_EVENTS = f"{_INSTANCE}/events/{_GROUP}"
_SECONDS = 60.0

_ENTRY, _RANGE, _PAGE, _PLAIN = (f"{_GROUP}_{what}" for what in ("entry", "range", "page", "plain"))
_KIND = {
    "invalidate_range_start": _RANGE,
    "invalidate_range_end": _RANGE,
    "clear_flush_young": _PAGE,
    "clear_young": _PAGE,
    "test_young": _PAGE,
    "change_pte": _PAGE,
}
"""Where the address stands: in struct mmu_notifier_range, or in the second argument."""

_GUEST_POWER = (HVA_LAST - 1).bit_length()
_EVERYTHING_POWER = 64
_ON_EVERYTHING = ("clear_refs_write",)
"""Functions that name all of an mm in one range, guests included, and not because it ends."""

_DEFINED = re.compile(rf"^p:{_GROUP}/(\w+) _text\+(\d+)", re.MULTILINE)
_MISSED = re.compile(rf"^\s*{_GROUP}_\w+\s+\d+\s+(\d+)\s*$", re.MULTILINE)
_BUCKET = re.compile(
    r"^\{ __probe_ip:\s*([0-9a-f]+)(?:, hva: ~ 2\^(\d+)\s*)? \} hitcount:\s*(\d+)", re.MULTILINE
)
_DROPPED = re.compile(r"^\s*Dropped: (\d+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A line of a histogram; ``power`` is that of two of the address, if there is one."""

    address: int
    power: int | None
    count: int


@dataclasses.dataclass(frozen=True)
class Reading:
    """Counts since the host is watched.

    ``hits`` are passes of a site for the memory of a guest, or for a VM as a whole, and
    ``others`` those for other memory of a VMM. ``unexplained`` are calls of a notifier that came
    from no known site, ``lost`` passes that the kernel could not count.
    """

    hits: Mapping[Site, int]
    others: Mapping[Site, int] = dataclasses.field(default_factory=dict)
    unexplained: Mapping[str, int] = dataclasses.field(default_factory=dict)
    lost: int = 0


def grown(now: Mapping[Site, int], before: Mapping[Site, int]) -> dict[Site, int]:
    """What was counted after ``before``, without sites that were not passed."""
    more = {site: count - before.get(site, 0) for site, count in now.items()}
    return {site: count for site, count in more.items() if count > 0}


@dataclasses.dataclass(frozen=True)
class _Probe:
    """A place and the event that it belongs to, which decides how its address is found."""

    event: str
    offset: int


class Reach:
    """The probes on one host; ``unwatched`` are the sites that this kernel lets nobody probe."""

    def __init__(self, session: Session, sites: CallSites) -> None:
        """Set all probes; raises OracleUnavailable on a host whose kernel has no kprobe events."""
        self._session = session
        self._sites = sites
        wanted = list(_probes(sites))
        try:
            refused = _define(session, wanted, sites.range_end)
            watched = [probe for probe in wanted if probe not in refused]
            self._events = _histograms(session, watched)
        except OSError as error:
            raise OracleUnavailable(f"The host's kernel has no usable kprobes: {error}.") from error
        self._by_offset = {offset: site for site in sites.sites for offset in site.offsets}
        blind = {probe.offset for probe in refused}
        self.unwatched = tuple(site for site in sites.sites if blind.intersection(site.offsets))
        self._blind = {name for name, offset in sites.entries.items() if offset in blind}
        self._blind |= {site.notifier for site in self.unwatched}

    def read(self) -> Reading:
        """The present counts; raises OSError when somebody removed the probes."""
        # The beginnings are read first: a call is counted at its site before it is there, so that
        # no snapshot has calls from nowhere.
        paths = [f"{_EVENTS}/{event}/hist" for event in self._events]
        *texts, profile = self._session.ask_all(
            *(("read", {"path": path}) for path in (*paths, _PROFILE))
        )
        hits: Counter[Site] = Counter()
        others: Counter[Site] = Counter()
        begun: Counter[str] = Counter()
        notifiers = {offset: name for name, offset in self._sites.entries.items()}
        for event, text in zip(self._events, texts, strict=True):
            for bucket in buckets(text):
                offset = bucket.address - self._sites.text
                if event == _ENTRY:
                    begun[_begun(notifiers, offset)] += bucket.count
                    continue
                site = self._site(offset)
                of_guest = bucket.power in (None, _GUEST_POWER) or (
                    bucket.power == _EVERYTHING_POWER and site.function in _ON_EVERYTHING
                )
                (hits if of_guest else others)[site] += bucket.count
        left = self._unexplained(begun, hits + others)
        for site in self._sites.sites:
            if site.function == MODULES:
                hits[site] = left.pop(site.notifier, 0)
        lost = sum(map(int, _MISSED.findall(profile)))
        lost += sum(int(count) for text in texts for count in _DROPPED.findall(text))
        return Reading(hits, others, {name: count for name, count in left.items() if count}, lost)

    def _site(self, offset: int) -> Site:
        if offset not in self._by_offset:
            raise OracleUnavailable(
                "The host's kernel is not where its vmlinux says, so the kprobes on it say nothing."
            )
        return self._by_offset[offset]

    def _unexplained(self, begun: Mapping[str, int], at: Mapping[Site, int]) -> dict[str, int]:
        """Of each notifier, the calls that no site in vmlinux explains."""
        left = {}
        for notifier, count in begun.items():
            if notifier not in self._blind:
                known = sum(hits for site, hits in at.items() if site.notifier == notifier)
                left[notifier] = max(0, count - known)
        return left


def buckets(text: str) -> Iterator[Bucket]:
    """The lines of a histogram by __probe_ip, and perhaps by the address."""
    for address, power, count in _BUCKET.findall(text):
        yield Bucket(int(address, 16), int(power) if power else None, int(count))


def _begun(notifiers: Mapping[int, str], offset: int) -> str:
    """The notifier that begins at an offset, or before an ENDBR there, which kprobes skip."""
    for begin in (offset, offset - 4):
        if begin in notifiers:
            return notifiers[begin]
    raise OracleUnavailable(
        "The host's kernel is not where its vmlinux says, so the kprobes on it say nothing."
    )


def _probes(sites: CallSites) -> Iterator[_Probe]:
    for offset in sites.entries.values():
        yield _Probe(_ENTRY, offset)
    for site in sites.sites:
        for offset in site.offsets:
            yield _Probe(_KIND.get(site.hook, _PLAIN), offset)


def _define(session: Session, wanted: Sequence[_Probe], range_end: int) -> set[_Probe]:
    """Define the probes, and return those that the kernel refused."""
    if not session.ask("exists", path=_DEFINITIONS):
        raise OracleUnavailable("The host's kernel has no kprobe events (KPROBE_EVENTS).")
    arguments = {_RANGE: f" hva=+{range_end}(%di):x64", _PAGE: " hva=%si:x64"}
    refused: set[_Probe] = set()
    left = list(wanted)
    while left:
        # Probes of the same name and arguments are one event.
        complaint = _append(
            session,
            [
                f"p:{_GROUP}/{probe.event} _text+{probe.offset}{arguments.get(probe.event, '')}\n"
                for probe in left
            ],
        )
        there = _DEFINED.findall(session.read(_DEFINITIONS))
        defined = {_Probe(event, int(offset)) for event, offset in there}
        left = [probe for probe in left if probe not in defined]
        if left:
            # The kernel stops at the first that it refuses.
            refused.add(left.pop(0))
            if len(refused) == len(wanted):
                raise OracleUnavailable(f"The host's kernel refuses kprobes: {complaint}")
    return refused


def _append(session: Session, lines: Sequence[str]) -> str:
    """Have the kernel read definitions, in one write; what it complained of, if it did.

    The file must be neither truncated, which removes all probes that there are, nor written in
    pieces, which could end in the middle of a line.
    """
    argv = ["dd", f"of={_DEFINITIONS}", "bs=1M", "iflag=fullblock", "oflag=append", "conv=notrunc"]
    deadline = Deadline.after(
        _SECONDS * session.host.facts.pace, "Setting kprobes on the notifier sites"
    )
    try:
        session.host.run(argv, deadline, stdin="".join(lines).encode())
    except CommandError as error:
        return str(error)
    return ""


def _histograms(session: Session, probes: Sequence[_Probe]) -> tuple[str, ...]:
    """Have the kernel add up the events of these probes, and record nothing; their names."""
    events = tuple(dict.fromkeys(probe.event for probe in probes))
    session.ask("make_directory", path=_INSTANCE)
    for event in events:
        power = ",hva.log2" if event in (_RANGE, _PAGE) else ""
        trigger = f"hist:keys=__probe_ip.hex{power}"
        session.ask("write", path=f"{_EVENTS}/{event}/trigger", text=trigger)
    return events
