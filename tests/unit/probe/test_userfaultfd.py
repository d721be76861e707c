# SPDX-License-Identifier: GPL-2.0-only
"""userfaultfd(2) on real memory, in a forked child that may hang without harm to the tests."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from forked import in_child

from harness.probe import kvm, userfault
from harness.probe.backing import map_anonymous
from harness.probe.layout import PAGE_BYTES
from harness.probe.memory import Memory
from harness.probe.system import call
from harness.probe.userfault import FEATURES, Userfault, WriteProtection, WriteTracking

PAGES = 8
SECONDS = 20
_Answer = TypeVar("_Answer")


@pytest.fixture(autouse=True)
def offered() -> int:
    """The features that this machine's kernel offers."""
    try:
        fd = call("userfaultfd", os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        pytest.skip(f"userfaultfd(2) cannot be called here: {error.strerror}.")
    buffer = ctypes.create_string_buffer(struct.pack("<QQQ", userfault._API_VERSION, 0, 0))
    kvm.ioctl(fd, userfault._API, ctypes.addressof(buffer))
    os.close(fd)
    return int(struct.unpack("<QQQ", buffer.raw[:24])[1])


def needs(offered: int, *names: str) -> None:
    for name in names:
        if not offered & FEATURES[name]:
            pytest.skip(f"This kernel's userfaultfd has no {name}.")


def watched(run: Callable[[], _Answer]) -> _Answer:
    """What a function returns in a forked child, which a fault that nobody serves must not keep."""

    def within() -> _Answer:
        signal.alarm(SECONDS)
        return run()

    return in_child(within)


def free_large_pages() -> int:
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"^HugePages_Free: +(\d+)$", text, re.M)
    return int(found[1]) if found else 0


def store(ours: Memory, page: int, value: int) -> None:
    """Write to a page while others run, as a vcpu does: poke() would hold the interpreter."""
    ctypes.memset(ours.span(page, 1)[0], value, 8)


def load(ours: Memory, page: int) -> int:
    return ours.peek(page, 1, 0)[0] & 0xFF


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


# Write protection.


@pytest.mark.parametrize(
    ("backing", "features"),
    [
        ("anon", ("write-protect",)),
        ("thp", ("write-protect",)),
        ("memfd", ("write-protect", "write-protect-files")),
    ],
)
def test_who_writes_waits_until_let_and_the_fault_is_noted(
    offered: int, backing: str, features: tuple[str, ...]
) -> None:
    needs(offered, *features)

    def run() -> tuple[list[int], list[int], list[int]]:
        ours = Memory(PAGES, backing)
        ours.poke(0, PAGES, 0, 1)
        protection = WriteProtection(*ours.span(2, 4), features)
        store(ours, 4, 7)
        store(ours, 2, 8)
        store(ours, 5, 9)
        store(ours, 4, 6)  # it may now
        store(ours, 7, 5)  # outside of the range
        store(ours, 0, 4)
        seen = [load(ours, page) for page in range(PAGES)]
        noted = list(protection.faults)
        protection.close()
        store(ours, 3, 3)
        return noted, seen, [*protection.faults, load(ours, 3)]

    noted, seen, after = watched(run)
    assert noted == [2, 0, 3], "page by page, from the start of the range, each once"
    assert seen == [4, 1, 8, 1, 6, 9, 1, 5]
    assert after == [2, 0, 3, 3], "nobody waits after the end"


@pytest.mark.parametrize("pages", [1, 2, 4])
def test_who_waits_is_let_by_pages_as_large_as_the_memorys(offered: int, pages: int) -> None:
    # Of hugetlb memory the kernel gives no part of a page back, and this machine may have none.
    needs(offered, "write-protect")

    def run() -> list[int]:
        ours = Memory(PAGES)
        ours.poke(0, PAGES, 0, 1)
        protection = WriteProtection(
            *ours.span(0, PAGES), ("write-protect",), page_bytes=pages * PAGE_BYTES
        )
        for page in range(PAGES - 1, -1, -1):
            store(ours, page, 7)
        protection.close()
        return protection.faults

    # The last of each larger page is written to first, and lets the others.
    assert watched(run) == list(range(PAGES - 1, -1, -pages))


def test_hugetlb_memory_is_let_page_by_page(offered: int) -> None:
    needs(offered, "write-protect", "write-protect-files")
    if free_large_pages() < 2:
        pytest.skip("This machine has no free hugetlb pages (vm.nr_hugepages).")

    def run() -> tuple[list[int], list[int]]:
        ours = Memory(1024, "hugetlb")
        ours.poke(0, 1024, 0, 1)
        features = ("write-protect", "write-protect-files")
        protection = WriteProtection(*ours.span(0, 1024), features, ours.page_bytes)
        for page in (700, 701, 3):
            store(ours, page, 7)
        protection.close()
        return [page // 512 for page in protection.faults], [load(ours, p) for p in (3, 4, 700)]

    assert watched(run) == ([1, 0], [7, 1, 7])


def test_who_reads_does_not_wait(offered: int) -> None:
    needs(offered, "write-protect")

    def run() -> tuple[list[int], list[int]]:
        ours = Memory(PAGES)
        ours.poke(0, PAGES, 0, 1)
        protection = WriteProtection(*ours.span(0, PAGES), ("write-protect",))
        seen = [load(ours, page) for page in range(PAGES)]
        protection.close()
        return seen, protection.faults

    assert watched(run) == ([1] * PAGES, [])


def test_a_range_can_be_protected_again_and_nothing_is_left_open(offered: int) -> None:
    needs(offered, "write-protect")

    def run() -> tuple[list[list[int]], int]:
        ours = Memory(PAGES)
        ours.poke(0, PAGES, 0, 1)
        before = descriptors()
        noted = []
        for page in (1, 2):
            protection = WriteProtection(*ours.span(0, PAGES), ("write-protect",))
            store(ours, page, 7)
            noted.append(protection.faults)
            protection.close()
        return noted, descriptors() - before

    assert watched(run) == ([[1], [2]], 0)


# What a kernel lacks or refuses.


def test_a_feature_that_the_kernel_does_not_have_is_an_invalid_argument(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(FEATURES, "telepathy", 1 << 63)

    def run() -> tuple[int | None, int]:
        ours = Memory(PAGES)
        before = descriptors()
        try:
            Userfault(*ours.span(0, PAGES), ("telepathy",), userfault._MODE_MISSING)
        except OSError as error:
            return error.errno, descriptors() - before
        return None, 0

    assert watched(run) == (errno.EINVAL, 0)


def test_memory_that_cannot_be_registered_is_an_error_and_leaves_nothing_open(
    offered: int,
) -> None:
    needs(offered, "write-protect")

    def run() -> tuple[int | None, int]:
        ours = Memory(PAGES)
        ours.munmap(0, PAGES)
        before = descriptors()
        try:
            WriteProtection(*ours.span(0, PAGES), ("write-protect",))
        except OSError as error:
            return error.errno, descriptors() - before
        return None, 0

    number, left = watched(run)
    assert number in (errno.EINVAL, errno.ENOENT, errno.ENOMEM)
    assert left == 0


# Tracking.


def tracks(offered: int) -> None:
    needs(offered, "write-protect-async", "write-protect-unpopulated")


TRACKING = ("write-protect", "write-protect-async", "write-protect-unpopulated")


def test_what_was_written_is_found_once_and_nobody_waits(offered: int) -> None:
    tracks(offered)

    def run() -> tuple[list[list[int]], int]:
        ours = Memory(PAGES)
        ours.poke(0, PAGES, 0, 1)
        before = descriptors()
        tracking = WriteTracking(*ours.span(1, PAGES - 1), TRACKING)
        found = [tracking.written()]
        for pages in ((), (2, 3, 7), (7,)):
            for page in pages:
                ours.poke(page, 1, 0, page)
            found.append(tracking.written())
        tracking.close()
        return found, descriptors() - before

    found, left = watched(run)
    # At first all that is there counts as written.
    assert found == [list(range(PAGES - 1)), [], [1, 2, 6], [6]]
    assert left == 0


def test_more_stretches_than_one_answer_has_room_for_are_all_found(
    offered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracks(offered)
    monkeypatch.setattr(userfault, "_MOST_REGIONS", 2)

    def run() -> list[int]:
        ours = Memory(16)
        tracking = WriteTracking(*ours.span(0, 16), TRACKING)
        tracking.written()
        for page in range(0, 16, 2):
            ours.poke(page, 1, 0, 1)
        return tracking.written()

    assert watched(run) == list(range(0, 16, 2))


# Moving.


def test_pages_are_moved_and_are_gone_from_where_they_were(offered: int) -> None:
    needs(offered, "move")

    def run() -> tuple[int, list[int], list[int], int]:
        ours = Memory(PAGES)
        for page in range(PAGES):
            ours.poke(page, 1, 0, page + 1)
        before = descriptors()
        source, size = ours.span(2, 3)
        target = map_anonymous(size)
        moved = userfault.move(target, source, size)
        there = [ctypes.c_uint64.from_address(target + n * PAGE_BYTES).value for n in range(3)]
        return moved, there, ours.peek(0, PAGES, 0), descriptors() - before

    moved, there, here, left = watched(run)
    assert moved == 3 * PAGE_BYTES
    assert there == [3, 4, 5]
    assert here == [1, 2, 0, 0, 0, 6, 7, 8]
    assert left == 0


def test_pages_are_not_moved_over_others(offered: int) -> None:
    needs(offered, "move")

    def run() -> tuple[int | None, list[int], int]:
        ours = Memory(PAGES)
        for page in range(PAGES):
            ours.poke(page, 1, 0, page + 1)
        before = descriptors()
        number = None
        try:
            userfault.move(ours.span(0, 1)[0], *ours.span(2, 1))
        except OSError as error:
            number = error.errno
        return number, ours.peek(0, 3, 0), descriptors() - before

    assert watched(run) == (errno.EEXIST, [1, 2, 3], 0)
