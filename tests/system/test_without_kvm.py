# SPDX-License-Identifier: GPL-2.0-only
"""The notifiers without KVM: a module is built for the kernel, loaded, and told what it is owed."""

from __future__ import annotations

from pathlib import Path

from checking import check, verdict_on_a_good_kernel

# One of each kind of claim: content, pairs, registration, release, a race, and sleeping.
HANDFUL = (
    "discarded_memory_reads_zero or (child_of_a_fork and anon) or same_order or "
    "interrupts_leaves or before_the_memory or (goes_where_the_page_was and discard) or "
    "(owner_does and fork)"
)


def test_a_handful_of_claims_holds_without_any_guest(tmp_path: Path) -> None:
    checked = verdict_on_a_good_kernel(tmp_path, "--mmu=tdp", "--strict", f"-k{HANDFUL}")
    assert checked.code == 0
    assert checked.outcomes() == {"pass"}
    assert len(checked.results["tests"]) == 10
    assert len(checked.results["qemu"]["hosts"]) == 1
    assert {"callbacks", "notifier", "secondary TLB", "content", "references", "registration"} <= (
        checked.oracles("agrees")
    )
    assert checked.oracles("not consulted") == set()


def test_a_kernel_that_came_without_headers_says_so_and_boots_nothing(tmp_path: Path) -> None:
    checked = check(
        tmp_path, "--kernel=deb:linux-image-amd64", "--strict", "tests/notifier/test_attached.py"
    )
    assert checked.code == 125
    assert checked.outcomes() == {"skip"}
    assert "came without the headers" in checked.results["tests"][0]["message"]
    assert checked.results["qemu"]["hosts"] == []
