# SPDX-License-Identifier: GPL-2.0-only
"""Runs as large as real ones, of every kind, for the formats and for whoever looks at them.

``python tests/unit/result/sample_record.py DIR`` writes each sample in all formats below DIR.
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.errors import BuildError, ExitCode, HostLostError
from harness.result.directory import FORMATS
from harness.result.outcome import OracleReport, OracleStatus, Outcome, Request, TestOutcome
from harness.result.outcome import completed as complete
from harness.result.record import HostRun, KernelFacts, MachineFacts, RunRecord
from harness.result.verdict import Crash, Evidence, judge

HOSTILE = (
    "\x1b[2J\x1b[31m<script>alert('guest')</script>]]></failure><!-- {{ 7*7 }} {% raw %} &lt; "
    "\0\ud800\ufffe\u202egnihton\u202c\r\n::error title=guest::I am a command\n"
    "not ok 1 guest\n##[error]so am I | `code` **bold** [link](javascript:alert(1)) @someone #1 "
    "<img src=x onerror=alert(1)> " + "w" * 300
)
"""What a guest prints that knows all of our formats."""

STARTED = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
MODES = ("tdp", "tdp-legacy", "shadow")
BACKINGS = ("anon", "thp", "hugetlb", "memfd", "file", "ksm")
SCENARIOS = (
    ("reclaim", "an_idle_guest_is_swapped_out_whole_and_back", 9.4),
    ("reclaim", "what_a_guest_only_read_is_swapped_out_whole_and_back", 7.1),
    ("reclaim", "a_guest_is_swapped_around_hammering_vcpus", 16.2),
    ("fork", "the_guest_sees_what_the_parent_writes_after_fork", 2.2),
    ("fork", "the_guest_does_not_see_what_the_child_writes_after_fork", 2.4),
    ("fork", "a_hammering_guest_loses_no_write_to_forks", 5.8),
    ("mprotect", "a_read_only_range_is_read_but_not_written", 1.9),
    ("mprotect", "an_inaccessible_range_is_not_even_read", 1.7),
    ("unmap", "unmapped_memory_is_out_of_reach", 1.3),
    ("unmap", "discarded_memory_reads_as_zero", 1.6),
    ("race", "no_write_goes_to_a_page_that_was_discarded_under_a_vcpu", 12.5),
    ("exit", "a_killed_vmm_gives_all_memory_back", 3.3),
)
SPLAT = """\
[   41.210934] ------------[ cut here ]------------
[   41.211456] WARNING: CPU: 1 PID: 412 at arch/x86/kvm/mmu/mmu.c:412 zap_root+0x1a2/0x1f0
[   41.212001] Modules linked in: kvm_amd kvm
[   41.212400] CPU: 1 UID: 0 PID: 412 Comm: vmm Not tainted 6.12.117 #1
[   41.213111] RIP: 0010:tdp_mmu_zap_root+0x1a2/0x1f0 [kvm]
[   41.214020] Call Trace:
[   41.214333]  <TASK>
[   41.214601]  ? kvm_tdp_mmu_unmap_gfn_range+0x4d/0xa0 [kvm]
[   41.215102]  kvm_mmu_notifier_invalidate_range_start+0x2b1/0x380 [kvm]
[   41.215700]  __mmu_notifier_invalidate_range_start+0x8f/0x1d0
[   41.216201]  zap_page_range_single+0x1c4/0x1f0
[   41.216700]  do_madvise+0x8a1/0x1120
[   41.217301]  </TASK>
[   41.217800] ---[ end trace 0000000000000000 ]---
"""

Plan = tuple[str, str, str, float]


def plans() -> Iterator[Plan]:
    """All tests: id, mode, backing, seconds; the modes one after the other, as they run."""
    for mode, slow in zip(MODES, (1.0, 1.15, 1.6), strict=True):
        for number, (file, name, seconds) in enumerate(SCENARIOS):
            for other, backing in enumerate(BACKINGS):
                id_ = f"tests/kvm/test_{file}.py::test_{name}[{mode}-{backing}]"
                yield id_, mode, backing, seconds * slow * (1 + (number * 7 + other * 5) % 9 / 10)


def agreeing(pages: int = 2048) -> tuple[OracleReport, ...]:
    return (
        OracleReport("content", OracleStatus.AGREES, "what was written", f"{pages} pages right"),
        OracleReport("references", OracleStatus.AGREES, "1 a page", f"1 on each of {pages} pages"),
        OracleReport("translations", OracleStatus.AGREES, "no spte", "none"),
        OracleReport("spte counters", OracleStatus.AGREES, f"at least {pages} fewer", f"{pages}"),
    )


def failing() -> tuple[OracleReport, ...]:
    return (
        OracleReport("content", OracleStatus.AGREES, "zeroes", "zeroes on 2048 pages"),
        OracleReport(
            "references",
            OracleStatus.VIOLATED,
            "1 reference: the page table's",
            "2 references on 32 of 2048 guest pages, first on page 64",
            {"pages": {page: {"refcount": 2, "mapcount": 1} for page in range(64, 96)}},
        ),
        OracleReport(
            "translations",
            OracleStatus.VIOLATED,
            "no spte",
            "spte 0x8600000012345b77 at gpa 0x40000",
        ),
        OracleReport("spte counters", OracleStatus.AGREES, "at least 2048 fewer", "2048 fewer"),
        OracleReport(
            "notifier",
            OracleStatus.NOT_CONSULTED,
            seen="the tracepoint kvm_unmap_hva_range does not exist on this kernel",
        ),
    )


def broken(outcome: TestOutcome, number: int) -> TestOutcome:
    """One test in thirty ends badly, each in its own way."""
    change = dataclasses.replace
    bare = change(outcome, oracles=())
    if "discarded_memory" in outcome.id and outcome.backing in ("thp", "ksm"):
        message = "references on guest page 64: expected 1 reference; seen: 2 references"
        return change(
            outcome,
            outcome=Outcome.FAIL,
            oracles=failing(),
            message=message,
            oracle="references",
            page=64,
            log_excerpt=SPLAT if outcome.mmu == "tdp" else "",
        )
    if "a_hammering_guest_loses" in outcome.id and outcome.mmu == "shadow":
        if outcome.backing == "anon":
            hostile = OracleReport(
                f"content {HOSTILE}", OracleStatus.VIOLATED, "0x1", HOSTILE, {HOSTILE: [HOSTILE]}
            )
            reports = (hostile, *agreeing()[1:])
            return change(
                outcome,
                outcome=Outcome.FAIL,
                oracles=reports,
                message=HOSTILE,
                log_excerpt=HOSTILE * 30,
            )
        if outcome.backing == "memfd":
            message = "The connection to host3-shadow is gone; its console log is in logs/."
            return change(
                bare,
                outcome=Outcome.ERROR,
                message=message,
                code=ExitCode.INFRASTRUCTURE,
                log_excerpt="[  120.001000] last words",
            )
    if outcome.backing == "hugetlb" and "swapped" in outcome.id:
        return change(bare, outcome=Outcome.SKIP, seconds=0.0, message="hugetlb is not swapped")
    silent = OracleReport("notifier", OracleStatus.NOT_CONSULTED, seen="no tracepoint kvm_age_hva")
    return change(outcome, oracles=(*outcome.oracles, silent)) if number % 29 == 0 else outcome


def host(number: int, mode: str, at: float, crashes: Sequence[Crash] = ()) -> HostRun:
    evidence = Evidence(f"host{number}-{mode}", mode, f"n{number}", f"n{number}", True, (*crashes,))
    argv = ("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "2G")
    started = STARTED + datetime.timedelta(seconds=at)
    return HostRun(evidence, "7.2.22", argv, "6.12.117", 5.6 + number / 3, 1.1, started)


def _record(
    outcomes: Sequence[TestOutcome],
    hosts: Sequence[HostRun],
    requests: Sequence[Request],
    seconds: float,
    problems: Sequence[BaseException] = (),
    kernel: KernelFacts | None = None,
) -> RunRecord:
    evidence = [item.evidence for item in hosts]
    return RunRecord(
        verdict=judge(requests, outcomes, evidence, problems),
        outcomes=complete(requests, outcomes),
        kernel=kernel
        or KernelFacts(
            "~/src/linux",
            "6.12.117",
            "3b" * 32,
            "c4" * 32,
            ("0001-kvm-mmu-drop-sptes.patch",),
            None,
            {"KVM": "y", "KVM_AMD": "m", "MMU_NOTIFIER": "y", "KASAN": None, "LRU_GEN": "y"},
        ),
        machine=MachineFacts(
            "Linux 6.1.0 x86_64",
            2,
            "tcg",
            "KVM here offers guests neither VMX nor SVM.",
            {"python": "3.11.2", "pytest": "9.2.0", "drgn": "0.3.0"},
        ),
        hosts=tuple(hosts),
        command=("mmu-harness", "check", "--kernel", "~/src/linux", "--patch", "it's mine.patch"),
        started=STARTED,
        finished=STARTED + datetime.timedelta(seconds=seconds),
        problems=tuple(str(problem) for problem in problems),
    )


def _run(*, bad: bool) -> RunRecord:
    clock, number, last = 262.0, 0, ""
    outcomes: list[TestOutcome] = []
    hosts: list[HostRun] = []
    requests: list[Request] = []
    for count, (id_, mode, backing, seconds) in enumerate(plans()):
        requests.append(Request(id_, mode, backing))
        if bad and mode == "shadow" and "a_killed_vmm" in id_ and backing in ("file", "ksm"):
            continue  # never reported
        again = bool(outcomes) and outcomes[-1].outcome in (Outcome.FAIL, Outcome.ERROR)
        if mode != last or again:
            number, last = number + 1, mode
            crashes = [Crash("WARNING", SPLAT)] if bad and number == 2 else []
            hosts.append(host(number, mode, clock, crashes))
            clock += 9.0
        began = STARTED + datetime.timedelta(seconds=clock)
        command = ("mmu-harness", "check", "--kernel", "~/src/linux", "--mmu", mode, id_)
        passed = TestOutcome(
            id_, Outcome.PASS, mode, backing, seconds, agreeing(), command=command, started=began
        )
        outcomes.append(broken(passed, count) if bad else passed)
        clock += outcomes[-1].seconds + 0.4
    problems = [HostLostError("The connection to host3-shadow is gone.")] if bad else []
    return _record(outcomes, hosts, requests, clock + 4.0, problems)


def samples() -> dict[str, RunRecord]:
    """One run of each kind that a reader has to tell apart, by name."""
    requests = [Request(id_, mode, backing) for id_, mode, backing, _ in plans()]
    skipped = [
        TestOutcome(item.id, Outcome.SKIP, item.mmu, item.backing, 0.0, message="no swap device")
        for item in requests
    ]
    passed = _run(bad=False)
    between = dataclasses.replace(
        passed.hosts[0],
        evidence=dataclasses.replace(
            passed.hosts[0].evidence, crashes=(Crash("WARNING", SPLAT + HOSTILE),)
        ),
    )
    return {
        "failed": _run(bad=True),
        "passed": passed,
        "crashed": _record(passed.outcomes, (between, *passed.hosts[1:]), requests, passed.seconds),
        "unbuilt": _record(
            (),
            (),
            requests,
            77.0,
            [BuildError(f"make failed: kvm_main.c:12: error: expected ';' {HOSTILE}")],
            KernelFacts("~/src/linux"),
        ),
        "skipped": _record(
            skipped, [host(at, mode, 9.0 * at) for at, mode in enumerate(MODES, 1)], requests, 60.0
        ),
        "empty": _record((), (), (), 0.2, kernel=KernelFacts("deb:linux-source-6.12")),
    }


def main(target: Path) -> None:
    for name, record in samples().items():
        (target / name).mkdir(parents=True, exist_ok=True)
        for file, format_ in FORMATS.items():
            text = format_(record).encode("utf-8", "backslashreplace")
            (target / name / file).write_bytes(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
