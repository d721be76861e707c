# SPDX-License-Identifier: GPL-2.0-only
"""A kernel goes in and a verdict comes out: for one that is built, and for one that is not."""

from __future__ import annotations

from pathlib import Path

from checking import verdict_on_a_good_kernel


def test_the_default_kernel_passes_each_scenario(tmp_path: Path) -> None:
    """The first cell of each; tests/system/test_every_cell.py has the others."""
    checked = verdict_on_a_good_kernel(tmp_path, "--mmu=tdp", "--strict", "--quick")
    assert checked.code == 0
    assert checked.outcomes() == {"pass"}
    assert len(checked.results["tests"]) >= 120
    assert {test["backing"] for test in checked.results["tests"]} >= {
        "anon", "thp", "hugetlb-shared", "memfd", "file-shared", "file-private", "ksm", "dax"
    }  # fmt: skip
    assert checked.oracles("not consulted") == set()
    assert {"references", "translations", "spte counters", "reclaim", "notifier"} <= (
        checked.oracles("agrees")
    )
    assert checked.results["config"]["symbols"]["MMU_NOTIFIER"] == "y"


DEEPER = """
def test_a_vcpu_runs_a_guest_of_its_own_or_not(guest, evidence, mmu_mode):
    evidence.content(guest.fill(seed=1))
    entered = guest.statistics()["0"]["nested_run"]
    evidence.equal("as many guests as its mode says", [mmu_mode == "nested"], [entered > 0])
"""


def test_it_passes_in_the_other_modes_too(tmp_path: Path) -> None:
    """What differs most between the modes; tests/system/test_every_cell.py has all of it."""
    own = tmp_path / "test_own.py"
    own.write_text(DEEPER)
    modes = ("shadow", "tdp-legacy", "nested")
    checked = verdict_on_a_good_kernel(
        tmp_path,
        *(f"--mmu={mode}" for mode in modes),
        "-kanon-middle or (fork and anon and not hammering) or idle_guest or guest_of_its_own",
        "tests/kvm",
        str(own),
    )
    assert checked.code == 0
    assert checked.outcomes() == {"pass"}
    assert checked.oracles("not consulted") == set()
    ran = [test["mmu"] for test in checked.results["tests"]]
    assert {mode: ran.count(mode) >= 8 for mode in modes} == dict.fromkeys(modes, True)


def test_two_hosts_at_once_come_to_the_same_verdict(tmp_path: Path) -> None:
    checked = verdict_on_a_good_kernel(
        tmp_path, "--mmu=tdp", "--mmu=shadow", "--hosts=2", "-kanon-middle"
    )
    assert checked.code == 0
    assert checked.outcomes() == {"pass"}
    assert {host["mmu"] for host in checked.results["qemu"]["hosts"]} == {"tdp", "shadow"}


def test_a_prebuilt_kernel_passes_without_the_oracles_that_need_debug_information(
    tmp_path: Path,
) -> None:
    checked = verdict_on_a_good_kernel(
        tmp_path,
        "--kernel=deb:linux-image-amd64",
        "--mmu=tdp",
        "-kanon-middle or idle_guest or (killed and anon)",
    )
    assert checked.code == 0
    assert checked.outcomes() == {"pass"}
    assert {"references", "translations"} <= checked.oracles("not consulted")
    assert {"content", "access", "notifier", "reclaim"} <= checked.oracles("agrees")
    assert "references was not consulted" in checked.said
