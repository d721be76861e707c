# SPDX-License-Identifier: GPL-2.0-only
"""Calls of KVM's notifiers, read from the text of a trace."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.errors import OracleUnavailable, ProbeError, Violation
from harness.oracle import notifier
from harness.oracle.notifier import Watch

HVA = 0x7F12_3400_0000
PAGES = 16
PAGE = 4096
INSTANCE = notifier._INSTANCE
EVENT = notifier._UNMAP
CHANGE = notifier._CHANGE

HEADER = """\
# tracer: nop
#
# entries-in-buffer/entries-written: 2/2   #P:2
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""
STATS = """\
entries: 2
overrun: {overrun}
commit overrun: 9
bytes: 96
dropped events: 0
"""


def line(start: int, end: int) -> str:
    """A line as the tracepoint's format in include/trace/events/kvm.h has it."""
    return (
        f"         python3-71      [001] .....    12.345678: kvm_unmap_hva_range: "
        f"mmu notifier unmap range: {start:#018x} -- {end:#018x}\n"
    )


def pages(first: int, last: int) -> str:
    return line(HVA + first * PAGE, HVA + last * PAGE)


def change(address: int) -> str:
    """The same for a pte that was replaced, as kernels up to v6.12 tell it."""
    return (
        f"            ksmd-40      [000] .....    12.345678: kvm_set_spte_hva: "
        f"mmu notifier set pte hva: {address:#018x}\n"
    )


class Tracefs:
    """A session whose host has tracefs; what is in it is in ``files``.

    ``changes`` is whether its kernel has the tracepoint of ptes that are replaced.
    """

    def __init__(
        self, text: str = HEADER, cpus: int = 2, overrun: int = 0, *, changes: bool = False
    ) -> None:
        self.files = {
            "/sys/kernel/tracing": "",
            EVENT: "",
            f"{EVENT}/enable": "0",
            f"{EVENT}/filter": "none",
            f"{INSTANCE}/options/record-cmd": "1",
            f"{INSTANCE}/buffer_size_kb": "7",
        }
        if changes:
            self.files |= {CHANGE: "", f"{CHANGE}/enable": "0", f"{CHANGE}/filter": "none"}
        self.cpus = cpus
        for cpu in range(cpus):
            self.files[f"{INSTANCE}/per_cpu/cpu{cpu}/stats"] = STATS.format(overrun=overrun)
        self.written: list[tuple[str, str]] = []
        self.made: list[str] = []
        self.text = text
        self.refused: dict[str, int] = {}
        self.exchanges = 0

    def ask(self, op: str, path: str, text: str = "") -> Any:
        if (number := self.refused.get(f"{op} {path}")) is not None:
            raise OSError(number, "refused")
        if op == "exists":
            return path in self.files and (not path.startswith(INSTANCE) or bool(self.made))
        if op == "make_directory":
            self.made.append(path)
            return self.files.setdefault(path, "")
        if op == "read":
            return self.text if path == f"{INSTANCE}/trace" else self.files[path]
        assert op == "write"
        self.written.append((path, text))
        self.files[path] = text
        return None

    def ask_all(self, *requests: tuple[str, dict[str, str]]) -> list[Any]:
        self.exchanges += 1
        return [self.ask(op, **arguments) for op, arguments in requests]

    def read(self, path: str) -> str:
        return str(self.ask("read", path=path))

    def guest(self) -> Any:
        return SimpleNamespace(session=self, hva=HVA, pages=PAGES)


def watched(tracefs: Tracefs) -> Watch:
    with notifier.watch(tracefs.guest()) as seen:
        assert tracefs.files[f"{EVENT}/enable"] == "1"
    return seen


def told(*calls: str) -> list[int]:
    """The pages that a trace with these lines covers."""
    found = watched(Tracefs(HEADER + "".join(calls))).told()
    assert len(found) == PAGES
    return [page for page, covered in enumerate(found) if covered]


def test_a_trace_without_calls_covers_nothing() -> None:
    assert told() == []


def test_calls_cover_their_pages() -> None:
    assert told(pages(3, 5)) == [3, 4]
    assert told(pages(0, PAGES)) == list(range(PAGES))
    assert told(pages(0, 1), pages(15, 16)) == [0, 15]


def test_calls_may_overlap_touch_and_repeat() -> None:
    assert told(pages(1, 4), pages(2, 3), pages(4, 6), pages(1, 4)) == [1, 2, 3, 4, 5]


def test_a_call_that_reaches_beyond_the_memory_counts_within_it() -> None:
    assert told(pages(-5, 2)) == [0, 1]
    assert told(pages(14, 99)) == [14, 15]
    assert told(line(0, 1 << 47)) == list(range(PAGES))


def test_a_call_for_a_part_of_a_page_is_a_call_for_the_page() -> None:
    assert told(line(HVA + PAGE + 8, HVA + 2 * PAGE + 8)) == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "CPU:1 [LOST 17 EVENTS]\n",
        "         kvm_unmap_hva_r-71 [001] ..... 1.0: sched_switch: 0x0 -- 0xffffffffffffffff\n",
        "kvm_unmap_hva_range:\n0x0 -- 0x7fffffffffff\n",
        "kvm_unmap_hva_range: 0x -- 0x\n",
        "kvm_unmap_hva_range: mmu notifier unmap range: (fault) -- (fault)\n",
        "\x00\x1b[2J\ufffd\n" * 1000,
        "kvm_unmap_hva_range: " * 10_000,
    ],
)
def test_other_text_in_a_trace_covers_nothing(text: str) -> None:
    assert told(text) == []
    assert told(text, "\n", pages(3, 5)) == [3, 4]


@pytest.mark.parametrize(
    "nonsense",
    [
        pages(PAGES, PAGES + 5),
        pages(1000, 2000),
        pages(-9, -3),
        pages(9, 2),
        pages(4, 4),
        line(0xFFFF_FFFF_FFFF_FFFF, 0),
        line(0xFFFF_FFFF_FFFF_F000, 0xFFFF_FFFF_FFFF_FFFF),
        "kvm_unmap_hva_range: 0x" + "f" * 100 + " -- 0x" + "f" * 101 + "\n",
    ],
)
def test_a_call_for_other_memory_covers_nothing_and_takes_nothing_away(nonsense: str) -> None:
    assert told(nonsense) == []
    assert told(nonsense, pages(3, 5), nonsense) == [3, 4]


def test_only_this_guests_memory_is_watched_and_from_now_on() -> None:
    tracefs = Tracefs()
    watched(tracefs)
    end = HVA + PAGES * PAGE
    assert tracefs.written == [
        (f"{INSTANCE}/options/record-cmd", "0"),
        (f"{INSTANCE}/buffer_size_kb", "8192"),
        (f"{EVENT}/enable", "1"),
        (f"{EVENT}/filter", f"start < {end} && end > {HVA}"),
        (f"{INSTANCE}/trace", ""),
    ]


def test_ptes_that_are_replaced_are_watched_where_the_kernel_tells_of_them() -> None:
    tracefs = Tracefs(HEADER + pages(3, 5) + change(HVA + 9 * PAGE), changes=True)
    with notifier.watch(tracefs.guest()) as seen:
        assert tracefs.files[f"{CHANGE}/enable"] == "1"
        assert (f"{CHANGE}/filter", f"hva >= {HVA} && hva < {HVA + PAGES * PAGE}") in (
            tracefs.written
        )
    assert np.flatnonzero(seen.told()).tolist() == [3, 4, 9]
    assert len(seen.ranges) == 2


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        (change(HVA), [0]),
        (change(HVA + 15 * PAGE), [15]),
        (change(HVA + 4 * PAGE) + change(HVA + 4 * PAGE) + change(HVA + 6 * PAGE), [4, 6]),
        (change(HVA - PAGE), []),
        (change(HVA + PAGES * PAGE), []),
        ("kvm_set_spte_hva: mmu notifier set pte hva: 0x\n", []),
        ("kvm_set_spte_hva:\n0x7f1234000000\n", []),
        ("kvm_age_hva: mmu notifier age hva: 0x7f1234000000\n", []),
    ],
)
def test_a_pte_that_is_replaced_is_one_page(text: str, covered: list[int]) -> None:
    assert told(text) == covered


def test_watching_costs_few_exchanges_with_the_host() -> None:
    # One to begin, one to end with the losses of all CPUs; each may take a while under TCG.
    tracefs = Tracefs(cpus=8, changes=True)
    watched(tracefs)
    before = tracefs.exchanges
    with notifier.watch(tracefs.guest()):
        assert tracefs.exchanges == before + 1
    assert tracefs.exchanges == before + 2


def test_the_names_of_tasks_are_not_recorded_before_any_event_is_on() -> None:
    tracefs = Tracefs()
    with notifier.watch(tracefs.guest()):
        pass
    written = [path for path, _ in tracefs.written]
    assert written.index(notifier._COMMANDS) < written.index(f"{EVENT}/enable")
    older = Tracefs()
    del older.files[notifier._COMMANDS]
    with notifier.watch(older.guest()):
        pass
    assert notifier._COMMANDS not in [path for path, _ in older.written]


def test_the_instance_is_made_and_switched_on_once_a_host() -> None:
    tracefs = Tracefs(changes=True)
    watched(tracefs)
    watched(tracefs)
    assert tracefs.made == [INSTANCE]
    switched = [written for written in tracefs.written if written[0].endswith("/enable")]
    assert switched == [(f"{CHANGE}/enable", "1"), (f"{EVENT}/enable", "1")]


def test_what_could_not_be_switched_on_is_tried_again_and_never_taken_for_on() -> None:
    tracefs = Tracefs(HEADER + pages(3, 5))
    tracefs.refused[f"write {EVENT}/enable"] = errno.EIO
    for _ in range(2):
        with pytest.raises(OracleUnavailable, match="refused"):
            watched(tracefs)
    tracefs.refused.clear()
    assert watched(tracefs).ranges == ((3, 5),)


def test_nothing_is_known_until_the_watch_is_over() -> None:
    with notifier.watch(Tracefs(HEADER + pages(0, 1)).guest()) as seen:
        assert not seen.told().any()
    assert seen.told()[0]


def test_what_failed_in_a_watch_is_what_is_told() -> None:
    with (
        pytest.raises(Violation, match="stuck"),
        notifier.watch(Tracefs().guest()),
    ):
        raise Violation("progress", "munmap to return", "it is stuck")


@pytest.mark.parametrize(("cpus", "overrun", "lost"), [(2, 0, 0), (1, 7, 7), (3, 7, 21)])
def test_events_that_were_dropped_are_counted_on_every_cpu(
    cpus: int, overrun: int, lost: int
) -> None:
    assert watched(Tracefs(cpus=cpus, overrun=overrun)).lost == lost


def test_statistics_without_a_count_are_an_error_of_the_probe() -> None:
    tracefs = Tracefs()
    tracefs.files[f"{INSTANCE}/per_cpu/cpu1/stats"] = "entries: 2\ncommit overrun: 0\n"
    with pytest.raises(ProbeError, match=r"cpu1/stats on the host has no line about overruns"):
        watched(tracefs)


def test_a_kernel_without_the_tracepoint_cannot_be_asked() -> None:
    tracefs = Tracefs()
    del tracefs.files[EVENT]
    with pytest.raises(OracleUnavailable, match="no tracepoint kvm_unmap_hva_range"):
        watched(tracefs)


@pytest.mark.parametrize(
    "refused",
    [
        f"make_directory {INSTANCE}",
        f"write {EVENT}/filter",
        f"write {EVENT}/enable",
        f"write {INSTANCE}/trace",
        f"write {CHANGE}/filter",
        f"write {CHANGE}/enable",
    ],
)
def test_tracing_that_cannot_be_used_cannot_be_asked(refused: str) -> None:
    tracefs = Tracefs(changes=True)
    tracefs.refused[refused] = errno.EPERM
    with pytest.raises(OracleUnavailable, match="refused"):
        watched(tracefs)
