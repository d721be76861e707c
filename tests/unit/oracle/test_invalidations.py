# SPDX-License-Identifier: GPL-2.0-only
"""Whether invalidations have ended, read from a struct kvm made here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import OracleUnavailable
from harness.oracle import invalidations as module
from harness.oracle.invalidations import Unended, unended


class Machine:
    """A struct kvm with these members."""

    def __init__(self, **members: int) -> None:
        self._members = members
        named = [SimpleNamespace(name=name) for name in members]
        self.type_ = SimpleNamespace(type=SimpleNamespace(members=named))

    def member_(self, name: str) -> Any:
        return SimpleNamespace(value_=lambda: self._members[name])


def asked(monkeypatch: pytest.MonkeyPatch, **members: int) -> tuple[Unended, ...]:
    program: Any = object()

    def virtual_machine(*words: object) -> Machine:
        assert words == (program, 70, 9)
        return Machine(**members)

    monkeypatch.setattr(module, "virtual_machine", virtual_machine)
    return unended(program, 70, 9)


@pytest.mark.parametrize("name", ["mmu_invalidate_in_progress", "mmu_notifier_count"])
def test_a_vm_that_waits_for_nothing_has_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert asked(monkeypatch, **{name: 0, "mn_active_invalidate_count": 0, "other": 5}) == ()


@pytest.mark.parametrize("count", [1, -1, 7])
@pytest.mark.parametrize("name", ["mmu_invalidate_in_progress", "mmu_notifier_count"])
def test_a_count_that_is_not_zero_is_one(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    assert asked(monkeypatch, **{name: count}) == (Unended(name, count),)


def test_a_memslot_that_cannot_change_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = asked(monkeypatch, mmu_invalidate_in_progress=0, mn_active_invalidate_count=1)
    assert str(found) == "mn_active_invalidate_count is 1"
    assert found.page is None


def test_a_kernel_that_counts_otherwise_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OracleUnavailable, match="another name"):
        asked(monkeypatch, mn_active_invalidate_count=0)
