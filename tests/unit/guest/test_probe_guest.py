# SPDX-License-Identifier: GPL-2.0-only
"""L0's handle of a guest on a fake agent: what becomes of refusals, crashes, stalls and deaths."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_session import FakeClock, Request, session_with

from harness.errors import DeadlineError, OracleUnavailable, ProbeError, Violation
from harness.guest import hammer
from harness.guest.observation import View, Visit, unpack
from harness.guest.probe import ProbeGuest, probe_guest
from harness.guest.session import GuestLost, Session
from harness.guest.user import HeldDevice
from harness.machine.mmu import Mmu
from harness.probe import layout
from harness.probe.backing import BACKINGS
from harness.probe.memory import pack

PAGES = 8
FACTS = {
    "pid": 70, "vm_fd": 9, "statistics_fd": 10, "hva": 0x7F0000000000, "gpa": 1 << 30,
    "pages": PAGES, "vcpus": 2, "path": "/var/tmp/mmu-guest1",
}  # fmt: skip
REPORT = {field: 0 for field, *_ in layout.Mailbox._fields_} | {"refusals": 0}
PRESENT, SWAPPED, SOFT_DIRTY = 1 << 63, 1 << 62, 1 << 55


class Scripted:
    """An agent that answers each op with what was put there: a value, or a function of it."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: dict[str, Any] = {
            "order": None,
            "report": {**REPORT, "end": "done"},
            "progress": {**REPORT},
            "kick": None,
            "stop": None,
        }

    def __call__(self, request: Request) -> Any:
        self.requests.append(request)
        answer = self.answers.get(request["op"])
        if callable(answer):
            answer = answer(request)
        return answer if isinstance(answer, Raw) else {"ok": answer}

    def of(self, op: str) -> list[Request]:
        return [request for request in self.requests if request["op"] == op]

    @property
    def orders(self) -> list[dict[str, int]]:
        return [request["orders"] for request in self.of("order")]


class Raw(dict[str, Any]):
    """An answer as it stands on the wire."""


def failed(number: int) -> Raw:
    """A system call that failed on the host."""
    return Raw(error={"kind": "OSError", "errno": number, "text": os.strerror(number)})


def died(status: int, said: str = "") -> Raw:
    return Raw(died={"status": status, "said": said})


@pytest.fixture
def agent() -> Scripted:
    return Scripted()


@pytest.fixture
def guest(agent: Scripted) -> ProbeGuest:
    session, _ = session_with(agent)
    return ProbeGuest(session, "guest1", FACTS, "/sys/fs/cgroup/mmu-guest1")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr("harness.deadline.time", clock)
    return clock


# Operations.


def test_an_operation_is_an_order_and_a_report(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["report"] = {**REPORT, "end": "done", "done": 3, "rounds": 1, "bad": 2}
    visit = guest.check(seed=5, first=2, pages=3, step=32, view=View(9, 1 << 30, vcpu=1))
    assert (visit.end, visit.done, visit.rounds, visit.bad) == ("done", 3, 1, 2)
    assert not visit.refused
    (request,) = agent.of("order")
    assert (request["guest"], request["vcpu"]) == ("guest1", 1)
    assert request["orders"] == {
        "op": layout.OP_CHECK, "first": 2, "pages": 3, "seed": 5, "step": 32,
    }  # fmt: skip
    assert agent.of("report")[0]["vcpu"] == 1


def test_an_operation_through_a_view_is_for_its_vcpu_and_its_memslot(
    agent: Scripted, guest: ProbeGuest
) -> None:
    agent.answers |= {
        "list": [1],
        "open_view": {"vm_fd": 9, "gpa": 3 << 30, "address": 3 << 30, "vcpu": 2},
    }
    view = guest.open_view("alias")
    assert view == View(9, 3 << 30, 3 << 30, vcpu=2)
    assert guest.views == (View(9, 1 << 30), view)
    guest.read(view=view)
    guest.write(7, view=view)
    guest.check(3, view=view)
    assert [orders["address"] for orders in agent.orders] == [3 << 30] * 3
    for op in ("order", "report", "list"):
        assert {request["vcpu"] for request in agent.of(op)} == {2}


def test_a_view_that_is_the_usual_one_is_looked_at_once(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["open_view"] = {"vm_fd": 9, "gpa": 1 << 30, "address": 1 << 30, "vcpu": 0}
    guest.open_view("pieces")
    assert guest.views == (View(9, 1 << 30),)


def test_each_operation_has_its_number_and_its_words(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["list"] = [1, 2]
    guest.fill(seed=9)
    guest.write(7, first=1, pages=2, word=3)
    assert guest.read(first=1, pages=2, word=3).words == (1, 2)
    fill, write, read = agent.orders
    assert fill == {"op": layout.OP_FILL, "first": 0, "pages": PAGES, "seed": 9, "step": 64}
    assert write == {"op": layout.OP_WRITE, "first": 1, "pages": 2, "word": 3, "seed": 7}
    assert read == {"op": layout.OP_READ, "first": 1, "pages": 2, "word": 3}
    assert agent.of("list")[0]["count"] == 2


def test_an_order_without_a_range_is_for_all_that_follows(
    agent: Scripted, guest: ProbeGuest
) -> None:
    guest.check(seed=1, first=3)
    assert (agent.orders[0]["first"], agent.orders[0]["pages"]) == (3, PAGES - 3)


@pytest.mark.parametrize(
    ("first", "pages"), [(-1, 1), (0, 0), (0, -1), (0, PAGES + 1), (PAGES, 1), (PAGES, None)]
)
def test_pages_out_of_range_are_the_tests_mistake(
    agent: Scripted, guest: ProbeGuest, first: int, pages: int | None
) -> None:
    for act in (guest.fill, guest.check):
        with pytest.raises(ProbeError, match=f"not within the guest's {PAGES}"):
            act(1, first, pages)
    with (
        pytest.raises(ProbeError, match=f"not within the guest's {PAGES}"),
        guest.hammering(0, first, pages),
    ):
        pytest.fail("it hammers")
    assert not agent.requests, "nothing of it may reach the guest"


def test_a_refused_access_is_a_result(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["report"] = {**REPORT, "end": "refused", "how": "EFAULT", "current": 4}
    visit = guest.read(first=4)
    assert visit.refused
    assert (visit.how, visit.current, visit.words) == ("EFAULT", 4, ())
    assert not agent.of("list"), "what stands in the list is from another time"


def test_a_crash_of_the_guest_is_a_violation(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["report"] = {
        **REPORT, "end": "crashed", "how": "KVM_EXIT_SHUTDOWN", "current": 6, "done": 2,
    }  # fmt: skip
    with pytest.raises(Violation, match=r"KVM_EXIT_SHUTDOWN.*after 2 page visits") as caught:
        guest.fill(seed=1)
    assert (caught.value.oracle, caught.value.page) == ("guest execution", 6)


@pytest.mark.parametrize("leaves", [True, False])
def test_a_vcpu_that_does_not_end_is_a_violation_and_is_kicked(
    agent: Scripted, guest: ProbeGuest, *, leaves: bool
) -> None:
    reports = [None, {**REPORT, "end": "kicked"} if leaves else None]
    agent.answers["report"] = lambda _: reports.pop(0)
    agent.answers["progress"] = {**REPORT, "done": 12, "current": 5}
    with pytest.raises(Violation) as caught:
        guest.fill(seed=1)
    assert (caught.value.oracle, caught.value.page) == ("progress", 5)
    assert "12 page visits" in caught.value.seen
    how = "it left the kernel when kicked" if leaves else "it cannot be kicked out"
    assert how in caught.value.seen
    assert [request["op"] for request in agent.requests][-2:] == ["kick", "report"]


def test_patience_grows_with_the_pace_and_the_size(agent: Scripted) -> None:
    session, _ = session_with(agent, pace=3.0)
    small = ProbeGuest(session, "guest1", FACTS, "")
    small.fill(seed=1)
    large = ProbeGuest(session, "guest2", {**FACTS, "pages": 4 * 16384}, "")
    large.fill(seed=1)
    assert [request["seconds"] for request in agent.of("report")] == [90.0, 360.0]
    assert (small.pace, small.bytes) == (3.0, PAGES * 4096)


# A VMM that is gone.


@pytest.mark.parametrize("signum", [signal.SIGBUS, signal.SIGSEGV])
@pytest.mark.parametrize("op", ["munmap", "report"])
def test_a_vmm_that_the_kernel_killed_is_a_violation(
    agent: Scripted, guest: ProbeGuest, signum: int, op: str
) -> None:
    agent.answers[op] = died(signum | 0x80)  # with a core dump
    with pytest.raises(Violation, match=f"killed by signal {int(signum)}") as caught:
        guest.munmap() if op == "munmap" else guest.fill(seed=1)
    assert caught.value.oracle == "VMM"
    assert isinstance(caught.value.__cause__, GuestLost)


def memory_events(agent: Scripted, kills: int) -> None:
    events = f"low 0\nhigh 0\nmax 12\noom 3\noom_kill {kills}\noom_group_kill 0\n"
    agent.answers["read"] = lambda request: events if "memory.events" in request["path"] else ""


def test_a_vmm_that_was_killed_because_nothing_could_be_reclaimed_is_a_violation(
    agent: Scripted, guest: ProbeGuest
) -> None:
    memory_events(agent, kills=1)
    agent.answers["report"] = died(signal.SIGKILL)
    with pytest.raises(Violation, match="killed the VMM") as caught:
        guest.fill(seed=1)
    assert caught.value.oracle == "reclaim"


@pytest.mark.parametrize(
    "gone",
    [
        died(signal.SIGKILL),
        died(0),
        died(1 << 8),
        died(1 << 8, '{"failed": "MemoryError"}'),
        died(signal.SIGBUS, "last words"),
    ],
)
def test_a_vmm_that_ended_otherwise_is_no_verdict_on_the_kernel(
    agent: Scripted, guest: ProbeGuest, gone: Raw
) -> None:
    memory_events(agent, kills=0)
    agent.answers["munmap"] = gone
    with pytest.raises(ProbeError, match="ended during munmap") as caught:
        guest.munmap()
    assert (gone["died"]["said"] or "it said nothing") in str(caught.value)


def test_killing_a_vmm_returns_its_status(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["kill"] = 9
    assert guest.kill(signal.SIGKILL) == 9
    assert agent.requests == [{"op": "kill", "name": "guest1", "signum": 9}]


# Hammers.


def hammer_progress(*values: dict[str, int]) -> Callable[[Request], dict[str, int]]:
    left = list(values)
    return lambda _: {**REPORT, **(left.pop(0) if len(left) > 1 else left[0])}


def test_a_hammer_runs_while_its_context_is_open(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["report"] = {**REPORT, "end": "done", "done": 44}
    with guest.hammering(vcpu=1, first=2, pages=3, patient=True) as hammer:
        (order,) = agent.orders
        assert order == {
            "op": layout.OP_HAMMER, "first": 2, "pages": 3, "word": 1, "seed": 1, "patient": 1,
            "homeless": 0,
        }  # fmt: skip
        assert not agent.of("stop")
    assert agent.of("stop")[0]["vcpu"] == 1
    assert hammer.stop().done == 44
    assert len(agent.of("stop")) == 1, "it stops once, and remembers what it saw"


def test_a_hammer_that_only_reads_has_no_seed(agent: Scripted, guest: ProbeGuest) -> None:
    with guest.hammering(writing=False):
        pass
    assert (agent.orders[0]["seed"], agent.orders[0]["patient"]) == (0, 0)


def test_a_hammer_through_the_alias_goes_on_where_there_is_no_memslot(
    agent: Scripted, guest: ProbeGuest
) -> None:
    with guest.hammering(alias=True, writing=False):
        pass
    (order,) = agent.orders
    assert (order["address"], order["homeless"]) == (layout.ALIAS_GPA, 1)


def test_an_unattended_hammer_writes_to_everything(agent: Scripted, guest: ProbeGuest) -> None:
    guest.hammer_unattended(1)
    assert agent.orders == [
        {"op": layout.OP_HAMMER, "first": 0, "pages": PAGES, "word": 1, "seed": 1}
    ]


@pytest.mark.usefixtures("clock")
def test_visits_are_awaited_from_where_it_is(agent: Scripted, guest: ProbeGuest) -> None:
    counts = [{"done": count} for count in (100, 105, 109, 110, 999)]
    agent.answers["progress"] = hammer_progress(*counts)
    with guest.hammering() as hammer:
        hammer.await_visits(10)
    assert len(agent.of("progress")) == 4


def test_a_hammer_that_stands_still_is_a_violation(
    agent: Scripted, guest: ProbeGuest, clock: FakeClock
) -> None:
    agent.answers["progress"] = {**REPORT, "done": 100, "current": 3}
    start = clock.now
    with guest.hammering() as hammer, pytest.raises(Violation) as caught:
        hammer.await_visits(10)
    assert (caught.value.oracle, caught.value.page) == ("progress", 3)
    assert "10 more pages within 30 s" in caught.value.expected
    assert "100 page visits in all" in caught.value.seen
    assert 30 <= clock.now - start <= 32


@pytest.mark.usefixtures("clock")
def test_a_refusal_is_awaited_anew(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["progress"] = hammer_progress({"refusals": 7}, {"refusals": 7}, {"refusals": 8})
    with guest.hammering(patient=True) as hammer:
        hammer.await_refusal()
    assert len(agent.of("progress")) == 3


@pytest.mark.usefixtures("clock")
def test_a_refusal_that_never_comes_is_a_violation(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["progress"] = {**REPORT, "refusals": 7, "done": 5}
    with guest.hammering(patient=True) as hammer, pytest.raises(Violation, match="to be refused"):
        hammer.await_refusal()


def test_what_failed_matters_more_than_what_a_kick_says(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["kick"] = died(signal.SIGBUS)
    with pytest.raises(ZeroDivisionError), guest.hammering():
        raise ZeroDivisionError
    assert agent.of("kick")
    assert not agent.of("report"), "nobody waits for it"


# Memory.


@pytest.mark.parametrize(
    ("act", "op", "arguments"),
    [
        (lambda g: g.madvise("dontneed", 1, 2), "madvise", {"advice": "dontneed"}),
        (lambda g: g.mprotect("read", 1, 2), "mprotect", {"protection": "read"}),
        (lambda g: g.munmap(1, 2), "munmap", {}),
        (lambda g: g.remap(1, 2), "remap", {}),
        (lambda g: g.replace(1, 2), "replace", {}),
        (lambda g: g.host_write(5, 1, 2, word=3), "poke", {"word": 3, "value": 5}),
        (lambda g: g.move_back(0x5000, 1, 2), "move_back", {"source": 0x5000}),
        (lambda g: g.remap_file_pages(1, 2, 6), "remap_file_pages", {"source": 6}),
        (lambda g: g.punch(1, 2), "punch", {}),
        (lambda g: g.allocate(1, 2), "allocate", {}),
        (lambda g: g.msync(1, 2), "msync", {}),
    ],
)
def test_the_memory_is_changed_by_its_vmm(
    agent: Scripted,
    guest: ProbeGuest,
    act: Callable[[ProbeGuest], None],
    op: str,
    arguments: dict[str, object],
) -> None:
    act(guest)
    assert asked(agent) == [{"op": op, "first": 1, "pages": 2, **arguments}]


def asked(agent: Scripted) -> list[Request]:
    """What was asked of the VMM, without how it is delivered."""
    return [
        {key: value for key, value in request.items() if key not in ("guest", "within")}
        for request in agent.requests
    ]


@pytest.mark.parametrize(
    ("act", "request_"),
    [
        (lambda g: g.truncate(3), {"op": "truncate", "pages": 3}),
        (lambda g: g.fsync(), {"op": "fsync"}),
        (lambda g: g.resize(8, 4), {"op": "resize", "old": 8, "new": 4}),
        (lambda g: g.punch(), {"op": "punch", "first": 0, "pages": PAGES}),
        (lambda g: g.msync(3), {"op": "msync", "first": 3, "pages": PAGES - 3}),
    ],
)
def test_what_is_done_to_a_file_or_to_the_whole(
    agent: Scripted,
    guest: ProbeGuest,
    act: Callable[[ProbeGuest], None],
    request_: dict[str, object],
) -> None:
    act(guest)
    assert asked(agent) == [request_]


def test_what_stands_on_the_disk_is_read_by_the_vmm(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["stored"] = [4, 5]
    assert guest.stored(1, 2, word=3) == [4, 5]
    assert asked(agent) == [{"op": "stored", "first": 1, "pages": 2, "word": 3}]


# What the kernel may lack.


def test_memory_moves_to_where_the_vmm_says(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["move"] = 0x7000
    assert guest.move_away(1, 2) == 0x7000
    assert guest.move_away(leaving=True) == 0x7000
    assert asked(agent) == [
        {"op": "move", "first": 1, "pages": 2, "leaving": False},
        {"op": "move", "first": 0, "pages": PAGES, "leaving": True},
    ]


def test_the_memslot_follows_memory_that_was_moved(agent: Scripted, guest: ProbeGuest) -> None:
    guest.follow(0x7000)
    assert guest.hva == 0x7000
    assert asked(agent) == [{"op": "follow", "address": 0x7000}]


def _protected(guest: ProbeGuest) -> None:
    with guest.write_protected():
        pass


LACKING: dict[str, tuple[Callable[[ProbeGuest], object], str]] = {
    "move": (lambda g: g.move_away(leaving=True), "no MREMAP_DONTUNMAP"),
    "protect_by_userfault": (_protected, "no userfaultfd write protection"),
    "move_by_userfault": (lambda g: g.move_by_userfault(0, 1), "no UFFDIO_MOVE"),
    "write": (lambda g: g.split_large_pages(), "split_huge_pages"),
    "advise": (lambda g: g.advised_by_another("cold"), "no process_madvise"),
    "madvise": (lambda g: g.collapse(), "no MADV_COLLAPSE"),
}


@pytest.mark.parametrize("op", LACKING)
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
def test_what_the_kernel_does_not_know_is_lacking(
    agent: Scripted, guest: ProbeGuest, op: str, number: int
) -> None:
    act, said = LACKING[op]
    agent.answers[op] = failed(number)
    if op == "madvise":  # the first advice is an old one
        agent.answers[op] = lambda request: failed(number) if request["advice"] == "collapse" else 0
    with pytest.raises(OracleUnavailable, match=said):
        act(guest)


@pytest.mark.parametrize("op", LACKING)
def test_what_the_kernel_refuses_is_not_lacking(
    agent: Scripted, guest: ProbeGuest, op: str
) -> None:
    agent.answers[op] = failed(errno.EPERM)
    with pytest.raises(PermissionError):
        LACKING[op][0](guest)


def test_an_ordinary_move_is_lacking_in_no_kernel(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["move"] = failed(errno.EINVAL)
    with pytest.raises(OSError, match="Invalid argument"):
        guest.move_away()


# Large pages.


def collapsing(agent: Scripted, *ends: int) -> None:
    """Have each MADV_COLLAPSE end with an errno, or 0 for success; the last is repeated."""
    left = list(ends)

    def madvise(request: Request) -> Any:
        if request["advice"] != "collapse":
            return None
        number = left.pop(0) if len(left) > 1 else left[0]
        return failed(number) if number else None

    agent.answers["madvise"] = madvise


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("again", [errno.EAGAIN, errno.EBUSY])
def test_a_collapse_is_tried_again_with_drained_batches(
    agent: Scripted, guest: ProbeGuest, again: int
) -> None:
    collapsing(agent, again, again, 0)
    assert guest.collapse() == 1
    advice = [request["advice"] for request in agent.of("madvise")]
    assert advice == ["hugepage", "collapse", "collapse", "collapse"]
    assert len(agent.of("drain_lru")) == 2


def test_a_collapse_that_never_goes_well_is_said_to_have_failed(
    agent: Scripted, guest: ProbeGuest, clock: FakeClock
) -> None:
    collapsing(agent, errno.EAGAIN)
    start = clock.now
    assert guest.collapse() == 0
    assert 5 <= clock.now - start <= 7


def test_a_collapse_that_fails_otherwise_is_an_error(agent: Scripted, guest: ProbeGuest) -> None:
    collapsing(agent, errno.ENOMEM)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        guest.collapse()


def test_large_pages_are_split_through_debugfs(agent: Scripted, guest: ProbeGuest) -> None:
    guest.split_large_pages()
    (request,) = agent.requests
    assert request["path"] == "/sys/kernel/debug/split_huge_pages"
    assert request["text"] == "70,0x7f0000000000,0x7f0000008000"


# Races.


def test_a_race_is_played_within_the_patience_for_an_answer(agent: Scripted) -> None:
    session, _ = session_with(agent, pace=2.0)
    guest = ProbeGuest(session, "guest1", FACTS, "")
    agent.answers["race"] = {"rounds": 7, "lost": 2}
    assert guest.race("discard", vcpu=1, page=3, rounds=9) == (7, 2)
    (request,) = asked(agent)
    seconds = request.pop("seconds")
    assert request == {"op": "race", "kind": "discard", "vcpu": 1, "page": 3, "rounds": 9}
    assert 0 < seconds < agent.requests[0]["within"], "or it would look like a stall"


def test_a_memslot_comes_and_goes_while_the_context_is_open(
    agent: Scripted, guest: ProbeGuest
) -> None:
    agent.answers["end_aliasing"] = 12
    with guest.aliased():
        assert [request["op"] for request in agent.requests] == ["begin_aliasing"]
    assert [request["op"] for request in agent.requests] == ["begin_aliasing", "end_aliasing"]


def test_a_memslot_that_never_came_and_went_proves_nothing(
    agent: Scripted, guest: ProbeGuest
) -> None:
    agent.answers["end_aliasing"] = 0
    with pytest.raises(ProbeError, match="came and went 0 times"), guest.aliased():
        pass


# userfaultfd.


@pytest.mark.parametrize("backing", list(BACKINGS))
def test_write_protection_asks_for_what_this_kind_of_memory_needs(
    agent: Scripted, backing: str
) -> None:
    session, _ = session_with(agent)
    guest = ProbeGuest(session, "guest1", FACTS, "", backing)
    with guest.write_protected(2, 3):
        assert not agent.of("end_protection")
    # Also of hugetlb memory that is private: the kernel calls the feature so for both.
    kinds = ("hugetlb", "hugetlb-shared", "hugetlb-wide", "memfd")
    files = ["write-protect-files"] if backing in kinds else []
    assert asked(agent) == [
        {"op": "protect_by_userfault", "first": 2, "pages": 3,
         "features": ["write-protect", *files]},
        {"op": "end_protection"},
    ]  # fmt: skip


def test_faults_are_those_that_the_vmm_saw(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["faults"] = [3, 1]
    assert guest.faults() == [3, 1]


def test_pages_that_userfaultfd_moves_are_at_an_address(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["move_by_userfault"] = 0x9000
    assert guest.move_by_userfault(1, 2) == 0x9000
    assert asked(agent) == [{"op": "move_by_userfault", "first": 1, "pages": 2}]


# Writes, ages, breakpoints and devices.


@pytest.mark.parametrize("backing", ["anon", "memfd"])
def test_writes_are_tracked_while_the_context_is_open(agent: Scripted, backing: str) -> None:
    session, _ = session_with(agent)
    guest = ProbeGuest(session, "guest1", FACTS, "", backing)
    agent.answers["written"] = [3, 4]
    with guest.tracked() as written:
        assert written() == [3, 4]
        assert not agent.of("end_tracking")
    first, *rest = asked(agent)
    assert (first["op"], first["first"], first["pages"]) == ("track_writes", 0, PAGES)
    features = {"write-protect", "write-protect-async", "write-protect-unpopulated"}
    files = {"write-protect-files"} if backing == "memfd" else set()
    assert set(first["features"]) == features | files
    assert [request["op"] for request in rest] == ["written", "end_tracking"]


def test_a_kernel_that_tracks_no_writes_is_said_to_lack_it(
    agent: Scripted, guest: ProbeGuest
) -> None:
    agent.answers["track_writes"] = failed(errno.EINVAL)
    with pytest.raises(OracleUnavailable, match=r"v6\.7"), guest.tracked():
        pytest.fail("it was not said")


def test_pages_are_marked_idle_and_looked_at(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["idle"] = [2]
    guest.mark_idle(1, 3)
    assert guest.idle() == [2]
    assert asked(agent) == [
        {"op": "mark_idle", "first": 1, "pages": 3},
        {"op": "idle", "first": 0, "pages": PAGES},
    ]
    agent.answers["mark_idle"] = failed(errno.ENOENT)
    with pytest.raises(OracleUnavailable, match="no idle page tracking"):
        guest.mark_idle()


def test_tlbs_are_flushed_by_rights_that_go_and_come(agent: Scripted, guest: ProbeGuest) -> None:
    guest.flush_tlbs(2, 4)
    rights = [{**request} for request in asked(agent)]
    same = {"op": "mprotect", "first": 2, "pages": 4}
    assert rights == [{**same, "protection": "read"}, {**same, "protection": "readwrite"}]


def test_a_device_says_how_many_pages_it_took(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["give_to_device"] = 5
    with guest.mirrored():
        assert guest.give_to_device("private") == 5
        # The driver gives back what it has when it is closed.
        assert not agent.of("end_mirroring")
    assert asked(agent) == [
        {"op": "begin_mirroring"},
        {"op": "give_to_device", "first": 0, "pages": PAGES, "how": "private"},
        {"op": "end_mirroring"},
    ]


EVENT = "/sys/kernel/tracing/events/mmu_harness/guest1/enable"
UPROBES = "/sys/kernel/tracing/uprobe_events"


def test_a_breakpoint_is_set_in_the_file_and_removed(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers.update(exists=True, read="0\n")
    with guest.breakpoint(3):
        assert [(request["path"], request["text"]) for request in agent.of("write")] == [
            (UPROBES, "p:mmu_harness/guest1 /var/tmp/mmu-guest1:0x3000\n"),
            (EVENT, "1"),
        ]
    assert [(request["path"], request["text"]) for request in agent.of("write")[2:]] == [
        (EVENT, "0\n"),
        (UPROBES, ""),
    ]


def test_a_kernel_without_uprobes_sets_no_breakpoint(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["exists"] = False
    with pytest.raises(OracleUnavailable, match="UPROBE_EVENTS"), guest.breakpoint(3):
        pytest.fail("it was not said")


# A limit that is lowered.


class Squeezed(Scripted):
    """A guest whose pages leave memory as its limit sinks, but for ``stuck`` of them.

    Pages of ``files`` that are charged to the same cgroup go before them, and so do ``eager`` ones,
    which are back each time.
    """

    def __init__(self, stuck: int = 0, files: int = 0, eager: int = 0) -> None:
        super().__init__()
        self.left = PAGES
        self.stuck = stuck
        self.files = files
        self.eager = eager
        self.limits: list[str] = []
        self.scores: list[str] = []
        self.answers.update(
            pagemap=lambda _: pack(np.full(PAGES, 0, np.uint64).tobytes()),
            mincore=lambda _: pack(bytes([1] * self.left + [0] * (PAGES - self.left))),
            read=lambda request: {"memory.current": f"{self.charged}\n"}.get(
                request["path"].rpartition("/")[2], "3\n"
            ),
            write=self.write,
        )

    @property
    def charged(self) -> int:
        return 100000 + (self.left + self.files) * 4096

    def write(self, request: Request) -> None:
        path, text = request["path"], request["text"]
        if path.endswith("memory.max"):
            self.limits.append(text)
            if text != "max":
                wanted = max(0, (self.charged - int(text)) // 4096 - self.eager)
                from_files = min(wanted, self.files)
                self.files -= from_files
                self.left = max(self.stuck, self.left - wanted + from_files)
        elif path.endswith("oom_score_adj"):
            self.scores.append(text)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("stuck", "files", "eager", "left"), [(0, 0, 0, 2), (5, 0, 0, 5), (0, 200, 0, 2), (0, 0, 3, 2)]
)
def test_a_limit_is_lowered_as_far_as_it_goes_and_lifted(
    stuck: int, files: int, eager: int, left: int
) -> None:
    agent = Squeezed(stuck, files, eager)
    session, _ = session_with(agent)
    guest = ProbeGuest(session, "guest1", FACTS, "/sys/fs/cgroup/mmu-guest1")
    assert guest.squeeze(2) == left
    assert agent.scores == ["-1000"], "no disk is so slow that a VMM dies of it"
    assert agent.limits[-1] == "max"
    assert all(int(limit) < 100000 + (PAGES + files) * 4096 for limit in agent.limits[:-1])


# What others do.


def test_memory_is_reaped_while_somebody_has_the_vm(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["kill_and_reap"] = {"pages_4k": 0}
    with guest.held():
        assert guest.kill_and_reap() == {"pages_4k": 0}
    assert agent.of("kill_and_reap") == [{"op": "kill_and_reap", "name": "guest1"}]


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSYS, OracleUnavailable), (errno.ESRCH, ProbeError)]
)
def test_memory_that_cannot_be_reaped_is_no_verdict_on_the_kernel(
    agent: Scripted, guest: ProbeGuest, number: int, error: type[Exception]
) -> None:
    agent.answers["kill_and_reap"] = failed(number)
    with pytest.raises(error):
        guest.kill_and_reap()


def test_another_process_moves_all_pages(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["move_pages"] = {"left": 1, "places": [1] * PAGES}
    agent.answers["migrate_pages"] = 3
    assert guest.move_to_node(1) == {"left": 1, "places": [1] * PAGES}
    assert guest.migrate(0, 1) == 3
    assert agent.requests == [
        {"op": "move_pages", "pid": 70, "address": FACTS["hva"], "pages": PAGES, "node": 1},
        {"op": "migrate_pages", "pid": 70, "old": 0, "new": 1},
    ]


def test_another_process_advises_on_all_memory(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["advise"] = PAGES * 4096
    assert guest.advised_by_another("pageout") == PAGES * 4096
    assert agent.requests == [
        {"op": "advise", "pid": 70, "address": FACTS["hva"], "size": PAGES * 4096,
         "advice": "pageout"}
    ]  # fmt: skip


def test_memory_that_moved_is_moved_and_advised_on_where_it_is(
    agent: Scripted, guest: ProbeGuest
) -> None:
    agent.answers.update(move_pages={"left": 0, "places": []}, advise=0)
    guest.follow(0x7000)
    guest.move_to_node(1)
    guest.advised_by_another("cold")
    assert [request["address"] for request in agent.requests] == [0x7000] * 3


def test_a_vm_that_another_process_holds_still_counts(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["held_statistics"] = {"pages_4k": 0}
    with guest.held() as counters:
        assert agent.requests == [
            {"op": "hold_vm", "name": "guest1", "vm_fd": 9, "statistics_fd": 10}
        ]
        assert counters() == {"pages_4k": 0}
        assert not agent.of("let_go")
    assert agent.of("let_go") == [{"op": "let_go", "name": "guest1"}]


@pytest.mark.parametrize("status", [None, signal.SIGKILL])
def test_a_death_is_awaited_within_the_patience_for_an_answer(
    agent: Scripted, guest: ProbeGuest, status: int | None
) -> None:
    agent.answers["await_death"] = status
    assert guest.await_death() == status
    (request,) = agent.requests
    assert 0 < request["seconds"] < guest.session.patience


def test_a_limit_is_a_file_of_the_guests_cgroup(agent: Scripted, guest: ProbeGuest) -> None:
    guest.limit("memory.max", 4096)
    guest.limit("memory.high", "max")
    assert agent.requests == [
        {"op": "write", "path": f"{guest.cgroup}/memory.max", "text": "4096"},
        {"op": "write", "path": f"{guest.cgroup}/memory.high", "text": "max"},
    ]


# Memory as the VMM and its children see it.


def test_the_vmm_reads_its_memory(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["peek"] = [4, 5]
    assert guest.host_read(1, 2, word=3) == [4, 5]


def test_a_forked_child_ends_with_its_context(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers.update(fork=99, child=[1], end_child=0)
    with guest.forked() as child:
        assert child.pid == 99
        assert child.read(2, 1, word=3) == [1]
        child.write(8, first=4)
        assert not agent.of("end_child")
    name = agent.of("fork")[0]["name"]
    assert [request["name"] for request in agent.of("child")] == [name, name]
    assert [request["request"] for request in agent.of("child")] == [
        {"op": "peek", "first": 2, "pages": 1, "word": 3},
        {"op": "poke", "first": 4, "pages": 1, "word": 0, "value": 8},
    ]
    assert agent.of("end_child")[0]["name"] == name


def maps(agent: Scripted, entries: list[int], core: list[int]) -> None:
    agent.answers["pagemap"] = pack(np.array(entries, np.uint64).tobytes())
    agent.answers["mincore"] = pack(bytes(core))


def test_residency_tells_swapped_from_lingering(agent: Scripted, guest: ProbeGuest) -> None:
    entries = [PRESENT | 5, SWAPPED | 5, SWAPPED | 5, 0, 0, 0, 0, 1 << 61]
    maps(agent, entries, [1, 0, 1, 0, 0, 0, 0, 0xFE])
    where = guest.residency()
    assert np.flatnonzero(where.present).tolist() == [0]
    assert np.flatnonzero(where.swapped).tolist() == [1, 2]
    assert np.flatnonzero(where.resident).tolist() == [0, 2]
    assert where.outside(range(0)) == 2
    assert where.outside(range(0, 2)) == 1
    assert where.outside(range(2, 8)) == 1
    assert where.outside(range(1, 2)) == 2
    assert not where.soft_dirty.any()


def test_soft_dirty_pages_are_told_wherever_they_are(agent: Scripted, guest: ProbeGuest) -> None:
    entries = [PRESENT | SOFT_DIRTY, SWAPPED | SOFT_DIRTY, SOFT_DIRTY, PRESENT, SWAPPED]
    maps(agent, [*entries, 1 << 54, 1 << 56, 0], [0] * PAGES)
    where = guest.residency()
    assert np.flatnonzero(where.soft_dirty).tolist() == [0, 1, 2]
    assert np.flatnonzero(where.present).tolist() == [0, 3]


def test_packed_bytes_are_unpacked() -> None:
    assert unpack(pack(b"\0\1\2" * 999)) == b"\0\1\2" * 999


# Reclaim.


def reclaiming(agent: Scripted, left: list[int]) -> None:
    """Have each look find so many pages in memory; the last number stays."""
    state = {"left": left.pop(0)}

    def pagemap(_: Request) -> str:
        entries = [PRESENT] * state["left"] + [SWAPPED] * (PAGES - state["left"])
        return pack(np.array(entries, np.uint64).tobytes())

    def mincore(_: Request) -> str:
        return pack(bytes([1] * state["left"] + [0] * (PAGES - state["left"])))

    def reclaim(_: Request) -> bool:
        if left:
            state["left"] = left.pop(0)
        return state["left"] == 0

    agent.answers.update(pagemap=pagemap, mincore=mincore, reclaim=reclaim, read="3\n")


@pytest.mark.usefixtures("clock")
def test_reclaim_goes_on_until_nothing_is_left(agent: Scripted, guest: ProbeGuest) -> None:
    reclaiming(agent, [8, 6, 6, 3, 0])
    assert guest.reclaim().outside(range(0)) == 0
    sizes = [request["size"] for request in agent.of("reclaim")]
    assert sizes == [pages * 4096 for pages in (8, 6, 6, 3)]
    assert {request["cgroup"] for request in agent.of("reclaim")} == {guest.cgroup}
    assert len(agent.of("drain_lru")) == 4


@pytest.mark.usefixtures("clock")
def test_nothing_is_read_ahead_during_reclaim(agent: Scripted, guest: ProbeGuest) -> None:
    reclaiming(agent, [8, 0])
    guest.reclaim()
    path = "/proc/sys/vm/page-cluster"
    writes = [(request["path"], request["text"]) for request in agent.of("write")]
    assert writes == [(path, "0"), (path, "3\n")], "and afterwards as before"
    ops = [request["op"] for request in agent.requests]
    first, last = ops.index("write"), len(ops) - 1
    assert all(first < number < last for number, op in enumerate(ops) if op == "reclaim")


@pytest.mark.usefixtures("clock")
def test_reclaim_ends_when_only_hot_pages_are_left(agent: Scripted, guest: ProbeGuest) -> None:
    reclaiming(agent, [8, 5, 2])
    hot = range(2)
    assert guest.reclaim(hot).outside(hot) == 0
    assert [request["size"] for request in agent.of("reclaim")] == [6 * 4096, 3 * 4096]


def test_reclaim_gives_up_when_nothing_moves(
    agent: Scripted, guest: ProbeGuest, clock: FakeClock
) -> None:
    reclaiming(agent, [8, 5, 2])
    start = clock.now
    residency = guest.reclaim()
    assert np.flatnonzero(residency.present).tolist() == [0, 1]
    assert 3 < clock.now - start < 6
    assert len(agent.of("reclaim")) > 3, "one attempt without effect says nothing"


def test_reclaim_is_patient_as_long_as_something_moves(
    agent: Scripted, guest: ProbeGuest, clock: FakeClock
) -> None:
    # One page at a time, after many attempts each.
    reclaiming(agent, [*(count for count in range(8, 0, -1) for _ in range(140)), 0])
    start = clock.now
    assert guest.reclaim().outside(range(0)) == 0
    assert clock.now - start > 10


def test_reclaim_ends_even_if_memory_comes_back_all_the_time(
    agent: Scripted, guest: ProbeGuest, clock: FakeClock
) -> None:
    reclaiming(agent, [8, *[5, 8] * 5000])
    start = clock.now
    guest.reclaim()
    assert 59 <= clock.now - start <= 61


def test_memory_is_pressed_once_without_readahead(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers.update(read="3\n", reclaim=False)
    guest.press(5)
    assert [request["op"] for request in agent.requests] == ["read", "write", "reclaim", "write"]
    assert agent.of("reclaim")[0]["size"] == 5 * 4096
    assert [request["text"] for request in agent.of("write")] == ["0", "3\n"]


def test_a_kernel_that_cannot_be_pressed_is_lacking(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers.update(read="3\n", reclaim=failed(errno.ENOENT))
    with pytest.raises(OracleUnavailable, match=r"neither memory\.reclaim nor memory\.high"):
        guest.press(5)


def test_the_memory_controller_is_read_whole(agent: Scripted, guest: ProbeGuest) -> None:
    files = {
        "memory.stat": "anon 4096\nswapcached 0\n",
        "memory.current": "8192\n",
        "memory.swap.current": "12288\n",
    }
    agent.answers["read"] = lambda request: files[request["path"].removeprefix(guest.cgroup + "/")]
    assert guest.memory_statistics() == {
        "anon": 4096,
        "swapcached": 0,
        "memory.current": 8192,
        "memory.swap.current": 12288,
    }


SMAPS = """\
{before:x}-{hva:x} rw-p 00000000 00:00 0
AnonHugePages:      2048 kB
VmFlags: rd wr
{hva:x}-{middle:x} rw-s 00000000 00:01 12 /memfd:guest (deleted)
AnonHugePages:         0 kB
ShmemPmdMapped:     2048 kB
FilePmdMapped:         0 kB
{middle:x}-{end:x} rw-s 00001000 00:01 12 /memfd:guest (deleted)
ShmemPmdMapped:       64 kB
{end:x}-{after:x} rw-p 00000000 00:00 0                          [heap]
AnonHugePages:      4096 kB
"""


def test_large_mappings_are_those_of_the_memory(agent: Scripted, guest: ProbeGuest) -> None:
    hva = int(FACTS["hva"])  # type: ignore[call-overload]
    places = [hva - 4096, hva, hva + 4096, hva + PAGES * 4096, hva + PAGES * 8192]
    names = ("before", "hva", "middle", "end", "after")
    agent.answers["read"] = SMAPS.format(**dict(zip(names, places, strict=True)))
    assert guest.mapped_large() == (2048 + 64) << 10
    assert agent.of("read")[0]["path"] == "/proc/70/smaps"


def test_statistics_are_those_of_the_vmm(agent: Scripted, guest: ProbeGuest) -> None:
    agent.answers["statistics"] = {"vm": {"pages_4k": 3}, "0": {"exits": 1}}
    assert guest.statistics()["vm"] == {"pages_4k": 3}


def test_a_window_takes_the_place_of_the_memory(agent: Scripted, guest: ProbeGuest) -> None:
    guest.show_window(HeldDevice(guest.session, "device1", 11), 0x1000)
    (request,) = agent.of("show_window")
    assert (request["fd"], request["source"]) == (11, 0x1000)


# The life of a guest.


def created(agent: Scripted) -> Session:
    agent.answers["create"] = {"cgroup": "/sys/fs/cgroup/mmu-x", "ok": FACTS}
    session, _ = session_with(agent)
    return session


def test_a_guest_ends_with_its_context(agent: Scripted) -> None:
    with probe_guest(created(agent), pages=PAGES, vcpus=2, backing="memfd") as guest:
        (request,) = agent.of("create")
        assert (request["pages"], request["vcpus"], request["backing"]) == (PAGES, 2, "memfd")
        assert guest.backing == "memfd"
        assert guest.cgroup == "/sys/fs/cgroup/mmu-x"
        assert (guest.pid, guest.hva, guest.pages) == (70, FACTS["hva"], PAGES)
        assert not agent.of("close")
    assert agent.of("close")[0]["name"] == request["name"]


@pytest.mark.parametrize(
    "answer",
    [
        {"died": {"status": 256, "said": "no /dev/kvm"}},
        {"late": "70 wchan: kvm_create_vm"},
        {"error": {"kind": "OSError", "errno": 2, "text": "no /dev/kvm"}},
    ],
)
def test_a_guest_that_does_not_start_is_an_error_of_ours_and_is_closed(
    agent: Scripted, answer: dict[str, object]
) -> None:
    session = created(agent)
    agent.answers["create"] = {"cgroup": "/sys/fs/cgroup/mmu-x", **answer}
    with pytest.raises(ProbeError, match="could not start a probe guest"), probe_guest(session):
        pytest.fail("there is no guest")
    assert agent.of("close")


@pytest.mark.parametrize(
    ("mode", "kind"), [(Mmu.TDP, "vmm"), (Mmu.SHADOW, "vmm"), (Mmu.NESTED, "nested")]
)
def test_the_mode_says_how_deep_a_guest_runs(agent: Scripted, mode: Mmu, kind: str) -> None:
    session = created(agent)
    session.host.facts.mmu = mode  # type: ignore[misc]
    with probe_guest(session):
        assert agent.of("create")[0]["kind"] == kind


def test_a_host_without_nested_guests_is_a_missing_capability(agent: Scripted) -> None:
    session = created(agent)
    session.host.facts.mmu = Mmu.NESTED  # type: ignore[misc]

    def refuse(_: Request) -> None:
        raise OSError(errno.ENOTSUP, "KVM offers its guests no SVM with nested paging")

    agent.answers["create"] = refuse
    with pytest.raises(OracleUnavailable, match="SVM with nested paging"), probe_guest(session):
        pytest.fail("there is no guest")


def test_a_violation_is_not_lost_when_the_guest_cannot_be_ended(agent: Scripted) -> None:
    def close(_: Request) -> None:
        raise DeadlineError("The answer of the host's agent to close took longer than 30 s.")

    session = created(agent)
    agent.answers["close"] = close
    with pytest.raises(Violation, match="stuck"), probe_guest(session):
        raise Violation("progress", "munmap to return", "it is stuck")


def test_a_guest_that_cannot_be_ended_is_told_when_nothing_else_is(agent: Scripted) -> None:
    def close(_: Request) -> None:
        raise DeadlineError("The answer of the host's agent to close took longer than 30 s.")

    session = created(agent)
    agent.answers["close"] = close
    with pytest.raises(DeadlineError), probe_guest(session):
        pass


@pytest.mark.parametrize(
    ("end", "refused"), [("refused", True), ("done", False), ("kicked", False)]
)
def test_a_visit_is_refused_or_not(end: str, *, refused: bool) -> None:
    assert Visit(end, "", 0, 0, 0, 0, 0, 0, 0, 0, 0).refused is refused


def test_the_default_guest_is_as_large_as_said() -> None:
    assert hammer.REFERENCE_PAGES * layout.PAGE_BYTES == 64 << 20
