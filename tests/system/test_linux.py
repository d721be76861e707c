# SPDX-License-Identifier: GPL-2.0-only
"""Guests that are whole Linux systems pass on a good kernel; a handful, for time's sake."""

from __future__ import annotations

from pathlib import Path

from checking import verdict_on_a_good_kernel

HANDFUL = "killed_guest or equal_guests"


def test_linux_guests_under_pressure_pass_on_the_default_kernel(tmp_path: Path) -> None:
    checked = verdict_on_a_good_kernel(
        tmp_path, "--mmu=tdp", "--strict", f"-k{HANDFUL}", "tests/linux"
    )
    assert checked.code == 0
    assert checked.outcomes() == {"pass"}
    assert len(checked.results["tests"]) == 2
    assert {"references", "translations", "content", "frames", "merging", "kernel log"} <= (
        checked.oracles("agrees")
    )
    assert checked.oracles("not consulted") == set()
