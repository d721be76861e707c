# SPDX-License-Identifier: GPL-2.0-only
"""Counts of kprobes on notifier sites, from a host that has the files of tracefs."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import CommandError, OracleUnavailable
from harness.guest.session import Session
from harness.oracle.callsites import CallSites
from harness.oracle.reach import Reach, Reading
from harness.result.coverage import MODULES, Site

RECORDED = Path(__file__).with_name("kprobe_profile.txt")

START = "__mmu_notifier_invalidate_range_start"
REGISTER = "mmu_notifier_register"
TRACING = "/sys/kernel/tracing"
DEFINITION = re.compile(r"p:(\w+)/(\w+) _text\+(\d+)")

COW = Site(START, "wp_page_copy", "mm/memory.c", 3385, offsets=(0x200,))
TWICE = Site(START, "move_pages_huge_pmd", "mm/huge_memory.c", 2500, offsets=(0x300, 0x340))
INTERVAL = Site(REGISTER, "mmu_interval_notifier_insert", "mm/mmu_notifier.c", 984, (), (0x400,))
KVM = Site(REGISTER, MODULES)
SITES = CallSites((COW, TWICE, INTERVAL, KVM), {START: 0x1000, REGISTER: 0x1100})


class Tracefs:
    """A session on a host whose kernel counts what ``passed`` (by offset) since it was told."""

    def __init__(self, refused: tuple[int, ...] = (), lacks: tuple[str, ...] = ()) -> None:
        self.host = SimpleNamespace(facts=SimpleNamespace(pace=1.0), run=self.run)
        self.passed: dict[int, int] = {}
        self.missed = 0
        self.enabled = False
        self.written: list[tuple[str, str]] = []
        self._refused = refused
        self._lacks = lacks
        self._probes: dict[str, tuple[str, int]] = {"theirs": ("kprobes", 7)}

    def ask(self, op: str, path: str, text: str = "") -> Any:
        if path in self._lacks:
            if op == "exists":
                return False
            raise OSError(errno.ENOENT, "No such file or directory")
        if op == "write":
            assert path != f"{TRACING}/kprobe_events", "that would truncate it"
            self.written.append((path, text))
            if path.endswith("/enable"):
                self.enabled = True
        return True

    def run(self, argv: list[str], deadline: object, *, stdin: bytes) -> None:
        assert argv[0] == "dd"
        assert {"oflag=append", "conv=notrunc", "iflag=fullblock"} <= set(argv)
        assert f"of={TRACING}/kprobe_events" in argv
        for line in stdin.decode().splitlines():
            match = DEFINITION.fullmatch(line)
            assert match is not None
            group, name, offset = match.groups()
            if int(offset) in self._refused:
                raise CommandError(argv, 1, "dd: error writing: Invalid argument")
            assert name not in self._probes
            self._probes[name] = (group, int(offset))

    def read(self, path: str) -> str:
        if path == f"{TRACING}/kprobe_events":
            return "".join(
                f"p:{group}/{name} _text+{offset}\n"
                for name, (group, offset) in self._probes.items()
            )
        assert path == f"{TRACING}/kprobe_profile"
        return "".join(
            f"  {name:<44} {self.passed.get(offset, 0) * self.enabled:15} {self.missed:15}\n"
            for name, (_, offset) in self._probes.items()
        )

    def forget(self) -> None:
        """As when somebody truncates the file."""
        self._probes.clear()


def reach(tracefs: Tracefs, sites: CallSites = SITES) -> Reach:
    return Reach(cast(Session, tracefs), sites)


def test_each_site_has_the_counts_of_all_its_instructions() -> None:
    tracefs = Tracefs()
    watched = reach(tracefs)
    before = watched.read()
    assert before.hits == dict.fromkeys(SITES.sites, 0)
    tracefs.passed = {0x200: 3, 0x300: 1, 0x340: 2, 0x1000: 6}
    now = watched.read()
    assert now.since(before) == {COW: 3, TWICE: 3}
    assert now.unexplained == {}
    tracefs.passed = {0x200: 4, 0x300: 1, 0x340: 2, 0x1000: 7}
    assert watched.read().since(now) == {COW: 1}
    assert watched.unwatched == ()


def test_what_no_site_in_vmlinux_explains_came_from_modules() -> None:
    tracefs = Tracefs()
    watched = reach(tracefs)
    tracefs.passed = {0x1100: 5, 0x400: 2}
    now = watched.read()
    assert now.hits[KVM] == 3
    assert now.hits[INTERVAL] == 2
    assert now.unexplained == {}


def test_calls_from_nowhere_are_told() -> None:
    tracefs = Tracefs()
    watched = reach(tracefs)
    tracefs.passed = {0x200: 3, 0x1000: 5}
    assert watched.read().unexplained == {START: 2}
    # One that was on its way between its site and the beginning is none.
    tracefs.passed = {0x200: 4, 0x1000: 3}
    assert watched.read().unexplained == {}


def test_the_probes_record_nothing_and_leave_others_alone() -> None:
    tracefs = Tracefs()
    reach(tracefs)
    instance = f"{TRACING}/instances/mmu-coverage"
    assert tracefs.written == [
        (f"{instance}/tracing_on", "0"),
        (f"{instance}/events/mmu_coverage/enable", "1"),
    ]
    assert "p:kprobes/theirs" in tracefs.read(f"{TRACING}/kprobe_events")


def test_the_beginnings_come_before_the_sites() -> None:
    tracefs = Tracefs()
    reach(tracefs)
    lines = tracefs.read(f"{TRACING}/kprobe_events").splitlines()[1:]
    assert [int(line.partition("+")[2]) for line in lines] == [
        *(0x1000, 0x1100, 0x200, 0x300, 0x340, 0x400)
    ]


def test_a_site_that_cannot_be_probed_is_named_and_the_others_are_watched() -> None:
    tracefs = Tracefs(refused=(0x340, 0x200))
    watched = reach(tracefs)
    assert watched.unwatched == (COW, TWICE)
    tracefs.passed = {0x300: 4, 0x400: 1, 0x1000: 9, 0x1100: 1}
    now = watched.read()
    assert now.since(Reading({})) == {TWICE: 4, INTERVAL: 1}
    assert now.unexplained == {}, "the site that is not watched may explain them"


@pytest.mark.parametrize("lacks", [f"{TRACING}/kprobe_events", f"{TRACING}/instances/mmu-coverage"])
def test_a_kernel_without_kprobe_events_cannot_be_asked(lacks: str) -> None:
    with pytest.raises(OracleUnavailable, match="kprobe"):
        reach(Tracefs(lacks=(lacks,)))


def test_a_kernel_that_refuses_all_probes_cannot_be_asked() -> None:
    everywhere = (0x200, 0x300, 0x340, 0x400, 0x1000, 0x1100)
    with pytest.raises(OracleUnavailable, match="Invalid argument"):
        reach(Tracefs(refused=everywhere))


def test_probes_that_somebody_removed_are_missed() -> None:
    tracefs = Tracefs()
    watched = reach(tracefs)
    tracefs.forget()
    with pytest.raises(OracleUnavailable, match="6 of the 6 kprobes on notifier sites are gone"):
        watched.read()


def test_missed_hits_are_counted() -> None:
    tracefs = Tracefs()
    watched = reach(tracefs)
    tracefs.missed = 2
    assert watched.read().missed == 6 * 2, "not those of the other's probe"
