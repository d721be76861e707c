# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's make-believe device (test_hmm) that has memory of its own and mirrors ours.

Numbers and structures are those of lib/test_hmm_uapi.h. The device is a notifier of this process's
memory, too, as a GPU's driver is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

from harness.probe import kvm
from harness.probe.layout import PAGE_BYTES

_NODE = "/dev/hmm_dmirror0"
_DRIVER = "HMM_DMIRROR"
_REQUESTS = {"private": 0xC0284802, "exclusive": 0xC0284805}
_COMMAND = struct.Struct("<QQQQQ")
_CHARACTER_DEVICE = 0o020600


class Mirror:
    """The device, opened by this process; raises FileNotFoundError where it is not loaded.

    It must stay open for as long as it has pages: when it is closed, its driver moves all of them
    back, one by one, and tells the notifiers of each. Read in 6.1 and 6.12.
    """

    def __init__(self) -> None:
        if not Path(_NODE).exists():
            os.mknod(_NODE, _CHARACTER_DEVICE, os.makedev(_major(), 0))
        self._fd = os.open(_NODE, os.O_RDWR | os.O_CLOEXEC)

    def take(self, address: int, pages: int, how: str) -> int:
        """Have the device take pages of ours; how many it got.

        That is none if it did not get all of them. ``private`` moves them to the device's own
        memory, ``exclusive`` leaves them where they are for the device alone. Whoever touches one
        with a CPU has it back.
        """
        copy = ctypes.create_string_buffer(pages * PAGE_BYTES)
        command = ctypes.create_string_buffer(
            _COMMAND.pack(address, ctypes.addressof(copy), pages, 0, 0)
        )
        try:
            kvm.ioctl(self._fd, _REQUESTS[how], ctypes.addressof(command))
        except OSError as error:
            # It reads what it took, and does not say how many it missed.
            if error.errno not in (errno.ENOENT, errno.EBUSY):
                raise
            return 0
        return int(_COMMAND.unpack_from(command)[3])

    def close(self) -> None:
        """Let go of the device."""
        os.close(self._fd)


def _major() -> int:
    for line in Path("/proc/devices").read_text().splitlines():
        number, _, name = line.strip().partition(" ")
        if name == _DRIVER:
            return int(number)
    raise FileNotFoundError(f"there is no driver {_DRIVER}")
