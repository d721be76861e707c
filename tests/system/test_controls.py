# SPDX-License-Identifier: GPL-2.0-only
"""A kernel with a guarantee broken on purpose fails, and the verdict says where and why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = Path(sys.executable).with_name("mmu-harness")

# The control, the tests that should see it, and the oracles of which one must name a page.
CONTROLS = {
    "page-reference-per-spte": ("idle or killed_vmm", {"references"}),
    "sptes-survive-unmap": ("middle and (unmapped or discarded)", {"translations", "notifier"}),
}


def check(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Run a check as a user does: its exit code, its results and what it printed."""
    argv = [str(COMMAND), "check", "--results", str(tmp_path), *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=1500)
    print(done.stdout, done.stderr)
    results = json.loads((tmp_path / "latest" / "results.json").read_text())
    return done.returncode, results, done.stdout


@pytest.mark.parametrize("mode", ["tdp", "shadow"])
@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_fails_and_says_where(tmp_path: Path, name: str, mode: str) -> None:
    selection, oracles = CONTROLS[name]
    code, results, said = check(tmp_path, "--control", name, "--mmu", mode, "-k", selection)
    assert code == 1
    assert results["verdict"]["word"] == "FAIL"
    assert results["kernel"]["control"] == name
    failed = [test for test in results["tests"] if test["outcome"] == "fail"]
    assert {test["outcome"] for test in results["tests"]} == {"fail"}
    for test in failed:
        assert test["oracle"] in oracles
        assert isinstance(test["page"], int)
        seen = [report for report in test["oracles"] if report["status"] == "violated"]
        assert seen
        assert seen[0]["expected"]
        assert seen[0]["seen"]
    assert f"oracle:   {failed[0]['oracle']}, guest page {failed[0]['page']}" in said
    assert "repeat:   mmu-harness check" in said


def test_the_kernel_of_the_controls_passes_with_none_on(tmp_path: Path) -> None:
    patches = sorted((Path(__file__).parents[2] / "patches/controls/6.12").glob("*.patch"))
    words = [word for patch in patches for word in ("--patch", str(patch))]
    code, results, _ = check(tmp_path, *words, "--mmu", "tdp", "-k", "middle or idle or killed_vmm")
    assert code == 0
    assert {test["outcome"] for test in results["tests"]} == {"pass"}
