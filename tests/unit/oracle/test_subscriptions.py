# SPDX-License-Identifier: GPL-2.0-only
"""Who is registered on a process's memory, and who holds it, read from structures made here."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import OracleUnavailable, ProbeError
from harness.oracle import registration as module
from harness.oracle.registration import mm_references, subscriptions


class Subscriptions:
    """A struct notifier_subscriptions with a list of so many."""

    def __init__(self, count: int) -> None:
        self.list = SimpleNamespace(address_of_=lambda: range(count))


class Null:
    """A pointer to nothing."""

    def __bool__(self) -> bool:
        return False


def registered(monkeypatch: pytest.MonkeyPatch, mm: object) -> Any:
    """A program in which process 70 has this mm."""
    program: Any = object()

    def task_mm(asked: object, pid: int) -> object:
        assert (asked, pid) == (program, 70)
        return mm

    def hlist_for_each(head: range) -> Iterator[int]:
        return iter(head)

    monkeypatch.setattr(module, "task_mm", task_mm)
    monkeypatch.setattr(module, "hlist_for_each", hlist_for_each)
    return program


@pytest.mark.parametrize("count", [0, 1, 17])
def test_each_member_of_the_list_is_a_notifier(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    program = registered(monkeypatch, SimpleNamespace(notifier_subscriptions=Subscriptions(count)))
    assert subscriptions(program, 70) == count


def test_memory_on_which_nobody_ever_registered_has_no_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = registered(monkeypatch, SimpleNamespace(notifier_subscriptions=Null()))
    assert subscriptions(program, 70) == 0


def test_a_kernel_that_keeps_them_elsewhere_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = registered(monkeypatch, SimpleNamespace(mmu_notifier_mm=1))
    with pytest.raises(OracleUnavailable, match=r"looks different.*notifier_subscriptions"):
        subscriptions(program, 70)


def test_a_list_whose_type_is_not_known_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    program = registered(monkeypatch, SimpleNamespace(notifier_subscriptions=Subscriptions(1)))

    def no_type(_: object) -> Iterator[int]:
        raise LookupError("could not find 'struct hlist_node'")

    monkeypatch.setattr(module, "hlist_for_each", no_type)
    with pytest.raises(OracleUnavailable, match="hlist_node"):
        subscriptions(program, 70)


def test_who_holds_the_mm_is_counted_and_who_uses_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mm = SimpleNamespace(mm_count=SimpleNamespace(counter=5), mm_users=SimpleNamespace(counter=9))
    assert mm_references(registered(monkeypatch, mm), 70) == 5


def test_a_process_that_is_gone_is_an_error_of_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise ProbeError("The host's kernel knows no process 70 with memory of its own.")

    monkeypatch.setattr(module, "task_mm", gone)
    program: Any = object()
    for look in (subscriptions, mm_references):
        with pytest.raises(ProbeError, match="no process 70"):
            look(program, 70)
