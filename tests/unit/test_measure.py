# SPDX-License-Identifier: GPL-2.0-only
"""What can be moved between nodes is what was seen on both."""

from __future__ import annotations

from typing import Any

import pytest

from harness import measure
from harness.probe.race import UNTOLD

PAGES = 4


class Guest:
    """A guest with a page on node 1 and three on node 0, of which some move."""

    pages = PAGES

    def __init__(self, movable: set[int], busy: int = 0) -> None:
        self.nodes = [0, 0, 0, 1]
        self._movable = movable
        self._busy = busy

    def ask(self, op: str) -> None:
        assert op == "drain_lru"

    def move_to_node(self, node: int) -> dict[str, Any]:
        there = [before == node for before in self.nodes]
        if self._busy:
            self._busy -= 1
            return {
                "places": [node if told else UNTOLD for told in there],
                "left": there.count(False),
            }
        for page in self._movable:
            self.nodes[page] = node
        # A move that failed for one page tells of those only that were there before.
        left = sum(place != node for place in self.nodes)
        told = there if left else [True] * PAGES
        return {"places": [node if one else UNTOLD for one in told], "left": left}


@pytest.mark.parametrize(
    ("movable", "busy", "expected"),
    [
        ({0, 1, 2, 3}, 0, 4),
        ({0, 1, 2, 3}, 3, 4),
        (set(), 0, 0),
        ({1, 3}, 0, 2),
    ],
)
def test_pages_that_were_seen_on_both_nodes_can_be_moved(
    movable: set[int], busy: int, expected: int
) -> None:
    guest: Any = Guest(movable, busy)
    assert measure._migrated(guest, guest) == expected
