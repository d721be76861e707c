# SPDX-License-Identifier: GPL-2.0-only
"""The whole matrix passes on the default kernel, in each MMU mode."""

from __future__ import annotations

from pathlib import Path

import pytest
from checking import verdict_on_a_good_kernel

from harness.machine.mmu import Mmu

CELLS = 300


@pytest.mark.parametrize("mode", Mmu)
def test_the_default_kernel_passes_every_cell(tmp_path: Path, mode: Mmu) -> None:
    checked = verdict_on_a_good_kernel(tmp_path, f"--mmu={mode}", "--strict")
    assert checked.code == 0
    assert checked.outcomes() == {"pass"}
    assert len(checked.results["tests"]) >= CELLS
    assert {test["backing"] for test in checked.results["tests"]} >= {
        "anon", "thp", "hugetlb", "memfd", "file-shared", "file-private", "ksm", "dax"
    }  # fmt: skip
    assert checked.oracles("not consulted") == set()
