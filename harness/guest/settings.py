# SPDX-License-Identifier: GPL-2.0-only
"""Switches of the host's kernel that some scenarios need, each for as long as a context is open."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

from harness.deadline import Deadline
from harness.errors import CommandError, OracleUnavailable
from harness.guest.session import Session, undone

_KSM = "/sys/kernel/mm/ksm"
_NUMA = ("/sys/kernel/debug/sched/numa_balancing/", "/proc/sys/kernel/numa_balancing_")
"""Where the pace of NUMA balancing is set now, and where it was before v5.13."""
_KHUGEPAGED = "/sys/kernel/mm/transparent_hugepage/khugepaged"
_KSM_SECONDS = 20.0
_KSM_ROUNDS = 100
_SCAN_SECONDS = 20.0
_STARVED = 6
"""So many times as long may take what only a starved host does not do."""

_MODULE_SECONDS = 20.0

_SWAP_KIB_A_SECOND = 4096
"""What comes back from swap at least: a page at a time, beside guests that want the CPUs, too."""


@contextlib.contextmanager
def settings(session: Session, values: Mapping[str, str], what: str) -> Iterator[None]:
    """Files of the host have these values while the context is open.

    Raises OracleUnavailable, which says that the kernel has no ``what``, when one is missing.
    """
    with contextlib.ExitStack() as stack:
        for path, value in values.items():
            if not session.ask("exists", path=path):
                raise OracleUnavailable(f"The host's kernel has no {what}: no {path}.")
            stack.enter_context(session.setting(path, value))
        yield


@contextlib.contextmanager
def merging(session: Session) -> Iterator[None]:
    """KSM looks for equal pages as fast as it can; what it merged stays so after the end."""
    values = {
        f"{_KSM}/sleep_millisecs": "0",
        f"{_KSM}/pages_to_scan": "4096",
        f"{_KSM}/merge_across_nodes": "1",
    }
    with settings(session, values, "KSM"):
        session.ask("write", path=f"{_KSM}/run", text="1")
        with undone(lambda: session.ask("write", path=f"{_KSM}/run", text="0")):
            yield


@dataclasses.dataclass(frozen=True)
class Merged:
    """How many pages KSM has merged, and whether it was still at it when that was asked."""

    pages: int
    goes_on: bool = False


def merged_pages(session: Session, least: int) -> int:
    """How many pages KSM has merged, once they are ``least`` or it has refused the others.

    It may pass over a page for many rounds (smart_scan, from v6.7 on) before it tries it again, and
    fails where a vcpu is about to map the page. So some time has to go by, and after the last page
    that was merged a hundred rounds. Raises DeadlineError when they do not: a host that is short of
    CPU says nothing about the kernel.
    """
    return _merged(session, least, enough=least).pages


def merged_meanwhile(session: Session, least: int) -> Merged:
    """The same where vcpus are in KSM's way: after some time, one page is as good as ``least``."""
    return _merged(session, least, enough=1)


def _merged(session: Session, least: int, enough: int) -> Merged:
    """What KSM has done when ``least`` pages are merged, or none is any more, or for now enough."""
    pace = session.host.facts.pace
    paths = [f"{_KSM}/{name}" for name in ("full_scans", "pages_shared", "pages_sharing")]
    soon = Deadline.after(_KSM_SECONDS * pace, "Merging")
    last = Deadline.after(_STARVED * _KSM_SECONDS * pace, "Merging")
    most, refused_at = -1, 0
    for _ in last.ticks():
        answers = session.ask_all(*[("read", {"path": path}) for path in paths])
        rounds, shared, sharing = map(int, answers)
        merged = shared + sharing
        if merged > most:
            most, refused_at = merged, rounds + _KSM_ROUNDS
        if merged >= least or (soon.expired and rounds >= refused_at):
            return Merged(merged)
        if merged >= enough and soon.expired:
            return Merged(merged, goes_on=True)
    raise last.error(f"KSM has not looked at all pages {_KSM_ROUNDS} times without merging any.")


def multigenerational(session: Session, *, on: bool) -> contextlib.AbstractContextManager[None]:
    """Reclaim is the multi-generational one, or the classic one."""
    path = "/sys/kernel/mm/lru_gen/enabled"
    if not on and not session.ask("exists", path=path):
        return contextlib.nullcontext()
    return settings(session, {path: "y" if on else "n"}, "multi-generational LRU")


def numa_balancing(session: Session) -> contextlib.AbstractContextManager[None]:
    """NUMA balancing takes access away from pages as often as it can, to see who comes."""
    pace = {"scan_delay_ms": "1", "scan_period_min_ms": "10", "scan_period_max_ms": "20"}
    first = next(iter(pace))
    place = next((place for place in _NUMA if session.ask("exists", path=place + first)), _NUMA[0])
    values = {f"{place}{name}": value for name, value in pace.items()}
    return settings(session, {**values, "/proc/sys/kernel/numa_balancing": "1"}, "NUMA balancing")


def failing_allocations(session: Session) -> contextlib.AbstractContextManager[None]:
    """Allocations that may sleep can be made to fail, too, without a stack trace for each."""
    values = {
        f"/sys/kernel/debug/{kind}/{knob}": value
        for kind in ("failslab", "fail_page_alloc")
        for knob, value in (("ignore-gfp-wait", "N"), ("verbose", "0"))
    }
    # Single pages do not fail by default, and page tables are such.
    values["/sys/kernel/debug/fail_page_alloc/min-order"] = "0"
    return settings(session, values, "fault injection")


@contextlib.contextmanager
def large_pages(session: Session, enabled: str) -> Iterator[None]:
    """Anonymous memory gets large pages ``always``, on ``madvise``, or ``never``."""
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    if not session.ask("exists", path=path):
        raise OracleUnavailable(f"The host's kernel has no large pages: no {path}.")
    # What is in force stands in brackets, among the other words.
    before = session.read(path).partition("[")[2].partition("]")[0]
    session.ask("write", path=path, text=enabled)
    with undone(lambda: session.ask("write", path=path, text=before)):
        yield


@contextlib.contextmanager
def no_swap(session: Session) -> Iterator[None]:
    """All of the host's swap is off; what was there has been brought back."""
    lines = session.read("/proc/swaps").splitlines()[1:]
    with contextlib.ExitStack() as stack:
        for path, _, _, used, *_ in [line.split() for line in lines]:
            seconds = int(used) / _SWAP_KIB_A_SECOND * session.host.facts.pace
            session.wait("swapoff", seconds, path=path)
            stack.enter_context(undone(functools.partial(session.ask, "swapon", path=path)))
        yield


@contextlib.contextmanager
def khugepaged(session: Session) -> Iterator[Callable[[], None]]:
    """khugepaged looks for memory to collapse as often as it can while the context is open.

    Yields what waits until it has looked at everything that there was twice.
    """
    values = {
        f"{_KHUGEPAGED}/scan_sleep_millisecs": "1",
        f"{_KHUGEPAGED}/alloc_sleep_millisecs": "1",
        f"{_KHUGEPAGED}/pages_to_scan": "65536",
    }

    def scans() -> int:
        return int(session.read(f"{_KHUGEPAGED}/full_scans"))

    def looked() -> None:
        # The first may have been under way already.
        wanted = scans() + 3
        seconds = _STARVED * _SCAN_SECONDS * session.host.facts.pace
        Deadline.after(seconds, "khugepaged").poll(lambda: scans() >= wanted)

    with settings(session, values, "khugepaged"):
        yield looked


@contextlib.contextmanager
def device_memory(session: Session) -> Iterator[None]:
    """The kernel's make-believe device with memory of its own is there while the context is open.

    Raises OracleUnavailable on a kernel that has none (TEST_HMM).
    """
    deadline = Deadline.after(_MODULE_SECONDS * session.host.facts.pace, "Loading test_hmm")
    try:
        session.host.run(["modprobe", "test_hmm"], deadline)
    except CommandError as error:
        raise OracleUnavailable("The host's kernel has no test_hmm (TEST_HMM).") from error

    def unload() -> None:
        deadline = Deadline.after(_MODULE_SECONDS * session.host.facts.pace, "Unloading test_hmm")
        session.host.run(["modprobe", "-r", "test_hmm"], deadline)

    with undone(unload):
        yield
