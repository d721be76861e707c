# SPDX-License-Identifier: GPL-2.0-only
"""Real memory, taken away from a forked child page by page."""

from __future__ import annotations

import base64
import re
import signal
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forked import in_child, signal_of

from harness.probe import memory
from harness.probe.layout import LARGE_PAGE_BYTES, PAGE_BYTES, PAGE_WORDS
from harness.probe.memory import Memory

PRESENT = 1 << 63


def unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def present(ours: Memory, first: int, pages: int) -> list[bool]:
    entries = np.frombuffer(unpacked(ours.pagemap(first, pages)), np.uint64)
    return [bool(entry & np.uint64(PRESENT)) for entry in entries]


def address_space_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0])


def flags_of(address: int) -> list[str]:
    """The flags of the mapping at an address, as /proc/self/smaps has them."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            found = int(head[1], 16) <= address < int(head[2], 16)
        elif found and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"nothing is mapped at {address:#x}")


@pytest.mark.parametrize("pages", [1, 3, 511, 512, 513, 2048])
def test_memory_is_aligned_and_not_a_page_more_than_asked_for(pages: int) -> None:
    def run() -> tuple[int, int]:
        before = address_space_pages()
        start = memory.map_anonymous(pages * PAGE_BYTES)
        return start % LARGE_PAGE_BYTES, address_space_pages() - before

    assert in_child(run) == (0, pages)


def test_memory_that_cannot_be_had_is_an_os_error() -> None:
    with pytest.raises(OSError, match="Cannot allocate memory"):
        memory.map_anonymous(1 << 60)


@pytest.mark.parametrize(
    ("first", "pages"), [(-1, 1), (0, 0), (0, -1), (0, 9), (8, 1), (7, 2), (1 << 60, 1)]
)
def test_no_range_reaches_beyond_the_memory(first: int, pages: int) -> None:
    def run() -> list[str]:
        ours = Memory(8)
        said = []
        for call in (
            lambda: ours.span(first, pages),
            lambda: ours.munmap(first, pages),
            lambda: ours.mprotect(first, pages, "none"),
            lambda: ours.remap(first, pages),
            lambda: ours.madvise(first, pages, "dontneed"),
            lambda: ours.peek(first, pages, 0),
            lambda: ours.poke(first, pages, 0, 1),
            lambda: ours.pagemap(first, pages),
            lambda: ours.mincore(first, pages),
        ):
            try:
                call()
            except ValueError as error:
                said.append(str(error))
        return said

    said = in_child(run)
    assert len(said) == 9
    assert set(said) == {f"pages {first}+{pages} are not all within the 8 pages"}


def test_a_span_is_an_address_and_a_length() -> None:
    def run() -> bool:
        ours = Memory(8)
        return (
            ours.span(0, 8) == (ours.hva, 8 * PAGE_BYTES)
            and ours.span(7, 1) == (ours.hva + 7 * PAGE_BYTES, PAGE_BYTES)
            and ours.span(2, 3) == (ours.hva + 2 * PAGE_BYTES, 3 * PAGE_BYTES)
        )

    assert in_child(run)


def test_one_word_of_each_page_is_written_and_no_other() -> None:
    def run() -> dict[int, list[int]]:
        ours = Memory(8)
        ours.poke(2, 3, 7, 0xFFFF_FFFF_FFFF_FFFF)
        ours.poke(3, 1, 511, 5)
        words = {word: ours.peek(0, 8, word) for word in range(PAGE_WORDS)}
        return {word: values for word, values in words.items() if any(values)}

    full = 0xFFFF_FFFF_FFFF_FFFF
    assert in_child(run) == {
        7: [0, 0, full, full, full, 0, 0, 0],
        511: [0, 0, 0, 5, 0, 0, 0, 0],
    }


def test_only_touched_pages_are_present_and_resident() -> None:
    def run() -> tuple[list[bool], list[int]]:
        ours = Memory(8)
        ours.poke(1, 2, 0, 1)
        ours.poke(7, 1, 0, 1)
        return present(ours, 0, 8), list(unpacked(ours.mincore(0, 8)))

    touched = [page in (1, 2, 7) for page in range(8)]
    there, core = in_child(run)
    assert there == touched
    assert [bool(byte & 1) for byte in core] == touched


def test_pagemap_and_mincore_are_of_the_range_that_was_asked_for() -> None:
    def run() -> tuple[list[bool], list[int]]:
        ours = Memory(8)
        ours.poke(3, 1, 0, 1)
        return present(ours, 2, 3), list(unpacked(ours.mincore(2, 3)))

    assert in_child(run) == ([False, True, False], [0, 1, 0])


def test_discarded_memory_is_gone_and_reads_as_zero() -> None:
    def run() -> tuple[list[bool], list[int]]:
        ours = Memory(4)
        ours.poke(0, 4, 0, 9)
        ours.madvise(1, 2, "dontneed")
        there = present(ours, 0, 4)
        return there, ours.peek(0, 4, 0)

    assert in_child(run) == ([True, False, False, True], [9, 0, 0, 9])


def test_fresh_memory_over_a_hole_and_over_a_mapping_is_zero() -> None:
    def run() -> tuple[list[int], int]:
        ours = Memory(4)
        ours.poke(0, 4, 0, 9)
        before = address_space_pages()
        ours.munmap(1, 1)
        ours.remap(1, 2)
        return ours.peek(0, 4, 0), address_space_pages() - before

    assert in_child(run) == ([9, 0, 0, 9], 0)


def test_no_large_page_comes_about_by_itself() -> None:
    def run() -> tuple[list[str], list[str]]:
        ours = Memory(1024)
        before = flags_of(ours.hva)
        ours.remap(0, 1024)
        return before, flags_of(ours.hva)

    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("This kernel has no transparent huge pages.")
    before, after = in_child(run)
    assert "nh" in before
    assert "nh" in after


Act = Callable[[Memory], object]


def _unmapped(ours: Memory) -> None:
    ours.munmap(1, 1)


def _no_access(ours: Memory) -> None:
    ours.mprotect(1, 1, "none")


def _read_only(ours: Memory) -> None:
    ours.mprotect(1, 1, "read")


def _given_back(ours: Memory) -> None:
    ours.mprotect(1, 1, "none")
    ours.mprotect(1, 1, "readwrite")


@pytest.mark.parametrize(
    ("prepare", "reading", "writing"),
    [
        (_unmapped, signal.SIGSEGV, signal.SIGSEGV),
        (_no_access, signal.SIGSEGV, signal.SIGSEGV),
        (_read_only, 0, signal.SIGSEGV),
        (_given_back, 0, 0),
    ],
)
def test_what_the_cpu_may_still_do(prepare: Act, reading: int, writing: int) -> None:
    def killed_by(act: Act) -> int:
        def run() -> None:
            ours = Memory(3)
            ours.poke(0, 3, 0, 1)
            prepare(ours)
            act(ours)

        return signal_of(run)

    def touch_neighbours(ours: Memory) -> None:
        ours.poke(0, 1, 0, 2)
        ours.poke(2, 1, 0, 2)

    assert killed_by(lambda ours: ours.peek(1, 1, 0)) == reading
    assert killed_by(lambda ours: ours.poke(1, 1, 0, 2)) == writing
    assert killed_by(touch_neighbours) == 0


def test_what_the_kernel_refuses_is_an_os_error() -> None:
    def run() -> list[str]:
        ours = Memory(3)
        ours.munmap(1, 1)
        said = []
        for call in (
            lambda: ours.mprotect(0, 3, "read"),
            lambda: ours.madvise(0, 3, "dontneed"),
            lambda: ours.mincore(0, 3),
        ):
            try:
                call()
            except OSError as error:
                said.append(error.strerror or "")
        return said

    assert in_child(run) == ["Cannot allocate memory"] * 3


@pytest.mark.parametrize("what", ["mprotect", "madvise"])
def test_words_that_nobody_knows_are_refused(what: str) -> None:
    def run() -> str:
        try:
            getattr(Memory(1), what)(0, 1, "exec")
        except KeyError:
            return "refused"
        return "accepted"

    assert in_child(run) == "refused"


def test_packed_bytes_survive_json() -> None:
    data = bytes(range(256)) * 100
    text = memory.pack(data)
    assert text.isascii()
    assert len(text) < len(data)
    assert unpacked(text) == data
