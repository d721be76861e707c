# SPDX-License-Identifier: GPL-2.0-only
"""A kernel with a guarantee broken on purpose fails, and the verdict says where and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from checking import verdict

# The control, the tests that should see it, and the oracles of which one must name a page.
CONTROLS = {
    "page-reference-per-spte": ("idle or killed_vmm", {"references"}),
    "sptes-survive-unmap": (
        "(whole or aligned) and (unmapped or discarded)",
        {"translations", "notifier"},
    ),
}


@pytest.mark.parametrize("mode", ["tdp", "shadow"])
@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_fails_and_says_where(tmp_path: Path, name: str, mode: str) -> None:
    selection, oracles = CONTROLS[name]
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
    checked = verdict(tmp_path, *words, "--mmu=tdp", "-kmiddle or idle or killed_vmm")
    assert checked.code == 0
    assert checked.outcomes() == {"pass"}
