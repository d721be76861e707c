# SPDX-License-Identifier: GPL-2.0-only
"""userfaultfd(2) on the guest's memory: write protection with a log of faults, and UFFDIO_MOVE.

Numbers and structures are those of include/uapi/linux/userfaultfd.h, which is ABI.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading

from harness.probe import kvm
from harness.probe.layout import PAGE_BYTES
from harness.probe.system import call

_API_VERSION = 0xAA
_API, _REGISTER, _UNREGISTER = 0xC018AA3F, 0xC020AA00, 0x8010AA01
_MOVE, _WRITEPROTECT = 0xC028AA05, 0xC018AA06
_MODE_MISSING, _MODE_WP = 1, 2
_EVENT_PAGEFAULT = 0x12
_MESSAGE_BYTES = 32
FEATURES = {
    "write-protect": 1 << 0, "write-protect-files": 1 << 12, "write-protect-unpopulated": 1 << 13,
    "write-protect-async": 1 << 15, "move": 1 << 16,
}  # fmt: skip
"""What a kernel may offer. ``write-protect-files`` is for hugetlb and shared memory (v5.19)."""

_PAGEMAP_SCAN = 0xC0606610
_SCAN = struct.Struct("<12Q")
_REGION = struct.Struct("<QQQ")
_SCAN_PROTECTS, _SCAN_CHECKS = 1, 2
_IS_WRITTEN = 1 << 1
_MOST_REGIONS = 256


class Userfault:
    """A registered range of this process; raises OSError with EINVAL for a missing feature."""

    def __init__(self, start: int, size: int, features: tuple[str, ...], mode: int) -> None:
        self._range = (start, size)
        self._fd = call("userfaultfd", os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            wanted = sum(FEATURES[name] for name in features)
            self._ioctl(_API, "<QQQ", _API_VERSION, wanted, 0)
            self._ioctl(_REGISTER, "<QQQQ", start, size, mode, 0)
        except OSError:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Unregister the range."""
        self._ioctl(_UNREGISTER, "<QQ", *self._range)
        os.close(self._fd)

    def _ioctl(self, request: int, form: str, *values: int) -> tuple[int, ...]:
        buffer = ctypes.create_string_buffer(struct.pack(form, *values))
        kvm.ioctl(self._fd, request, ctypes.addressof(buffer))
        return struct.unpack_from(form, buffer)


class WriteProtection(Userfault):
    """Write-protects a range; whoever writes to a page waits until this has let it, page by page.

    ``page_bytes`` is the size of the pages that the memory has. ``faults`` are the indices of the
    4 KiB pages that were written to, from the start of the range, in the order of the faults.
    """

    def __init__(
        self, start: int, size: int, features: tuple[str, ...], page_bytes: int = PAGE_BYTES
    ) -> None:
        super().__init__(start, size, features, _MODE_WP)
        self.faults: list[int] = []
        self._start = start
        self._page_bytes = page_bytes
        self._error: OSError | None = None
        self._stopping, self._stop = os.pipe()
        self.protect(start, size, on=True)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def protect(self, start: int, size: int, *, on: bool) -> None:
        """Take the right to write to a range, or give it back and wake who waits."""
        self._ioctl(_WRITEPROTECT, "<QQQ", start, size, int(on))

    def close(self) -> None:
        """Give all rights back, and unregister; raises what kept a writer from going on."""
        os.write(self._stop, b".")
        self._thread.join()
        if self._error is not None:
            raise self._error
        self.protect(*self._range, on=False)
        os.close(self._stop)
        os.close(self._stopping)
        super().close()

    def _serve(self) -> None:
        try:
            self._let_go_one_by_one()
        except OSError as error:
            self._error = error

    def _let_go_one_by_one(self) -> None:
        while True:
            ready, _, _ = select.select([self._fd, self._stopping], [], [])
            if self._stopping in ready:
                return
            try:
                message = os.read(self._fd, _MESSAGE_BYTES)
            except BlockingIOError:
                continue
            event, _, address = struct.unpack_from("<B7xQQ", message)
            if event == _EVENT_PAGEFAULT:
                self.faults.append((address - self._start) // PAGE_BYTES)
                page = address - (address - self._start) % self._page_bytes
                self.protect(page, self._page_bytes, on=False)


class WriteTracking(Userfault):
    """Follows the writes to a range, which nobody has to wait for: PAGEMAP_SCAN asks for them.

    Came with commit 52526ca7fdb9 ("fs/proc/task_mmu: implement IOCTL to get and optionally clear
    info about PTEs") (in v6.7).
    """

    def __init__(self, start: int, size: int, features: tuple[str, ...]) -> None:
        super().__init__(start, size, features, _MODE_WP)

    def written(self) -> list[int]:
        """The 4 KiB pages that were written to since the last time, from the start of the range.

        All of the range is write-protected by this.
        """
        start, size = self._range
        regions = ctypes.create_string_buffer(_REGION.size * _MOST_REGIONS)
        found: list[int] = []
        at, end = start, start + size
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while at < end:
                argument = ctypes.create_string_buffer(
                    _SCAN.pack(
                        *(_SCAN.size, _SCAN_PROTECTS | _SCAN_CHECKS, at, end, 0),
                        *(ctypes.addressof(regions), _MOST_REGIONS, 0),
                        *(0, _IS_WRITTEN, 0, _IS_WRITTEN),
                    )
                )
                count = kvm.ioctl(fd, _PAGEMAP_SCAN, ctypes.addressof(argument))
                for index in range(count):
                    first, last, _ = _REGION.unpack_from(regions, index * _REGION.size)
                    pages = range((first - start) // PAGE_BYTES, (last - start) // PAGE_BYTES)
                    found += pages
                at = _SCAN.unpack_from(argument)[4]
        finally:
            os.close(fd)
        return found


def move(target: int, source: int, size: int) -> int:
    """Move pages of this process without copying them (UFFDIO_MOVE); the bytes that were moved.

    ``target`` must have no pages. Came with commit adef440691ba ("userfaultfd: UFFDIO_MOVE uABI")
    (in v6.8).
    """
    userfault = Userfault(target, size, ("move",), _MODE_MISSING)
    try:
        *_, moved = userfault._ioctl(_MOVE, "<QQQQq", target, source, size, 0, 0)
    finally:
        userfault.close()
    return moved
