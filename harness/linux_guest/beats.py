# SPDX-License-Identifier: GPL-2.0-only
"""What a Linux guest says on its serial console: its log, and the beats of its workload."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

from harness.deadline import Deadline
from harness.errors import HarnessError, LinuxGuestError
from harness.guest.observation import Visit
from harness.image.layout import LINUX_MARK
from harness.machine.console import ConsoleLog
from harness.machine.host import Channel
from harness.machine.splat import visible

READY = f"{LINUX_MARK}: ready "
FAILED = f"{LINUX_MARK}: boot failed: "
_BEAT = f"{LINUX_MARK}: beat "

_FOREVER_SECONDS = 1e8
_PAGE_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Counters:
    """How far a workload has come: ``up`` is the guest's clock in seconds, ``verified`` bytes.

    ``errors`` counts words that were not as they had been written; the first of them was word
    ``word`` of page ``page`` of the workload's memory.
    """

    up: float
    passes: int
    pages: int
    verified: int
    errors: int
    page: int
    word: int
    expected: int
    seen: int

    @classmethod
    def parsed(cls, text: str) -> Counters:
        """From the workload's JSON; raises LinuxGuestError when it is none."""
        try:
            fields = json.loads(text)
            names = [field.name for field in dataclasses.fields(cls)]
            up, *counts = [fields[name] for name in names]
            return cls(float(up), *map(int, counts))
        except (ValueError, TypeError, LookupError) as error:
            shown = visible(text[:200])
            raise LinuxGuestError(f"A guest's workload said what is no beat: {shown}") from error

    @property
    def visit(self) -> Visit:
        """The same in the words in which oracles judge what a guest saw."""
        return Visit(
            end="done", how="", current=0, done=self.verified // _PAGE_BYTES, rounds=self.passes,
            refusals=0, bad=self.errors, bad_page=self.page, bad_word=self.word,
            bad_expected=self.expected, bad_seen=self.seen,
        )  # fmt: skip


class Serial:
    """A guest's serial console, followed by a thread of its own from its first line on."""

    def __init__(self, channel: Channel) -> None:
        self.log = ConsoleLog()
        self.last: Counters | None = None
        self.longest_gap = 0.0
        self._heard = time.monotonic()
        self._channel = channel
        self._thread = threading.Thread(target=self._follow, name="guest-serial", daemon=True)
        self._thread.start()

    @property
    def silence(self) -> float:
        """Seconds of our own clock since the last beat, or since the beginning."""
        return time.monotonic() - self._heard

    def forgive(self) -> None:
        """Count silence from now on: the guest stood still because we wanted it to."""
        self._heard = time.monotonic()

    def close(self) -> None:
        """Stop following."""
        self._channel.close()
        self._thread.join(2.0)

    def _follow(self) -> None:
        forever = Deadline.after(_FOREVER_SECONDS, "a guest's next line")
        try:
            while True:
                self.take(self._channel.receive_line(forever))
        except HarnessError:  # the end of the channel, or of the host
            self.log.close()

    def take(self, line: bytes) -> None:
        """Take in one line of the console."""
        self.log.append(line + b"\n")
        text = line.decode(errors="replace").strip()
        # The guest's kernel may break into a line of its workload, which is no beat then.
        if not text.startswith(_BEAT) or not text.endswith("}"):
            return
        try:
            beat = Counters.parsed(text.removeprefix(_BEAT))
        except LinuxGuestError:
            return
        if self.last is not None:
            self.longest_gap = max(self.longest_gap, beat.up - self.last.up)
        self.last = beat
        self._heard = time.monotonic()
