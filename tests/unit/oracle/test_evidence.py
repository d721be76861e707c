# SPDX-License-Identifier: GPL-2.0-only
"""Each claim about the kernel, once where it holds and once where it is broken."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.errors import HostLostError, KernelSplat, OracleUnavailable, ProbeError, Violation
from harness.guest.observation import Residency, View, Visit
from harness.machine.mmu import Mmu
from harness.oracle import evidence as module
from harness.oracle import outside
from harness.oracle.evidence import Evidence
from harness.oracle.invalidations import Unended
from harness.oracle.notifier import Watch
from harness.oracle.pagetables import PrimaryMap
from harness.oracle.sptes import Sptes
from harness.oracle.structpage import PageStates
from harness.probe.layout import control_pages
from harness.result.outcome import OracleReport, OracleStatus

PAGES = 1024
PAGE = 4096
FIRST_PFN = 0x1000


class Clock:
    """Stands for the module ``time`` in harness.deadline: it moves when somebody waits."""

    def __init__(self) -> None:
        self.now = 50.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeHost:
    """A host whose memory can be looked at while it stands still."""

    def __init__(self) -> None:
        self.facts: Any = SimpleNamespace(pace=1.0, mmu=Mmu.TDP)
        self.nonce = "n0nce"
        self.log: Any = None
        self.directory = Path()
        self.stopped = 0
        self.unavailable = ""
        self.problem: Exception | None = None

    def pausing_inside(self, still: object) -> contextlib.AbstractContextManager[None]:
        raise NotImplementedError

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.stopped += 1
        yield
        self.stopped -= 1

    def debugger(self) -> Any:
        if self.unavailable:
            raise OracleUnavailable(self.unavailable)
        return "a program"

    def check(self) -> None:
        if self.problem:
            raise self.problem

    def run(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    channel = put = write_physical = background = through = dump = run


class FakeGuest:
    """A guest about which everything is known."""

    def __init__(self) -> None:
        self.pages, self.pid, self.vm_fd, self.hva, self.gpa = PAGES, 70, 9, 0x7000, 1 << 30
        self.views = [View(self.vm_fd, self.gpa)]
        self.backing = "anon"
        self.drained = 0
        self.cgroup = "/sys/fs/cgroup/guest0"
        self.cgroup_files = {"cgroup.kill"}
        self.session = SimpleNamespace(cpus=2, ask=self._ask)
        self.counters: dict[str, int] | None = {"pages_4k": PAGES, "pages_2m": 0, "pages_1g": 0}
        self.memory = [
            {"anon": 0, "swapcached": 0, "memory.current": 0, "memory.swap.current": PAGES * PAGE}
        ]

    def _ask(self, op: str, path: str = "") -> bool | None:
        if op == "exists":
            directory, _, name = path.rpartition("/")
            assert directory == self.cgroup
            return name in self.cgroup_files
        assert op == "drain_lru"
        self.drained += 1
        return None

    def statistics(self) -> dict[str, dict[str, int]]:
        if self.counters is None:
            raise OSError(25, "Inappropriate ioctl for device")
        return {"vm": self.counters}

    def memory_statistics(self) -> dict[str, int]:
        return self.memory.pop(0) if len(self.memory) > 1 else self.memory[0]


class Kernel:
    """What the memory of the host says, look by look; the last is repeated."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host
        self.refcounts: list[dict[int, int]] = [{}]
        self.primary: list[dict[int, tuple[int, int]]] = [{}]
        self.sptes: list[dict[int, tuple[int, bool]]] = [{}]
        self.level = 1
        self.large: list[range] = []
        self.invalidations: list[tuple[Unended, ...]] = [()]
        self.asked_machines: list[int] = []
        self.notifiers = [1]
        self.holders = [1]

    @staticmethod
    def _next(looks: list[Any]) -> Any:
        return looks.pop(0) if len(looks) > 1 else looks[0]

    def primary_map(self, program: object, pid: int, hva: int, pages: int) -> PrimaryMap:
        """Every page mapped writable, but for what ``primary`` says: frame and flags."""
        assert self._host.stopped, "a running host's memory is no picture"
        assert (program, pid, hva) == ("a program", 70, 0x7000)
        pfn = np.arange(FIRST_PFN, FIRST_PFN + pages, dtype=np.uint64)
        flags = np.full(pages, 3, np.uint64)
        for page, (frame, bits) in self._next(self.primary).items():
            pfn[page], flags[page] = frame, bits
        large = np.zeros(pages, np.bool_)
        for stretch in self.large:
            large[stretch.start : stretch.stop] = True
        return PrimaryMap(pfn << np.uint64(12) | flags, pfn, large)

    def page_states(self, program: object, pfns: Any) -> PageStates:
        """Every frame with one reference, but for what ``refcounts`` says of pages."""
        assert self._host.stopped
        counts = np.ones(len(pfns), np.int64)
        for page, count in self._next(self.refcounts).items():
            counts[np.flatnonzero(pfns == FIRST_PFN + page)] = count
        none = np.zeros(len(pfns), np.bool_)
        once = np.ones(len(pfns), np.int64)
        return PageStates(
            pfn=pfns,
            head=pfns,
            if_cached=once,
            refcount=counts,
            mapcount=once,
            anon=~none,
            swap_cache=none,
            page_cache=none,
            private=none,
            device=none,
            reserved=none,
        )

    def read_sptes(self, program: object, pid: int, vm_fd: int, gpa: int, pages: int) -> Sptes:
        """No spte, but for what ``sptes`` says: frame and whether it is writable."""
        assert self._host.stopped
        assert (pid, pages) == (70, PAGES)
        assert vm_fd in (9, 12)
        if gpa != 1 << 30:
            assert gpa == 3 << 30
            return self._sptes({7: (0xBAD, False)})
        return self._sptes(self._next(self.sptes))

    def _sptes(self, leaves: dict[int, tuple[int, bool]]) -> Sptes:
        return Sptes(
            np.array(list(leaves), np.int64),
            np.array([pfn for pfn, _ in leaves.values()], np.uint64),
            np.array([writable for _, writable in leaves.values()], np.bool_),
            np.full(len(leaves), self.level, np.int64),
        )

    def unended(self, program: object, pid: int, vm_fd: int) -> tuple[Unended, ...]:
        """What a VM waits for, look by look."""
        self.asked_machines.append(vm_fd)
        assert self._host.stopped
        assert (program, pid) == ("a program", 70)
        found: tuple[Unended, ...] = self._next(self.invalidations)
        return found

    def subscriptions(self, program: object, pid: int) -> int:
        """How many notifiers there are, look by look."""
        return self._looked(self.notifiers, program, pid)

    def mm_references(self, program: object, pid: int) -> int:
        """How many hold the VMM's mm, look by look."""
        return self._looked(self.holders, program, pid)

    def _looked(self, looks: list[int], program: object, pid: int) -> int:
        assert self._host.stopped
        assert (program, pid) == ("a program", 70)
        return int(self._next(looks))


@dataclasses.dataclass
class PageKinds:
    """What became of frames that lost their mapping."""

    refcount: int = 0
    mapcount: int = 0
    anon: bool = True
    swap_cache: bool = False
    pages: int = 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("harness.deadline.time", clock)
    return clock


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def guest() -> Any:
    return FakeGuest()


@pytest.fixture
def kernel(host: FakeHost, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(host)
    for name in ("page_states", "read_sptes", "subscriptions", "mm_references"):
        monkeypatch.setattr(module, name, getattr(kernel, name))
    for name in ("primary_map", "page_states", "read_sptes", "unended"):
        monkeypatch.setattr(outside, name, getattr(kernel, name))
    return kernel


@pytest.fixture
def evidence(host: FakeHost) -> Evidence:
    return Evidence(host)


def agrees(evidence: Evidence, oracle: str) -> OracleReport:
    """The only report, of an oracle that agrees."""
    (report,) = evidence.reports
    assert (report.name, report.status) == (oracle, OracleStatus.AGREES)
    return report


def not_consulted(evidence: Evidence, oracle: str, why: str) -> None:
    (report,) = evidence.reports
    assert (report.name, report.status) == (oracle, OracleStatus.NOT_CONSULTED)
    assert why in report.seen


def violated(
    evidence: Evidence, oracle: str, claim: Callable[[], object], page: int | None = None
) -> Violation:
    """The violation that a claim raises, which is recorded in the same words."""
    with pytest.raises(Violation) as caught:
        claim()
    violation = caught.value
    assert (violation.oracle, violation.page) == (oracle, page)
    (report,) = [report for report in evidence.reports if report.name == oracle]
    assert report.status is OracleStatus.VIOLATED
    assert (report.expected, report.seen) == (violation.expected, violation.seen)
    assert violation.expected
    assert violation.seen
    return violation


# References.


def test_pages_with_their_references_are_in_order(
    evidence: Evidence, guest: Any, kernel: Kernel, host: FakeHost
) -> None:
    evidence.no_extra_references(guest)
    assert agrees(evidence, "references").seen == f"{PAGES} pages looked at"
    assert host.stopped == 0
    assert guest.drained == 0, "there is nothing to wait for"


def test_a_leaked_reference_is_a_violation(evidence: Evidence, guest: Any, kernel: Kernel) -> None:
    kernel.refcounts = [{7: 2, 900: 2}]
    seen = violated(evidence, "references", lambda: evidence.no_extra_references(guest), 7).seen
    assert "page 7 (pfn 0x1007): 2 references instead of 1, mapcount 1" in seen
    assert "page 900" in seen


def test_a_lost_reference_is_a_violation(evidence: Evidence, guest: Any, kernel: Kernel) -> None:
    kernel.refcounts = [{7: 0}]
    violated(evidence, "references", lambda: evidence.no_extra_references(guest), 7)


def test_a_reference_that_goes_away_is_none(evidence: Evidence, guest: Any, kernel: Kernel) -> None:
    kernel.refcounts = [{7: 2, 8: 2}, {8: 2}, {}]
    evidence.no_extra_references(guest)
    agrees(evidence, "references")
    assert guest.drained == 2, "LRU batches are drained before each further look"


def test_pages_that_are_not_mapped_have_no_references_to_count(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    kernel.refcounts = [{7: 5}]
    kernel.primary = [{7: (FIRST_PFN + 7, 0)}]
    evidence.no_extra_references(guest)


def test_a_message_names_a_few_pages_and_the_record_has_more(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    kernel.refcounts = [dict.fromkeys(range(0, 1000, 10), 2)]
    seen = violated(evidence, "references", lambda: evidence.no_extra_references(guest), 0).seen
    assert seen.count("references instead of") == 4
    assert seen.endswith("and 96 more")
    detail: Any = evidence.reports[0].detail
    assert detail["count"] == 100
    assert len(detail["wrong"]) == 64


# Translations.


def test_sptes_that_agree_are_in_order(evidence: Evidence, guest: Any, kernel: Kernel) -> None:
    kernel.sptes = [{page: (FIRST_PFN + page, True) for page in range(PAGES)}]
    evidence.no_stale_translations(guest)
    agrees(evidence, "translations")


def test_a_stale_spte_is_a_violation(evidence: Evidence, guest: Any, kernel: Kernel) -> None:
    kernel.sptes = [{5: (FIRST_PFN + 5, True), 6: (0xBAD, False)}]
    seen = violated(evidence, "translations", lambda: evidence.no_stale_translations(guest), 6).seen
    assert "an spte maps pfn 0xbad" in seen


def test_every_view_of_the_memory_is_looked_at(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    kernel.sptes = [{5: (FIRST_PFN + 5, True)}]
    guest.views = [*guest.views, View(9, 3 << 30, 3 << 30)]
    seen = violated(evidence, "translations", lambda: evidence.no_stale_translations(guest), 7).seen
    assert "an spte maps pfn 0xbad" in seen


def test_an_spte_larger_than_the_page_is_a_violation(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    kernel.level = 2
    kernel.sptes = [{page: (FIRST_PFN + page, True) for page in range(PAGES)}]
    kernel.large = [range(512)]
    seen = violated(
        evidence, "translations", lambda: evidence.no_stale_translations(guest), 512
    ).seen
    assert "page 512" in seen
    assert "by a small page while the spte is large" in seen
    kernel.large = [range(PAGES)]
    evidence.no_stale_translations(guest)


def test_an_spte_that_is_about_to_be_dropped_is_none(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    kernel.sptes = [{6: (0xBAD, False)}, {}]
    evidence.no_stale_translations(guest)
    agrees(evidence, "translations")


def test_sound_is_all_that_is_seen_from_outside(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    evidence.sound(guest)
    names = [report.name for report in evidence.reports]
    assert names == ["references", "translations", "invalidations"]


@pytest.mark.parametrize(
    ("broken", "page"), [("references", 1), ("translations", 1), ("invalidations", None)]
)
def test_what_is_not_sound_is_told_apart(
    evidence: Evidence, guest: Any, kernel: Kernel, broken: str, page: int | None
) -> None:
    if broken == "references":
        kernel.refcounts = [{1: 2}]
    elif broken == "translations":
        kernel.sptes = [{1: (0xBAD, True)}]
    else:
        kernel.invalidations = [(Unended("mmu_invalidate_in_progress", 1),)]
    violated(evidence, broken, lambda: evidence.sound(guest), page)


def test_an_invalidation_under_way_is_given_time(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    one = Unended("mmu_invalidate_in_progress", 1)
    kernel.invalidations = [(one,), (dataclasses.replace(one, count=2),), ()]
    evidence.sound(guest)
    assert {report.status for report in evidence.reports} == {OracleStatus.AGREES}


def test_each_vm_is_asked_once_for_its_invalidations(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    guest.views = [View(9, 1 << 30), View(9, 1 << 30, 5 << 30), View(12, 1 << 30)]
    kernel.asked_machines = []
    evidence.sound(guest)
    assert kernel.asked_machines == [9, 12]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("oracle", ["references", "translations"])
def test_a_host_that_cannot_be_read_is_not_consulted(
    evidence: Evidence, guest: Any, host: FakeHost, oracle: str
) -> None:
    host.unavailable = "There is no vmlinux."
    if oracle == "references":
        evidence.no_extra_references(guest)
    else:
        evidence.no_stale_translations(guest)
    not_consulted(evidence, oracle, "There is no vmlinux.")


def test_a_kernel_that_is_built_otherwise_is_not_consulted(
    evidence: Evidence, guest: Any, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: object) -> None:
        raise OracleUnavailable("KVM's page tables look different in this kernel.")

    monkeypatch.setattr(outside, "read_sptes", other)
    evidence.no_stale_translations(guest)
    not_consulted(evidence, "translations", "look different")


def test_what_was_said_is_not_taken_back(
    evidence: Evidence, guest: Any, kernel: Kernel, host: FakeHost
) -> None:
    evidence.no_extra_references(guest)
    host.unavailable = "It went away."
    evidence.no_extra_references(guest)
    agrees(evidence, "references")


def test_an_oracle_counts_how_often_it_was_asked(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    for _ in range(3):
        evidence.no_extra_references(guest)
    assert agrees(evidence, "references").detail["asked"] == 3


# Frames.


def returned(
    evidence: Evidence, guest: Any, monkeypatch: pytest.MonkeyPatch, looks: list[PageKinds]
) -> Callable[[], None]:
    """The claim about one frame that is seen in turn as ``looks`` say; the last is repeated."""

    def page_states(program: object, pfns: Any) -> PageStates:
        assert pfns.tolist() == [0x55]
        kind = looks.pop(0) if len(looks) > 1 else looks[0]

        def one(value: object, dtype: Any = np.bool_) -> Any:
            return np.array([value], dtype)

        return PageStates(
            pfn=pfns,
            head=pfns,
            if_cached=one(kind.pages, np.int64),
            refcount=one(kind.refcount, np.int64),
            mapcount=one(kind.mapcount, np.int64),
            anon=one(kind.anon),
            swap_cache=one(kind.swap_cache),
            page_cache=one(False),
            private=one(False),
            device=one(False),
            reserved=one(False),
        )

    monkeypatch.setattr(module, "page_states", page_states)
    return lambda: evidence.frames_returned(guest, (0x55,))


def test_frames_are_those_that_are_mapped(evidence: Evidence, guest: Any, kernel: Kernel) -> None:
    kernel.primary = [{3: (0x99, 3), 4: (0x98, 0)}]
    assert evidence.frames(guest, 2, 4) == (FIRST_PFN + 2, 0x99, FIRST_PFN + 5)
    assert len(evidence.frames(guest)) == PAGES - 1
    assert evidence.reports == ()


def test_frames_that_cannot_be_known_are_not_consulted(
    evidence: Evidence, guest: Any, kernel: Kernel, host: FakeHost
) -> None:
    host.unavailable = "There is no vmlinux."
    frames = evidence.frames(guest)
    assert frames == ()
    evidence.frames_returned(guest, frames)
    not_consulted(evidence, "frames", "no vmlinux")


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    "kind",
    [
        PageKinds(),
        PageKinds(refcount=1, mapcount=1),
        PageKinds(refcount=1, anon=False),
        PageKinds(refcount=1, swap_cache=True),
        PageKinds(refcount=3, mapcount=3, pages=512),
    ],
    ids=["free", "mapped anew", "of the kernel", "in the swap cache", "part of a mapped folio"],
)
def test_a_frame_that_is_free_or_in_use_was_given_back(
    evidence: Evidence, guest: Any, monkeypatch: pytest.MonkeyPatch, kind: PageKinds
) -> None:
    returned(evidence, guest, monkeypatch, [kind])()
    agrees(evidence, "frames")


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("pages", [1, 512])
def test_a_frame_that_only_a_reference_holds_was_leaked(
    evidence: Evidence, guest: Any, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    claim = returned(evidence, guest, monkeypatch, [PageKinds(refcount=1, pages=pages)])
    assert violated(evidence, "frames", claim).seen == "pfn 0x55"


@pytest.mark.usefixtures("kernel")
def test_a_frame_that_is_freed_a_moment_later_was_given_back(
    evidence: Evidence, guest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    returned(evidence, guest, monkeypatch, [PageKinds(refcount=1), PageKinds()])()
    agrees(evidence, "frames")
    assert guest.drained == 2


@pytest.mark.usefixtures("kernel")
def test_frames_that_are_counted_otherwise_are_not_consulted(
    evidence: Evidence, guest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: object) -> PageStates:
        raise OracleUnavailable("The mappings of large pages are counted otherwise.")

    monkeypatch.setattr(module, "page_states", other)
    evidence.frames_returned(guest, (0x55,))
    not_consulted(evidence, "frames", "counted otherwise")


# Spte counters.


OTHERS = control_pages(PAGES)


def test_counters_are_in_small_pages(evidence: Evidence, guest: Any) -> None:
    guest.counters = {"pages_4k": 3, "pages_2m": 2, "pages_1g": 1}
    claim = partial(evidence.sptes_dropped, guest)
    assert violated(evidence, "spte counters", claim).seen == str(3 + 2 * 512 + 512 * 512)


@pytest.mark.parametrize("counters", [None, {"lpages": 2}])
def test_a_kernel_without_counters_is_not_consulted(
    evidence: Evidence, guest: Any, counters: dict[str, int] | None
) -> None:
    guest.counters = counters
    evidence.sptes_dropped(guest)
    not_consulted(evidence, "spte counters", "")


@pytest.mark.parametrize(
    ("first", "pages", "left", "good"),
    [
        (0, None, 0, True),
        (0, None, OTHERS, True),
        (0, None, OTHERS + 1, False),
        (0, None, PAGES, False),
        (512, 512, PAGES - 512, True),
        (512, 512, PAGES - 512 + OTHERS, True),
        (512, 512, PAGES - 512 + OTHERS + 1, False),
    ],
)
def test_the_sptes_of_a_range_are_dropped(
    evidence: Evidence, guest: Any, first: int, pages: int | None, left: int, *, good: bool
) -> None:
    guest.counters = {"pages_4k": left, "pages_2m": 0, "pages_1g": 0}
    claim = partial(evidence.sptes_dropped, guest, first, pages)
    if good:
        claim()
        assert agrees(evidence, "spte counters").seen == f"{left} mapped"
    else:
        assert violated(evidence, "spte counters", claim).seen == f"{left}"


def test_nothing_is_claimed_of_a_range_smaller_than_the_payload(
    evidence: Evidence, guest: Any
) -> None:
    guest.counters = {"pages_4k": PAGES + OTHERS, "pages_2m": 0, "pages_1g": 0}
    evidence.sptes_dropped(guest, 5, OTHERS)
    assert evidence.reports == ()


@pytest.mark.parametrize(("most", "good"), [(7, False), (8, True), (9, True)])
def test_counters_of_a_vm_that_somebody_else_holds_are_judged_alike(
    evidence: Evidence, most: int, *, good: bool
) -> None:
    claim = partial(
        evidence.mapped_at_most, {"pages_4k": 8, "pages_2m": 0, "pages_1g": 0, "other": 99}, most
    )
    if good:
        claim()
        assert agrees(evidence, "spte counters").expected == f"at most {most} pages mapped by sptes"
    else:
        assert violated(evidence, "spte counters", claim).seen == "8"


def test_counters_without_sizes_are_not_consulted(evidence: Evidence) -> None:
    evidence.mapped_at_most({"lpages": 2}, 0)
    not_consulted(evidence, "spte counters", "pages_4k")


# Sizes of pages and sptes.


def test_sptes_of_a_size_map_the_range(evidence: Evidence, guest: Any, kernel: Kernel) -> None:
    kernel.level = 2
    kernel.sptes = [{page: (FIRST_PFN + page, True) for page in range(PAGES)}]
    evidence.mapped_by_sptes(guest, 2)
    expected = f"pages 0 to {PAGES - 1} mapped by sptes of 2 MiB"
    assert agrees(evidence, "spte size").expected == expected


@pytest.mark.parametrize("level", [1, 3])
def test_sptes_of_another_size_are_a_violation(
    evidence: Evidence, guest: Any, kernel: Kernel, level: int
) -> None:
    kernel.level = 2
    kernel.sptes = [{page: (FIRST_PFN + page, True) for page in range(PAGES)}]
    claim = partial(evidence.mapped_by_sptes, guest, level, 512, 10)
    broken = violated(evidence, "spte size", claim, 512)
    assert broken.seen == "10 pages are not, the first is 512"
    size = {1: "4 KiB", 3: "1 GiB"}[level]
    assert broken.expected == f"pages 512 to 521 mapped by sptes of {size}"


def test_a_page_that_no_spte_maps_is_a_violation_only_inside_the_range(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    kernel.sptes = [{page: (FIRST_PFN + page, True) for page in range(PAGES) if page != 600}]
    evidence.mapped_by_sptes(guest, 1, 0, 600)
    evidence.mapped_by_sptes(guest, 1, 601)
    agrees(evidence, "spte size")
    for first, pages in ((0, 601), (600, 1), (600, None)):
        claim = partial(evidence.mapped_by_sptes, guest, 1, first, pages)
        assert violated(evidence, "spte size", claim, 600).seen.startswith("1 pages are not")


def test_large_pages_of_the_primary_mmu_are_a_precondition(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    kernel.large = [range(512)]
    evidence.mapped_large(guest, 0, 512)
    assert agrees(evidence, "page size").seen == "512 pages"
    # The kernel owes nobody a large page, so this is no violation.
    with pytest.raises(ProbeError, match=r"page 512 \(512 of 1024 pages are small\)"):
        evidence.mapped_large(guest)
    with pytest.raises(ProbeError, match=r"page 512 \(1 of 2 pages are small\)"):
        evidence.mapped_large(guest, 511, 2)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("oracle", ["spte size", "page size", "registration", "mm references"])
def test_what_cannot_be_read_from_outside_is_not_consulted(
    evidence: Evidence, guest: Any, host: FakeHost, oracle: str
) -> None:
    host.unavailable = "There is no vmlinux."
    ran = False
    if oracle == "spte size":
        evidence.mapped_by_sptes(guest, 2)
    elif oracle == "page size":
        evidence.mapped_large(guest)
    elif oracle == "registration":
        evidence.registered(guest, 1)
    else:
        with evidence.mm_not_held(guest):
            ran = True
        assert ran, "the operation is done all the same"
    not_consulted(evidence, oracle, "There is no vmlinux.")


# Registration.


def test_a_notifier_for_each_vm_is_in_order(evidence: Evidence, guest: Any, kernel: Kernel) -> None:
    kernel.notifiers = [3]
    evidence.registered(guest, 3)
    assert agrees(evidence, "registration").expected == "3 notifiers on the VMM's memory"


@pytest.mark.parametrize("seen", [0, 2])
def test_a_notifier_too_few_or_too_many_is_a_violation(
    evidence: Evidence, guest: Any, kernel: Kernel, seen: int
) -> None:
    kernel.notifiers = [seen]
    claim = violated(evidence, "registration", lambda: evidence.registered(guest, 1))
    assert claim.seen == str(seen)


def test_a_notifier_that_goes_a_moment_later_is_in_order(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    kernel.notifiers = [9, 4, 1]
    evidence.registered(guest, 1)
    agrees(evidence, "registration")


def test_a_list_of_notifiers_that_looks_different_is_not_consulted(
    evidence: Evidence, guest: Any, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: object) -> int:
        raise OracleUnavailable("The list of notifiers looks different in this kernel.")

    monkeypatch.setattr(module, "subscriptions", other)
    evidence.registered(guest, 1)
    not_consulted(evidence, "registration", "looks different")


@pytest.mark.parametrize("holders", [[5, 5], [5, 3], [5, 9, 6, 5]])
def test_an_mm_that_is_held_as_before_is_in_order(
    evidence: Evidence, guest: Any, kernel: Kernel, holders: list[int]
) -> None:
    kernel.holders = holders
    with evidence.mm_not_held(guest):
        assert evidence.reports == ()
    assert agrees(evidence, "mm references").expected == "at most 7 on the VMM's mm"


def test_an_mm_that_stays_held_is_a_violation(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    kernel.holders = [5, 8]

    def claim() -> None:
        with evidence.mm_not_held(guest):
            pass

    assert violated(evidence, "mm references", claim).seen == "8"


def test_what_fails_while_the_mm_is_watched_is_what_is_told(
    evidence: Evidence, guest: Any, kernel: Kernel
) -> None:
    kernel.holders = [5, 8]
    with pytest.raises(ZeroDivisionError), evidence.mm_not_held(guest):
        raise ZeroDivisionError
    assert evidence.reports == ()


# Reclaim.


def residency(
    *, present: Sequence[int] = (), resident: Sequence[int] = (), unswapped: Sequence[int] = ()
) -> Residency:
    """Everything swapped out, but for what is named."""

    def marks(pages: Sequence[int]) -> Any:
        found = np.zeros(PAGES, np.bool_)
        found[list(pages)] = True
        return found

    return Residency(
        present=marks(present),
        swapped=~marks([*present, *unswapped]),
        resident=marks([*present, *resident]),
        soft_dirty=marks([]),
    )


@pytest.mark.usefixtures("clock")
def test_memory_that_is_swapped_out_is(evidence: Evidence, guest: Any) -> None:
    evidence.swapped_out(guest, residency())
    reports = evidence.reports
    assert [report.name for report in reports] == ["reclaim", "memory controller"]
    assert {report.status for report in reports} == {OracleStatus.AGREES}


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("where", "page", "said"),
    [
        (residency(present=[9, 10]), 9, f"only {PAGES - 2} of {PAGES} pages are in swap"),
        (residency(unswapped=[9]), 9, f"only {PAGES - 1} of {PAGES}"),
        (residency(resident=[4, 5]), 4, "2 pages are in swap and stay in memory: 4, 5"),
    ],
)
def test_memory_that_stays_is_a_violation(
    evidence: Evidence, guest: Any, where: Residency, page: int, said: str
) -> None:
    claim = violated(evidence, "reclaim", lambda: evidence.swapped_out(guest, where), page)
    assert said in claim.seen


@pytest.mark.usefixtures("clock")
def test_hot_pages_may_stay_and_others_may_not(evidence: Evidence, guest: Any) -> None:
    hot = range(100, 110)
    evidence.swapped_out(guest, residency(present=list(hot)), hot)
    evidence.swapped_out(guest, residency(), hot)
    claim = evidence.swapped_out
    violated(evidence, "reclaim", lambda: claim(guest, residency(present=[100, 110]), hot), 110)
    violated(evidence, "reclaim", lambda: claim(guest, residency(resident=[99, 100]), hot), 99)


# The VMM has some memory of its own in that cgroup.
ALLOWED = module._VMM_SLACK_BYTES
TOO_MUCH = ALLOWED + 1


def test_what_the_vmm_may_have_is_less_than_its_guest() -> None:
    assert ALLOWED <= 2048 * PAGE // 2, "or the memory controller's word would be worth nothing"


@pytest.mark.usefixtures("clock")
def test_the_memory_controller_allows_the_vmm_its_own(evidence: Evidence, guest: Any) -> None:
    guest.memory = [{**guest.memory[0], "anon": ALLOWED, "swapcached": ALLOWED}]
    evidence.swapped_out(guest, residency())
    hot = range(10)
    guest.memory = [{**guest.memory[0], "anon": ALLOWED + len(hot) * PAGE}]
    evidence.swapped_out(guest, residency(), hot)
    violated(evidence, "memory controller", lambda: evidence.swapped_out(guest, residency()))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"anon": TOO_MUCH}, f"anon {TOO_MUCH}"),
        ({"swapcached": TOO_MUCH}, f"swapcached {TOO_MUCH}"),
        ({"memory.swap.current": PAGES * PAGE - 1}, f"memory.swap.current {PAGES * PAGE - 1}"),
    ],
)
def test_the_memory_controller_must_say_the_same(
    evidence: Evidence, guest: Any, counts: dict[str, int], said: str
) -> None:
    guest.memory = [{**guest.memory[0], **counts}]
    claim = violated(
        evidence, "memory controller", lambda: evidence.swapped_out(guest, residency())
    )
    assert claim.seen == said


@pytest.mark.usefixtures("clock")
def test_the_memory_controller_may_lag(evidence: Evidence, guest: Any) -> None:
    good = guest.memory[0]
    guest.memory = [{**good, "anon": 9 << 20}, {**good, "swapcached": 9 << 20}, good]
    evidence.swapped_out(guest, residency())


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("backing", "where", "least"),
    [
        ("memfd", "swap", PAGES * PAGE),
        ("file-shared", "its file", 0),
        ("file-private", "swap", PAGES * PAGE),
        ("ksm", "swap", 0),
    ],
)
def test_where_memory_goes_depends_on_what_it_is(
    evidence: Evidence, guest: Any, backing: str, where: str, least: int
) -> None:
    guest.backing = backing
    guest.memory = [{**guest.memory[0], "memory.swap.current": least}]
    # The ptes of shared memory say nothing of where it went.
    shared = backing in ("memfd", "file-shared")
    evidence.swapped_out(guest, residency(unswapped=range(PAGES) if shared else ()))
    reclaim, controller = evidence.reports
    assert reclaim.expected == f"all {PAGES} cold pages in {where} and none of them in memory"
    assert reclaim.seen == f"{PAGES} in {where}"
    assert f"swap at least {least} bytes" in controller.expected
    if least:
        guest.memory = [{**guest.memory[0], "memory.swap.current": least - 1}]
        claim = partial(evidence.swapped_out, guest, residency())
        violated(evidence, "memory controller", claim)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("backing", ["anon", "thp", "file-private", "ksm"])
def test_private_memory_without_a_swap_entry_is_nowhere(
    evidence: Evidence, guest: Any, backing: str
) -> None:
    guest.backing = backing
    claim = partial(evidence.swapped_out, guest, residency(unswapped=[9]))
    assert "only" in violated(evidence, "reclaim", claim, 9).seen


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("backing", ["memfd", "file-shared"])
@pytest.mark.parametrize("where", ["present", "resident"])
def test_shared_memory_that_stays_is_a_violation(
    evidence: Evidence, guest: Any, backing: str, where: str
) -> None:
    guest.backing = backing
    stays = residency(present=[7]) if where == "present" else residency(resident=[7])
    violated(evidence, "reclaim", lambda: evidence.swapped_out(guest, stays), 7)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("backing", "counter", "good"),
    [
        ("anon", "shmem", False),
        ("memfd", "shmem", False),
        ("file-shared", "file", False),
        # Its file is in the page cache, and may stay there.
        ("file-private", "file", True),
        ("anon", "file", True),
        ("ksm", "anon", False),
    ],
)
def test_the_memory_controller_is_asked_about_this_kind_of_memory(
    evidence: Evidence, guest: Any, backing: str, counter: str, *, good: bool
) -> None:
    guest.backing = backing
    guest.memory = [{**guest.memory[0], counter: TOO_MUCH}]
    claim = partial(evidence.swapped_out, guest, residency())
    if good:
        claim()
    else:
        assert violated(evidence, "memory controller", claim).seen == f"{counter} {TOO_MUCH}"


def back(*, swapped: Sequence[int] = (), away: Sequence[int] = ()) -> Residency:
    """Everything mapped, but for what is swapped, and what is in no memory."""

    def marks(pages: Sequence[int]) -> Any:
        found = np.zeros(PAGES, np.bool_)
        found[list(pages)] = True
        return found

    return Residency(~marks([*swapped, *away]), marks(swapped), ~marks(away), marks([]))


def test_memory_that_came_back_is_in_order(evidence: Evidence, guest: Any) -> None:
    evidence.back_in_memory(guest, back())
    agrees(evidence, "reclaim")


@pytest.mark.parametrize(
    ("where", "page", "count"),
    [
        (back(swapped=[9]), 9, 1),
        (back(away=[4, 5]), 4, 2),
        (back(swapped=[9], away=[8]), 8, 2),
        (back(swapped=[9], away=[9]), 9, 1),
    ],
)
def test_memory_that_did_not_come_back_is_a_violation(
    evidence: Evidence, guest: Any, where: Residency, page: int, count: int
) -> None:
    claim = partial(evidence.back_in_memory, guest, where)
    seen = violated(evidence, "reclaim", claim, page).seen
    assert seen == f"{count} pages are not, the first is {page}"


DEAD = {"anon": 0, "shmem": 0, "swapcached": 0, "pagetables": 0, "memory.swap.current": 0}


@pytest.mark.usefixtures("clock")
def test_a_dead_guest_is_charged_for_nothing(evidence: Evidence, guest: Any) -> None:
    guest.memory = [{**DEAD, "anon": 4096}, {**DEAD, "memory.swap.current": 2 * 64 * PAGE}]
    evidence.memory_given_back(guest)
    agrees(evidence, "memory controller")


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("name", "charge"),
    [
        ("anon", PAGE), ("shmem", PAGE), ("swapcached", PAGE), ("pagetables", PAGE),
        ("sec_pagetables", PAGE), ("memory.swap.current", (2 * 64 + 1) * PAGE),
    ],
)  # fmt: skip
def test_memory_of_a_dead_guest_is_a_violation(
    evidence: Evidence, guest: Any, name: str, charge: int
) -> None:
    guest.memory = [{**DEAD, name: charge}]
    claim = violated(evidence, "memory controller", lambda: evidence.memory_given_back(guest))
    assert claim.seen == f"{name} {charge}"


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("name", ["anon", "inactive_anon", "pagetables"])
@pytest.mark.parametrize("pages", [64, 65])
def test_statistics_that_cpus_keep_to_themselves_are_not_exact(
    evidence: Evidence, guest: Any, name: str, pages: int
) -> None:
    guest.cgroup_files = set()
    guest.memory = [{**DEAD, name: pages * PAGE}]
    if pages == 64:
        evidence.memory_given_back(guest)
        agrees(evidence, "memory controller")
    else:
        claim = violated(evidence, "memory controller", lambda: evidence.memory_given_back(guest))
        assert claim.seen == f"{name} {pages * PAGE}"


# What is seen.


def visit(end: str = "done", **fields: Any) -> Visit:
    names = [field.name for field in dataclasses.fields(Visit)]
    values: dict[str, Any] = {**dict.fromkeys(names, 0), "how": "", "words": (), **fields}
    return Visit(**{**values, "end": end})


def test_content_that_is_as_written_is_in_order(evidence: Evidence) -> None:
    evidence.content(visit(done=12))
    assert [report.name for report in evidence.reports] == ["access", "content"]
    assert evidence.reports[1].seen == "12 page visits without a wrong word"


def test_a_wrong_word_is_a_violation(evidence: Evidence) -> None:
    wrong = visit(bad=3, bad_page=0, bad_word=66, bad_expected=0xAB, bad_seen=0xCD)
    seen = violated(evidence, "content", lambda: evidence.content(wrong), 0).seen
    assert seen == "3 wrong words, the first is word 66 with 0xcd instead of 0xab"


@pytest.mark.parametrize("end", ["refused", "kicked", "crashed"])
def test_a_guest_that_does_not_get_through_is_a_violation(evidence: Evidence, end: str) -> None:
    stuck = visit(end, how="EFAULT", current=6)
    for claim in (lambda: evidence.content(stuck), lambda: evidence.done("writing", stuck)):
        assert violated(evidence, "access", claim, 6).seen == f"{end} (EFAULT) at page 6"
    assert "content" not in {report.name for report in evidence.reports}


def test_a_guest_that_gets_through_is_in_order(evidence: Evidence) -> None:
    evidence.done("writing", visit(done=3, current=2))
    report = agrees(evidence, "access")
    assert (report.expected, report.seen) == ("the guest to get through writing", "3 pages visited")


@pytest.mark.parametrize(("seen", "good"), [(9, False), (10, True), (11, True)])
def test_a_bound_is_reached_or_not(evidence: Evidence, seen: int, *, good: bool) -> None:
    def claim() -> None:
        evidence.at_least("reclaim", "bytes swapped out", 10, seen)

    if good:
        claim()
        assert agrees(evidence, "reclaim").expected == "at least 10 bytes swapped out"
    else:
        assert violated(evidence, "reclaim", claim).seen == "9"


@pytest.mark.parametrize(("seen", "good"), [(9, True), (10, True), (11, False)])
def test_an_upper_bound_is_kept_or_not(evidence: Evidence, seen: int, *, good: bool) -> None:
    def claim() -> None:
        evidence.at_most("TLB flushes", "for 5 pages", 10, seen)

    if good:
        claim()
        assert agrees(evidence, "TLB flushes").expected == "at most 10 for 5 pages"
    else:
        assert violated(evidence, "TLB flushes", claim).seen == "11"


def test_words_are_equal(evidence: Evidence) -> None:
    evidence.equal("the same", [1, 2], [1, 2])
    assert agrees(evidence, "content").seen == "2 words as expected"


def test_words_that_differ_are_named_with_their_pages(evidence: Evidence) -> None:
    claim = violated(
        evidence, "content", lambda: evidence.equal("the same", [1, 2, 3], [1, 0xB, 0xC], 40), 41
    )
    assert claim.seen == "page 41: 0xb instead of 0x2; page 42: 0xc instead of 0x3"
    assert claim.expected == "the same"


@pytest.mark.parametrize("seen", [[], [1], [1, 2, 3]])
def test_words_that_are_missing_are_no_agreement(evidence: Evidence, seen: list[int]) -> None:
    # As when a guest was refused the read.
    with pytest.raises((ValueError, Violation)):
        evidence.equal("the same", [1, 2], seen)
    assert not [report for report in evidence.reports if report.status is OracleStatus.AGREES]


def test_an_access_that_is_refused_is(evidence: Evidence) -> None:
    evidence.refused("a write", visit("refused", how="EFAULT", current=9), 9)
    assert agrees(evidence, "access").seen == "EFAULT"


@pytest.mark.parametrize(
    ("went", "said"),
    [
        (visit(words=(0x2E,)), "the access went through, and read 0x2e"),
        (visit(), "the access went through"),
        (visit("refused", current=3), "page 3 was refused already"),
    ],
)
def test_an_access_that_goes_through_is_a_violation(
    evidence: Evidence, went: Visit, said: str
) -> None:
    claim = violated(evidence, "access", lambda: evidence.refused("a write", went, 9), 9)
    assert claim.seen == said
    assert claim.expected == "a write to be refused"


# Notifier calls.


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What the notifiers were seen to be told."""
    seen = Watch(PAGES)
    monkeypatch.setattr("harness.oracle.notifier.watch", lambda _: contextlib.nullcontext(seen))
    return seen


def test_calls_that_cover_the_range_are_in_order(
    evidence: Evidence, guest: Any, watch: Watch
) -> None:
    watch.ranges = ((10, 12), (12, 20))
    with evidence.told(guest, 10, 10):
        assert evidence.reports == ()
    report = agrees(evidence, "notifier")
    assert report.seen == "2 calls"
    assert report.expected == "invalidate_range_start for pages 10 to 19"


def test_a_page_of_which_nobody_was_told_is_a_violation(
    evidence: Evidence, guest: Any, watch: Watch
) -> None:
    watch.ranges = ((0, 500), (502, PAGES))

    def claim() -> None:
        with evidence.told(guest):
            pass

    assert violated(evidence, "notifier", claim, 500).seen == "2 pages were not, the first is 500"


def test_calls_outside_the_range_do_not_matter(
    evidence: Evidence, guest: Any, watch: Watch
) -> None:
    watch.ranges = ((0, 10), (20, PAGES))

    def claim() -> None:
        with evidence.told(guest, 9, 2):
            pass

    assert violated(evidence, "notifier", claim, 10).seen == "1 pages were not, the first is 10"


def test_a_trace_that_lost_events_proves_no_absence(
    evidence: Evidence, guest: Any, watch: Watch
) -> None:
    watch.lost = 17
    with evidence.told(guest):
        pass
    not_consulted(evidence, "notifier", "the trace buffer dropped 17 events")


def test_a_trace_that_lost_events_may_still_show_all(
    evidence: Evidence, guest: Any, watch: Watch
) -> None:
    watch.lost = 17
    watch.ranges = ((0, PAGES),)
    with evidence.told(guest):
        pass
    agrees(evidence, "notifier")


def test_a_kernel_without_the_tracepoint_is_not_consulted(
    evidence: Evidence, guest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def none(_: object) -> Iterator[Watch]:
        raise OracleUnavailable("There is no tracepoint.")
        yield

    monkeypatch.setattr("harness.oracle.notifier.watch", none)
    ran = False
    with evidence.told(guest):
        ran = True
    assert ran, "the operation is done all the same"
    not_consulted(evidence, "notifier", "no tracepoint")


def test_what_fails_while_watched_is_what_is_told(
    evidence: Evidence, guest: Any, watch: Watch
) -> None:
    with pytest.raises(ZeroDivisionError), evidence.told(guest):
        raise ZeroDivisionError
    assert evidence.reports == ()


# The kernel's log.


def test_a_clean_log_agrees(evidence: Evidence) -> None:
    evidence.log_is_clean()
    agrees(evidence, "kernel log")


def test_a_complaint_of_the_kernel_is_a_violation(evidence: Evidence, host: FakeHost) -> None:
    host.problem = KernelSplat("lockdep", "WARNING: possible circular locking dependency")
    claim = violated(evidence, "kernel log", evidence.log_is_clean)
    assert isinstance(claim, KernelSplat)
    assert "possible circular" in claim.seen


def test_a_host_that_is_lost_says_nothing_about_its_log(evidence: Evidence, host: FakeHost) -> None:
    host.problem = HostLostError("The connection is gone.")
    with pytest.raises(HostLostError):
        evidence.log_is_clean()
    assert evidence.reports == ()
