# SPDX-License-Identifier: GPL-2.0-only
"""Each kind of report is found once, whole, and nothing else is taken for one.

The files in logs/ are recorded: real kernels in a host, made to print these by sysrq, by a missing
init or root, by an odd topology, by a program that eats all memory, and by a tracepoint that was
switched on and off under the emulation of QEMU 7.2.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.machine.splat import Splat, before_emulation_failed, find_splats, visible

LOGS = Path(__file__).parent / "logs"


def one(text: str) -> Splat:
    splats = find_splats(text)
    assert len(splats) == 1, [splat.line for splat in splats]
    return splats[0]


@pytest.mark.parametrize(
    ("name", "kind", "line"),
    [
        ("panic-sysrq-6.1.txt", "panic", "Kernel panic - not syncing: sysrq triggered crash"),
        ("panic-sysrq-6.12.txt", "panic", "Kernel panic - not syncing: sysrq triggered crash"),
        (
            "panic-no-init-6.12.txt",
            "panic",
            "Kernel panic - not syncing: Requested init /nonexistent failed (error -2).",
        ),
        (
            "panic-no-root-6.12.txt",
            "panic",
            "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
        ),
        (
            "warning-boot-6.12.txt",
            "warning",
            "WARNING: CPU: 1 PID: 0 at topology_sane.isra.0+0x62/0x70",
        ),
    ],
)
def test_recorded_log(name: str, kind: str, line: str) -> None:
    splat = one((LOGS / name).read_text())
    assert (splat.kind, splat.line) == (kind, line)
    assert not splat.timing


def test_recorded_warning_is_quoted_from_cut_to_end() -> None:
    excerpt = one((LOGS / "warning-boot-6.12.txt").read_text()).excerpt.splitlines()
    assert "cut here" in excerpt[0]
    assert "is not on the same node!" in excerpt[1]
    assert "end trace" in excerpt[-1]


def test_an_oom_kill_is_no_report() -> None:
    text = (LOGS / "oom-kill-6.12.txt").read_text()
    assert "Out of memory: Killed process" in text
    assert find_splats(text) == ()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("kasan", "BUG: KASAN: slab-use-after-free in kvm_tdp_mmu_zap_leafs+0x1f/0x40 [kvm]"),
        ("kasan", "BUG: KASAN: stack-out-of-bounds in unwind_next_frame+0x12/0x34"),
        ("kcsan", "BUG: KCSAN: data-race in folio_batch_move_lru / mark_page_accessed"),
        ("kfence", "BUG: KFENCE: use-after-free read in test_use_after_free_read+0xb3/0x143"),
        ("kmsan", "BUG: KMSAN: uninit-value in kvm_vcpu_read_guest_page+0x11/0x22"),
        ("ubsan", "UBSAN: array-index-out-of-bounds in arch/x86/kvm/mmu/mmu.c:4012:17"),
        ("hung task", "INFO: task qemu-system-x86:412 blocked for more than 122 seconds."),
        ("hung task", "INFO: task a b:1 blocked on a mutex for more than 10 seconds."),
        ("bad page", "BUG: Bad page state in process python3  pfn:1a2b3"),
        ("bad page", "BUG: Bad page map in process python3  pte:8000000012345865 pmd:0a1b2067"),
        ("bad page", "BUG: Bad page cache in process umount  pfn:00abc"),
        ("rss counter", "BUG: Bad rss-counter state mm:00000000deadbeef type:MM_ANONPAGES val:16"),
        ("page tables", "BUG: non-zero pgtables_bytes on freeing mm: 4096"),
        ("page tables", "BUG: Bad pmd ffff888004e3b000(8000000003e001e3)"),
        ("page poison", "pagealloc: memory corruption"),
        ("atomic sleep", "BUG: scheduling while atomic: kvm-vcpu/345/0x00000002"),
        (
            "atomic sleep",
            "BUG: sleeping function called from invalid context at mm/page_alloc.c:4711",
        ),
        ("lockdep", "WARNING: possible circular locking dependency detected"),
        ("lockdep", "WARNING: possible recursive locking detected"),
        ("lockdep", "WARNING: possible irq lock inversion dependency detected"),
        ("lockdep", "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected"),
        ("lockdep", "WARNING: inconsistent lock state"),
        ("lockdep", "WARNING: bad unlock balance detected!"),
        ("lockdep", "WARNING: suspicious RCU usage"),
        ("lockdep", "WARNING: python3/77 still has locks held!"),
        ("lockdep", "WARNING: lock held when returning to user space!"),
        ("lockdep", "[ BUG: Invalid wait context ]"),
        ("lockdep", "INFO: trying to register non-static key."),
        ("lockdep", "DEBUG_LOCKS_WARN_ON(depth <= 0)"),
        ("refcount", "refcount_t: underflow; use-after-free."),
        ("list corruption", "list_del corruption. prev->next should be ffff8880, but was dead"),
        ("list corruption", "list_add double add: new=ffff88800, prev=ffff88800, next=ffff88801."),
        ("usercopy", "usercopy: Kernel memory exposure attempt detected from SLUB object 'x'!"),
        ("oops", "BUG: unable to handle page fault for address: ffffea00dead0008"),
        ("oops", "BUG: kernel NULL pointer dereference, address: 0000000000000008"),
        ("oops", "general protection fault, probably for non-canonical address 0xdead: 0000 [#1]"),
        ("oops", "Oops: general protection fault, probably for non-canonical address 0xdead0000"),
        ("oops", "invalid opcode: 0000 [#1] PREEMPT SMP NOPTI"),
        ("oops", "kernel BUG at mm/rmap.c:1234!"),
        ("oops", "BUG: TASK stack guard page was hit at 00000000f3a1 (stack is 0000..0000)"),
        ("warning", "WARNING: CPU: 0 PID: 314 at arch/x86/kvm/mmu/tdp_mmu.c:58 kvm_mmu_uninit+0x1"),
        ("warning", "WARNING: arch/x86/kvm/mmu/mmu.c:1234 at kvm_mmu_zap_all+0x12/0x34, CPU#1: a"),
        ("slab", "BUG kmalloc-64 (Not tainted): Poison overwritten"),
        ("bug", "BUG: workqueue leaked lock or atomic: kworker/0:1/0x00000000/12"),
        ("bug", "BUG: spinlock bad magic on CPU#0, swapper/0/1"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "[   12.345678] ", "[   12.345678][  T314] ", "<4>[1.2] "])
def test_kind_of_a_message(kind: str, message: str, prefix: str) -> None:
    splat = one(f"[    1.000000] fine\n{prefix}{message}\n[   99.000000] fine\n")
    assert splat.kind == kind
    assert splat.line == message
    assert not splat.timing


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("soft lockup", "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kvm-vcpu:345]"),
        ("hard lockup", "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0"),
        ("hard lockup", "watchdog: Watchdog detected hard LOCKUP on cpu 0"),
        ("workqueue lockup", "BUG: workqueue lockup - pool cpus=0 node=0 stuck for 33s!"),
        ("rcu stall", "rcu: INFO: rcu_preempt self-detected stall on CPU"),
        ("rcu stall", "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:"),
        ("rcu stall", "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-... }"),
        ("rcu stall", "INFO: rcu_tasks detected stalls on tasks:"),
        ("rcu stall", "rcu: rcu_preempt kthread starved for 5000 jiffies! g1 f0x0"),
    ],
)
def test_what_a_starved_machine_also_causes_is_marked(kind: str, message: str) -> None:
    splat = one(f"[   12.345678] {message}\n")
    assert splat.kind == kind
    assert splat.timing


@pytest.mark.parametrize(
    "message",
    [
        "rcu: Hierarchical SRCU implementation.",
        "rcu: Preemptible hierarchical RCU implementation.",
        "clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable",
        "hrtimer: interrupt took 1234567 ns",
        "perf: interrupt took too long (2513 > 2500), lowering max_sample_rate to 79000",
        "Memory cgroup out of memory: Killed process 77 (python3) total-vm:1kB",
        "kvm: vcpu 0: requested 1 ns lapic timer period limited to 200000 ns",
        "mtrr: your CPUs had inconsistent fixed MTRR settings",
        "python3 invoked oom-killer: gfp_mask=0x140cca, order=0, oom_score_adj=0",
        "user program prints BUG: in the middle",
        " BUG: not at the start",
        "Warning: unable to open an initial console.",
        "WARNING: Spectre v2 mitigation leaves CPU vulnerable",
        "lockdep: fixing up alternatives.",
        "Debug: kasan is off",
    ],
)
def test_ordinary_message_is_no_report(message: str) -> None:
    assert find_splats(f"[   12.345678] {message}\n") == ()


KASAN = """\
[   20.000001] ==================================================================
[   20.000002] BUG: KASAN: slab-use-after-free in kvm_unmap_gfn_range+0x8a/0x120 [kvm]
[   20.000003] Read of size 8 at addr ffff888006a3e018 by task python3/141
[   20.000004]
[   20.000005] CPU: 1 UID: 0 PID: 141 Comm: python3 Not tainted 6.12.0 #1
[   20.000006] Call Trace:
[   20.000007]  <TASK>
[   20.000008]  dump_stack_lvl+0x4f/0x60
[   20.000009]  </TASK>
[   20.000010]
[   20.000011] Allocated by task 140:
[   20.000012]  kasan_save_stack+0x30/0x50
[   20.000013] ==================================================================
[   20.000014] Disabling lock debugging due to kernel taint
"""

OOPS = """\
[   30.000001] BUG: kernel NULL pointer dereference, address: 0000000000000008
[   30.000002] #PF: supervisor read access in kernel mode
[   30.000003] #PF: error_code(0x0000) - not-present page
[   30.000004] PGD 0 P4D 0
[   30.000005] Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI
[   30.000006] CPU: 0 UID: 0 PID: 99 Comm: python3 Not tainted 6.12.0 #1
[   30.000007] RIP: 0010:kvm_tdp_mmu_zap_all+0x12/0x90 [kvm]
[   30.000008] Call Trace:
[   30.000009]  <TASK>
[   30.000010]  kvm_mmu_notifier_release+0x2f/0x50 [kvm]
[   30.000011]  </TASK>
[   30.000012] Modules linked in: kvm_amd kvm irqbypass
[   30.000013] CR2: 0000000000000008
[   30.000014] ---[ end trace 0000000000000000 ]---
[   30.000015] RIP: 0010:kvm_tdp_mmu_zap_all+0x12/0x90 [kvm]
"""

LOCKDEP = """\
[   40.000001]
[   40.000002] ======================================================
[   40.000003] WARNING: possible circular locking dependency detected
[   40.000004] 6.12.0 #1 Not tainted
[   40.000005] ------------------------------------------------------
[   40.000006] python3/88 is trying to acquire lock:
[   40.000007] ffff8880 (&kvm->mmu_lock){++++}-{3:3}, at: kvm_mmu_notifier_invalidate_range_start
[   40.000008]
[   40.000009] stack backtrace:
[   40.000010] Call Trace:
[   40.000011]  <TASK>
[   40.000012]  check_noncircular+0x12/0x34
[   40.000013]  </TASK>
[   40.000014] fine again
"""

REFCOUNT = """\
[   50.000001] ------------[ cut here ]------------
[   50.000002] refcount_t: underflow; use-after-free.
[   50.000003] WARNING: CPU: 1 PID: 7 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110
[   50.000004] Modules linked in: kvm
[   50.000005] ---[ end trace 0000000000000000 ]---
"""


def test_kasan_report_is_one_from_bar_to_bar() -> None:
    splat = one(KASAN)
    assert splat.kind == "kasan"
    assert splat.excerpt.splitlines()[0].endswith("====")
    assert splat.excerpt.splitlines()[-1].endswith("====")
    assert "Allocated by" in splat.excerpt


def test_oops_is_one_report_with_all_its_lines() -> None:
    splat = one(OOPS)
    assert splat.kind == "oops"
    assert splat.excerpt.splitlines()[-1].endswith("---[ end trace 0000000000000000 ]---")


def test_lockdep_report_ends_with_its_stack() -> None:
    splat = one(LOCKDEP)
    assert splat.kind == "lockdep"
    assert "kvm->mmu_lock" in splat.excerpt
    assert "fine again" not in splat.excerpt


def test_warning_with_a_text_counts_once_under_the_better_name() -> None:
    splat = one(REFCOUNT)
    assert splat.kind == "refcount"
    assert "cut here" in splat.excerpt


def test_reports_in_a_row_are_told_apart() -> None:
    text = KASAN + OOPS + LOCKDEP + REFCOUNT
    splats = find_splats(text)
    assert [splat.kind for splat in splats] == ["kasan", "oops", "lockdep", "refcount"]
    for splat in splats:
        assert text[splat.offset :].split("\n")[0].endswith(splat.line)


def test_panic_after_an_oops_is_a_report_of_its_own() -> None:
    text = OOPS.replace("---[ end trace", "Kernel panic - not syncing: Fatal\n---[ end trace")
    assert [splat.kind for splat in find_splats(text)] == ["oops", "panic"]


def test_carriage_returns_do_not_matter() -> None:
    assert one(OOPS.replace("\n", "\r\n")).excerpt == one(OOPS).excerpt


def test_long_report_is_cut() -> None:
    lines = [f"[   30.1] stack {number}" for number in range(1000)]
    text = OOPS.replace("[   30.000012]", "\n".join(lines) + "\n[   30.000012]")
    assert len(find_splats(text)[0].excerpt.splitlines()) <= 60


def test_half_a_report_is_found_too() -> None:
    assert one(OOPS.splitlines()[0]).kind == "oops"


def test_what_is_shown_cannot_drive_a_terminal() -> None:
    text = "BUG: bad \x1b]0;owned\x07 \x9b2J \u202egnp.exe\n"
    splat = one(text)
    for shown in (splat.line, splat.excerpt):
        assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
        assert "\x1b" not in shown
        assert "\x9b" not in shown
        assert "\u202e" not in shown
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible("\x1b") == "\\u{1b}"


def test_a_breakpoint_that_nobody_set_is_told_from_other_oopses() -> None:
    splats = find_splats((LOGS / "stale-code-tcg-6.12.txt").read_text())
    assert [splat.kind for splat in splats] == ["int3", "panic"]
    assert find_splats("[    1.0] int3: 0000 [#1] SMP NOPTI")[0].kind == "int3", "before v6.12"
    assert find_splats("[    1.0] Oops: 0000 [#1] SMP")[0].kind == "oops"


def test_nothing_counts_after_the_emulator_ran_stale_code() -> None:
    stale = (LOGS / "stale-code-tcg-6.12.txt").read_text()
    warning = (LOGS / "warning-boot-6.12.txt").read_text()
    assert before_emulation_failed(find_splats(stale)) == ()
    assert before_emulation_failed(find_splats(stale + warning)) == ()
    before = before_emulation_failed(find_splats(warning + stale))
    assert [splat.kind for splat in before] == ["warning"]
    other = find_splats((LOGS / "panic-sysrq-6.12.txt").read_text())
    assert before_emulation_failed(other) == other != ()
