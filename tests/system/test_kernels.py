# SPDX-License-Identifier: GPL-2.0-only
"""A kernel goes in and a verdict comes out: for one that is built, and for one that is not."""

from __future__ import annotations

from pathlib import Path

from checking import verdict


def test_the_default_kernel_passes_the_whole_suite(tmp_path: Path) -> None:
    checked = verdict(tmp_path)
    assert checked.code == 0
    assert checked.outcomes() == {"pass"}
    assert {test["mmu"] for test in checked.results["tests"]} == {"tdp", "shadow"}
    assert checked.oracles("not consulted") == set()
    assert {"references", "translations", "spte counters", "reclaim", "notifier"} <= (
        checked.oracles("agrees")
    )
    assert checked.results["config"]["symbols"]["MMU_NOTIFIER"] == "y"


def test_a_prebuilt_kernel_passes_without_the_oracles_that_need_debug_information(
    tmp_path: Path,
) -> None:
    checked = verdict(
        tmp_path, "--kernel=deb:linux-image-amd64", "--mmu=tdp", "-kmiddle or idle or killed"
    )
    assert checked.code == 0
    assert checked.outcomes() == {"pass"}
    assert {"references", "translations"} <= checked.oracles("not consulted")
    assert {"content", "access", "notifier", "reclaim"} <= checked.oracles("agrees")
    assert "references was not consulted" in checked.said
