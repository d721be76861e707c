# SPDX-License-Identifier: GPL-2.0-only
"""What is asked of a stopped host's memory from outside, on behalf of a guest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import drgn
import numpy as np

from harness.guest.observation import View
from harness.guest.session import Session
from harness.oracle.pagetables import PrimaryMap, primary_map
from harness.oracle.references import Difference, differences
from harness.oracle.sptes import Stale, read_sptes, stale
from harness.oracle.structpage import page_states

Finding = Difference | Stale


class Examined(Protocol):
    """A guest, of which is known where its memory is: ``pages`` pages, shown in ``views``.

    They are at ``hva`` in the process ``pid``, and first of all at ``gpa`` in the VM behind its
    descriptor ``vm_fd``.
    """

    @property
    def session(self) -> Session:
        """The agent on the guest's host."""

    @property
    def pid(self) -> int:
        """The process of the VMM."""

    @property
    def vm_fd(self) -> int:
        """Its descriptor of the VM."""

    @property
    def hva(self) -> int:
        """Where the memory begins in the process."""

    @property
    def gpa(self) -> int:
        """Where it begins in the guest."""

    @property
    def pages(self) -> int:
        """How many pages of 4 KiB there are."""

    @property
    def views(self) -> tuple[View, ...]:
        """The ways in which vcpus see the memory."""


def primary_of(program: drgn.Program, guest: Examined) -> PrimaryMap:
    """What the primary MMU maps at each page of a guest's memory."""
    return primary_map(program, guest.pid, guest.hva, guest.pages)


def _extra(program: drgn.Program, guest: Examined, primary: PrimaryMap) -> Sequence[Difference]:
    pages = np.flatnonzero(primary.present)
    states = page_states(program, primary.pfn[pages])
    return differences(pages, states)


def _stale(program: drgn.Program, guest: Examined, primary: PrimaryMap) -> Sequence[Stale]:
    found: list[Stale] = []
    for view in guest.views:
        sptes = read_sptes(program, guest.pid, view.vm_fd, view.gpa, guest.pages)
        found += stale(sptes, primary)
    return found


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of the host's memory from outside, and by which oracle."""

    oracle: str
    expected: str
    look: Callable[[drgn.Program, Examined, PrimaryMap], Sequence[Finding]]


REFERENCES = Question("references", "exactly the references of mappings and caches", _extra)
TRANSLATIONS = Question("translations", "each spte to agree with the primary MMU", _stale)
