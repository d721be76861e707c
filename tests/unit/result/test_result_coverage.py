# SPDX-License-Identifier: GPL-2.0-only
"""From counts of sites to the table, and to coverage.json."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.result import hooks
from harness.result.coverage import (
    MODULES,
    Cell,
    Coverage,
    Row,
    Site,
    as_json,
    hook_rows,
    notes,
    site_rows,
    summary,
)
from harness.result.hooks import HOOKS, NEEDS

START = "__mmu_notifier_invalidate_range_start"
END = "__mmu_notifier_invalidate_range_end"

FORK = Site(START, "copy_page_range", "mm/memory.c", 1392, offsets=(0x100,))
COW = Site(START, "wp_page_copy", "mm/memory.c", 3385, ("do_wp_page",), (0x200,))
ZAP = Site(START, "zap_page_range_single", "mm/memory.c", 1928, offsets=(0x300,))
DEVICE = Site(START, "migrate_vma_collect", "mm/migrate_device.c", 309, offsets=(0x400,))
END_EARLY = Site(END, "collapse_pte_mapped_thp", "mm/khugepaged.c", 1691, offsets=(0x500,))
END_WELL = Site(END, "collapse_pte_mapped_thp", "mm/khugepaged.c", 1668, offsets=(0x600,))
REGISTER = Site("mmu_notifier_register", MODULES)
SITES = (COW, FORK, ZAP, DEVICE, END_EARLY, END_WELL, REGISTER)


def cell(name: str, mmu: str, *sites: Site, problem: str = "") -> Cell:
    hits = dict.fromkeys(sites, 2)
    test = f"tests/kvm/test_x.py::{name}[{mmu}]"
    return Cell(test, mmu, f"x: {name}", hits, problem=problem)


@pytest.fixture
def coverage() -> Coverage:
    return Coverage(
        "6.12.117",
        SITES,
        (
            cell("test_fork", "tdp", FORK, REGISTER),
            cell("test_fork", "shadow", FORK, REGISTER),
            cell("test_cow", "tdp", FORK, COW, END_WELL),
            cell("test_lost", "tdp", problem="the host is gone"),
            cell("test_gone", "tdp", problem="the host is gone"),
        ),
        outside={DEVICE: 3},
        problems=("One thing was odd.",),
    )


def row(rows: tuple[Row, ...], name: str) -> Row:
    (found,) = [each for each in rows if each.name == name]
    return found


def test_a_site_has_a_row_with_the_cells_that_passed_it(coverage: Coverage) -> None:
    fork = row(site_rows(coverage), "copy_page_range: invalidate_range_start")
    assert fork.reached
    assert (fork.count("tdp"), fork.count("shadow")) == (2, 1)
    assert fork.scenarios == ("x: test_fork", "x: test_cow")
    assert fork.detail == "mm/memory.c:1392"
    assert fork.reason == ""


def test_every_site_has_a_row_by_file_and_line(coverage: Coverage) -> None:
    rows = site_rows(coverage)
    assert len(rows) == len(SITES)
    places = [each.detail for each in rows]
    assert places == [
        "",
        "mm/khugepaged.c:1668",
        "mm/khugepaged.c:1691",
        "mm/memory.c:1392",
        "mm/memory.c:1928",
        "mm/memory.c:3385 in do_wp_page",
        "mm/migrate_device.c:309",
    ]


def test_a_site_that_nobody_reached_says_what_it_takes(coverage: Coverage) -> None:
    device = row(site_rows(coverage), "migrate_vma_collect: invalidate_range_start")
    assert not device.reached
    assert device.reason == f"{NEEDS['migrate_vma_collect']}; passed between tests"
    zap = row(site_rows(coverage), "zap_page_range_single: invalidate_range_start")
    assert zap.reason == "no test drives it"


def test_another_way_out_of_a_reached_function_says_so(coverage: Coverage) -> None:
    early, well = (
        next(each for each in site_rows(coverage) if each.detail == site.where)
        for site in (END_EARLY, END_WELL)
    )
    assert well.reached
    assert "another call of the same in this function was reached" in early.reason


def test_a_site_that_only_a_vmm_passed_for_itself_is_not_reached() -> None:
    own = Cell("t", "tdp", "t", {}, {COW: 7})
    (only,) = site_rows(Coverage("6", (COW,), (own,)))
    assert not only.reached
    assert only.reason == "no test drives it; passed for other memory of a VMM"


def test_a_count_of_zero_reaches_nothing() -> None:
    zero = Cell("t", "tdp", "t", {FORK: 0})
    assert not site_rows(Coverage("6", (FORK,), (zero,)))[0].reached


def test_where_nothing_was_measured_no_reason_is_invented() -> None:
    lost = cell("test_lost", "tdp", problem="gone")
    for cells in ((), (lost,)):
        (only,) = site_rows(Coverage("6", (DEVICE,), cells))
        assert only.reason == "nothing was measured"


# The hooks of 2008.


def test_a_hook_is_reached_by_what_does_its_work_today(coverage: Coverage) -> None:
    cow = row(hook_rows(coverage), "do_wp_page: ptep_clear_flush_notify")
    assert cow.scenarios == ("x: test_cow",)
    assert cow.detail == "mm/memory.c; now wp_page_copy"
    fork = [each for each in hook_rows(coverage) if each.name.startswith("copy_page_range")]
    assert [each.reached for each in fork] == [True, False], "start and end are told apart"
    assert fork[1].reason == "this kernel has no such site"


def test_registration_by_a_module_counts(coverage: Coverage) -> None:
    register = row(hook_rows(coverage), "(KVM): mmu_notifier_register")
    assert register.count("shadow") == 1


def test_a_hook_that_is_gone_says_why(coverage: Coverage) -> None:
    gone = row(hook_rows(coverage), "mm_init: mmu_notifier_mm_init")
    assert gone.reason.startswith("an inlined store")


@pytest.mark.parametrize(
    ("hook", "counting", "other"),
    [
        ("__xip_unmap: ptep_clear_flush_notify", "test_punch[dax]", "test_punch[file]"),
        (
            "sys_remap_file_pages: mmu_notifier_invalidate_range_start",
            "test_the_guest_sees_pages_of_a_file_that_were_rearranged",
            "test_remap",
        ),
        (
            "__unmap_hugepage_range: mmu_notifier_invalidate_range_start",
            "test_unmap[hugetlb]",
            "test_unmap[thp]",
        ),
    ],
)
def test_a_general_function_counts_for_a_special_hook_only_in_its_tests(
    hook: str, counting: str, other: str
) -> None:
    for name, reached in ((counting, True), (other, False)):
        coverage = Coverage("6", (ZAP,), (cell(name, "tdp", ZAP),))
        found = row(hook_rows(coverage), hook)
        assert found.reached is reached
        assert reached or found.reason.startswith("needs ")


def test_a_hook_says_either_what_became_of_it_or_why_it_is_gone() -> None:
    assert len(HOOKS) == 27
    for hook in HOOKS:
        assert bool(hook.gone) != bool(hook.now and hook.notifiers), hook
        assert not hook.only or hook.needs, hook


def test_the_functions_that_succeeded_a_hook_are_found_by_the_short_name_of_a_notifier() -> None:
    prefixed = [name for hook in HOOKS for name in hook.notifiers if name.startswith("__")]
    assert not prefixed
    assert Site(START, "f").hook in {name for hook in HOOKS for name in hook.notifiers}


# What is left to say.


def test_the_summary_counts(coverage: Coverage) -> None:
    assert summary(coverage) == (
        "4 of 7 notifier sites of 6.12.117 and 3 of 27 hooks of 2008 were reached by 3 tests; "
        "of 2 more nothing was measured."
    )


def test_problems_are_told_once_with_their_number(coverage: Coverage) -> None:
    assert notes(coverage) == (
        "One thing was odd.",
        "2 tests not measured: the host is gone",
    )


def test_what_made_all_tests_blind_is_told_once() -> None:
    blind = cell("test_x", "tdp", problem="No vmlinux.")
    assert notes(Coverage("6", (), (blind, blind), problems=("No vmlinux.",))) == ("No vmlinux.",)


def test_the_file_has_every_site_cell_and_count(coverage: Coverage) -> None:
    text = as_json(coverage)
    found: Any = json.loads(text)
    assert found["schema"] == 1
    assert found["modes"] == ["tdp", "shadow"]
    assert len(found["sites"]) == len(SITES)
    assert len(found["hooks_of_2008"]) == len(hooks.HOOKS)
    (fork,) = [each for each in found["sites"] if each["name"].startswith("copy_page_range")]
    assert fork["reached_by"] == [
        "tests/kvm/test_x.py::test_fork[tdp]",
        "tests/kvm/test_x.py::test_fork[shadow]",
        "tests/kvm/test_x.py::test_cow[tdp]",
    ]
    assert found["cells"][2]["hits"] == {
        "copy_page_range: invalidate_range_start mm/memory.c:1392": 2,
        "wp_page_copy: invalidate_range_start mm/memory.c:3385 in do_wp_page": 2,
        "collapse_pte_mapped_thp: invalidate_range_end mm/khugepaged.c:1668": 2,
    }
    assert found["cells"][0]["hits"]["modules: mmu_notifier_register"] == 2
    assert found["cells"][2]["others"] == {}
    assert found["cells"][3]["problem"] == "the host is gone"
    assert found["outside"] == {
        "migrate_vma_collect: invalidate_range_start mm/migrate_device.c:309": 3
    }


def test_hostile_text_is_escaped_in_the_file() -> None:
    odd = cell("test_x", "tdp", FORK, problem="\x1b[2Jgone")
    text = as_json(Coverage("6.12\x1b", (FORK,), (odd,)))
    assert "\x1b" not in text
    assert "\\x1b[2Jgone" in json.loads(text)["cells"][0]["problem"]
