# SPDX-License-Identifier: GPL-2.0-only
"""The C library, with errors as exceptions, and system calls that it has no function for."""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
libc.ioctl.restype = ctypes.c_int

NUMBERS = {
    "remap_file_pages": 216, "migrate_pages": 256, "move_pages": 279, "userfaultfd": 323,
    "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440, "process_mrelease": 448,
}  # fmt: skip
"""Numbers of system calls on x86-64, from arch/x86/entry/syscalls/syscall_64.tbl."""


def checked(result: int) -> int:
    """The result of a C function that returns a negative number on failure; raises OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def call(name: str, *arguments: object) -> int:
    """Call the system call of this name with the GIL released; raises OSError.

    Numbers are passed as longs, as the kernel takes them.
    """
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return checked(int(libc.syscall(ctypes.c_long(NUMBERS[name]), *words)))
