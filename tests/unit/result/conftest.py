# SPDX-License-Identifier: GPL-2.0-only
"""One run with every kind of outcome, and with guest text that wants to do harm."""

from __future__ import annotations

import datetime

import pytest

from harness.errors import BootError
from harness.result.outcome import OracleReport, OracleStatus, Outcome, Request, TestOutcome
from harness.result.outcome import completed as complete
from harness.result.record import HostRun, KernelFacts, MachineFacts, RunRecord
from harness.result.verdict import Crash, Evidence, judge

HOSTILE = "\x1b[2J</failure>]]><script>&\0\ud800\ufffe[red]"

_STARTED = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)


@pytest.fixture
def record() -> RunRecord:
    agrees = OracleReport("references", OracleStatus.AGREES, "1 a page", "1 a page")
    violated = OracleReport(
        "sptes", OracleStatus.VIOLATED, "0 sptes", f"16 sptes {HOSTILE}", {"pages": {7: 0x1000}}
    )
    silent = OracleReport("notifier", OracleStatus.NOT_CONSULTED, seen="no tracepoints")
    name = "tests/kvm/test_munmap.py::test_gone[{}-anon]"
    outcomes = [
        TestOutcome(name.format("tdp"), Outcome.PASS, "tdp", "anon", 1.5, (agrees, silent)),
        TestOutcome(
            name.format("shadow"),
            Outcome.FAIL,
            "shadow",
            "anon",
            2.5,
            (agrees, violated),
            message=f"sptes stay {HOSTILE}",
            page=7,
            log_excerpt=HOSTILE,
            command=("./run", "check", "--select", "a b"),
        ),
        TestOutcome("t.py::test_error[tdp]", Outcome.ERROR, "tdp", "anon", 0.1, message="Gone."),
        TestOutcome("t.py::test_skip[tdp]", Outcome.SKIP, "tdp", "anon", 0, message="no NUMA"),
    ]
    requested = [Request(item.id, item.mmu, item.backing) for item in outcomes]
    requested.append(Request("t.py::test_lost[shadow]", "shadow", "thp"))
    evidence = [
        Evidence("tdp", "tdp", "n1", "n1", log_end_mark=True),
        Evidence("shadow", "shadow", "n2", None, False, (Crash("oops", HOSTILE),)),
    ]
    return RunRecord(
        judge(requested, outcomes, evidence, [BootError(f"No init. {HOSTILE}")]),
        complete(requested, outcomes),
        KernelFacts(
            "deb:linux-source-6.12",
            "6.12.117",
            "0" * 64,
            "f" * 64,
            ("a.patch",),
            "leak",
            {"KVM": "y", "KASAN": None},
        ),
        MachineFacts("x86_64", 2, "tcg", "No nested KVM here.", {"python": "3.11.2"}),
        tuple(HostRun(item, "7.2.0", ("qemu", "-m", "2G"), "6.12.117") for item in evidence),
        ("./run", "check", "--kernel", "a b"),
        _STARTED,
        _STARTED + datetime.timedelta(seconds=90),
        ("No init.",),
    )
