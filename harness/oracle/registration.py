# SPDX-License-Identifier: GPL-2.0-only
"""Read from outside who is registered to be notified of a process's memory."""

from __future__ import annotations

import drgn
from drgn.helpers.linux.list import hlist_for_each

from harness.errors import OracleUnavailable
from harness.oracle.pagetables import task_mm


def mm_references(program: drgn.Program, pid: int) -> int:
    """How many hold the mm of a process, besides those who use it: each VM is one."""
    return int(task_mm(program, pid).mm_count.counter)


def subscriptions(program: drgn.Program, pid: int) -> int:
    """How many notifiers are registered on the memory of a process.

    Where they are since commit 984cfe4e2526 ("mm/mmu_notifier: Rename struct mmu_notifier_mm to
    mmu_notifier_subscriptions") (in v5.6). Raises OracleUnavailable where it is not known.
    """
    mm = task_mm(program, pid)
    try:
        registered = mm.notifier_subscriptions
        return sum(1 for _ in hlist_for_each(registered.list.address_of_())) if registered else 0
    except (AttributeError, LookupError) as error:
        raise OracleUnavailable(
            f"The list of notifiers looks different in this kernel: {error}."
        ) from error
