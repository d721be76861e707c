# SPDX-License-Identifier: GPL-2.0-only
"""Each kind of memory, really mapped in a forked child and told by what the kernel says of it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import in_child

from harness.probe import backing as module
from harness.probe import layout
from harness.probe.backing import ADVICE, BACKINGS, map_anonymous
from harness.probe.layout import LARGE_PAGE_BYTES, PAGE_BYTES
from harness.probe.memory import Memory

PAGES = LARGE_PAGE_BYTES // PAGE_BYTES
WITH_FILE = [name for name, backing in BACKINGS.items() if backing.file]
ON_DISK = [name for name, backing in BACKINGS.items() if backing.file in ("disk", "dax")]
SHARED = ["memfd", "file-shared", "hugetlb-shared", "hugetlb-wide", "dax"]
LARGE = [name for name, backing in BACKINGS.items() if backing.page_bytes > PAGE_BYTES]


def mapping(address: int) -> dict[str, Any]:
    """The mapping at an address, as /proc/self/smaps has it; ``place`` is where in its file."""
    found: dict[str, Any] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ \S+ *(.*)", line):
            if found:
                return found
            start, end = int(head[1], 16), int(head[2], 16)
            if start <= address < end:
                place = int(head[4], 16) + address - start
                found = {"end": end, "mode": head[3], "place": place, "file": head[5]}
        elif found:
            name, _, value = line.partition(":")
            found[name] = value.split()
    assert found, f"nothing is mapped at {address:#x}"
    return found


def free_large_pages() -> int:
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"^HugePages_Free: +(\d+)$", text, re.M)
    return int(found[1]) if found else 0


@pytest.fixture(params=BACKINGS)
def name(request: pytest.FixtureRequest) -> str:
    """Each kind of memory that this machine can give a large page's worth of."""
    kind: str = request.param
    if kind in LARGE and free_large_pages() < 2:
        pytest.skip("This machine has no free hugetlb pages (vm.nr_hugepages).")
    advice = BACKINGS[kind].advice
    if advice and not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("This kernel has no transparent huge pages, and no such advice.")
    return kind


# What becomes of a range that is mapped.


def test_memory_is_of_the_kind_that_was_asked_for(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"

    def run() -> dict[str, Any]:
        ours = Memory(PAGES, name, str(path))
        # A byte is touched, or there is nothing to tell the size of.
        ours.poke(0, 1, 0, 1)
        return {**mapping(ours.hva), "hva": ours.hva}

    seen = in_child(run)
    assert seen["hva"] % LARGE_PAGE_BYTES == 0
    assert seen["end"] - seen["hva"] >= PAGES * PAGE_BYTES
    assert seen["mode"] == ("rw-s" if name in SHARED else "rw-p")
    flags = seen["VmFlags"]
    if name in LARGE:
        assert "ht" in flags
        assert seen["KernelPageSize"] == ["2048", "kB"]
    else:
        assert ("hg" if name == "thp" else "nh") in flags, "a large page comes only where wanted"
        assert ("nh" if name == "thp" else "hg") not in flags
    alone = "/memfd:guest (deleted)"
    expected = {
        "memfd": alone, "hugetlb-shared": alone, "hugetlb": "/anon_hugepage (deleted)",
    }  # fmt: skip
    on_disk = str(path) if name in ON_DISK else ""
    assert seen["file"] == expected.get(name, on_disk)


def test_memory_is_zero_and_keeps_what_is_written(name: str, tmp_path: Path) -> None:
    def run() -> tuple[bool, bool]:
        ours = Memory(PAGES, name, str(tmp_path / "file"))
        zero = not any(any(ours.peek(0, PAGES, word)) for word in range(0, 512, 73))
        ours.poke(0, PAGES, 3, 7)
        return zero, ours.peek(0, PAGES, 3) == [7] * PAGES

    assert in_child(run) == (True, True)


def test_memory_is_seen_by_a_forked_child_or_copied_for_it(name: str, tmp_path: Path) -> None:
    def run() -> list[int]:
        ours = Memory(PAGES, name, str(tmp_path / "file"))
        ours.poke(0, 1, 0, 1)
        in_child(lambda: ours.poke(0, 1, 0, 2))
        return ours.peek(0, 1, 0)

    assert in_child(run) == [2 if name in SHARED else 1]


def test_a_backing_that_nobody_knows_is_refused() -> None:
    with pytest.raises(KeyError, match="tape"):
        Memory(1, "tape")


# Remapping, and what a file has.


@pytest.mark.parametrize("name", [name for name in BACKINGS if name not in LARGE])
def test_a_range_is_mapped_anew_with_what_its_file_has_there(name: str, tmp_path: Path) -> None:
    def run() -> tuple[list[int], bool]:
        ours = Memory(8, name, str(tmp_path / "file"))
        for page in range(8):
            ours.poke(page, 1, 0, page + 1)
        ours.munmap(3, 2)
        ours.remap(2, 4)
        same = mapping(ours.hva)["VmFlags"] == mapping(ours.hva + 3 * PAGE_BYTES)["VmFlags"]
        return ours.peek(0, 8, 0), same

    there = [3, 4, 5, 6] if name in SHARED else [0] * 4
    assert in_child(run) == ([1, 2, *there, 7, 8], True)


@pytest.mark.parametrize("name", [name for name in WITH_FILE if name not in LARGE])
def test_a_range_is_replaced_by_memory_without_the_file(name: str, tmp_path: Path) -> None:
    def run() -> tuple[list[int], str, list[int]]:
        ours = Memory(4, name, str(tmp_path / "file"))
        ours.poke(0, 4, 0, 9)
        ours.replace(1, 2)
        what = mapping(ours.hva + PAGE_BYTES)
        ours.poke(1, 1, 0, 5)
        inside = ours.peek(0, 4, 0)
        ours.remap(1, 2)
        assert "nh" in what["VmFlags"]
        return inside, what["file"], ours.peek(0, 4, 0)

    # What is written to the replacement is not in the file.
    back = [9, 9, 9, 9] if name in SHARED else [9, 0, 0, 9]
    assert in_child(run) == ([9, 5, 0, 9], "", back)


def test_a_file_of_memory_alone_is_as_long_as_the_memory() -> None:
    def run() -> tuple[int, int, bool]:
        fd = BACKINGS["memfd"].open("", 3 * PAGE_BYTES)
        found = os.fstat(fd)
        return found.st_size, found.st_blocks, os.get_inheritable(fd)

    assert in_child(run) == (3 * PAGE_BYTES, 0, False)


@pytest.mark.parametrize("pages", [1, 3, PAGES, PAGES + 1, 3 * PAGES])
def test_a_file_on_disk_is_written_and_no_hole(tmp_path: Path, pages: int) -> None:
    path = tmp_path / "file"

    def run() -> tuple[int, bool]:
        fd = BACKINGS["file-shared"].open(str(path), pages * PAGE_BYTES)
        hole = os.lseek(fd, 0, os.SEEK_HOLE)
        return hole, os.get_inheritable(fd)

    assert in_child(run) == (pages * PAGE_BYTES, False)
    assert path.stat().st_size == pages * PAGE_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert not any(path.read_bytes())


@pytest.mark.parametrize("name", ON_DISK)
def test_a_file_that_is_there_already_is_not_taken(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    path.write_text("somebody's")
    with pytest.raises(FileExistsError):
        BACKINGS[name].open(str(path), PAGE_BYTES)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        BACKINGS[name].open(str(tmp_path / "link"), PAGE_BYTES)
    assert path.read_text() == "somebody's"


@pytest.mark.parametrize("name", [name for name in BACKINGS if name not in WITH_FILE])
def test_memory_without_a_file_makes_none(tmp_path: Path, name: str) -> None:
    assert BACKINGS[name].open(str(tmp_path / "file"), PAGE_BYTES) == -1
    assert list(tmp_path.iterdir()) == []


def test_a_range_begins_in_its_file_where_it_begins_in_the_memory(tmp_path: Path) -> None:
    def run() -> list[int]:
        ours = Memory(8, "file-shared", str(tmp_path / "file"))
        ours.remap(5, 2)
        ours.replace(6, 1)  # which keeps the kernel from merging the mapping with its neighbours
        return [mapping(ours.hva + page * PAGE_BYTES)["place"] for page in (0, 5, 7)]

    assert in_child(run) == [0, 5 * PAGE_BYTES, 7 * PAGE_BYTES]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("anon", 4096),
        ("memfd", 4096),
        ("thp", 4096),
        ("hugetlb", 2 << 20),
        ("hugetlb-shared", 2 << 20),
    ],
)
def test_a_backing_says_what_a_range_must_be_made_of(name: str, expected: int) -> None:
    assert BACKINGS[name].page_bytes == expected


# The calls below.


@pytest.mark.parametrize("name", ["anon", "thp", "memfd"])
def test_memory_says_what_it_is_made_of(name: str) -> None:
    assert in_child(lambda: Memory(1, name).page_bytes) == BACKINGS[name].page_bytes


def test_what_cannot_be_mapped_is_an_os_error() -> None:
    for name, address, number in (("anon", 1, errno.EINVAL), ("memfd", 1 << 40, errno.EBADF)):
        with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
            BACKINGS[name].map(address, PAGE_BYTES, -1, 0)
        assert caught.value.errno == number


def address_space_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0])


@pytest.mark.parametrize("pages", [1, 3, 511, 512, 513, 2048])
def test_memory_is_aligned_and_not_a_page_more_than_asked_for(pages: int) -> None:
    def run() -> tuple[int, int]:
        before = address_space_pages()
        start = map_anonymous(pages * PAGE_BYTES)
        return start % LARGE_PAGE_BYTES, address_space_pages() - before

    assert in_child(run) == (0, pages)


def test_memory_is_where_nothing_else_is_mapped() -> None:
    def mapped() -> set[int]:
        maps = Path("/proc/self/maps").read_text().splitlines()
        return {int(line.partition("-")[0], 16) for line in maps}

    def run() -> tuple[bool, list[int]]:
        before = mapped()  # by other tests in this process
        ours = [map_anonymous(size) for size in (PAGE_BYTES, LARGE_PAGE_BYTES, 3 << 30, PAGE_BYTES)]
        starts = mapped() - before
        return all(layout.HVA_FIRST <= start < layout.HVA_LAST for start in ours), [
            start
            for start in starts
            if layout.HVA_FIRST <= start < layout.HVA_LAST and start not in ours
        ]

    assert in_child(run) == (True, [])


def test_memory_at_an_address_is_mapped_exactly_there() -> None:
    def run() -> tuple[bool, int, list[str]]:
        ours = Memory(4)
        ours.poke(0, 4, 0, 9)
        before = address_space_pages()
        address = map_anonymous(2 * PAGE_BYTES, ours.hva + PAGE_BYTES)
        grown = address_space_pages() - before
        words = [str(word) for word in ours.peek(0, 4, 0)]
        return address == ours.hva + PAGE_BYTES, grown, words

    assert in_child(run) == (True, 0, ["9", "0", "0", "9"])


def test_memory_that_cannot_be_had_is_an_os_error() -> None:
    with pytest.raises(OSError, match="Cannot allocate memory"):
        map_anonymous(1 << 60)


Call = Callable[[], object]


@pytest.mark.parametrize(
    "call",
    [
        lambda: module.advise(0, PAGE_BYTES, "dontneed"),
        lambda: module.keep_small(0, PAGE_BYTES),
    ],
)
def test_advice_that_is_refused_is_an_os_error(call: Call) -> None:
    with pytest.raises(OSError, match="Cannot allocate memory"):
        call()


def test_every_advice_has_a_number_of_its_own() -> None:
    assert len(set(ADVICE.values())) == len(ADVICE)
    assert {backing.advice for backing in BACKINGS.values()} - {None} <= ADVICE.keys()
