# SPDX-License-Identifier: GPL-2.0-only
"""The scenarios that a soak chooses from; each leaves the host as it found it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from harness.guest import settings
from harness.guest.settings import no_swap
from harness.linux_guest.changes import free_mib, set_balloon
from harness.soak.crowd import Crowd


def swap_storm(crowd: Crowd) -> None:
    """The guests have half of the memory that they want."""
    crowd.home.confine(crowd.bytes // 2)
    crowd.watch_for(crowd.chance.uniform(4, 12))
    crowd.home.limit("memory.high", "max")


def swap_off(crowd: Crowd) -> None:
    """What is in swap comes back at once."""
    crowd.home.confine(crowd.bytes // 2)
    crowd.watch_for(3)
    crowd.home.limit("memory.high", "max")
    with no_swap(crowd.home.session):
        crowd.watch_for(2)


def merge(crowd: Crowd) -> None:
    """KSM merges what it can, while the guests write, and under pressure."""
    with crowd.merging():
        crowd.watch_for(3)
        swap_storm(crowd)


def large_pages(crowd: Crowd) -> None:
    """Large pages come and go, and what is small is collapsed."""
    for enabled in ("never", "always"):
        with settings.large_pages(crowd.home.session, enabled):
            crowd.watch_for(2)
            crowd.one().collapse()


def compact(crowd: Crowd) -> None:
    """The host's kernel moves pages together, several times."""
    for _ in range(3):
        crowd.home.session.ask("write", path="/proc/sys/vm/compact_memory", text="1")
        crowd.watch_for(1)


def balloon(crowd: Crowd) -> None:
    """A guest gives memory back, and gets it again."""
    guest = crowd.one()
    # A guest does not give what it needs, and a balloon that waits for that waits for ever.
    set_balloon(guest, crowd.memory_mib - free_mib(guest) // 2)
    crowd.watch_for(2)
    set_balloon(guest, crowd.memory_mib)


def replace(crowd: Crowd) -> None:
    """A guest is killed under pressure, and another comes in its place."""
    crowd.home.confine(crowd.bytes // 2)
    crowd.watch_for(2)
    crowd.replace_one()


STEPS: Mapping[str, Callable[[Crowd], None]] = MappingProxyType(
    {
        "swap storm": swap_storm,
        "swapoff": swap_off,
        "merge": merge,
        "large pages": large_pages,
        "compact": compact,
        "balloon": balloon,
        "replace": replace,
    }
)


def chosen(crowd: Crowd) -> Iterator[str]:
    """Names of scenarios without end: each comes once in each round, in an order by chance."""
    while True:
        names = list(STEPS)
        crowd.chance.shuffle(names)
        yield from names
