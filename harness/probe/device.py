# SPDX-License-Identifier: GPL-2.0-only
"""A secondary MMU in software: /dev/notifier_user, which a module of ours makes.

Numbers and structures are those of harness/secondary_mmu/notifier_user.h.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from harness.probe.system import checked, libc

PATH = "/dev/notifier_user"

KINDS = {"tlb": 0, "refuser": 1, "remote": 2}
FLAGS = {"signalled": 1, "sleepy": 2}

ATTACH, DETACH, ACCESS, STATE, STALL, LET_GO = (
    0x40184EE0, 0x4EE1, 0xC0204EE2, 0x80884EE3, 0x4EE4, 0x4EE5,
)  # fmt: skip
_READ_BYTES = 1 << 18


class Attach(ctypes.Structure):
    """struct nu_attach."""

    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("start", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    )


class Access(ctypes.Structure):
    """struct nu_access."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("words", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("count", "word", "write", "done")),
    )


class Record(ctypes.Structure):
    """struct nu_record."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("number", "start", "end")),
        *((name, ctypes.c_uint32) for name in ("what", "event", "flags")),
        ("pid", ctypes.c_int32),
    )


class State(ctypes.Structure):
    """struct nu_state."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "attached", "starts", "ends", "releases", "in_progress", "ends_too_many",
            "after_release", "refusals", "late", "stale", "hits", "misses", "retries", "entries",
            "lost", "stalled", "asked",
        )
    )  # fmt: skip


class Refused(OSError):
    """An access of the device was refused; ``done`` pages were not."""

    def __init__(self, number: int, done: int) -> None:
        super().__init__(number, f"{os.strerror(number)} after {done} pages")
        self.done = done


class Device:
    """One secondary MMU. Its kind, and the memory that it is attached to, attach() decides."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.open(PATH, os.O_RDWR | os.O_CLOEXEC) if fd is None else fd

    def attach(self, kind: str, flags: list[str], start: int, size: int) -> None:
        """Attach it to the memory of the calling process; what it records is in the range."""
        bits = sum(FLAGS[name] for name in flags)
        self._control(ATTACH, Attach(KINDS[kind], bits, start, size))

    def detach(self) -> None:
        """Take it off again."""
        self._control(DETACH)

    def load(self, address: int, pages: int, word: int) -> list[int]:
        """One word of each page, read through its TLB; raises Refused."""
        words = (ctypes.c_uint64 * pages)()
        self._access(address, words, word, write=False)
        return list(words)

    def store(self, address: int, pages: int, word: int, value: int) -> None:
        """Write one word of each page through its TLB; raises Refused."""
        self._access(address, (ctypes.c_uint64 * pages)(*[value] * pages), word, write=True)

    def records(self) -> list[list[int]]:
        """The records of its callbacks since the last time, each as its fields in order."""
        found: list[list[int]] = []
        while data := os.read(self.fd, _READ_BYTES):
            size = ctypes.sizeof(Record)
            pieces = (Record.from_buffer_copy(data, at) for at in range(0, len(data), size))
            found += [[getattr(one, field[0]) for field in Record._fields_] for one in pieces]
        return found

    def state(self) -> dict[str, int]:
        """Its counters."""
        state = State()
        self._control(STATE, state)
        return {field[0]: getattr(state, field[0]) for field in State._fields_}

    def stall(self) -> None:
        """Sleep in the kernel, where no signal reaches, until somebody lets go."""
        self._control(STALL)

    def let_go(self) -> None:
        """Wake who stalls."""
        self._control(LET_GO)

    def close(self) -> None:
        """Close this descriptor of it; the last one detaches it."""
        os.close(self.fd)

    def _access(self, address: int, words: Any, word: int, *, write: bool) -> None:
        wanted = Access(address, ctypes.addressof(words), len(words), word, int(write), 0)
        try:
            self._control(ACCESS, wanted)
        except OSError as error:
            raise Refused(error.errno or 0, wanted.done) from error

    def _control(self, command: int, argument: ctypes.Structure | None = None) -> None:
        pointer = None if argument is None else ctypes.byref(argument)
        checked(libc.ioctl(self.fd, command, pointer))
