# SPDX-License-Identifier: GPL-2.0-only
"""What is known of notifier sites beforehand: the hooks of 2008, and what it takes to get there.

The sites of a kernel are not listed here: they are read from the kernel itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

_START = "invalidate_range_start"
_END = "invalidate_range_end"
_YOUNG = ("clear_flush_young", "clear_young")


@dataclasses.dataclass(frozen=True)
class Hook:
    """A call that commit cddb8a5c14aa ("mmu-notifiers: core") (in v2.6.27) added.

    ``now`` are the functions that do today what ``function`` of ``file`` did, by the names that
    they had from 5.10 on, and ``notifiers`` what they call. Where they do other things, too, only
    tests with one of the words of ``only`` in their id count, and ``needs`` says what these are.
    ``gone`` says why nothing calls a notifier in its place any more.
    """

    file: str
    function: str
    call: str
    now: tuple[str, ...] = ()
    notifiers: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    needs: str = ""
    gone: str = ""

    def within(self, test: str) -> bool:
        """Whether a test is one that counts for this hook."""
        return not self.only or any(word in test.lower() for word in self.only)


def _range(
    file: str,
    function: str,
    *now: str,
    only: tuple[str, ...] = (),
    needs: str = "",
    gone: str = "",
) -> tuple[Hook, ...]:
    """The two hooks around a range."""
    return tuple(
        Hook(file, function, f"mmu_notifier_{which}", now, (which,), only, needs, gone)
        for which in (_START, _END)
    )


def _flush(file: str, function: str, *now: str, only: tuple[str, ...] = (), needs: str = "",
           gone: str = "") -> Hook:  # fmt: skip
    """A page that was invalidated; such calls have become ranges."""
    return Hook(file, function, "ptep_clear_flush_notify", now, (_START,), only, needs, gone)


def _young(file: str, function: str, *now: str, gone: str = "") -> Hook:
    return Hook(file, function, "ptep_clear_flush_young_notify", now, _YOUNG, gone=gone)


_UNMAP = ("unmap_vmas", "zap_page_range_single", "zap_page_range", "zap_page_range_single_batched")
_NONLINEAR = "nonlinear mappings are gone"

HOOKS: tuple[Hook, ...] = (
    Hook(
        "kernel/fork.c",
        "mm_init",
        "mmu_notifier_mm_init",
        gone="an inlined store of a null pointer, which calls nothing that could be watched",
    ),
    Hook(
        "kernel/fork.c",
        "__mmdrop",
        "mmu_notifier_mm_destroy",
        ("__mmdrop",),
        ("subscriptions_destroy", "mm_destroy"),
    ),
    _flush(
        "mm/filemap_xip.c",
        "__xip_unmap",
        *_UNMAP,
        "page_vma_mkclean_one",
        only=("dax", "pmem"),
        needs="needs a guest on DAX, which took the place of execution in place",
    ),
    *_range(
        "mm/fremap.c",
        "sys_remap_file_pages",
        *_UNMAP,
        only=("rearranged",),
        needs="needs remap_file_pages, which is emulated by mappings anew",
    ),
    *_range(
        "mm/hugetlb.c",
        "__unmap_hugepage_range",
        *_UNMAP,
        "unmap_hugepage_range",
        only=("hugetlb",),
        needs="needs a guest on hugetlb memory",
    ),
    *_range("mm/memory.c", "copy_page_range", "copy_page_range"),
    *_range("mm/memory.c", "unmap_vmas", *_UNMAP),
    *_range(
        "mm/memory.c",
        "apply_to_page_range",
        gone="it tells nobody any more: who calls it for memory of users must do so",
    ),
    _flush("mm/memory.c", "do_wp_page", "wp_page_copy"),
    Hook("mm/mmap.c", "exit_mmap", "mmu_notifier_release", ("exit_mmap",), ("release",)),
    *_range(
        "mm/mprotect.c",
        "mprotect_fixup",
        "change_pud_range",
        "change_pmd_range",
        "hugetlb_change_protection",
    ),
    *_range("mm/mremap.c", "move_ptes", "move_page_tables", "move_hugetlb_page_tables"),
    _young(
        "mm/rmap.c",
        "page_referenced_one",
        "folio_referenced_one",
        "page_referenced_one",
        "lru_gen_look_around",
    ),
    _flush("mm/rmap.c", "page_mkclean_one", "page_vma_mkclean_one", "page_mkclean_one"),
    _young(
        "mm/rmap.c",
        "try_to_unmap_one",
        gone="unmapping asks for no age any more; reclaim does before, in folio_referenced_one",
    ),
    _flush("mm/rmap.c", "try_to_unmap_one", "try_to_unmap_one", "try_to_migrate_one"),
    _young("mm/rmap.c", "try_to_unmap_cluster", gone=_NONLINEAR),
    _flush("mm/rmap.c", "try_to_unmap_cluster", gone=_NONLINEAR),
    Hook(
        "mm/mmu_notifier.c",
        "(KVM)",
        "mmu_notifier_register",
        ("modules",),
        ("mmu_notifier_register",),
    ),
    Hook(
        "mm/mmu_notifier.c",
        "(KVM)",
        "mmu_notifier_unregister",
        ("modules",),
        ("mmu_notifier_unregister",),
    ),
)
"""The hooks of 2008, in the order of the patch; registration, which it exports, at the end."""

_DEVICE = "needs a device driver with memory of its own (DEVICE_PRIVATE; TEST_HMM has one)"
_DRIVER = "needs a driver other than KVM, which registers with mmu_notifier_register()"
_SHARED_DRIVER = "needs one of the drivers that share a notifier with others (kfd, GRU)"
_LOCKED_DRIVER = "needs one of the drivers that register with mmap_lock held (kfd, xen-gntdev)"
_DAMON = "needs DAMON to sample the VMM's memory"
_MGLRU = "needs the multi-generational LRU under pressure (lru_gen/enabled)"
_SCAN = "needs the PAGEMAP_SCAN ioctl with write protection"

NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "migrate_vma_collect": _DEVICE,
        "__migrate_device_pages": _DEVICE,
        "migrate_vma_pages": _DEVICE,
        "page_make_device_exclusive_one": _DEVICE,
        "remove_device_exclusive_entry": _DEVICE,
        "mmu_interval_notifier_insert": "needs a driver that mirrors memory (TEST_HMM is one)",
        "mmu_interval_notifier_insert_locked": _LOCKED_DRIVER,
        "mmu_notifier_get_locked": _SHARED_DRIVER,
        "modules": _DRIVER,
        "__split_huge_pud": "needs a page of 1 GiB in a page table, which only device DAX has",
        "hugetlb_unshare_pmds": "needs a shared hugetlb mapping of 1 GiB or more",
        "__replace_page": "needs a uprobe in a private mapping of a file",
        "__oom_reap_task_mm": "needs a VMM that was killed and whose memory goes before it does",
        "arch_tlbbatch_add_pending": "needs reclaim of memory that other CPUs may have in a TLB",
        "clear_refs_write": "needs soft-dirty tracking (clear_refs)",
        "do_pagemap_scan": _SCAN,
        "pagemap_scan_init_bounce_buffer": _SCAN,
        "move_pages": "needs UFFDIO_MOVE",
        "move_pages_pte": "needs UFFDIO_MOVE of base pages",
        "move_pages_huge_pmd": "needs UFFDIO_MOVE of a transparent huge page",
        "write_protect_page": "needs KSM",
        "replace_page": "needs KSM",
        "madvise_free_single_vma": "needs MADV_FREE",
        "page_idle_clear_pte_refs_one": "needs idle page tracking (page_idle/bitmap)",
        "damon_ptep_mkold": _DAMON,
        "damon_pmdp_mkold": f"{_DAMON}, where it is huge pages",
        "damon_hugetlb_mkold": f"{_DAMON}, where it is hugetlb",
        "damon_young_pmd_entry": _DAMON,
        "damon_young_hugetlb_entry": f"{_DAMON}, where it is hugetlb",
        "damon_folio_young_one": "needs DAMON to sample physical memory",
        "lru_gen_look_around": _MGLRU,
        "walk_pte_range": _MGLRU,
        "walk_pmd_range_locked": _MGLRU,
        "collapse_huge_page": "needs huge pages to be collapsed, of anonymous memory",
        "__collapse_huge_page_isolate": "needs huge pages to be collapsed, of anonymous memory",
        "hpage_collapse_scan_pmd": "needs huge pages to be collapsed, of anonymous memory",
        "collapse_pte_mapped_thp": "needs huge pages to be collapsed, of a file or shared memory",
        "retract_page_tables": "needs huge pages to be collapsed, of a file or shared memory",
        "__split_huge_pmd": "needs a guest on huge pages that are split",
        "copy_hugetlb_page_range": "needs a guest on hugetlb memory that is forked",
        "move_hugetlb_page_tables": "needs a guest on hugetlb memory that is moved",
        "unmap_hugepage_range": "needs a guest on hugetlb memory that is truncated",
        "hugetlb_wp": "needs a guest on private hugetlb memory that is copied on write",
        "hugetlb_change_protection": "needs a guest on hugetlb memory that is protected",
        "page_vma_mkclean_one": "needs a guest on a shared file that is written back",
    }
)
"""What a test must do to reach a site, by function; shown only for what was not reached."""
