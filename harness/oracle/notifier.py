# SPDX-License-Identifier: GPL-2.0-only
"""Watch the calls of KVM's mmu notifiers through its tracepoints."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import OracleUnavailable, ProbeError
from harness.guest.probe import ProbeGuest
from harness.guest.session import Session
from harness.probe.layout import PAGE_BYTES

_INSTANCE = "/sys/kernel/tracing/instances/mmu-harness"
_UNMAP = f"{_INSTANCE}/events/kvm/kvm_unmap_hva_range"
_CHANGE = f"{_INSTANCE}/events/kvm/kvm_set_spte_hva"
"""Where a pte was replaced without an invalidation, as KSM and COW did up to v6.9."""

_COMMANDS = f"{_INSTANCE}/options/record-cmd"
"""Whether the names of tasks are recorded. For that the kernel watches each change of task, and
patches __schedule on all CPUs whenever an event is switched on or off, for names that nobody reads.
An emulated CPU that ran into such a patch half done has been seen to die of the breakpoint in it
(oops: int3 in __schedule)."""

_BUFFER_KIB = 8192
_RANGE = re.compile(r"kvm_unmap_hva_range:.{0,80}?0x([0-9a-f]{1,16}) -- 0x([0-9a-f]{1,16})\b")
_PAGE = re.compile(r"kvm_set_spte_hva:.{0,80}?0x([0-9a-f]{1,16})\b")
_LOST = re.compile(r"^overrun: (\d+)", re.MULTILINE)


class Watch:
    """The invalidations of a guest's memory that KVM was told of while it was watched.

    The tracepoint fires on entry to KVM's invalidate_range_start, before the memslots are looked
    up: it proves that the notifier was called, not that an spte was dropped.
    """

    def __init__(self, pages: int) -> None:
        self.ranges: tuple[tuple[int, int], ...] = ()
        self.lost = 0
        self._pages = pages

    def told(self) -> npt.NDArray[np.bool_]:
        """For each page of the guest whether a call covered it."""
        edges = np.zeros(self._pages + 1, np.int64)
        for start, end in self.ranges:
            first, last = (min(max(edge, 0), self._pages) for edge in (start, end))
            # A range that is outside, or the wrong way round, must not hide another.
            if first < last:
                edges[first] += 1
                edges[last] -= 1
        return np.cumsum(edges)[:-1] > 0


@contextlib.contextmanager
def watch(guest: ProbeGuest) -> Iterator[Watch]:
    """Watch the invalidations of ``guest``'s memory; the result is complete once this is left.

    Raises OracleUnavailable on a kernel without the tracepoint, which came with commit
    501b91802603 ("KVM: Move x86's MMU notifier memslot walkers to generic code") (in v5.13), or
    when the host's tracing cannot be used.
    """
    session = guest.session
    _prepare(session)
    end = guest.hva + guest.pages * PAGE_BYTES
    filters = {_UNMAP: f"start < {end} && end > {guest.hva}"}
    if session.ask("exists", path=_CHANGE):
        filters[_CHANGE] = f"hva >= {guest.hva} && hva < {end}"
    try:
        session.ask_all(
            *[_write(f"{event}/filter", text) for event, text in filters.items()],
            _write(f"{_INSTANCE}/trace", ""),
        )
    except OSError as error:
        raise OracleUnavailable(f"The notifier tracepoint cannot be used: {error}.") from error
    seen = Watch(guest.pages)
    yield seen
    statistics = [f"{_INSTANCE}/per_cpu/cpu{cpu}/stats" for cpu in range(session.cpus)]
    trace, *texts = session.ask_all(*map(_read, (f"{_INSTANCE}/trace", *statistics)))
    seen.ranges = tuple(
        ((start - guest.hva) // PAGE_BYTES, -((guest.hva - stop) // PAGE_BYTES))
        for start, stop in _calls(trace)
    )
    seen.lost = sum(map(_lost, statistics, texts))


def _calls(text: str) -> Iterator[tuple[int, int]]:
    """The address ranges of the calls in a trace, half-open."""
    for start, stop in _RANGE.findall(text):
        yield int(start, 16), int(stop, 16)
    for page in _PAGE.findall(text):
        yield int(page, 16), int(page, 16) + PAGE_BYTES


def _write(path: str, text: str) -> tuple[str, dict[str, Any]]:
    return "write", {"path": path, "text": text}


def _read(path: str) -> tuple[str, dict[str, Any]]:
    return "read", {"path": path}


def _prepare(session: Session) -> None:
    """Make the trace instance and switch its events on, once a host.

    They stay on, and only their filters change: each switch has the kernel patch its own code
    while all CPUs run it, which QEMU 7.2's emulation gets wrong (see docs/emulation.md).
    """
    if session.ask("exists", path=f"{_UNMAP}/enable") and _on(session):
        return
    try:
        if not session.ask("exists", path=_INSTANCE):
            session.ask("make_directory", path=_INSTANCE)
    except OSError as error:
        raise OracleUnavailable(f"The host's kernel has no usable tracing: {error}.") from error
    if not session.ask("exists", path=_UNMAP):
        raise OracleUnavailable("The host's kernel has no tracepoint kvm_unmap_hva_range.")
    if session.ask("exists", path=_COMMANDS):
        session.ask("write", path=_COMMANDS, text="0")
    events = [event for event in (_CHANGE, _UNMAP) if session.ask("exists", path=event)]
    try:
        session.ask_all(
            _write(f"{_INSTANCE}/buffer_size_kb", str(_BUFFER_KIB)),
            *[_write(f"{event}/enable", "1") for event in events],
        )
    except OSError as error:
        raise OracleUnavailable(f"The notifier tracepoint cannot be used: {error}.") from error


def _on(session: Session) -> bool:
    """Whether the events are switched on; the one asked for is switched on last."""
    return session.read(f"{_UNMAP}/enable").startswith("1")


def _lost(path: str, text: str) -> int:
    """How many events a ring buffer dropped, by its file of statistics."""
    found = _LOST.search(text)
    if found is None:
        raise ProbeError(f"{path} on the host has no line about overruns.")
    return int(found.group(1))
