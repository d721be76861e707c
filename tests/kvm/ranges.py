# SPDX-License-Identifier: GPL-2.0-only
"""The ranges of a guest's memory that an operation may be about."""

from __future__ import annotations

import pytest

# Splitting a VMA inside of a 2 MiB range makes the primary MMU invalidate all of that range, which
# would hide that the operation itself does not; so one range begins and ends where no split is.
_RANGES = {
    "whole": (0, 2048),
    "aligned": (512, 512),
    "first": (0, 1),
    "last": (2047, 1),
    "middle": (1000, 3),
}

in_each_range = pytest.mark.parametrize(("first", "pages"), _RANGES.values(), ids=_RANGES)
"""Runs a test once for each range of a guest of 2,048 pages, as arguments ``first``, ``pages``."""
