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
_BREAKPOINT = "test_copy_on_write breakpoint"
_IDLE = "test_age nobody_touches_are_idle anon"
_DAMON = "test_age damon anon"
_DAMON_PHYSICAL = "test_age damon paddr"
_KHUGEPAGED = "test_large_pages khugepaged"
_TRACKED = "test_userfault without_anybody anon"
_REAPED = "test_exit reaped anon-2"
_SHARED_TABLE = "test_large_pages child_shared 2-hugetlb-wide"
_LIMIT = "test_reclaim lower_limit anon"
_VIEW = "test_memslots every_view"
_FLUSHES = "test_economy flush_each_time 8-dontneed"
_LINUX_STORM = "test_swap_storm get_by 2-128"
_LINUX_MERGE = "test_shared_pages equal_guests"

# Of the notifier core alone.
_CORE = ("test_announced discarded_memory", "test_announced read_only_memory",
         "test_attached eight_devices")  # fmt: skip

SUITES = ("tests/kvm", "tests/notifier", "tests/linux")
"""Where the scenarios are."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One control: the guarantee that it breaks and the bug that it stands for.

    ``sees`` are the scenarios that should notice, ``blind`` some that should not; ``modes`` are
    the MMU modes in which both are tried. ``also`` are more that should notice, each of them: the
    proof that they can fail, which is asked for by itself because it takes long. ``linux`` are such
    with Linux guests, which take longer still and are asked alone. ``unobservable`` maps an
    accelerator under which the control cannot show to the proof of that.
    """

    name: str
    breaks: str
    stands_for: str
    sees: tuple[str, ...]
    blind: tuple[str, ...] = (_UNMAP, _PROTECT, _FORK)
    modes: tuple[str, ...] = ("tdp",)
    also: tuple[str, ...] = ()
    linux: tuple[str, ...] = ()
    unobservable: Mapping[str, str] = dataclasses.field(default_factory=lambda: _NO_PROOFS)

    @property
    def claims(self) -> tuple[str, ...]:
        """All scenarios of which it is said that they notice."""
        return (*self.sees, *self.also, *self.linux)


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
          sees=(_UNMAP,),
          blind=(_PROTECT, _FORK, _SWAP),
          linux=("test_shared_pages balloon",
                 "test_shared_pages reports_as_free",
                 "test_shared_pages grows_and_shrinks"),
          also=(_DISCARD, "test_economy few_flushes munmap",
                "test_move cut_off anon",
                "test_move rearranged memfd",
                "test_announced discarded_memory",
                "test_announced unmapped_memory",
                "test_announced unmapped_pages",
                "test_sleeping may_sleep discard",
                "test_tlb_only page_was discard")),
    Entry("sptes-survive-truncate", "sptes are dropped before a page leaves its file",
          _FORGOTTEN,
          sees=("test_file hole_in_a_file_reads memfd madvise 1000",),
          linux=("test_shared_pages punches memfd",),
          also=("test_dax seen_filled vmm",
                "test_dax pages_back dax",
                "test_file beyond_the_end memfd", "test_race comes_and_goes punch",
                "test_announced beyond_the_end")),
    Entry("sptes-survive-mprotect", "a protection downgrade binds the guest too",
          "userfaultfd write protection and NUMA hints take the same way",
          sees=(_PROTECT,), blind=(_UNMAP, _FORK, _SWAP),
          linux=("test_moving_guests snapshot",),
          also=("test_mprotect inaccessible anon-aligned",
                "test_mprotect hammering anon",
                "test_userfault waits anon",
                "test_migrate numa_hints anon",
                "test_announced read_only_memory",
                "test_announced inaccessible")),
    Entry("sptes-survive-fork", "the guest's next write after a fork goes to a copy",
          "e8569dd299db, but for ordinary pages: guest writes leaked into the child",
          sees=(_FORK,), blind=(_UNMAP, _PROTECT, _SWAP),
          also=("test_fork guest_does_not_see anon",
                "test_fork second_child",
                "test_fork hammering anon",
                "test_announced child_of_a_fork anon")),
    Entry("sptes-survive-hugetlb-fork", "the same for hugetlb memory",
          "e8569dd299db: hugetlb fork did not call notifiers",
          sees=("test_fork child_does_not_see hugetlb",), blind=(_UNMAP, _PROTECT, _FORK),
          also=("test_announced child_of_a_fork hugetlb",)),
    Entry("sptes-survive-cow", "the guest follows its VMM to the page that a write fault copied",
          "the mission's own example, do_wp_page",
          sees=(_COPY_FILE,), blind=(_UNMAP, _PROTECT, _SWAP),
          also=("test_fork guest_sees anon",
                "test_merge unmerged",
                "test_announced write_fault_copied")),
    Entry("sptes-survive-zero-page", "a read-only translation is changed when the page is",
          "what ->change_pte was for, until v6.10",
          sees=(_COPY_ZERO,), blind=(_COPY_FILE, _PROTECT, _FORK),
          also=("test_announced from_the_zero_page",)),
    Entry("sptes-survive-mremap", "what mremap moved is gone from where it was",
          _FORGOTTEN,
          sees=("test_move moved_out_of_its_mapping anon",),
          also=("test_announced out_of_its_mapping",)),
    Entry("sptes-survive-reclaim", "sptes are dropped before reclaim frees the page",
          "369ea8242c0f and its reverts: guests crashed under swap and KSM",
          sees=(_SWAP,),
          linux=(_LINUX_STORM,),
          also=("test_reclaim lower_limit anon",
                "test_reclaim half_of_its_memory",
                "test_reclaim idle_guest",
                "test_reclaim around_hammering anon-1",
                "test_reclaim every_kind out_whole anon",
                "test_madvise advised_out anon-by-itself",
                "test_madvise advised_out anon-by-another",
                "test_madvise advised_cold by-another",
                "test_merge goes_out_and_back",
                "test_announced only_a_device_uses",
                "test_announced switching_swap_off")),
    Entry("sptes-survive-migration", "sptes follow a page to its new frame",
          "369ea8242c0f, on the way to migrate instead of to swap",
          sees=("test_migrate other_node anon",),
          also=("test_migrate hammering anon",
                "test_migrate compaction anon",
                "test_announced other_node anon")),
    Entry("sptes-survive-mkclean", "each write after writeback makes the page dirty anew",
          "guest writes that never reach the file",
          sees=("test_file each_sync fsync file-shared",),
          linux=("test_shared_pages has_in_files",),
          also=("test_dax synchronized dax",
                "test_announced after_a_sync")),
    Entry("sptes-survive-ksm-protect", "nobody writes to a page that KSM shares",
          "785373b4c387: guests crashed under KSM",
          sees=(_MERGE,),
          linux=(_LINUX_MERGE, "test_field three_guests"),
          also=("test_merge merged_page_is_seen guest",
                "test_merge hammering",
                "test_announced merged_pages")),
    Entry("sptes-survive-ksm-replace", "sptes follow to the page that KSM shares",
          "785373b4c387: guests crashed under KSM",
          sees=("test_merge reading",)),
    Entry("sptes-survive-split", "no spte is larger than what the primary MMU maps",
          "127393fbe597: a huge spte over a partially mapped compound page",
          sees=("test_large_pages split thp mapping",), blind=(_LARGE, _UNMAP, _PROTECT),
          also=("test_large_pages where_a_part memfd-protection",
                "test_announced as_a_whole mapping")),
    Entry("sptes-survive-collapse", "sptes follow when small pages become a large one",
          _FORGOTTEN,
          sees=("test_large_pages collapsed_memory anon",), blind=(_LARGE, _UNMAP, _PROTECT),
          linux=("test_moving_guests large_pages_come",),
          also=("test_large_pages khugepaged anon",
                "test_large_pages hammering anon",
                "test_announced collapsed_to")),
    Entry("sptes-survive-file-collapse", "the same for shmem and files",
          _FORGOTTEN,
          sees=("test_large_pages small_mappings memfd",), blind=(_LARGE, _UNMAP, _PROTECT)),
    Entry("sptes-survive-hugetlb-unmap", "sptes are dropped before a hugetlb page leaves its file",
          _FORGOTTEN,
          sees=("test_file hugetlb punch",), blind=(_HUGETLB, _UNMAP, _PROTECT),
          also=("test_announced hole_in_a_file hugetlb-shared",)),
    Entry("sptes-survive-free", "a write after MADV_FREE keeps the page",
          _FORGOTTEN,
          sees=("test_unmap freed_memory anon-written",),
          also=("test_announced madv_free",)),

    Entry("page-reference-per-spte", "no page is pinned because a guest uses it",
          "KVM before acb66dd051d0 (v3.6)",
          sees=(_SWAP,), blind=(),
          also=(_EXIT, _LIMIT, "test_reclaim swapoff anon", "test_file private_copies")),
    Entry("pre-notifier", "everything that the mission's patch promises",
          "KVM before there were mmu notifiers",
          sees=(_SWAP, _MERGE), blind=(), also=(_EXIT, _UNMAP), linux=(_LINUX_STORM,)),
    Entry("reference-leak-sparse", "no reference leaks, not even on each 64th page",
          "a leak that totals and samples miss",
          sees=(_EXIT,), blind=(), also=(_SWAP,),
          linux=("test_swap_storm killed_guest",
                 "test_swap_storm oom_killer",
                 "test_moving_guests moves_to_another anon",
                 "test_shared_pages dimm")),
    Entry("reference-leak-large", "no reference leaks on a large page",
          "references that only the head page shows",
          sees=(_LARGE,), linux=("test_moving_guests hugetlb",)),
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
          sees=(_UNMAP,), blind=(_UNMAP_FIRST, _SWAP, _EXIT),
          also=(_TRACKED,
                "test_move until_it_is_back anon-512",
                "test_move until_the_memslot_follows anon")),
    Entry("single-page-survives", "a range of one page is invalidated, too",
          "369ea8242c0f: ->invalidate_page went, and single pages with it",
          sees=(_SWAP,),
          blind=(_PROTECT, "test_mprotect inaccessible anon-aligned", _EXIT),
          also=(_BREAKPOINT,)),
    Entry("sptes-survive-in-shadow-mode", "shadow page tables follow as the TDP MMU does",
          "0cb2af2ea66a: a bug of shadow paging alone",
          sees=(f"{_UNMAP} shadow",), blind=(f"{_UNMAP} tdp", f"{_PROTECT} tdp", f"{_FORK} tdp"),
          modes=("tdp", "shadow")),
    Entry("sptes-survive-with-two-vcpus", "the number of vcpus changes nothing",
          "bugs that a single vcpu hides",
          sees=("test_race goes_where discard-2",),
          blind=("test_race goes_where discard-1", _UNMAP, _PROTECT),
          also=(_REAPED, _SHARED_TABLE)),
    Entry("sptes-survive-later", "the thousandth invalidation is as good as the first",
          "82d811ff5665: vcpus hung after 2^31 invalidations",
          sees=(_SWAP,), blind=(_UNMAP, _PROTECT, _EXIT)),
    Entry("flush-omitted", "the secondary TLB is flushed before the page is freed",
          "the mission: spte and secondary tlb must be invalidated",
          sees=(_FLUSHES,), blind=(_UNMAP, _PROTECT, _EXIT)),
    Entry("retry-ignored", "nothing is mapped between range_start and range_end",
          "the mission's first dependency",
          sees=("test_race goes_where discard-all-1",), blind=(_UNMAP, _PROTECT, _EXIT)),
    Entry("range-end-lost", "each range_start has its range_end",
          "c2655835fd8c: vcpus retry for ever",
          sees=("test_race goes_where discard-1",), blind=(_EXIT, _HUGETLB, _LARGE),
          also=(_PROTECT,)),
    Entry("sptes-survive-exit", "release drops all sptes before the pages are freed",
          "52ac8b358b0c and its kin: the end of a VM racing with the end of its memory",
          sees=("test_exit holds_the_vm anon",), blind=()),
    Entry("always-young", "what a guest does not use can be swapped",
          "ageing that never ends",
          sees=(_SWAP,), also=(_IDLE, _DAMON)),
    Entry("never-young", "what a guest uses stays in memory",
          "ageing that asks the primary MMU only",
          sees=("test_age multigenerational anon",),
          also=(_IDLE, _DAMON, _DAMON_PHYSICAL, _KHUGEPAGED, "test_age age_as_one thp")),
    Entry("creation-error-leak", "a VM that could not be created leaves nothing",
          "the mission: mmu_notifier_register may fail with EINTR",
          sees=("test_registration cannot_be_created",),
          also=("test_registration signal_comes",
                "test_registration any_allocation_fails")),

    Entry("sptes-survive-hugetlb-cow", "the guest follows to the copy of a hugetlb page, too",
          "e8569dd299db: what is written twice is forgotten once",
          sees=("test_fork guest_sees hugetlb",), blind=(_HUGETLB, _COPY_FILE, _PROTECT)),
    Entry("sptes-survive-hugetlb-mprotect", "a protection downgrade of hugetlb memory binds, too",
          "e8569dd299db: what is written twice is forgotten once",
          sees=("test_mprotect read_only hugetlb",), blind=(_HUGETLB, _PROTECT, _UNMAP),
          also=("test_large_pages child_shared 1",)),
    Entry("sptes-survive-userfault-move", "what UFFDIO_MOVE took is gone from where it was",
          _FORGOTTEN,
          sees=("test_userfault moves anon",)),
    Entry("sptes-survive-soft-dirty", "who follows the writes to memory sees those of the guest",
          "writes that a checkpoint (CRIU) misses",
          sees=("test_userfault soft_dirty anon",)),
    Entry("second-notifier-missed", "each of several VMs on the same memory is told",
          "a walk of notifiers that ends too early",
          sees=(f"{_VIEW} second-vm",), blind=(f"{_VIEW} pieces", _UNMAP, _PROTECT),
          also=("test_attached same_order 8", "test_attached who_is_detached 8",
                "test_attached eight_devices")),
    Entry("second-slot-missed", "a range is dropped from each memslot that it is in",
          "a walk of memslots that ends too early",
          sees=(f"{_VIEW} pieces",), blind=(f"{_VIEW} second-vm", _UNMAP, _PROTECT)),
    Entry("alias-missed", "memory that is shown twice is dropped twice",
          "a hva taken to have one gfn",
          sees=(f"{_VIEW} alias",), blind=(f"{_VIEW} pieces", _UNMAP, _PROTECT)),
    Entry("slot-of-one-page-missed", "a memslot of one page is a memslot",
          "a bound that is off by one",
          sees=(f"{_VIEW} pieces",), blind=(f"{_VIEW} alias", _UNMAP, _PROTECT)),
    Entry("last-page-of-slot-survives", "a range beyond a memslot is dropped to the end of that",
          "a clamp that is off by one",
          sees=(f"{_VIEW} pieces",), blind=(f"{_VIEW} alias", _UNMAP, _PROTECT)),
    Entry("second-address-space-missed", "system management mode is told, too",
          "a loop over address spaces that has one round",
          sees=(f"{_VIEW} management-mode",), blind=(f"{_VIEW} alias", _UNMAP, _PROTECT)),
    Entry("cached-translation-survives", "KVM's own mappings of guest memory follow as sptes do",
          "a clock that is written into a page of somebody else",
          sees=("test_clock follows dontneed",)),
    Entry("single-page-flush-omitted", "the TLB is flushed for a range of one page, too",
          "an optimization that goes too far",
          sees=("test_economy flush_each_time 1-dontneed",), blind=(_FLUSHES, _UNMAP, _PROTECT)),
    Entry("sequence-not-bumped", "a fault notices an invalidation that began and ended meanwhile",
          "the mission's first dependency, its second half",
          sees=("test_sequence is_counted discard",)),
    Entry("sequence-sign-extended", "vcpus go on after 2^31 invalidations",
          "82d811ff5665: vcpus hung after 2^31 invalidations",
          sees=("test_sequence 31",)),
    Entry("yield-ends-zap", "a range is dropped whole although KVM gives way in the middle",
          "the rest that is forgotten at a rescheduling point",
          sees=("test_race gives_way",)),
    Entry("slot-change-not-awaited", "memslots change between invalidations only",
          "52ac8b358b0c: the count of invalidations under way goes wrong",
          sees=("test_memslots middle_of",)),
    Entry("dirty-lost", "a page that the guest wrote to is not thrown away as clean",
          "guest writes that are lost to reclaim",
          sees=("test_unmap freed_memory anon-read",), also=("test_reclaim had_read memfd",)),
    Entry("read-fault-maps-writable", "what the primary MMU maps read-only is not written",
          "guests that write to what others share",
          sees=(_COPY_FILE,), blind=(_EXIT, _HUGETLB, _LARGE),
          also=("test_copy_on_write stays_shared file-private",)),
    Entry("large-spte-over-small-pages", "the size of an spte is that of the primary MMU's mapping",
          "127393fbe597: a huge spte over a partially mapped compound page",
          sees=("test_large_pages split thp mapping",), blind=(_LARGE, _UNMAP, _PROTECT)),
    Entry("retry-leaks-reference", "a fault that is tried again gives back what it had got",
          "a leak on one of several paths",
          sees=("test_race leaves_no discard-ahead",), blind=()),
    Entry("destruction-holds-mm", "a VM that is gone leaves nothing of its VMM's memory held",
          "an mm that is never freed",
          sees=("test_registration come_and_go",)),
    Entry("flush-each-spte", "an invalidation costs a flush, and not one for each spte",
          "the price that notifiers of ranges are to save",
          sees=("test_economy few_flushes dontneed",)),
    Entry("exit-keeps-reference", "a VMM that ends gives all of its memory back",
          "a leak on the way out, when nobody looks any more",
          sees=(_EXIT,), blind=(_UNMAP, _PROTECT, _FORK),
          also=("test_exit while_its_guest_runs anon", "test_exit half_its_memory_swapped",
                "test_exit holds_the_vm anon", "test_exit oom_killer")),
    Entry("read-only-slot-missed", "what the guest may only read goes when its page does, too",
          "what cannot be written taken for what cannot change",
          sees=(f"{_VIEW} read-only",), blind=(f"{_VIEW} alias", _UNMAP, _PROTECT)),
    Entry("failed-fork-loses-end", "each range_start has its range_end, also when a fork fails",
          "c2655835fd8c: vcpus retry for ever",
          sees=("test_fork runs_out_of_memory",)),
    Entry("sptes-survive-breakpoint", "the guest sees a breakpoint come and go",
          _FORGOTTEN,
          sees=("test_copy_on_write breakpoint",)),
    Entry("sptes-survive-device", "what a device took (HMM) is gone from the guest",
          "a guest on pages that a GPU's driver has freed",
          sees=("test_device nobody_touched",), also=("test_device took private-1",)),
    Entry("sptes-survive-exclusive", "what a device has for itself the guest does not use",
          "atomic operations of a device that are none",
          sees=("test_device took exclusive-1",)),
    Entry("sptes-survive-reaping", "what the OOM reaper took is gone from the guest",
          "4d4bbd8526a8: a reaper that notifiers could block",
          sees=("test_exit reaped anon-1",)),
    Entry("sptes-survive-scan", "who scans for writes (PAGEMAP_SCAN) finds those of the guest",
          "writes that a checkpoint (CRIU) misses",
          sees=("test_userfault found_without anon",)),
    Entry("intervals-forgotten", "interval notifiers are told as others are",
          "drivers of GPUs and RDMA, which use nothing else",
          sees=("test_sleeping owner_does discard",),
          also=("test_sleeping what_another_process_writes",)),
    Entry("release-forgotten", "each notifier is released before the memory goes",
          "the mission: release comes before the pages are freed",
          sees=("test_leaving before_the_memory 1",),
          blind=_CORE, also=("test_leaving however exit-first",)),
    Entry("end-after-refusal-forgotten", "who was told before another refused hears of the end",
          "c2655835fd8c itself: vcpus retry for ever after the OOM reaper came",
          sees=("test_sleeping must_not_sleep refusing",)),
    Entry("oom-reaper-gives-up", "memory with notifiers can be reaped when memory is short",
          "4d4bbd8526a8 until 93065ac753e4: the OOM reaper left such memory alone",
          sees=("test_sleeping must_not_sleep willing",)),
    Entry("registration-error-leak", "a registration that was interrupted leaves nothing",
          "the mission: mmu_notifier_register may fail with EINTR",
          sees=("test_attached signal_interrupts tlb",),
          also=("test_attached whenever_a_signal_comes",)),
    Entry("registration-memory-leak", "a registration without memory leaves nothing",
          "the mission: mmu_notifier_register may fail with ENOMEM",
          sees=("test_attached without_memory tlb",), blind=_CORE),
    Entry("young-not-asked", "what only a secondary MMU uses does not look unused",
          "ageing that asks the primary MMU only",
          sees=("test_announced used_lately",), blind=_CORE),
    Entry("detach-without-release", "who is detached is released, too",
          "751efd8610d3: a release that came twice",
          sees=("test_leaving detaching_releases_once",), blind=_CORE,
          also=("test_leaving however detach-first",)),
    Entry("end-comes-early", "nothing is used between range_start and range_end",
          "the mission's first dependency, for all users",
          sees=("test_tlb_only page_was discard",), blind=_CORE),
    Entry("unmap-events-forgotten", "each kind of change is told of",
          "a filter of events that goes too far",
          sees=("test_announced moved_memory",), blind=_CORE),
    Entry("sptes-survive-in-nested-mode", "what a guest's own guest uses goes, too",
          "0cb2af2ea66a: a bug of shadow paging alone",
          sees=(f"{_UNMAP} nested",), blind=(f"{_UNMAP} tdp", f"{_PROTECT} tdp", f"{_FORK} tdp"),
          modes=("tdp", "nested")),
    Entry("second-mapping-missed", "memory that a guest maps twice is dropped twice",
          "0cb2af2ea66a: a bug of shadow paging alone",
          sees=(f"{_VIEW} second-mapping",), blind=(f"{_VIEW} alias", _UNMAP, _PROTECT),
          modes=("shadow",)),
    Entry("driver-page-unreferenced", "a page that a driver maps is counted as any other is",
          "f8be156be163, CVE-2021-22543",
          sees=("test_window follows discard",), blind=(_UNMAP, _PROTECT, _EXIT),
          also=("test_window follows reclaim", "test_window follows migrate",
                "test_window follows fork")),
    Entry("driver-page-held", "a page that a driver maps is not pinned because a guest uses it",
          "KVM before acb66dd051d0 (v3.6)",
          sees=("test_window follows discard",), blind=(_UNMAP, _PROTECT, _EXIT),
          also=("test_window out_of_reach exit", "test_window out_of_reach unmap")),
)  # fmt: skip
"""Every control, in the order of the patch series."""


def entry(name: str) -> Entry | None:
    """The entry of a control, or None if there is none."""
    return next((item for item in CATALOGUE if item.name == name), None)
