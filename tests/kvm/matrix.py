# SPDX-License-Identifier: GPL-2.0-only
"""Which operation is tried on which kind of memory, and why not on the others.

A cell of the matrix is an operation on a backing in an MMU mode; the modes are the plugin's. What
is not in ABSENT is in the suite: a new backing is tried with every operation until somebody says
why that makes no sense.
"""

from __future__ import annotations

import pytest

from harness.probe.backing import BACKINGS

_NO_FILE = "the memory has no file"
_NO_DISK = "the file is not on a disk"
_LIKE_ANON = "the operation does not look into the page, so it is that on anon"
_MERGED = dict.fromkeys(("ksm",), _LIKE_ANON)
_FILELESS = dict.fromkeys(("anon", "thp", "hugetlb", "ksm"), _NO_FILE)
_HUGETLB = "hugetlb pages are neither reclaimed nor swapped"
_NOT_ONE_PAGE = "hugetlb memory is mapped by 2 MiB only, so a range of pages inside is refused"
_SHARED_IS_NOT_COPIED = "shared memory is not copied on write"
_DEVICE = "memory of a device is not reclaimed"
_NO_LRU = "memory of a device is on no LRU list"

ABSENT: dict[str, dict[str, str]] = {
    "reclaim": {"hugetlb": _HUGETLB, "dax": _DEVICE},
    "squeeze": {
        "hugetlb": _HUGETLB,
        "dax": _DEVICE,
        "ksm": _LIKE_ANON,
    },
    "hot reclaim": {
        "hugetlb": _HUGETLB,
        "file-private": "once written to, its pages are anonymous",
        "ksm": "the page that a vcpu keeps hot is no merged page any more",
        "dax": _DEVICE,
    },
    "fork": _MERGED,
    "protect": _MERGED,
    "protect partly": {**_MERGED, "hugetlb": _NOT_ONE_PAGE},
    "unmap": _MERGED,
    "unmap partly": {**_MERGED, "hugetlb": _NOT_ONE_PAGE},
    "discard": _MERGED,
    "discard partly": {**_MERGED, "hugetlb": _NOT_ONE_PAGE},
    "free": {
        "hugetlb": "MADV_FREE is for anonymous memory that can be swapped",
        "memfd": "MADV_FREE is for private anonymous memory",
        "file-shared": "MADV_FREE is for private anonymous memory",
        "file-private": "MADV_FREE is for private anonymous memory",
        "ksm": "MADV_FREE leaves shared pages alone",
        "dax": "MADV_FREE is for private anonymous memory",
    },
    "page out": {
        "hugetlb": _HUGETLB,
        "ksm": "MADV_PAGEOUT leaves shared pages alone",
        "dax": _DEVICE,
    },
    "collapse": {
        "thp": "it is there in large pages already",
        "hugetlb": "it is there in large pages already",
        "file-shared": "ext4 needs CONFIG_READ_ONLY_THP_FOR_FS and memory that nobody writes to",
        "file-private": "ext4 needs CONFIG_READ_ONLY_THP_FOR_FS and memory that nobody writes to",
        "ksm": "merged pages are not collapsed",
        "dax": "memory of a device is large or small as it lies there",
    },
    "move": _MERGED,
    "shrink": _MERGED,
    "truncate": _FILELESS,
    "punch": {**_FILELESS, "file-private": "what is private stays, which is a test of its own"},
    "write back": {
        **_FILELESS,
        "memfd": _NO_DISK,
        "file-private": "what is written to private memory does not go to the file",
    },
    "copy on write": {
        "hugetlb": "its first touch by a read gives a page of its own already",
        "memfd": _SHARED_IS_NOT_COPIED,
        "file-shared": _SHARED_IS_NOT_COPIED,
        "ksm": "test_merge.py breaks merged pages",
        "dax": _SHARED_IS_NOT_COPIED,
    },
    "migrate": {
        "ksm": "the frame of a merged page is that of many, and moves as anon does",
        "dax": "memory of a device stays where the device has it",
    },
    "write-protect": {
        "file-shared": "userfaultfd knows no files on disks",
        "file-private": "userfaultfd knows no files on disks",
        "ksm": _LIKE_ANON,
        "dax": "userfaultfd knows no files on devices",
    },
    "track writes": {
        "file-shared": "userfaultfd knows no files on disks",
        "file-private": "userfaultfd knows no files on disks",
        "ksm": _LIKE_ANON,
        "dax": "userfaultfd knows no files on devices",
    },
    "userfault move": {
        "hugetlb": "UFFDIO_MOVE is for private anonymous memory",
        "memfd": "UFFDIO_MOVE is for private anonymous memory",
        "file-shared": "UFFDIO_MOVE is for private anonymous memory",
        "file-private": "UFFDIO_MOVE is for private anonymous memory",
        "ksm": "UFFDIO_MOVE is for pages that belong to one process alone",
        "dax": "UFFDIO_MOVE is for private anonymous memory",
    },
    "soft-dirty": {
        "hugetlb": "clear_refs leaves hugetlb memory alone",
        "ksm": _LIKE_ANON,
    },
    "exit": _MERGED,
    "age": {
        "thp": "its pages age as one, which is too coarse for a rate in a guest of this size",
        "hugetlb": _HUGETLB,
        "file-shared": "its ageing is that of memfd, on another list of the same kind",
        "file-private": "once written to, its pages are anonymous",
        "ksm": "what is merged is neither hot nor cold",
        "dax": _NO_LRU,
    },
    "idle": {
        "hugetlb": "hugetlb pages are on no LRU list",
        "ksm": "a merged page is idle only if none of its many users touches it",
        "dax": _NO_LRU,
    },
}
"""For each operation the backings on which it is not tried, with the reason."""

RARE = ("hugetlb-shared", "hugetlb-wide")
"""Backings that only a few scenarios name, because hugetlb and memfd say the rest."""

SHARED = ("memfd", "file-shared", "dax")
"""Backings that a forked child shares with its parent, instead of having a copy on write."""

# Splitting a VMA inside of a 2 MiB range makes the primary MMU invalidate all of that range, which
# would hide that the operation itself does not; so one range begins and ends where no split is.
_RANGES = {
    "whole": (0, 2048),
    "aligned": (512, 512),
    "first": (0, 1),
    "last": (2047, 1),
    "middle": (1000, 3),
}


def backings(operation: str) -> list[str]:
    """The backings on which an operation is tried."""
    return [name for name in BACKINGS if name not in (*RARE, *ABSENT[operation])]


def on_backings(operation: str) -> pytest.MarkDecorator:
    """Runs a test once for each backing on which an operation is tried."""
    return pytest.mark.parametrize("backing", backings(operation))


def on_ranges(operation: str) -> pytest.MarkDecorator:
    """Runs a test for each range of anonymous memory, and for one large and one small of others.

    ``operation`` stands in ABSENT for ranges of whole large pages, and followed by ``partly`` for
    any other.
    """
    cells = [("anon", *bounds, f"anon-{name}") for name, bounds in _RANGES.items()]
    for name, what in (("aligned", operation), ("middle", f"{operation} partly")):
        others = [backing for backing in backings(what) if backing != "anon"]
        cells += [(backing, *_RANGES[name], f"{backing}-{name}") for backing in others]
    return pytest.mark.parametrize(
        ("backing", "first", "pages"), [cell[:3] for cell in cells], ids=[cell[3] for cell in cells]
    )
