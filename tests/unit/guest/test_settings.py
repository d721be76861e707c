# SPDX-License-Identifier: GPL-2.0-only
"""Switches of a host's kernel: set, put back, and said to be missing where there are none."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from fake_session import FakeClock, Request, session_with

from harness.errors import CommandError, DeadlineError, OracleUnavailable, Violation
from harness.guest import settings as module
from harness.guest.session import Session
from harness.guest.settings import (
    Merged,
    device_memory,
    failing_allocations,
    khugepaged,
    large_pages,
    merged_meanwhile,
    merged_pages,
    merging,
    multigenerational,
    no_swap,
    numa_balancing,
    settings,
)

KSM = "/sys/kernel/mm/ksm"
LRU = "/sys/kernel/mm/lru_gen/enabled"
NUMA = "/sys/kernel/debug/sched/numa_balancing"
OLD_NUMA = "/proc/sys/kernel/numa_balancing"
SWAPS = """\
Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/vdb                                partition\t1048572\t\t0\t\t-2
/var/swap                               file\t\t524284\t\t0\t\t-3
"""


class Files:
    """An agent of a host that is nothing but files; ``log`` is what was done, in order."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = dict(files)
        self.log: list[tuple[str, str]] = []

    def __call__(self, request: Request) -> Any:
        if request["op"] == "all":
            return {"ok": [self(each) for each in request["requests"]]}
        return {"ok": self._value(request)}

    def _value(self, request: Request) -> Any:
        op, path = request["op"], request["path"]
        if op == "exists":
            return path in self.files
        if op == "read":
            return self.files[path]
        if op == "write":
            assert path in self.files
            self.files[path] = request["text"]
            self.log.append((path, request["text"]))
        else:
            assert op in ("swapon", "swapoff")
            self.log.append((op, path))
        return None


def host(files: dict[str, str], pace: float = 1.0) -> tuple[Session, Files]:
    agent = Files(files)
    return session_with(agent, pace)[0], agent


def test_settings_last_as_long_as_their_context() -> None:
    before = {"/a": "1\n", "/b": "2\n"}
    ours, agent = host(before)
    with settings(ours, {"/a": "7", "/b": "8"}, "of it"):
        assert agent.files == {"/a": "7", "/b": "8"}
    assert agent.files == before


@pytest.mark.parametrize("missing", ["/a", "/b"])
def test_a_setting_that_is_missing_is_said_and_the_others_are_put_back(missing: str) -> None:
    before = {path: "1\n" for path in ("/a", "/b") if path != missing}
    ours, agent = host(before)
    with (
        pytest.raises(OracleUnavailable, match=f"The host's kernel has no of it: no {missing}"),
        settings(ours, {"/a": "7", "/b": "8"}, "of it"),
    ):
        pytest.fail("it was not said")
    assert agent.files == before, "the next test gets the same host"


Switch = Callable[[Session], contextlib.AbstractContextManager[None]]

SWITCHES: dict[str, tuple[Switch, dict[str, str]]] = {
    "NUMA balancing": (
        numa_balancing,
        {
            f"{NUMA}/scan_delay_ms": "1",
            f"{NUMA}/scan_period_min_ms": "10",
            f"{NUMA}/scan_period_max_ms": "20",
            "/proc/sys/kernel/numa_balancing": "1",
        },
    ),
    "NUMA balancing with its files of old": (
        numa_balancing,
        {
            f"{OLD_NUMA}_scan_delay_ms": "1",
            f"{OLD_NUMA}_scan_period_min_ms": "10",
            f"{OLD_NUMA}_scan_period_max_ms": "20",
            OLD_NUMA: "1",
        },
    ),
    "fault injection": (
        failing_allocations,
        {
            "/sys/kernel/debug/failslab/ignore-gfp-wait": "N",
            "/sys/kernel/debug/failslab/verbose": "0",
            "/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait": "N",
            "/sys/kernel/debug/fail_page_alloc/verbose": "0",
            "/sys/kernel/debug/fail_page_alloc/min-order": "0",
        },
    ),
    "multi-generational LRU": (lambda ours: multigenerational(ours, on=True), {LRU: "y"}),
    "classic LRU": (lambda ours: multigenerational(ours, on=False), {LRU: "n"}),
}


@pytest.mark.parametrize("what", SWITCHES)
def test_each_switch_is_set_and_put_back(what: str) -> None:
    switch, wanted = SWITCHES[what]
    before = dict.fromkeys(wanted, "as before\n")
    ours, agent = host(before)
    with switch(ours):
        assert agent.files == wanted
    assert agent.files == before


@pytest.mark.parametrize(
    "what", [what for what in SWITCHES if what != "classic LRU" and "of old" not in what]
)
def test_a_kernel_without_the_switch_is_said_to_lack_it(what: str) -> None:
    switch, wanted = SWITCHES[what]
    for missing in wanted:
        ours, _ = host({path: "" for path in wanted if path != missing})
        with pytest.raises(OracleUnavailable, match=f"has no {what}: no {missing}"), switch(ours):
            pytest.fail("it was not said")


def test_a_kernel_that_knows_only_the_classic_lru_has_it() -> None:
    ours, agent = host({})
    with multigenerational(ours, on=False):
        pass
    assert agent.log == []


# KSM.


def ksm(**files: str) -> dict[str, str]:
    knobs = {"sleep_millisecs": "20\n", "pages_to_scan": "100\n", "merge_across_nodes": "1\n"}
    return {f"{KSM}/{name}": value for name, value in {"run": "0\n", **knobs, **files}.items()}


def test_merging_runs_with_its_knobs_set_and_stops_before_they_are_put_back() -> None:
    ours, agent = host(ksm())
    with merging(ours):
        assert agent.files == ksm(
            run="1", sleep_millisecs="0", pages_to_scan="4096", merge_across_nodes="1"
        )
        assert agent.log[-1] == (f"{KSM}/run", "1"), "not before it is to be as fast as it can"
        begun = len(agent.log)
    assert agent.log[begun] == (f"{KSM}/run", "0")
    assert agent.files == ksm(run="0")


def test_a_kernel_without_ksm_is_said_to_lack_it() -> None:
    ours, _ = host({})
    with pytest.raises(OracleUnavailable, match="has no KSM"), merging(ours):
        pytest.fail("it was not said")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr("harness.deadline.time", clock)
    return clock


def counting(shared: int, sharing: list[int], pace: float = 1.0, rounds: int = 10) -> Session:
    """A host on which KSM has merged so many pages, look by look; the last is repeated.

    At each look it has been round so many more ``rounds``.
    """
    scans = itertools.count(7, rounds)

    def agent(request: Request) -> Any:
        assert request["op"] == "all"
        paths = [each["path"] for each in request["requests"]]
        assert paths == [
            f"{KSM}/{name}" for name in ("full_scans", "pages_shared", "pages_sharing")
        ]
        now = sharing.pop(0) if len(sharing) > 1 else sharing[0]
        return {"ok": [{"ok": f"{count}\n"} for count in (next(scans), shared, now)]}

    return session_with(agent, pace)[0]


@pytest.mark.usefixtures("clock")
def test_merged_pages_are_those_that_share_and_those_that_are_shared() -> None:
    sharing = [0, 50, 99, 100, 999]
    assert merged_pages(counting(7, sharing), 107) == 107
    assert sharing == [999], "no look more than it takes"


def test_where_vcpus_are_in_the_way_one_page_is_enough_after_some_time(clock: FakeClock) -> None:
    start = clock.now
    slowly = [0] * 50 + list(range(1, 200))
    merged = merged_meanwhile(counting(0, slowly, rounds=1), 1000)
    assert merged.goes_on
    assert 1 <= merged.pages < 199
    assert module._KSM_SECONDS < clock.now - start < module._KSM_SECONDS + 2
    assert merged_meanwhile(counting(1, [5, 105], rounds=1), 106) == Merged(106)
    assert merged_meanwhile(counting(1, [5]), 106) == Merged(6), "it refused the others"


@pytest.mark.parametrize("pace", [1.0, 3.0])
def test_merging_that_does_not_come_about_is_counted_when_time_is_up(
    clock: FakeClock, pace: float
) -> None:
    start = clock.now
    assert merged_pages(counting(1, [5], pace), 107) == 6
    assert module._KSM_SECONDS * pace <= clock.now - start <= module._KSM_SECONDS * pace + 2


@pytest.mark.usefixtures("clock")
def test_a_host_too_slow_to_merge_says_nothing_about_its_kernel() -> None:
    with pytest.raises(DeadlineError, match="not looked at all pages 100 times"):
        merged_pages(counting(1, [5], rounds=0), 107)


def test_merging_is_waited_for_until_each_page_was_looked_at_often_enough(clock: FakeClock) -> None:
    start = clock.now
    # A look takes 0.2 s once it has waited for some time, and a page is merged now and then.
    slowly = [page for page in range(5, 106) for _ in range(5)]
    assert merged_pages(counting(1, slowly, rounds=15), 106) == 106
    assert clock.now - start > module._KSM_SECONDS
    assert merged_pages(counting(1, [5] * 150 + [106], rounds=0), 107) == 107


# khugepaged.

HUGE = "/sys/kernel/mm/transparent_hugepage/khugepaged"


def daemon(**files: str) -> dict[str, str]:
    knobs = {"scan_sleep_millisecs": "10000\n", "alloc_sleep_millisecs": "60000\n",
             "pages_to_scan": "4096\n"}  # fmt: skip
    return {f"{HUGE}/{name}": value for name, value in {**knobs, **files}.items()}


@pytest.mark.usefixtures("clock")
def test_khugepaged_has_looked_at_all_when_it_has_been_round_anew() -> None:
    before = daemon(full_scans="7\n")
    ours, agent = host(before)
    rounds = iter(range(7, 100))

    def agent_that_scans(request: Request) -> Any:
        if request["op"] == "read" and request["path"].endswith("full_scans"):
            return {"ok": f"{next(rounds)}\n"}
        return agent(request)

    ours = session_with(agent_that_scans)[0]
    with khugepaged(ours) as looked:
        assert agent.files[f"{HUGE}/scan_sleep_millisecs"] == "1"
        looked()
        assert next(rounds) == 11, "7 at first, then until it was 10"
    assert agent.files == before


@pytest.mark.usefixtures("clock")
def test_a_host_too_slow_for_khugepaged_says_nothing_about_its_kernel() -> None:
    ours, _ = host(daemon(full_scans="7\n"))
    with pytest.raises(DeadlineError, match="khugepaged"), khugepaged(ours) as looked:
        looked()


def test_a_kernel_without_khugepaged_is_said_to_lack_it() -> None:
    with pytest.raises(OracleUnavailable, match="has no khugepaged"), khugepaged(host({})[0]):
        pytest.fail("it was not said")


# A device with memory of its own.


def test_the_device_is_loaded_and_unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = host({})
    run: list[list[str]] = []
    monkeypatch.setattr(ours.host, "run", lambda argv, deadline: run.append(argv))
    with device_memory(ours):
        assert run == [["modprobe", "test_hmm"]]
    assert run[1:] == [["modprobe", "-r", "test_hmm"]]


def test_a_kernel_without_the_device_is_said_to_lack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = host({})

    def run(argv: list[str], deadline: object) -> None:
        raise CommandError(argv, 1, "modprobe: FATAL: Module test_hmm not found")

    monkeypatch.setattr(ours.host, "run", run)
    with pytest.raises(OracleUnavailable, match="TEST_HMM"), device_memory(ours):
        pytest.fail("it was not said")


# Swap.


def test_large_pages_are_as_they_were_afterwards() -> None:
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    host = Files({path: "always [madvise] never\n"})
    ours, _ = session_with(host)
    with large_pages(ours, "never"):
        assert host.files[path] == "never"
    # The kernel takes one word, and not what it says.
    assert host.files[path] == "madvise"


def test_a_kernel_without_large_pages_is_said_to_lack_them() -> None:
    ours, _ = session_with(Files({}))
    with pytest.raises(OracleUnavailable, match="no large pages"), large_pages(ours, "always"):
        pytest.fail("there is nothing to set")


def test_all_swap_is_off_while_the_context_is_open() -> None:
    ours, agent = host({"/proc/swaps": SWAPS})
    with no_swap(ours):
        assert agent.log == [("swapoff", "/dev/vdb"), ("swapoff", "/var/swap")]
    assert sorted(agent.log[2:]) == [("swapon", "/dev/vdb"), ("swapon", "/var/swap")]


@pytest.mark.parametrize(
    ("error", "back"),
    [(OracleUnavailable("it lacks something"), True), (Violation("x", "y", "z"), False)],
)
def test_what_was_done_is_undone_where_the_host_is_kept(error: Exception, *, back: bool) -> None:
    before = ksm(run="0") | {"/proc/swaps": SWAPS}
    ours, agent = host(before)
    with pytest.raises(type(error)), merging(ours), no_swap(ours):
        raise error
    assert (agent.files == before) is back
    swaps = [(op, path) for op, path in agent.log if op in ("swapon", "swapoff")]
    assert len(swaps) == (4 if back else 2)


def test_much_in_swap_may_take_long_to_come_back() -> None:
    agent = Files({"/proc/swaps": SWAPS.replace("1048572\t\t0", "1048572\t\t819200")})
    ours, channel = session_with(agent, pace=2.0)
    with no_swap(ours):
        large, small = channel.deadlines[-2:]
    assert small == ours.patience
    assert large >= small + 2 * 200


def test_a_host_without_swap_has_none_to_put_back() -> None:
    ours, agent = host({"/proc/swaps": SWAPS.splitlines()[0] + "\n"})
    with no_swap(ours):
        pass
    assert agent.log == []
