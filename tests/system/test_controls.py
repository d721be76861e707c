# SPDX-License-Identifier: GPL-2.0-only
"""A kernel with a guarantee broken on purpose fails, and the verdict says where and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from checking import command, verdict, verdict_on_a_good_kernel

# The control and the mode, the tests that should see it, and the oracles of which one must name a
# page. Each test that fails costs a boot.
CONTROLS = {
    ("page-reference-per-spte", "shadow"): ("idle_guest", {"references"}),
    ("sptes-survive-unmap", "tdp"): (
        "anon-whole and (unmapped or discarded)",
        {"translations", "notifier"},
    ),
}


@pytest.mark.parametrize(("name", "mode"), CONTROLS)
def test_a_control_fails_and_says_where(tmp_path: Path, name: str, mode: str) -> None:
    selection, oracles = CONTROLS[name, mode]
    checked = verdict(tmp_path, f"--control={name}", f"--mmu={mode}", f"-k{selection}")
    assert checked.code == 1
    assert checked.results["verdict"]["word"] == "FAIL"
    assert checked.results["kernel"]["control"] == name
    assert checked.outcomes() == {"fail"}
    for test in checked.results["tests"]:
        assert test["oracle"] in oracles
        assert isinstance(test["page"], int)
        seen = [report for report in test["oracles"] if report["status"] == "violated"]
        assert seen[0]["expected"]
        assert seen[0]["seen"]
        assert f"oracle:   {test['oracle']}, guest page {test['page']}" in checked.said
    assert "repeat:   mmu-harness check" in checked.said


def test_the_kernel_of_the_controls_passes_with_none_on(tmp_path: Path) -> None:
    patches = sorted((Path(__file__).parents[2] / "patches/controls/6.12").glob("*.patch"))
    words = [f"--patch={patch}" for patch in patches]
    checked = verdict_on_a_good_kernel(tmp_path, *words, "--mmu=tdp", "-kanon-middle or idle_guest")
    assert checked.code == 0
    assert checked.outcomes() == {"pass"}


# One for each way in which a control differs from the others: no notifier at all, a leak that
# totals miss, and a range that is short by one. All of them together are `mmu-harness controls`.
HANDFUL = ("pre-notifier", "reference-leak-sparse", "last-page-survives")


def test_a_handful_of_controls_is_killed_by_those_who_should_see_them(tmp_path: Path) -> None:
    checked = command(tmp_path, "controls", *HANDFUL, document="kill-matrix.json")
    assert checked.code == 0
    fates = {row["name"]: row["fate"] for row in checked.results["controls"]}
    assert fates == dict.fromkeys(HANDFUL, "killed")
    for row in checked.results["controls"]:
        strangers = [
            cell
            for cell in row["scenarios"]
            if cell["role"] == "should not care" and cell["outcome"] == "fail"
        ]
        assert not strangers, row["name"]
    for name in HANDFUL:
        assert name in checked.said


def test_the_notifiers_are_worth_having(tmp_path: Path) -> None:
    checked = command(tmp_path, "compare", document="comparison.json")
    assert checked.code == 0
    before, after = checked.results["before"], checked.results["after"]
    assert before["counts"]["unpinned"] == 0
    assert before["counts"]["swapped"] == 0
    assert before["counts"]["migrated"] == 0
    assert before["counts"]["merged"] == 0
    assert after["counts"]["swapped"] == after["pages"]
    picture = tmp_path / "results" / "latest" / "comparison.svg"
    assert picture.read_text().startswith("<svg ")
