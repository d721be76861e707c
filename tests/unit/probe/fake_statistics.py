# SPDX-License-Identifier: GPL-2.0-only
"""Counters of a VM without a VM, as struct kvm_stats_header and kvm_stats_desc lay them out."""

from __future__ import annotations

import os
import struct


def statistics_file(counters: dict[str, list[int]], name_bytes: int = 48) -> int:
    """A descriptor as KVM_GET_STATS_FD returns one, with these counters in this order.

    The kernel may put the parts in any order and anything between them, and so does this.
    """
    size = 16 + name_bytes
    identity, descriptors = 24 + 8, 24 + 8 + name_bytes + 4
    data = descriptors + size * len(counters) + 12
    text = bytearray(struct.pack("<6I", 0, name_bytes, len(counters), identity, descriptors, data))
    text += b"\xee" * (descriptors - len(text))
    words: list[int] = []
    for name, values in counters.items():
        at = 8 * len(words)
        text += struct.pack("<IhHII", 0, 0, len(values), at, 0) + name.encode().ljust(
            name_bytes, b"\0"
        )
        words += values
    text += b"\xee" * (data - len(text)) + struct.pack(f"<{len(words)}Q", *words)
    fd = os.memfd_create("statistics")
    os.write(fd, text)
    return fd
