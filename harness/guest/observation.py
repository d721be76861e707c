# SPDX-License-Identifier: GPL-2.0-only
"""What can be seen of a probe guest and its memory, as frozen data."""

from __future__ import annotations

import base64
import dataclasses
import zlib

import numpy as np
import numpy.typing as npt

from harness.probe import layout

_PRESENT = np.uint64(1 << 63)
_SWAPPED = np.uint64(1 << 62)
_SOFT_DIRTY = np.uint64(1 << 55)


@dataclasses.dataclass(frozen=True)
class Visit:
    """How an operation of a vcpu ended.

    ``end`` is ``done``, ``refused`` (the primary MMU did not let the vcpu touch page
    ``current``), ``crashed`` or ``kicked``. ``bad`` counts the words that were not as expected;
    the first of them is word ``bad_word`` of page ``bad_page``.
    """

    end: str
    how: str
    current: int
    done: int
    rounds: int
    refusals: int
    bad: int
    bad_page: int
    bad_word: int
    bad_expected: int
    bad_seen: int
    words: tuple[int, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether the vcpu was refused an access."""
        return self.end == "refused"


@dataclasses.dataclass(frozen=True)
class View:
    """A way in which guests see the memory: a VM, the gpa of its first page, and a vcpu there.

    ``address`` is where the guest's own page tables have that page.
    """

    vm_fd: int
    gpa: int
    address: int = layout.MEMORY_GPA
    vcpu: int = 0


@dataclasses.dataclass(frozen=True)
class Residency:
    """Where the primary MMU says each page is; boolean arrays, one element a page.

    ``present`` and ``swapped`` are the pte's word (pagemap); ``resident`` is mincore's, which
    counts a page in the swap cache as resident even though its pte is a swap entry.
    ``soft_dirty`` marks pages written to since the last time that soft-dirty bits were cleared.
    """

    present: npt.NDArray[np.bool_]
    swapped: npt.NDArray[np.bool_]
    resident: npt.NDArray[np.bool_]
    soft_dirty: npt.NDArray[np.bool_]

    @classmethod
    def unpacked(cls, pagemap: str, mincore: str) -> Residency:
        """From what the probe packed of /proc/PID/pagemap and of mincore(2)."""
        entries = np.frombuffer(unpack(pagemap), np.uint64)
        core = np.frombuffer(unpack(mincore), np.uint8)
        return cls(
            present=(entries & _PRESENT) != 0,
            swapped=(entries & _SWAPPED) != 0,
            resident=(core & 1) != 0,
            soft_dirty=(entries & _SOFT_DIRTY) != 0,
        )

    def outside(self, hot: range) -> int:
        """How many pages besides ``hot`` take up memory, mapped or not."""
        in_memory = self.present | self.resident
        return int(in_memory.sum()) - int(in_memory[hot.start : hot.stop].sum())


def unpack(text: str) -> bytes:
    """The bytes that the probe packed."""
    return zlib.decompress(base64.b64decode(text))
