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
            *[_write(f"{event}/enable", "1") for event in filters],
        )
    except OSError as error:
        raise OracleUnavailable(f"The notifier tracepoint cannot be used: {error}.") from error
    off = [_write(f"{event}/enable", "0") for event in filters]
    seen = Watch(guest.pages)
    try:
        yield seen
    except BaseException:
        # What failed matters more than whether the host still answers.
        with contextlib.suppress(Exception):
            session.ask_all(*off)
        raise
    *_, text = session.ask_all(*off, ("read", {"path": f"{_INSTANCE}/trace"}))
    seen.ranges = tuple(
        ((start - guest.hva) // PAGE_BYTES, -((guest.hva - stop) // PAGE_BYTES))
        for start, stop in _calls(text)
    )
    seen.lost = _lost(session)


def _calls(text: str) -> Iterator[tuple[int, int]]:
    """The address ranges of the calls in a trace, half-open."""
    for start, stop in _RANGE.findall(text):
        yield int(start, 16), int(stop, 16)
    for page in _PAGE.findall(text):
        yield int(page, 16), int(page, 16) + PAGE_BYTES


def _write(path: str, text: str) -> tuple[str, dict[str, Any]]:
    return "write", {"path": path, "text": text}


def _prepare(session: Session) -> None:
    """Make the trace instance once a host."""
    if session.ask("exists", path=_INSTANCE):
        return
    try:
        session.ask("make_directory", path=_INSTANCE)
    except OSError as error:
        raise OracleUnavailable(f"The host's kernel has no usable tracing: {error}.") from error
    if not session.ask("exists", path=_UNMAP):
        raise OracleUnavailable("The host's kernel has no tracepoint kvm_unmap_hva_range.")
    if session.ask("exists", path=_COMMANDS):
        session.ask("write", path=_COMMANDS, text="0")
    session.ask("write", path=f"{_INSTANCE}/buffer_size_kb", text=str(_BUFFER_KIB))


def _lost(session: Session) -> int:
    """How many events the ring buffers dropped."""
    paths = [f"{_INSTANCE}/per_cpu/cpu{cpu}/stats" for cpu in range(session.cpus)]
    lost = 0
    for path, text in zip(
        paths, session.ask_all(*[("read", {"path": path}) for path in paths]), strict=True
    ):
        found = _LOST.search(text)
        if found is None:
            raise ProbeError(f"{path} on the host has no line about overruns.")
        lost += int(found.group(1))
    return lost
