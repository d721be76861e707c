# SPDX-License-Identifier: GPL-2.0-only
"""Finds the kernel's complaints about itself in the text of its log. Pure: text in, splats out.

The patterns follow the printk formats of the kernel from 5.10 on (kernel/panic.c, lib/bug.c,
arch/x86/mm/fault.c, kernel/locking/lockdep.c, mm/kasan/report.c, mm/page_alloc.c and so on).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

_LONGEST_EXCERPT = 60
"""Lines of a report that are quoted; a lockdep report can have thousands."""

_REACH = 400
"""Lines within which the end of a report is looked for."""

_SHORT = 12
"""Lines that belong to a report without a recognizable end."""

_LOOK_BACK = 6
"""Lines before the telling one within which "cut here" may stand: WARN() has a text of its own."""


@dataclasses.dataclass(frozen=True)
class Splat:
    """One report of the kernel in its log.

    ``kind`` is a short word for its class and ``line`` the line that told, without time stamp.
    ``offset`` counts characters from the start of the text to that line. ``timing`` marks
    reports that a starved machine causes just as well (soft lockups, RCU stalls): by themselves
    they do not say that the kernel is at fault. ``line`` and ``excerpt`` are safe to show.
    """

    kind: str
    line: str
    excerpt: str
    offset: int
    timing: bool = False


@dataclasses.dataclass(frozen=True)
class _Pattern:
    kind: str
    expression: re.Pattern[str]
    timing: bool


def _pattern(kind: str, *alternatives: str, timing: bool = False) -> _Pattern:
    return _Pattern(kind, re.compile("|".join(alternatives)), timing)


STALE_CODE = "int3"
"""The kind of a report of a breakpoint that nobody set.

The kernel puts one where it is about to change its own code, for as long as that takes. A CPU that
meets it afterwards runs code that is not there any more: see before_emulation_failed().
"""

# The first that matches a line wins. All are matched at the start of a message, after the time
# stamp, so that a program which prints "BUG:" in the middle of a line is not heard.
_PATTERNS = (
    _pattern("panic", r"Kernel panic - not syncing"),
    _pattern("kasan", r"BUG: KASAN: "),
    _pattern("kmsan", r"BUG: KMSAN: "),
    _pattern("kcsan", r"BUG: KCSAN: "),
    _pattern("kfence", r"BUG: KFENCE: "),
    _pattern("ubsan", r"UBSAN: "),
    _pattern("soft lockup", r"(?:watchdog: )?BUG: soft lockup", timing=True),
    _pattern("hard lockup", r"(?:NMI )?[Ww]atchdog: .*hard LOCKUP", timing=True),
    _pattern("workqueue lockup", r"BUG: workqueue lockup", timing=True),
    _pattern(
        "rcu stall",
        r"(?:rcu: )?INFO: rcu\S* .*stall",
        r"rcu: INFO: ",
        r"rcu: \S+ kthread (?:timer wakeup|starved)",
        timing=True,
    ),
    _pattern("hung task", r"INFO: task .+ blocked .*for more than \d+ seconds"),
    _pattern("bad page", r"BUG: Bad page (?:state|map|cache)"),
    _pattern("rss counter", r"BUG: Bad rss-counter state"),
    _pattern("page tables", r"BUG: non-zero pgtables_bytes", r"BUG: Bad p[4gmu]d"),
    _pattern("page poison", r"pagealloc: (?:single bit error|memory corruption)"),
    _pattern(
        "atomic sleep",
        r"BUG: scheduling while atomic",
        r"BUG: sleeping function called from invalid context",
    ),
    _pattern(
        "lockdep",
        r"WARNING: possible (?:circular|recursive|irq lock|deadlock)",
        r"WARNING: inconsistent lock state",
        r"WARNING: bad (?:unlock balance|contention) detected",
        r"WARNING: suspicious RCU usage",
        r"WARNING: \S+-safe -> \S+-unsafe lock order",
        r"WARNING: [Nn]ested lock was not taken",
        r"WARNING: held lock freed",
        r"WARNING: .+ still has locks held",
        r"WARNING: lock held when returning to user space",
        r"\[ BUG: Invalid wait context \]",
        r"INFO: trying to register non-static key",
        r"DEBUG_LOCKS_WARN_ON\(",
    ),
    _pattern("refcount", r"refcount_t: "),
    _pattern("list corruption", r"list_(?:add|del) (?:double add|corruption)"),
    _pattern("usercopy", r"usercopy: Kernel memory (?:exposure|overwrite) attempt"),
    _pattern(STALE_CODE, r"(?:Oops: )?int3: \d+ \[#"),
    _pattern(
        "oops",
        r"BUG: (?:unable to handle|kernel NULL pointer dereference)",
        r"Oops: ",
        r"general protection fault",
        r"(?:invalid opcode|divide error|stack segment|double fault|invalid TSS): \d+ \[#",
        r"kernel BUG at ",
        r"kernel tried to execute ",
        r"PANIC: ",
        r"Bad pagetable: ",
        r"Fixing recursive fault",
        r"BUG: (?:stack|TASK stack|\S+ stack) guard page was hit",
        r"Kernel stack is corrupted",
    ),
    # The second form is that of 6.19 and later.
    _pattern("warning", r"WARNING: CPU: \d+ PID: \d+", r"WARNING: [\w./-]+:\d+ at "),
    # SLUB says which cache: "BUG kmalloc-64 (Not tainted): Poison overwritten".
    _pattern("slab", r"BUG \S+ \(.*\): "),
    _pattern("bug", r"BUG: "),
)

_PREFIX = re.compile(r"(?:<\d+>)?(?:\[\s*\d+\.\d+\])?(?:\[\s*[TC]\d+\])? ?")
"""What printk puts before a message: level, time stamp, caller (CONFIG_PRINTK_CALLER)."""

_CUT = re.compile(r"-+\[ cut here \]-+$")
_END = re.compile(r"---\[ end ")
_BAR = re.compile(r"={20,}$")
_STACK_END = re.compile(r"\s*</TASK>")
_BAR_ENDS = frozenset({"kasan", "kmsan", "kcsan", "kfence", "ubsan"})
"""The kinds that close with the same bar that they open with."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What a terminal would obey: C0 but tab and newline, delete, C1, and changes of direction."""


def visible(text: str) -> str:
    """The text with control characters written out, so that showing it cannot do harm."""
    text = text.replace("\r\n", "\n")
    return _CONTROL.sub(lambda match: f"\\u{{{ord(match[0]):x}}}", text)


def find_splats(text: str) -> tuple[Splat, ...]:
    """All reports in the text of a console, in order; what stands inside a report is part of it.

    Only a panic counts even inside. An OOM kill is no report: memory that is short is no fault
    of the kernel.
    """
    raw = text.split("\n")
    lines = [line.rstrip("\r") for line in raw]
    messages = [_PREFIX.sub("", line, count=1) for line in lines]
    splats: list[Splat] = []
    offset = 0
    covered = -1
    for number, message in enumerate(messages):
        pattern = _match(message)
        if pattern is not None and (number > covered or pattern.kind == "panic"):
            first, last = _extent(messages, number, pattern.kind)
            covered = max(covered, last)
            excerpt = visible("\n".join(lines[first : last + 1][:_LONGEST_EXCERPT]))
            splats.append(Splat(pattern.kind, visible(message), excerpt, offset, pattern.timing))
        offset += len(raw[number]) + 1
    return tuple(splats)


def before_emulation_failed(splats: Sequence[Splat]) -> tuple[Splat, ...]:
    """The reports of a kernel under emulation up to where the emulator ran stale code.

    What comes afterwards says nothing about the kernel. QEMU 7.2's emulation of several CPUs does
    that now and then when one CPU changes code that another runs: docs/emulation.md has how it
    was measured, and that QEMU 10.0 was not seen to.
    """
    kinds = [splat.kind for splat in splats]
    return tuple(splats[: kinds.index(STALE_CODE)] if STALE_CODE in kinds else splats)


def _match(message: str) -> _Pattern | None:
    for pattern in _PATTERNS:
        if pattern.expression.match(message):
            return pattern
    return None


def _extent(messages: Sequence[str], number: int, kind: str) -> tuple[int, int]:
    """The first and the last line of the report that line ``number`` tells of."""
    first = number
    for back in range(number - 1, max(-1, number - _LOOK_BACK), -1):
        if _CUT.match(messages[back]) or _BAR.match(messages[back]):
            first = back
            break
        if _END.match(messages[back]):
            break
    stack_end = None
    limit = min(number + _REACH, len(messages))
    for last in range(number + 1, limit):
        message = messages[last]
        if _END.match(message) or (kind in _BAR_ENDS and _BAR.match(message)):
            return first, last
        if _CUT.match(message) or _BAR.match(message):
            limit = last
            break
        if stack_end is None and _STACK_END.match(message):
            stack_end = last
    return first, stack_end if stack_end is not None else min(number + _SHORT, limit) - 1
