# SPDX-License-Identifier: GPL-2.0-only
"""Guests that are whole Linux systems pass on a good kernel; a handful, for time's sake."""

from __future__ import annotations

from pathlib import Path

import pytest
from checking import verdict_on_a_good_kernel

# Each has a check of its own, because under emulation a guest may reset itself at any time.
HANDFUL = {"killed_guest": "frames", "equal_guests": "merging"}


@pytest.mark.parametrize("scenario", HANDFUL)
def test_linux_guests_under_pressure_pass_on_the_default_kernel(
    tmp_path: Path, scenario: str
) -> None:
    checked = verdict_on_a_good_kernel(
        tmp_path, "--mmu=tdp", "--strict", f"-k{scenario}", "tests/linux"
    )
    assert checked.code == 0
    assert checked.outcomes() == {"pass"}
    assert len(checked.results["tests"]) == 1
    assert {"references", "translations", "content", HANDFUL[scenario], "kernel log"} <= (
        checked.oracles("agrees")
    )
    assert checked.oracles("not consulted") == set()
