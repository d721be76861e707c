# SPDX-License-Identifier: GPL-2.0-only
"""An MMU mode that the host did not take is noticed."""

from __future__ import annotations

import pytest

from harness.errors import BootError, UsageError
from harness.machine.mmu import Mmu, parse


def test_unknown_mode_is_bad_usage_and_lists_the_modes() -> None:
    with pytest.raises(UsageError, match=r"'npt'; choose one of tdp, tdp-legacy, shadow, nested"):
        parse("npt")
    assert parse("tdp-legacy") is Mmu.TDP_LEGACY


@pytest.mark.parametrize(
    ("mode", "seen"),
    [
        (Mmu.TDP, {"kvm_amd.npt": "Y", "kvm.tdp_mmu": "Y"}),
        (Mmu.TDP, {"kvm_intel.ept": "1", "kvm.tdp_mmu": "1"}),
        (Mmu.TDP, {"kvm_amd.npt": "1"}),  # a kernel without the newer MMU
        (Mmu.TDP_LEGACY, {"kvm_amd.npt": "Y", "kvm.tdp_mmu": "N"}),
        (Mmu.SHADOW, {"kvm_amd.npt": "0", "kvm.tdp_mmu": "Y"}),
        (Mmu.NESTED, {"kvm_amd.npt": "Y", "kvm.tdp_mmu": "Y", "kvm_amd.nested": "1"}),
        (Mmu.SHADOW, {"kvm_intel.ept": "N"}),
    ],
)
def test_mode_that_was_taken(mode: Mmu, seen: dict[str, str]) -> None:
    mode.check(seen)


@pytest.mark.parametrize(
    ("mode", "seen", "name"),
    [
        (Mmu.TDP, {"kvm_amd.npt": "N", "kvm.tdp_mmu": "Y"}, "kvm_amd.npt"),
        (Mmu.TDP, {"kvm_amd.npt": "Y", "kvm.tdp_mmu": "N"}, "kvm.tdp_mmu"),
        (Mmu.TDP_LEGACY, {"kvm_amd.npt": "Y", "kvm.tdp_mmu": "Y"}, "kvm.tdp_mmu"),
        (Mmu.SHADOW, {"kvm_amd.npt": "1"}, "kvm_amd.npt"),
        (Mmu.NESTED, {"kvm_amd.npt": "Y", "kvm_amd.nested": "0"}, "kvm_amd.nested"),
        (Mmu.SHADOW, {"kvm_intel.ept": "Y"}, "kvm_intel.ept"),
    ],
)
def test_mode_that_was_not_taken(mode: Mmu, seen: dict[str, str], name: str) -> None:
    with pytest.raises(BootError, match=name):
        mode.check(seen)


def test_host_that_does_not_say_is_not_believed() -> None:
    with pytest.raises(BootError, match="does not say"):
        Mmu.TDP.check({"kvm.tdp_mmu": "Y"})
