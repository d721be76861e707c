# SPDX-License-Identifier: GPL-2.0-only
"""A run on several hosts at once ends as it would have on one."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_plugin import Judge, World, judge, world

pytest_plugins = ["pytester"]

__all__ = ["judge", "world"]

MANY = """
@pytest.mark.parametrize("number", range(12))
def test_many(evidence, number):
    evidence.at_least("reclaim", "pages", 1, number + 1)
"""
ONE_FAILS = """
@pytest.mark.parametrize("number", range(12))
def test_many(evidence, number):
    evidence.at_least("reclaim", "pages", 1, number)
"""
ONE_DIES = """
import os
@pytest.mark.parametrize("number", range(12))
def test_many(evidence, number):
    evidence.at_least("reclaim", "pages", 1, number + 1)
    if number == 3:
        os.kill(os.getpid(), 9)
"""
MODES = ("tdp", "shadow")


def test_all_tests_are_judged_and_all_hosts_are_evidence(judge: Judge, world: World) -> None:
    ended = judge(MANY, "--hosts=2", modes=MODES)
    assert ended.code == 0, ended.out
    assert ended.results["verdict"]["word"] == "PASS"
    assert len(ended.results["tests"]) == 24
    assert {test["outcome"] for test in ended.results["tests"]} == {"pass"}
    hosts = [host["host"] for host in ended.results["qemu"]["hosts"]]
    assert len(hosts) == len(set(hosts)) >= 2
    assert {name.split("-", 1)[0] for name in hosts} == {"1", "2"}
    assert world.happened == [], "no host runs in the first process"
    assert "24 passed" in ended.out


def test_the_record_is_in_the_order_of_the_tests(judge: Judge) -> None:
    one = judge(MANY, "--hosts=1", modes=MODES)
    many = judge(MANY, "--hosts=3", modes=MODES)
    assert [test["id"] for test in many.results["tests"]] == [
        test["id"] for test in one.results["tests"]
    ]


def test_a_failure_is_reported_by_both(judge: Judge) -> None:
    ended = judge(ONE_FAILS, "--hosts=2", modes=MODES)
    assert ended.code == 1
    failed = [test["id"] for test in ended.results["tests"] if test["outcome"] == "fail"]
    assert [name.rpartition("[")[2] for name in failed] == ["tdp-0]", "shadow-0]"]
    assert "2 failed, 22 passed" in ended.out
    assert "expected at least 1 pages; seen: 0" in ended.out


def test_the_first_failure_ends_all_if_so_wished(judge: Judge) -> None:
    ended = judge(ONE_FAILS, "--hosts=2", "-x", modes=MODES)
    assert ended.code == 1
    assert {"fail", "missing"} <= {test["outcome"] for test in ended.results["tests"]}


def test_a_worker_that_dies_makes_no_pass(judge: Judge) -> None:
    ended = judge(ONE_DIES, "--hosts=2")
    assert ended.code == 200
    assert any("killed by signal 9" in text for text in ended.results["verdict"]["reasons"])
    outcomes = {test["id"]: test["outcome"] for test in ended.results["tests"]}
    assert "missing" in outcomes.values()
    assert "pass" in outcomes.values()


def test_tests_of_others_are_run_on_one_host(judge: Judge, world: World) -> None:
    ended = judge(MANY + "\ndef test_plain():\n    pass\n", "--hosts=2")
    assert ended.code == 0
    assert world.happened == ["boot tdp", "end tdp"]


@pytest.mark.parametrize("number", ["0", "-1"])
def test_there_is_at_least_one_host(judge: Judge, number: str) -> None:
    ended = judge(MANY, f"--hosts={number}")
    assert ended.code == pytest.ExitCode.USAGE_ERROR
    assert "--hosts takes a number from 1 on" in ended.err


def test_logs_of_all_hosts_are_kept(judge: Judge) -> None:
    ended = judge(MANY, "--hosts=2", modes=MODES)
    assert isinstance(ended.directory, Path)
    kept = {path.name for path in ended.directory.rglob("*.console.log")}
    assert len(kept) == len(ended.results["qemu"]["hosts"])
