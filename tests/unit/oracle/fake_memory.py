# SPDX-License-Identifier: GPL-2.0-only
"""A kernel's memory as pages in a dictionary, and page tables built into it by hand."""

from __future__ import annotations

import struct
from typing import Any

PAGE = 4096
PRESENT, WRITABLE, LARGE = 1, 1 << 1, 1 << 7
MMU_PRESENT = 1 << 11
"""What KVM marks present sptes with."""


class FakeProgram:
    """As much of a drgn.Program as reads memory; ``reads`` are all that were made."""

    def __init__(self, **variables: Any) -> None:
        self.physical: dict[int, bytearray] = {}
        self.virtual: dict[int, bytes] = {}
        self.reads: list[tuple[int, int, bool]] = []
        self._variables = variables

    def __getitem__(self, name: str) -> Any:
        return self._variables[name]

    def read(self, address: int, size: int, physical: bool = False) -> bytes:
        self.reads.append((address, size, physical))
        if not physical:
            return self.virtual[address][:size]
        assert address % PAGE + size <= PAGE, "a table does not cross a page"
        return bytes(self.physical[address - address % PAGE][address % PAGE :][:size])

    def table(self, address: int, entries: dict[int, int]) -> None:
        """Put a table of 512 entries at a physical address."""
        page = self.physical.setdefault(address, bytearray(PAGE))
        for index, entry in entries.items():
            struct.pack_into("<Q", page, index * 8, entry)
