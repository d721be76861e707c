# SPDX-License-Identifier: GPL-2.0-only
"""The contract with the payload: what stands where in the control memslot.

Says the same as payload/payload.h; tests/unit/probe/test_layout.py compares the two.
"""

from __future__ import annotations

import ctypes

PAGE_BYTES = 4096
PAGE_WORDS = 512
LARGE_PAGE_BYTES = 2 << 20

CONTROL_GPA = 0
CONTROL_BYTES = 4 << 20
PAGE_TABLES_GPA = 0x1000
MAPPED_GIB = 4
"""How much of guest-physical memory the guest's own identity mapping reaches."""

CODE_GPA = 0x8000
NESTED_ENTRY_GPA = 0xF000
MAILBOX_GPA = 0x10000
STACK_TOP_GPA = 0x20000
NESTED_TABLES_GPA = 0x30000
VMCB_GPA = 0x40000
HOST_SAVE_GPA = 0x50000
PERMISSIONS_GPA = 0x60000
LIST_GPA = 0x100000
LEDGER_GPA = 0x200000
LIST_BYTES = 0x80000
MOST_PAGES = LIST_BYTES // 8
MOST_VCPUS = 2

MEMORY_GPA = 1 << 30
"""Where the memory under test begins; 1 GiB aligned, so that sptes of each size are possible."""

ALIAS_GPA = 3 << 30
"""Where a second memslot may show the same memory, for scenarios that create and delete it."""

MAPPED_AGAIN = MEMORY_GPA + (MAPPED_GIB << 30)
"""Where the guest's page tables may have the memory a second time; no gpa is as high."""

HVA_FIRST, HVA_LAST, HVA_STEP = 17 << 40, 32 << 40, 1 << 30
"""Host-virtual addresses of guests' memory: a stretch where nothing else is mapped by itself, and
whose addresses round up to the same power of two, 2**45."""

DONE_PORT = 0xD0
LEFT_PORT = 0xD1
FIRST_PATTERN_WORD = 2

OP_FILL = 1
OP_CHECK = 2
OP_READ = 3
OP_WRITE = 4
OP_HAMMER = 5

_WORD_MASK = (1 << 64) - 1


_FEW_PAGES = 16
"""Page tables, code, mailboxes and stacks."""

_HYPERVISORS_PAGES = 8
"""What a vcpu touches before it enters the guest inside the guest: page tables and code."""


def control_pages(pages: int, *, deeper: bool = False) -> int:
    """How many pages of the control memslot a payload touches at most, for so much memory.

    One that runs ``deeper``, in a guest inside the guest, has its hypervisor's besides.
    """
    table = -(-pages * 8 // PAGE_BYTES)
    return _FEW_PAGES + 2 * MOST_VCPUS * table + (_HYPERVISORS_PAGES if deeper else 0)


class Mailbox(ctypes.Structure):
    """One vcpu's orders and report; field meanings are in payload.h."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "op", "gpa", "first", "pages", "step", "word", "seed", "stop",
            "current", "done", "rounds",
            "bad", "bad_page", "bad_word", "bad_expected", "bad_seen",
        )
    )  # fmt: skip


def pattern(seed: int, page: int, word: int) -> int:
    """The 64-bit value that FILL puts into a word of a page; the same as pattern() in payload.h."""
    x = (seed + page * 0x9E3779B97F4A7C15 + word * 0xD1B54A32D192ED03) & _WORD_MASK
    x ^= x >> 32
    x = x * 0xD6E8FEB86659FD93 & _WORD_MASK
    return x ^ (x >> 32)
