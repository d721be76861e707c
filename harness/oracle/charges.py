# SPDX-License-Identifier: GPL-2.0-only
"""How much the memory controller may charge a cgroup for in which nobody has memory any more."""

from __future__ import annotations

from harness.guest.session import Session
from harness.probe.layout import PAGE_BYTES

_STATISTICS = ("anon", "shmem", "swapcached", "pagetables", "sec_pagetables")
_LISTS = ("inactive_anon", "active_anon", "unevictable")
"""A page that nobody maps but somebody references is on these lists only."""

_SWAP_SLOTS_CACHED = 64
"""A freed swap slot stays charged until its CPU has a batch of them (SWAP_SLOTS_CACHE_SIZE in
include/linux/swap_slots.h, up to v6.13)."""

_STATISTICS_BATCHED = 32
"""Pages that each CPU may keep to itself of each statistic (MEMCG_CHARGE_BATCH in
include/linux/memcontrol.h), for good. That they are added up at a read came with commit
2d146aa3aa84 ("mm: memcontrol: switch to rstat") (in v5.13)."""

_EXACT = "cgroup.kill"
"""A file of each cgroup that came with v5.14, right after the statistics became exact."""


def most_charged(session: Session, cgroup: str) -> dict[str, int]:
    """The bytes that each statistic of an empty cgroup may show on this host."""
    exact = session.ask("exists", path=f"{cgroup}/{_EXACT}")
    kept = 0 if exact else _STATISTICS_BATCHED * session.cpus * PAGE_BYTES
    swap = _SWAP_SLOTS_CACHED * session.cpus * PAGE_BYTES
    return {**dict.fromkeys((*_STATISTICS, *_LISTS), kept), "memory.swap.current": swap}
