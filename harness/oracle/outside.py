# SPDX-License-Identifier: GPL-2.0-only
"""What is asked of a stopped host's memory from outside, on behalf of a guest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import drgn
import numpy as np

from harness.guest.probe import ProbeGuest
from harness.oracle.pagetables import PrimaryMap, primary_map
from harness.oracle.references import Difference, differences
from harness.oracle.sptes import Stale, read_sptes, stale
from harness.oracle.structpage import page_states

Finding = Difference | Stale


def primary_of(program: drgn.Program, guest: ProbeGuest) -> PrimaryMap:
    """What the primary MMU maps at each page of a guest's memory."""
    return primary_map(program, guest.pid, guest.hva, guest.pages)


def _extra(program: drgn.Program, guest: ProbeGuest, primary: PrimaryMap) -> Sequence[Difference]:
    pages = np.flatnonzero(primary.present)
    states = page_states(program, primary.pfn[pages])
    return differences(pages, states)


def _stale(program: drgn.Program, guest: ProbeGuest, primary: PrimaryMap) -> Sequence[Stale]:
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
    look: Callable[[drgn.Program, ProbeGuest, PrimaryMap], Sequence[Finding]]


REFERENCES = Question("references", "exactly the references of mappings and caches", _extra)
TRANSLATIONS = Question("translations", "each spte to agree with the primary MMU", _stale)
