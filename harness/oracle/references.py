# SPDX-License-Identifier: GPL-2.0-only
"""The pure model of how many references a page may have, and the comparison with what it has."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from harness.oracle.structpage import PageStates

Counts = npt.NDArray[np.int64]


def expected_references(states: PageStates) -> Counts:
    """How many references each page ought to have, when nobody is using it at the moment.

    One for each page table entry that maps it, one for each of its pages in the swap cache or the
    page cache, and one
    for private data (buffer heads) that hangs on it. That sptes are not in this list is what the
    whole project is about: commit acb66dd051d0 ("KVM: MMU: don't hold pagecount reference for
    mapped sptes pages") (in v3.6).

    A page of a DAX device is no page cache, although it has a file: it has one reference from its
    device, and its mappings are not counted. (Were they, each would have one, and the first of
    them be that of the device: what is expected is the same.)
    """
    cached = states.swap_cache | states.page_cache
    expected = states.mapcount + cached * states.if_cached + states.private.astype(np.int64)
    return np.where(states.device, np.maximum(states.mapcount, 1), expected)


@dataclasses.dataclass(frozen=True)
class Difference:
    """One page whose reference count is not what it ought to be.

    ``page`` is the index into the guest's memory, ``pfn`` the frame.
    """

    page: int
    pfn: int
    expected: int
    found: int
    mapcount: int

    def __str__(self) -> str:
        return (
            f"page {self.page} (pfn {self.pfn:#x}): {self.found} references instead of "
            f"{self.expected}, mapcount {self.mapcount}"
        )


def differences(pages: Counts, states: PageStates) -> tuple[Difference, ...]:
    """The pages that have more or fewer references than expected, in the order of the guest.

    ``pages`` are the indices into the guest's memory of the frames in ``states``. A large folio
    stands there once, by the first of its pages.
    """
    expected = expected_references(states)
    wrong = np.flatnonzero((states.refcount != expected) & ~states.reserved)
    _, firsts = np.unique(states.head[wrong], return_index=True)
    wrong = wrong[np.sort(firsts)]
    return tuple(
        Difference(
            page=int(pages[index]),
            pfn=int(states.pfn[index]),
            expected=int(expected[index]),
            found=int(states.refcount[index]),
            mapcount=int(states.mapcount[index]),
        )
        for index in wrong
    )
