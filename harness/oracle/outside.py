# SPDX-License-Identifier: GPL-2.0-only
"""What is asked of a stopped host's memory from outside, on behalf of a guest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import drgn
import numpy as np

from harness.guest.observation import View
from harness.guest.session import Session
from harness.oracle.invalidations import Unended, unended
from harness.oracle.pagetables import PrimaryMap, primary_map
from harness.oracle.references import Difference, differences
from harness.oracle.sptes import Stale, read_sptes, stale
from harness.oracle.structpage import page_states

Finding = Difference | Stale | Unended


class Owned(Protocol):
    """A process of which is known where its memory is: ``pages`` pages at ``hva``."""

    @property
    def session(self) -> Session:
        """The agent on the host."""

    @property
    def pid(self) -> int:
        """The process, a VMM or a user of other secondary MMUs."""

    @property
    def hva(self) -> int:
        """Where the memory begins in the process."""

    @property
    def pages(self) -> int:
        """How many pages of 4 KiB there are."""


class Examined(Owned, Protocol):
    """A guest, of which is known in which ``views`` its memory is shown.

    First of all it is at ``gpa`` in the VM behind the process's descriptor ``vm_fd``.
    """

    @property
    def vm_fd(self) -> int:
        """Its descriptor of the VM."""

    @property
    def gpa(self) -> int:
        """Where it begins in the guest."""

    @property
    def views(self) -> tuple[View, ...]:
        """The ways in which vcpus see the memory."""


def primary_of(program: drgn.Program, guest: Owned) -> PrimaryMap:
    """What the primary MMU maps at each page of the memory."""
    return primary_map(program, guest.pid, guest.hva, guest.pages)


def _extra(program: drgn.Program, guest: Owned, primary: PrimaryMap) -> Sequence[Difference]:
    pages = np.flatnonzero(primary.present)
    states = page_states(program, primary.pfn[pages])
    return differences(pages, states)


def _stale(program: drgn.Program, guest: Examined, primary: PrimaryMap) -> Sequence[Stale]:
    found: list[Stale] = []
    for view in guest.views:
        sptes = read_sptes(program, guest.pid, view.vm_fd, view.gpa, guest.pages)
        found += stale(sptes, primary)
    return found


def _unended(program: drgn.Program, guest: Examined, primary: PrimaryMap) -> Sequence[Unended]:
    machines = dict.fromkeys(view.vm_fd for view in guest.views)
    return [found for vm_fd in machines for found in unended(program, guest.pid, vm_fd)]


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of the host's memory from outside, and by which oracle.

    ``look`` takes the guest; only those questions that need no VM take a user of other notifiers.
    """

    oracle: str
    expected: str
    look: Callable[[drgn.Program, Any, PrimaryMap], Sequence[Finding]]


REFERENCES = Question("references", "exactly the references of mappings and caches", _extra)
TRANSLATIONS = Question("translations", "each spte to agree with the primary MMU", _stale)
INVALIDATIONS = Question("invalidations", "each invalidation to have ended", _unended)
