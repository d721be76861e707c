# SPDX-License-Identifier: GPL-2.0-only
"""Each control of the project is in the catalogue, and each scenario named there in the suite."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.catalogue import CATALOGUE, SUITES, Entry, entry, expression, matches
from harness.control import all_controls
from harness.kernel.reference import DebianSource
from harness.machine.mmu import Mmu, parse
from harness.progress import Silent
from harness.result import summary
from harness.result.hooks import HOOKS
from harness.result.outcome import Request
from harness.store import Store

ROOT = Path(__file__).parents[2]
WORDS = {"and", "or", "not", "tests", "kvm", "notifier", "parametrize", "secondary_mmu"}
"""What -k reads as its own, or finds in each test."""

UNPROVEN = {
    f"tests/notifier/test_{name}": why
    for name, why in {
        "tlb_only.py::test_a_miss_faults_the_page_in_and_keeps_no_reference": (
            "it asks our device, not the kernel"
        ),
        "tlb_only.py::test_no_write_is_lost_to_reclaim": (
            "on sptes-survive-reclaim it fails now and then, when a page is free in time"
        ),
    }.items()
}
"""Scenarios that no control was seen to break, with the reason."""

by_name = pytest.mark.parametrize("item", CATALOGUE, ids=lambda item: item.name)


@pytest.fixture(scope="module")
def suite() -> list[str]:
    """The ids of all tests of the suite, in all MMU modes."""
    modes = [f"--mmu={mode}" for mode in Mmu]
    words = ["--collect-only", "-q", "-pno:cacheprovider", *modes, *SUITES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_the_catalogue_is_that_of_the_default_kernel(tmp_path: Path) -> None:
    default = DebianSource("deb:linux-source-6.12", "6.12")
    series = all_controls(default, Store(tmp_path), Silent())
    assert tuple(item.name for item in CATALOGUE) == series.names


@by_name
def test_an_entry_says_what_it_breaks_and_who_sees_it(item: Entry) -> None:
    assert entry(item.name) is item
    assert item.breaks
    assert item.stands_for
    assert item.sees
    assert not set(item.claims) & set(item.blind)
    assert len(set(item.claims)) == len(item.claims)
    for mode in item.modes:
        parse(mode)
    for scenario in (*item.claims, *item.blind):
        assert not set(scenario.split()) & WORDS


@by_name
def test_each_scenario_is_in_the_suite_once(item: Entry, suite: list[str]) -> None:
    for scenario in (*item.claims, *item.blind):
        named = [mode for mode in Mmu if mode in scenario.split()]
        modes = named or item.modes
        found = [id for id in suite if matches(scenario, id) and f"{modes[0]}-legacy" not in id]
        found = [id for id in found if any(mode in id.partition("[")[2] for mode in modes)]
        assert len(found) == len(modes), scenario


def test_a_hook_that_only_some_tests_count_for_has_such_tests(suite: list[str]) -> None:
    particular = [hook for hook in HOOKS if hook.only]
    assert particular
    for hook in particular:
        assert any(hook.within(id) for id in suite), hook.function
        assert not all(hook.within(id) for id in suite), hook.function


def test_each_scenario_has_a_control_on_which_it_is_seen_to_fail(suite: list[str]) -> None:
    functions = {id.partition("[")[0] for id in suite}
    claims = {claim for item in CATALOGUE for claim in item.claims}
    claimed = {id.partition("[")[0] for id in suite if any(matches(claim, id) for claim in claims)}
    assert UNPROVEN.keys() <= functions
    assert functions - claimed == UNPROVEN.keys()


def test_a_control_has_three_scenarios_that_should_not_care_or_breaks_all() -> None:
    # A reference that is held on pages in general shows in each scenario that looks at references.
    everything = {item.name for item in CATALOGUE if not item.blind}
    assert all(len(item.blind) >= 3 for item in CATALOGUE if item.blind)
    assert len(everything) <= 6


def test_an_expression_selects_what_matches() -> None:
    scenarios = ("test_fork anon", "test_unmap unmapped anon-first", "test_fork anon")
    assert (
        expression(scenarios) == "(test_fork and anon) or (test_unmap and unmapped and anon-first)"
    )
    assert matches("test_fork ANON", "tests/kvm/test_fork.py::test_x[tdp-anon]")
    assert not matches("test_fork thp", "tests/kvm/test_fork.py::test_x[tdp-anon]")


def test_the_documentation_says_of_each_scenario_on_which_controls_it_fails(
    suite: list[str],
) -> None:
    told = []
    for function in dict.fromkeys(id.partition("[")[0] for id in suite):
        ids = [id for id in suite if id.partition("[")[0] == function]
        names = [
            f"`{item.name}`"
            for item in CATALOGUE
            if any(matches(claim, id) for claim in item.claims for id in ids)
        ]
        told.append(f"| {summary.scenario(Request(function, '', ''))} | {', '.join(names)} |")
    text = (ROOT / "docs" / "controls.md").read_text()
    documented = [line for line in text.splitlines() if re.match(r"\| [a-z ]+: ", line)]
    assert documented == told


def test_the_table_of_the_documentation_is_that_of_the_catalogue() -> None:
    text = (ROOT / "docs" / "controls.md").read_text()
    documented = [line for line in text.splitlines() if line.startswith("| `")]
    told = [f"| `{item.name}` | {item.breaks} | {item.stands_for} |" for item in CATALOGUE]
    assert documented == told
