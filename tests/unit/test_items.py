# SPDX-License-Identifier: GPL-2.0-only
"""Tests of the suite as pytest has them: repeated, in order, and with one opinion on each."""

from __future__ import annotations

import pytest
from test_plugin import Judge, World, judge, world

pytest_plugins = ["pytester"]

__all__ = ["judge", "world"]

TWO = """
def test_a(evidence):
    evidence.at_least("reclaim", "pages", 1, 2)

@pytest.mark.parametrize("backing", ["thp"])
def test_b(evidence, backing):
    evidence.at_least("reclaim", "pages", 1, 2)
"""
SECOND_FAILS = """
times = []

def test_a(evidence):
    times.append(None)
    evidence.at_least("reclaim", "pages", 2 if len(times) == 2 else 1, 1)

def test_b(evidence):
    evidence.at_least("reclaim", "pages", 1, 1)
"""


def names(ended: object) -> list[str]:
    return [test["id"].rpartition("::")[2] for test in ended.results["tests"]]  # type: ignore[attr-defined]


def test_every_repetition_is_a_test_of_its_own_on_new_hosts(judge: Judge, world: World) -> None:
    ended = judge(TWO, "--repeat=2", modes=("tdp", "shadow"))
    assert ended.code == 0
    assert names(ended) == [
        *("test_a[tdp-run1]", "test_b[tdp-run1-thp]"),
        *("test_a[shadow-run1]", "test_b[shadow-run1-thp]"),
        *("test_a[tdp-run2]", "test_b[tdp-run2-thp]"),
        *("test_a[shadow-run2]", "test_b[shadow-run2-thp]"),
    ]
    assert [test["repetition"] for test in ended.results["tests"]] == [1] * 4 + [2] * 4
    assert ended.results["repetitions"] == 2
    assert ended.results["counts"]["pass"] == 8
    boots = [word for word in world.happened if word.startswith("boot")]
    assert boots == ["boot tdp", "boot shadow"] * 2


def test_one_mode_has_new_hosts_too(judge: Judge, world: World) -> None:
    assert judge(TWO, "--repeat=3").code == 0
    assert world.happened == ["boot tdp", "end tdp"] * 3


def test_repetitions_may_share_a_host(judge: Judge, world: World) -> None:
    ended = judge(TWO, "--repeat=2", "--same-hosts", modes=("tdp", "shadow"))
    assert ended.code == 0
    assert world.happened == ["boot tdp", "end tdp", "boot shadow", "end shadow"]


CELLS = """
@pytest.mark.parametrize("n", [0, 1, 2])
def test_a(evidence, n):
    evidence.at_least("reclaim", "pages", 1, 2)

def test_b(evidence):
    evidence.at_least("reclaim", "pages", 1, 2)

@pytest.mark.parametrize("n", [0, 1])
def test_of_others(n):
    pass
"""


def test_a_quick_look_takes_the_first_cell_of_each_scenario(judge: Judge) -> None:
    ended = judge(CELLS, "--quick", modes=("tdp", "shadow"))
    assert ended.code == 0
    assert names(ended) == ["test_a[tdp-0]", "test_b[tdp]", "test_a[shadow-0]", "test_b[shadow]"]
    assert "--quick" in ended.results["command"]
    one = judge(CELLS, "--quick", "-ka and not 0")
    assert names(one) == ["test_a[tdp-1]"], "-k has its say before"


def test_the_table_counts_the_repetitions(judge: Judge) -> None:
    ended = judge(SECOND_FAILS, "--repeat=3")
    assert ended.code == 1
    assert "fail 1 of 3" in ended.out
    assert "pass 3 of 3" in ended.out
    assert "inner: a (run 2)" in ended.out
    assert "5 pass, 1 fail in 3 runs" in ended.out


def test_until_the_first_failure_and_no_further(judge: Judge) -> None:
    ended = judge(SECOND_FAILS, "--repeat=20", "--until-fail")
    assert ended.code == 1
    outcomes = [test["outcome"] for test in ended.results["tests"]]
    assert outcomes == ["pass", "pass", "fail", "missing"], "what was not begun was not asked for"
    assert ended.results["repetitions"] == 2
    assert ended.results["command"].endswith("--mmu tdp --repeat 20 --until-fail")


def test_without_a_failure_all_are_asked_for(judge: Judge) -> None:
    ended = judge(TWO, "--repeat=2", "--until-fail")
    assert (ended.code, ended.results["counts"]["pass"]) == (0, 4)


def test_a_repetition_that_never_reported_is_missing(judge: Judge, world: World) -> None:
    text = TWO + "\n\nimport os, signal\ndef test_c(evidence):\n    raise KeyboardInterrupt\n"
    ended = judge(text, "--repeat=2", "--until-fail")
    assert ended.code == 130
    assert ended.results["counts"]["missing"] == 4


def test_the_command_of_a_test_asks_for_it_alone(judge: Judge) -> None:
    ended = judge(TWO, "--repeat=2")
    commands = {test["command"] for test in ended.results["tests"]}
    assert {command.rpartition("::")[2] for command in commands} == {
        "test_a[tdp]'",
        "test_b[tdp-thp]'",
    }
    assert not any("repeat" in command for command in commands)


def test_each_repetition_is_begun_by_several_hosts_on_new_ones(judge: Judge) -> None:
    ended = judge(TWO, "--repeat=4", "--hosts=2")
    assert ended.code == 0, ended.out
    assert len(ended.results["qemu"]["hosts"]) == 4


# What pytest says must be what the verdict says.


@pytest.mark.parametrize(
    ("body", "counted"),
    [
        ("raise errors.OracleUnavailable('no vmlinux')", {"skipped": 1}),
        ("pass", {"passed": 1, "errors": 1}),
        ("evidence.at_least('x', 'y', 2, 1)", {"failed": 1}),
        ("evidence.at_least('x', 'y', 1, 1)", {"passed": 1}),
        ("pytest.skip('no')", {"skipped": 1}),
    ],
)
def test_pytest_counts_as_we_do(
    judge: Judge, pytester: pytest.Pytester, body: str, counted: dict[str, int]
) -> None:
    pytester.makepyfile(f"import pytest\nfrom harness import errors\ndef test_a(evidence): {body}")
    ended = pytester.runpytest_inprocess("--mmu=tdp", "-pno:cacheprovider")
    ended.assert_outcomes(**counted)


def test_the_reason_of_a_skip_is_shown(judge: Judge) -> None:
    ended = judge("def test_a(evidence): raise errors.OracleUnavailable('no vmlinux')", "-rs")
    assert "no vmlinux" in ended.out
    assert ended.code == 125


def test_last_failed_runs_what_the_verdict_blames(
    world: World, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("""
        def test_good(evidence): evidence.at_least("x", "y", 1, 1)
        def test_without_evidence(evidence): pass
        def test_bad(evidence): evidence.at_least("x", "y", 2, 1)
    """)
    assert pytester.runpytest_inprocess("--mmu=tdp").ret == 1
    again = pytester.runpytest_inprocess("--mmu=tdp", "--lf", "--co", "-q")
    again.stdout.fnmatch_lines(["*test_without_evidence?tdp?", "*test_bad?tdp?"])
    again.stdout.no_fnmatch_line("*test_good*")


def test_the_first_that_is_no_pass_ends_a_run_with_x(judge: Judge) -> None:
    text = "def test_a(evidence): pass\n" + TWO.replace("test_a", "test_c")
    ended = judge(text, "-x")
    assert [test["outcome"] for test in ended.results["tests"]] == ["error", "missing", "missing"]


# Without other plugins, and without this one.


@pytest.mark.parametrize("name", ["xdist", "cacheprovider", "junitxml", "logging", "stepwise"])
def test_other_plugins_are_not_needed(judge: Judge, name: str) -> None:
    ended = judge(TWO, f"-pno:{name}")
    assert (ended.code, ended.results["counts"]["pass"]) == (0, 2)


def test_it_can_be_switched_off(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_plain(): pass\ndef test_ours(evidence): pass\n")
    ended = pytester.runpytest_inprocess("-pno:mmu_harness", "-pno:cacheprovider")
    ended.assert_outcomes(passed=1, errors=1)
    ended.stdout.fnmatch_lines(["*fixture 'evidence' not found"])
    ended.stdout.no_fnmatch_line("kernel: *")
