# SPDX-License-Identifier: GPL-2.0-only
"""What each control breaks, and which scenarios should see that: the claims of the kill matrix.

A scenario is named by words that its test id has all of, as ``test_fork child_does_not_see anon``;
a word may be the MMU mode. Nothing here is about kernels of one version: whether a kernel has a
control, its patch series says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType

_NO_PROOFS: Mapping[str, str] = MappingProxyType({})

_EXIT = "test_exit a_killed_vmm anon"
# The ranges that begin and end in the middle of 2 MiB are told of by the split of the VMA already.
_UNMAP = "test_unmap unmapped anon-aligned"
_UNMAP_FIRST = "test_unmap unmapped anon-first"
_DISCARD = "test_unmap discarded anon-aligned"
_PROTECT = "test_mprotect read_only anon-aligned"
_FORK = "test_fork child_does_not_see anon"
_SWAP = "test_reclaim what_a_guest_only_read"
_LARGE = "test_large_pages mapped_by_large thp"
_HUGETLB = "test_large_pages mapped_by_large hugetlb"
_COPY_ZERO = "test_copy_on_write copied_when anon vmm"
_COPY_FILE = "test_copy_on_write copied_when file-private vmm"
_MERGE = "test_merge merged_pages_read"
_LINUX_STORM = "test_swap_storm get_by 2-128"
_LINUX_MERGE = "test_shared_pages equal_guests"

SUITES = ("tests/kvm", "tests/linux")
"""Where the scenarios are."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One control: the guarantee that it breaks and the bug that it stands for.

    ``sees`` are the scenarios that should notice, ``blind`` some that should not; ``modes`` are
    the MMU modes in which both are tried. ``unobservable`` maps an accelerator under which the
    control cannot show to the proof of that.
    """

    name: str
    breaks: str
    stands_for: str
    sees: tuple[str, ...]
    blind: tuple[str, ...] = (_UNMAP, _PROTECT, _FORK)
    modes: tuple[str, ...] = ("tdp",)
    unobservable: Mapping[str, str] = dataclasses.field(default_factory=lambda: _NO_PROOFS)


def expression(scenarios: Iterable[str]) -> str:
    """The ``-k`` expression that selects all of these scenarios."""
    return " or ".join(f"({' and '.join(words.split())})" for words in dict.fromkeys(scenarios))


def matches(scenario: str, id: str) -> bool:
    """Whether a test id has all words of a scenario."""
    return all(word.lower() in id.lower() for word in scenario.split())


_FORGOTTEN = "f268f6cf875f: a collapse that told nobody; guests read recycled pages"

CATALOGUE = (
    Entry("sptes-survive-unmap", "sptes are dropped before munmap or MADV_DONTNEED frees the page",
          _FORGOTTEN,
          sees=(_UNMAP, _DISCARD),
          blind=(_PROTECT, _FORK, _SWAP)),
    Entry("sptes-survive-truncate", "sptes are dropped before a page leaves its file",
          _FORGOTTEN,
          sees=("test_file hole_in_a_file_reads memfd madvise 1000",
                "test_file beyond_the_end memfd")),
    Entry("sptes-survive-mprotect", "a protection downgrade binds the guest too",
          "userfaultfd write protection and NUMA hints take the same way",
          sees=(_PROTECT,), blind=(_UNMAP, _FORK, _SWAP)),
    Entry("sptes-survive-fork", "the guest's next write after a fork goes to a copy",
          "e8569dd299db, but for ordinary pages: guest writes leaked into the child",
          sees=(_FORK,), blind=(_UNMAP, _PROTECT, _SWAP)),
    Entry("sptes-survive-hugetlb-fork", "the same for hugetlb memory",
          "e8569dd299db: hugetlb fork did not call notifiers",
          sees=("test_fork child_does_not_see hugetlb",), blind=(_UNMAP, _PROTECT, _FORK)),
    Entry("sptes-survive-cow", "the guest follows its VMM to the page that a write fault copied",
          "the mission's own example, do_wp_page",
          sees=(_COPY_FILE,), blind=(_UNMAP, _PROTECT, _SWAP)),
    Entry("sptes-survive-zero-page", "a read-only translation is changed when the page is",
          "what ->change_pte was for, until v6.10",
          sees=(_COPY_ZERO,), blind=(_COPY_FILE, _PROTECT, _FORK)),
    Entry("sptes-survive-mremap", "what mremap moved is gone from where it was",
          _FORGOTTEN,
          sees=("test_move moved_out_of_its_mapping anon",)),
    Entry("sptes-survive-reclaim", "sptes are dropped before reclaim frees the page",
          "369ea8242c0f and its reverts: guests crashed under swap and KSM",
          sees=(_SWAP, _LINUX_STORM)),
    Entry("sptes-survive-migration", "sptes follow a page to its new frame",
          "369ea8242c0f, on the way to migrate instead of to swap",
          sees=("test_migrate other_node anon",)),
    Entry("sptes-survive-mkclean", "each write after writeback makes the page dirty anew",
          "guest writes that never reach the file",
          sees=("test_file each_sync fsync file-shared",)),
    Entry("sptes-survive-ksm-protect", "nobody writes to a page that KSM shares",
          "785373b4c387: guests crashed under KSM",
          sees=(_MERGE, _LINUX_MERGE)),
    Entry("sptes-survive-ksm-replace", "sptes follow to the page that KSM shares",
          "785373b4c387: guests crashed under KSM",
          sees=("test_merge reading",)),
    Entry("sptes-survive-split", "no spte is larger than what the primary MMU maps",
          "127393fbe597: a huge spte over a partially mapped compound page",
          sees=("test_large_pages split thp mapping",), blind=(_LARGE, _UNMAP, _PROTECT)),
    Entry("sptes-survive-collapse", "sptes follow when small pages become a large one",
          _FORGOTTEN,
          sees=("test_large_pages collapsed_memory anon",), blind=(_LARGE, _UNMAP, _PROTECT)),
    Entry("sptes-survive-file-collapse", "the same for shmem and files",
          _FORGOTTEN,
          sees=("test_large_pages small_mappings memfd",), blind=(_LARGE, _UNMAP, _PROTECT)),
    Entry("sptes-survive-hugetlb-unmap", "sptes are dropped before a hugetlb page leaves its file",
          _FORGOTTEN,
          sees=("test_file hugetlb punch",), blind=(_HUGETLB, _UNMAP, _PROTECT)),
    Entry("sptes-survive-free", "a write after MADV_FREE keeps the page",
          _FORGOTTEN,
          sees=("test_unmap freed_memory anon",)),

    Entry("page-reference-per-spte", "no page is pinned because a guest uses it",
          "KVM before acb66dd051d0 (v3.6)",
          sees=(_EXIT, _SWAP), blind=()),
    Entry("pre-notifier", "everything that the mission's patch promises",
          "KVM before there were mmu notifiers",
          sees=(_EXIT, _SWAP, _UNMAP, _MERGE, _LINUX_STORM), blind=()),
    Entry("reference-leak-sparse", "no reference leaks, not even on each 64th page",
          "a leak that totals and samples miss",
          sees=(_EXIT, _SWAP), blind=()),
    Entry("reference-leak-large", "no reference leaks on a large page",
          "references that only the head page shows",
          sees=(_LARGE,)),
    Entry("reference-leak-read-only", "no reference leaks with a read-only spte",
          "a leak on one of several paths",
          sees=(_PROTECT,), blind=(_EXIT, _UNMAP, _HUGETLB)),
    Entry("reference-leak-write-fault", "no reference leaks on a write fault",
          "a leak on one of several paths",
          sees=(_EXIT,), blind=(_SWAP, _COPY_ZERO, _COPY_FILE)),
    Entry("reference-underflow", "no reference is dropped too many",
          "f8be156be163, CVE-2021-22543",
          sees=(_EXIT,), blind=()),

    Entry("last-page-survives", "a range is invalidated to its last page",
          "an end that is taken for inclusive",
          sees=(_UNMAP,), blind=(_UNMAP_FIRST, _SWAP, _EXIT)),
    Entry("single-page-survives", "a range of one page is invalidated, too",
          "369ea8242c0f: ->invalidate_page went, and single pages with it",
          sees=(_SWAP,), blind=(_PROTECT, "test_mprotect inaccessible anon-aligned", _EXIT)),
    Entry("sptes-survive-in-shadow-mode", "shadow page tables follow as the TDP MMU does",
          "0cb2af2ea66a: a bug of shadow paging alone",
          sees=(f"{_UNMAP} shadow",), blind=(f"{_UNMAP} tdp", f"{_PROTECT} tdp", f"{_FORK} tdp"),
          modes=("tdp", "shadow")),
    Entry("sptes-survive-with-two-vcpus", "the number of vcpus changes nothing",
          "bugs that a single vcpu hides",
          sees=("test_race goes_where discard-2",),
          blind=("test_race goes_where discard-1", _UNMAP, _PROTECT)),
    Entry("sptes-survive-later", "the thousandth invalidation is as good as the first",
          "82d811ff5665: vcpus hung after 2^31 invalidations",
          sees=(_SWAP,), blind=(_UNMAP, _PROTECT, _EXIT)),
    Entry("flush-omitted", "the secondary TLB is flushed before the page is freed",
          "the mission: spte and secondary tlb must be invalidated",
          sees=("test_economy few_flushes dontneed",), blind=(_UNMAP, _PROTECT, _EXIT)),
    Entry("retry-ignored", "nothing is mapped between range_start and range_end",
          "the mission's first dependency",
          sees=("test_race goes_where discard-all-1",), blind=(_UNMAP, _PROTECT, _EXIT)),
    Entry("range-end-lost", "each range_start has its range_end",
          "c2655835fd8c: vcpus retry for ever",
          sees=(_PROTECT,), blind=(_EXIT, _HUGETLB, _LARGE)),
    Entry("sptes-survive-exit", "release drops all sptes before the pages are freed",
          "52ac8b358b0c and its kin: the end of a VM racing with the end of its memory",
          sees=("test_exit holds_the_vm anon",), blind=()),
    Entry("always-young", "what a guest does not use can be swapped",
          "ageing that never ends",
          sees=(_SWAP,)),
    Entry("never-young", "what a guest uses stays in memory",
          "ageing that asks the primary MMU only",
          sees=("test_age multigenerational anon",)),
    Entry("creation-error-leak", "a VM that could not be created leaves nothing",
          "the mission: mmu_notifier_register may fail with EINTR",
          sees=("test_registration cannot_be_created",)),
)  # fmt: skip
"""Every control, in the order of the patch series."""


def entry(name: str) -> Entry | None:
    """The entry of a control, or None if there is none."""
    return next((item for item in CATALOGUE if item.name == name), None)
