# SPDX-License-Identifier: GPL-2.0-only
"""Real memory, taken away from a forked child page by page."""

from __future__ import annotations

import base64
import ctypes
import errno
import os
import re
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from forked import in_child, signal_of

from harness.probe import backing, memory, storage
from harness.probe.layout import PAGE_BYTES, PAGE_WORDS
from harness.probe.memory import Memory

PRESENT = 1 << 63
_Answer = TypeVar("_Answer")


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
            lambda: ours.replace(first, pages),
            lambda: ours.move(first, pages),
            lambda: ours.move_back(first, pages, ours.hva),
            lambda: ours.remap_file_pages(first, pages, 0),
            lambda: ours.punch(first, pages),
            lambda: ours.allocate(first, pages),
            lambda: ours.msync(first, pages),
            lambda: ours.stored(first, pages, 0),
        ):
            try:
                call()
            except ValueError as error:
                said.append(str(error))
        return said

    said = in_child(run)
    assert len(said) == 17
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


@pytest.mark.parametrize("advised", [True, False], ids=["by advice", "before v5.14"])
def test_populated_memory_is_there_and_keeps_what_it_has(
    advised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: int, size: int, advice: str) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    def run() -> tuple[list[bool], list[int]]:
        ours = Memory(4)
        ours.poke(2, 1, 0, 9)
        if not advised:
            monkeypatch.setattr(backing, "advise", refuse)
        ours.populate(0, 3)
        return present(ours, 0, 4), ours.peek(0, 4, 0)

    assert in_child(run) == ([True, True, True, False], [0, 0, 9, 0])


def test_what_cannot_be_populated_for_another_reason_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(address: int, size: int, advice: str) -> None:
        raise OSError(errno.EFAULT, "Bad address")

    ours = Memory(1)
    monkeypatch.setattr(backing, "advise", refuse)
    with pytest.raises(OSError, match="Bad address"):
        ours.populate(0, 1)


def test_fresh_memory_over_a_hole_and_over_a_mapping_is_zero() -> None:
    def run() -> tuple[list[int], int]:
        ours = Memory(4)
        ours.poke(0, 4, 0, 9)
        before = address_space_pages()
        ours.munmap(1, 1)
        ours.remap(1, 2)
        return ours.peek(0, 4, 0), address_space_pages() - before

    assert in_child(run) == ([9, 0, 0, 9], 0)


def test_a_window_shows_what_a_device_has_from_an_address_on() -> None:
    def run() -> tuple[list[int], int]:
        ours = Memory(4)
        fd = os.memfd_create("device")
        os.ftruncate(fd, 8 * PAGE_BYTES)
        os.pwrite(fd, (77).to_bytes(8, "little"), 3 * PAGE_BYTES)
        ours.show_window(fd, 2 * PAGE_BYTES)
        ours.poke(2, 1, 0, 88)
        return ours.peek(0, 4, 0), int.from_bytes(os.pread(fd, 8, 4 * PAGE_BYTES), "little")

    assert in_child(run) == ([0, 77, 88, 0], 88)


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


# Memory that moves.


def test_a_range_that_is_moved_leaves_a_hole_and_keeps_its_content() -> None:
    def run() -> tuple[list[int], bool, list[bool]]:
        ours = Memory(8)
        ours.poke(0, 8, 0, 9)
        ours.poke(3, 1, 0, 4)
        address = ours.move(2, 3)
        there = [ctypes.c_uint64.from_address(address + n * PAGE_BYTES).value for n in range(3)]
        outside = not ours.hva <= address < ours.hva + 8 * PAGE_BYTES
        return there, outside, [mapped_at(ours, page) for page in range(8)]

    there, outside, mapped = in_child(run)
    assert there == [9, 4, 9]
    assert outside
    assert mapped == [True, True, False, False, False, True, True, True]


def mapped_at(ours: Memory, page: int) -> bool:
    """Whether anything is mapped at a page, touched or not."""
    try:
        ours.mincore(page, 1)
    except OSError:
        return False
    return True


def test_a_range_that_is_moved_can_leave_a_mapping_without_pages() -> None:
    def run() -> tuple[list[int], int, list[bool]]:
        ours = Memory(4)
        ours.poke(0, 4, 0, 9)
        address = ours.move(1, 2, leaving=True)
        there = present(ours, 0, 4)
        return ours.peek(0, 4, 0), ctypes.c_uint64.from_address(address).value, there

    assert in_child(run) == ([9, 0, 0, 9], 9, [True, False, False, True])


def test_what_was_moved_away_comes_back() -> None:
    def run() -> list[int]:
        ours = Memory(4)
        for page in range(4):
            ours.poke(page, 1, 0, page + 1)
        address = ours.move(1, 2)
        ours.move_back(1, 2, address)
        return ours.peek(0, 4, 0)

    assert in_child(run) == [1, 2, 3, 4]


def test_memory_that_was_moved_as_a_whole_is_followed() -> None:
    def run() -> tuple[bool, list[int], int]:
        ours = Memory(4)
        ours.poke(0, 4, 0, 9)
        old = ours.hva
        address = ours.move(0, 4)
        ours.follow(address)
        return ours.hva != old, ours.peek(0, 4, 0), ours.span(1, 1)[0] - address

    assert in_child(run) == (True, [9] * 4, PAGE_BYTES)


def test_memory_shrinks_and_grows_where_it_is() -> None:
    def run() -> tuple[list[bool], list[int]]:
        ours = Memory(8)
        ours.poke(0, 8, 0, 9)
        ours.resize(8, 3)
        small = [mapped_at(ours, page) for page in range(8)]
        ours.resize(3, 8)
        return small, ours.peek(0, 8, 0)

    assert in_child(run) == ([True] * 3 + [False] * 5, [9] * 3 + [0] * 5)


def test_memory_does_not_grow_beyond_what_it_was() -> None:
    def run() -> str:
        ours = Memory(8)
        try:
            ours.resize(8, 9)
        except ValueError as error:
            return str(error)
        return "it grew"

    assert in_child(run) == "pages 0+9 are not all within the 8 pages"


# Memory of files.


def on_disk(run: Callable[[Memory], _Answer], path: Path, backing: str = "file-shared") -> _Answer:
    """What a function says of memory of a file of eight pages, numbered from 1 on."""

    def numbered() -> _Answer:
        ours = Memory(8, backing, str(path))
        for page in range(8):
            ours.poke(page, 1, 0, page + 1)
        return run(ours)

    return in_child(numbered)


def test_a_range_can_show_other_pages_of_its_file(tmp_path: Path) -> None:
    def run(ours: Memory) -> list[int]:
        ours.remap_file_pages(1, 2, 5)
        ours.poke(2, 1, 0, 77)
        return ours.peek(0, 8, 0)

    # Page 2 shows page 6 of the file now, which is written through either.
    assert on_disk(run, tmp_path / "file") == [1, 6, 77, 4, 5, 6, 77, 8]


@pytest.mark.parametrize("backing", ["file-shared", "memfd"])
def test_memory_beyond_the_end_of_its_file_is_out_of_reach(tmp_path: Path, backing: str) -> None:
    def touch(page: int) -> Callable[[], None]:
        def run() -> None:
            ours = Memory(8, backing, str(tmp_path / f"file{page}"))
            ours.poke(0, 8, 0, 1)
            ours.truncate(4)
            ours.peek(page, 1, 0)

        return run

    assert signal_of(touch(3)) == 0
    assert signal_of(touch(4)) == signal.SIGBUS


@pytest.mark.parametrize("backing", ["file-shared", "memfd"])
def test_a_file_that_grew_again_is_zero_where_it_was_cut(tmp_path: Path, backing: str) -> None:
    def run(ours: Memory) -> list[int]:
        ours.truncate(5)
        ours.truncate(8)
        return ours.peek(0, 8, 0)

    assert on_disk(run, tmp_path / "file", backing) == [1, 2, 3, 4, 5, 0, 0, 0]


@pytest.mark.parametrize("backing", ["file-shared", "memfd"])
def test_a_hole_is_zero_and_can_be_filled_again(tmp_path: Path, backing: str) -> None:
    def run(ours: Memory) -> tuple[list[int], list[int], list[int]]:
        blocks = [os.fstat(ours._fd).st_blocks]
        ours.punch(2, 3)
        blocks.append(os.fstat(ours._fd).st_blocks)
        hole = ours.peek(0, 8, 0)
        ours.allocate(2, 3)
        blocks.append(os.fstat(ours._fd).st_blocks)
        ours.poke(3, 1, 0, 9)
        return hole, blocks, ours.peek(0, 8, 0)

    try:
        hole, blocks, filled = on_disk(run, tmp_path / "file", backing)
    except AssertionError as error:
        if "Operation not supported" in str(error):
            pytest.skip("The file system of the temporary directory punches no holes.")
        raise
    assert hole == [1, 2, 0, 0, 0, 6, 7, 8]
    assert filled == [1, 2, 0, 9, 0, 6, 7, 8]
    assert blocks[1] < blocks[0], "or there is no hole"
    assert blocks[2] > blocks[1], "or there is no room"


def test_private_copies_stay_when_their_file_loses_its_pages(tmp_path: Path) -> None:
    def run(ours: Memory) -> list[int]:
        ours.punch(0, 8)
        return ours.peek(0, 8, 0)

    assert on_disk(run, tmp_path / "file", "file-private") == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("how", ["msync", "fsync", "neither"])
def test_what_is_synchronized_is_not_dirty_any_more(tmp_path: Path, how: str) -> None:
    # That it stands on the disk says less: a read past the page cache writes what is dirty first.
    if os.major(tmp_path.stat().st_dev) == 0:
        pytest.skip("The temporary directory is on no disk.")

    def run(ours: Memory) -> tuple[int, int]:
        before = dirty(ours.hva)
        if how == "msync":
            ours.msync(0, 8)
        elif how == "fsync":
            ours.fsync()
        return before, dirty(ours.hva)

    assert on_disk(run, tmp_path / "file") == (32, 32 if how == "neither" else 0)


def dirty(address: int) -> int:
    """How many KiB of the mapping at an address are dirty."""
    # It may be the first of all.
    text = "\n" + Path("/proc/self/smaps").read_text()
    mapping = text[text.index(f"\n{address:x}-") :]
    return sum(int(size) for size in re.findall(r"_Dirty: +(\d+) kB", mapping)[:2])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that has what the file has; what it has without being asked is tested elsewhere."""

    def read_stored(path: str, offset: int, size: int, device: str) -> bytes:
        assert device == f"the disk of {path}"
        return Path(path).read_bytes()[offset : offset + size]

    monkeypatch.setattr(storage, "device_of", lambda path: f"the disk of {path}")
    monkeypatch.setattr(storage, "read_stored", read_stored)


@pytest.mark.usefixtures("disk")
def test_each_word_of_a_stored_page_can_be_read(tmp_path: Path) -> None:
    def run(ours: Memory) -> list[list[int]]:
        for word in (1, 511):
            ours.poke(5, 1, word, word)
        return [ours.stored(4, 2, word) for word in (0, 1, 511)]

    assert on_disk(run, tmp_path / "file") == [[5, 6], [0, 1], [0, 511]]


@pytest.mark.usefixtures("disk")
def test_what_is_written_to_private_memory_never_stands_on_the_disk(tmp_path: Path) -> None:
    def run(ours: Memory) -> list[int]:
        ours.msync(0, 8)
        ours.fsync()
        return ours.stored(0, 8, 0)

    assert on_disk(run, tmp_path / "file", "file-private") == [0] * 8


def test_the_frames_of_memory_are_those_that_are_there() -> None:
    def run() -> list[int]:
        ours = Memory(8)
        ours.poke(2, 3, 0, 1)
        return ours.frames(1, 5)

    seen = in_child(run)
    if os.geteuid():
        assert seen == [0] * 5, "which frames they are is told to root alone"
        return
    assert [bool(frame) for frame in seen] == [False, True, True, True, False]
    assert len({frame for frame in seen if frame}) == 3


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
