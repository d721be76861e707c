# SPDX-License-Identifier: GPL-2.0-only
"""Counts of kprobes on notifier sites, from a host that has the files of tracefs."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import CommandError, OracleUnavailable
from harness.guest.session import Session
from harness.oracle.callsites import CallSites
from harness.oracle.reach import Bucket, Reach, buckets, grown
from harness.probe.layout import HVA_FIRST, HVA_LAST
from harness.result.coverage import MODULES, Site

TEXT = 0xFFFF_FFFF_8100_0000
START = "__mmu_notifier_invalidate_range_start"
YOUNG = "__mmu_notifier_clear_flush_young"
RELEASE = "__mmu_notifier_release"
REGISTER = "mmu_notifier_register"
TRACING = "/sys/kernel/tracing"
INSTANCE = f"{TRACING}/instances/mmu-coverage"
EVENTS = f"{INSTANCE}/events/mmu_coverage"
DEFINITION = re.compile(r"p:mmu_coverage/(\w+) _text\+(\d+)( hva=\S+)?")

COW = Site(START, "wp_page_copy", "mm/memory.c", 3385, offsets=(0x200,))
TWICE = Site(START, "move_pages_huge_pmd", "mm/huge_memory.c", 2500, offsets=(0x300, 0x340))
AGE = Site(YOUNG, "folio_referenced_one", "mm/rmap.c", 899, offsets=(0x380,))
EXIT = Site(RELEASE, "exit_mmap", "mm/mmap.c", 1925, offsets=(0x3C0,))
INTERVAL = Site(REGISTER, "mmu_interval_notifier_insert", "mm/mmu_notifier.c", 984, (), (0x400,))
KVM = Site(REGISTER, MODULES)
ENTRIES = {START: 0x1000, YOUNG: 0x1040, RELEASE: 0x1080, REGISTER: 0x1100}
SITES = CallSites((COW, TWICE, AGE, EXIT, INTERVAL, KVM), ENTRIES, TEXT, 16)
EVERYWHERE = (0x200, 0x300, 0x340, 0x380, 0x3C0, 0x400, *ENTRIES.values())

GUEST, VMM = 45, 47


class Tracefs:
    """A session on a host whose kernel adds up what ``passed`` says: by offset and power."""

    def __init__(self, refused: tuple[int, ...] = (), lacks: tuple[str, ...] = ()) -> None:
        self.host = SimpleNamespace(facts=SimpleNamespace(pace=1.0), run=self.run)
        self.passed: dict[tuple[int, int], int] = {}
        self.base = TEXT
        self.missed = 0
        self.dropped = 0
        self.probes: list[tuple[str, int, str]] = []
        self.triggers: dict[str, str] = {}
        self.asked: list[str] = []
        self._refused = refused
        self._lacks = lacks

    def ask(self, op: str, path: str, text: str = "") -> Any:
        if path in self._lacks:
            if op == "exists":
                return False
            raise OSError(errno.ENOENT, "No such file or directory")
        if op == "write":
            assert path.startswith(f"{EVENTS}/"), "nothing else is written, and nothing truncated"
            event, _, file = path.removeprefix(f"{EVENTS}/").partition("/")
            assert file == "trigger"
            assert event in {event for event, _, _ in self.probes}
            self.triggers[event] = text
        return True

    def ask_all(self, *requests: tuple[str, dict[str, Any]]) -> list[str]:
        assert {op for op, _ in requests} == {"read"}
        return [self.read(**arguments) for _, arguments in requests]

    def run(self, argv: list[str], deadline: object, *, stdin: bytes) -> None:
        assert argv[0] == "dd"
        assert {"oflag=append", "conv=notrunc", "iflag=fullblock"} <= set(argv)
        assert f"of={TRACING}/kprobe_events" in argv
        for line in stdin.decode().splitlines():
            match = DEFINITION.fullmatch(line)
            assert match is not None
            event, offset, argument = match.groups()
            if int(offset) in self._refused:
                raise CommandError(argv, 1, "dd: error writing: Invalid argument")
            assert (event, int(offset)) not in {(have, at) for have, at, _ in self.probes}
            self.probes.append((event, int(offset), argument or ""))

    def read(self, path: str) -> str:
        self.asked.append(path)
        if path == f"{TRACING}/kprobe_events":
            lines = [f"p:mmu_coverage/{event} _text+{at}{more}" for event, at, more in self.probes]
            return "\n".join(["p:kprobes/theirs vfs_read", *lines, ""])
        if path == f"{TRACING}/kprobe_profile":
            lines = [f"  {event:<44} {9:15} {self.missed:15}" for event, _, _ in self.probes]
            return "\n".join([*lines, f"  {'theirs':<44} {9:15} {7:15}", ""])
        event = path.removeprefix(f"{EVENTS}/").removesuffix("/hist")
        if event not in self.triggers:
            raise OSError(errno.ENOENT, "No such file or directory")
        return "\n".join([*self.histogram(event), f"    Dropped: {self.dropped}", ""])

    def histogram(self, event: str) -> Iterator[str]:
        keyed = "hva" in self.triggers[event]
        yield "# event histogram"
        for (offset, power), count in self.passed.items():
            if any((event, offset) == (have, at) for have, at, _ in self.probes):
                start = f", hva: ~ 2^{power}" if keyed else ""
                yield f"{{ __probe_ip: {self.base + offset:x}{start} }} hitcount: {count:10}"


def reach(tracefs: Tracefs, sites: CallSites = SITES) -> Reach:
    return Reach(cast(Session, tracefs), sites)


def test_the_addresses_of_guests_have_a_power_of_two_to_themselves() -> None:
    # As the kernel's log2 does: rounded up.
    assert {(at - 1).bit_length() for at in (HVA_FIRST, HVA_LAST)} == {GUEST}


def test_each_site_has_the_counts_of_all_its_instructions() -> None:
    tracefs = Tracefs()
    watched = reach(tracefs)
    before = watched.read()
    assert grown(before.hits, {}) == {}
    tracefs.passed = {
        (0x200, GUEST): 3, (0x300, GUEST): 1, (0x340, GUEST): 2, (0x380, GUEST): 5,
    }  # fmt: skip
    now = watched.read()
    assert grown(now.hits, before.hits) == {COW: 3, TWICE: 3, AGE: 5}
    tracefs.passed[0x200, GUEST] = 4
    assert grown(watched.read().hits, now.hits) == {COW: 1}
    assert watched.unwatched == ()


def test_memory_of_the_vmm_that_is_no_guest_s_is_told_apart() -> None:
    tracefs = Tracefs()
    watched = reach(tracefs)
    tracefs.passed = {(0x200, VMM): 3, (0x380, GUEST): 1, (0x380, 23): 2, (0x3C0, 0): 1}
    now = watched.read()
    assert grown(now.hits, {}) == {AGE: 1, EXIT: 1}, "a whole mm is the guest's, too"
    assert grown(now.others, {}) == {COW: 3, AGE: 2}


def test_all_of_an_mm_is_the_guest_s_unless_the_mm_ends() -> None:
    refs = Site(START, "clear_refs_write", "fs/proc/task_mmu.c", 1612, offsets=(0x200,))
    unmap = Site(START, "unmap_vmas", "mm/memory.c", 1893, offsets=(0x240,))
    tracefs = Tracefs()
    watched = reach(tracefs, CallSites((refs, unmap), ENTRIES, TEXT, 16))
    tracefs.passed = {(0x200, 64): 1, (0x240, 64): 2}
    now = watched.read()
    assert grown(now.hits, {}) == {refs: 1}
    assert grown(now.others, {}) == {unmap: 2}


def test_what_no_site_in_vmlinux_explains_came_from_modules() -> None:
    tracefs = Tracefs()
    watched = reach(tracefs)
    tracefs.passed = {(0x1100, 0): 5, (0x400, 0): 2}
    now = watched.read()
    assert now.hits[KVM] == 3
    assert now.hits[INTERVAL] == 2
    assert now.unexplained == {}


def test_calls_from_nowhere_are_told() -> None:
    tracefs = Tracefs()
    watched = reach(tracefs)
    tracefs.passed = {(0x200, GUEST): 3, (0x200, VMM): 4, (0x1000, 0): 9}
    assert watched.read().unexplained == {START: 2}
    # One that was on its way between its site and the beginning is none.
    tracefs.passed[0x1000, 0] = 6
    assert watched.read().unexplained == {}


def test_the_beginnings_are_read_before_the_sites() -> None:
    tracefs = Tracefs()
    watched = reach(tracefs)
    tracefs.asked.clear()
    watched.read()
    assert tracefs.asked[0] == f"{EVENTS}/mmu_coverage_entry/hist"
    assert len(tracefs.asked) == 5


def test_a_beginning_with_an_endbr_is_known() -> None:
    tracefs = Tracefs()
    watched = reach(tracefs, CallSites((KVM,), {REGISTER: 0x1100}, TEXT, 16))
    tracefs.passed = {(0x1100, 0): 1}
    tracefs.base = TEXT + 4
    assert watched.read().hits[KVM] == 1


def test_each_kind_of_notifier_has_its_address_where_it_stands() -> None:
    tracefs = Tracefs()
    reach(tracefs)
    arguments = {offset: argument for _, offset, argument in tracefs.probes}
    assert arguments[0x200] == arguments[0x340] == " hva=+16(%di):x64"
    assert arguments[0x380] == " hva=%si:x64"
    assert {arguments[0x3C0], arguments[0x400], arguments[0x1000]} == {""}
    with_address = {event for event, text in tracefs.triggers.items() if "hva.log2" in text}
    assert with_address == {"mmu_coverage_range", "mmu_coverage_page"}


def test_a_site_that_cannot_be_probed_is_named_and_the_others_are_watched() -> None:
    tracefs = Tracefs(refused=(0x340, 0x200))
    watched = reach(tracefs)
    assert watched.unwatched == (COW, TWICE)
    tracefs.passed = {(0x300, GUEST): 4, (0x400, 0): 1, (0x1000, 0): 9, (0x1100, 0): 1}
    now = watched.read()
    assert grown(now.hits, {}) == {TWICE: 4, INTERVAL: 1}
    assert now.unexplained == {}, "the site that is not watched may explain them"


@pytest.mark.parametrize("lacks", [f"{TRACING}/kprobe_events", INSTANCE])
def test_a_kernel_without_kprobe_events_cannot_be_asked(lacks: str) -> None:
    with pytest.raises(OracleUnavailable, match="kprobe"):
        reach(Tracefs(lacks=(lacks,)))


def test_a_kernel_without_histograms_cannot_be_asked() -> None:
    with pytest.raises(OracleUnavailable, match="kprobe"):
        reach(Tracefs(lacks=(f"{EVENTS}/mmu_coverage_entry/trigger",)))


def test_a_kernel_that_refuses_all_probes_cannot_be_asked() -> None:
    with pytest.raises(OracleUnavailable, match="Invalid argument"):
        reach(Tracefs(refused=EVERYWHERE))


def test_a_kernel_that_is_elsewhere_cannot_be_asked() -> None:
    for place in ((0x1000, 0), (0x200, GUEST)):
        tracefs = Tracefs()
        watched = reach(tracefs)
        tracefs.passed = {place: 1}
        tracefs.base += 0x20_0000
        with pytest.raises(OracleUnavailable, match="not where its vmlinux says"):
            watched.read()


def test_probes_that_somebody_removed_are_missed() -> None:
    tracefs = Tracefs()
    watched = reach(tracefs)
    tracefs.triggers.clear()
    with pytest.raises(OSError, match="No such file"):
        watched.read()


def test_what_the_kernel_could_not_count_is_told() -> None:
    tracefs = Tracefs()
    watched = reach(tracefs)
    assert watched.read().lost == 0
    tracefs.missed, tracefs.dropped = 2, 3
    assert watched.read().lost == 2 * len(EVERYWHERE) + 3 * 4, "not those of the other's probe"


# Histograms of a host with 6.12.117, one guest of which was forked, protected and swapped out.


@pytest.mark.parametrize("event", ["range", "page", "plain"])
def test_a_histogram_is_read_as_the_kernel_prints_it(event: str) -> None:
    text = (Path(__file__).parent / "recorded" / f"{event}.hist").read_text()
    found = list(buckets(text))
    said = dict(re.findall(r"^    (\w+): (\d+)$", text, re.MULTILINE))
    assert len(found) == int(said["Entries"]) > 1
    assert sum(bucket.count for bucket in found) == int(said["Hits"])
    assert all(bucket.address >> 32 == TEXT >> 32 for bucket in found)
    if event == "plain":
        assert {bucket.power for bucket in found} == {None}
        return
    # Guests, the heap and the libraries of their VMM, and all of an mm.
    powers = {bucket.power for bucket in found}
    assert powers > {GUEST, VMM}
    if event == "range":
        assert 64 in powers


def test_each_line_of_a_histogram_is_a_bucket() -> None:
    line = "{ __probe_ip: ffffffff81000300, hva: ~ 2^7  } hitcount:     127827\n"
    assert list(buckets(line)) == [Bucket(TEXT + 0x300, 7, 127827)]
    plain = "{ __probe_ip: ffffffff81000200 } hitcount:          3\n"
    assert list(buckets(plain)) == [Bucket(TEXT + 0x200, None, 3)]
