# SPDX-License-Identifier: GPL-2.0-only
"""The guests of a soak: watched, counted, audited, and replaced when a scenario ends one."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from harness.deadline import Deadline
from harness.errors import GuestEmulationError, Violation
from harness.guest.settings import merging
from harness.linux_guest.guest import LinuxGuest
from harness.linux_guest.home import LinuxGuests
from harness.linux_guest.spec import LinuxGuestSpec
from harness.oracle.evidence import Evidence
from harness.soak.timeline import Sample

_SAMPLE_SECONDS = 1.0
_SPTES = {"pages_4k": 1, "pages_2m": 512, "pages_1g": 512 * 512}


@dataclasses.dataclass
class _Member:
    guest: LinuxGuest
    stack: contextlib.ExitStack
    shares: bool = False
    """Whether others may have got to share pages with it that it stays charged for."""


class Crowd:
    """Guests on one host; ``on_sample`` hears of each look at them. A context manager."""

    def __init__(
        self,
        home: LinuxGuests,
        count: int,
        memory_mib: int,
        chance: random.Random,
        on_sample: Callable[[Sample], None],
    ) -> None:
        self.home = home
        self.chance = chance
        self.memory_mib = memory_mib
        self._count = count
        self._on_sample = on_sample
        self._members: list[_Member] = []
        self._evidence = Evidence(home.session.host)
        self._extra = 0
        self._ended_verified = 0
        self._began = time.monotonic()
        self._sampled = 0.0

    def __enter__(self) -> Crowd:
        try:
            while len(self._members) < self._count:
                self._join()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for member in self._members:
            # What failed matters more than whether the guests can still be ended.
            with contextlib.suppress(Exception) if error else contextlib.nullcontext():
                member.stack.__exit__(kind, error, trace)

    @property
    def guests(self) -> tuple[LinuxGuest, ...]:
        """Those that are there now."""
        return tuple(member.guest for member in self._members)

    @property
    def bytes(self) -> int:
        """The memory of all of them together."""
        return (self._count * self.memory_mib) << 20

    def one(self) -> LinuxGuest:
        """One of them, by chance."""
        return self.chance.choice(self.guests)

    def watch_for(self, seconds: float) -> None:
        """Let the guests run, and watch them."""
        for _ in Deadline.after(seconds, "Watching guests").ticks():
            for guest in self.guests:
                guest.watch()
            if time.monotonic() - self._sampled >= _SAMPLE_SECONDS:
                self._sample()

    def audit(self) -> None:
        """Have each guest compare all of its memory, and look at all of it from outside."""
        for guest in self.guests:
            self._evidence.content(guest.order("check").visit)
        try:
            for guest in self.guests:
                self._evidence.sound(guest)
        except Violation as violation:
            if violation.oracle == "references":
                self._extra = max(1, len(violation.seen.split(";")))
            self._sample()
            raise
        self._evidence.log_is_clean()
        self._sample()

    @contextlib.contextmanager
    def merging(self) -> Iterator[None]:
        """Have KSM merge what it can of all guests, while the context is open."""
        for member in self._members:
            member.shares = True
        with merging(self.home.session):
            yield

    def replace_one(self) -> None:
        """Kill a guest, by chance, see that all of its memory is back, and boot another.

        What limited the guests' memory ends before: a boot takes long where memory is short.
        """
        member = self.chance.choice(self._members)
        frames = self._evidence.frames(member.guest)
        self._ended_verified += member.guest.counters.verified
        member.guest.kill()
        # A page that KSM merged is charged to one guest for as long as any of them has it, and so
        # is its place in swap.
        if not member.shares:
            self._evidence.memory_given_back(member.guest)
        self._members.remove(member)
        member.stack.close()
        for other in self.guests[:1]:
            self._evidence.frames_returned(other, frames)
        self.home.limit("memory.high", "max")
        self._join()

    def replace_broken(self) -> int:
        """Boot others in place of guests that the emulator broke, with no limit; how many."""
        broken = [member for member in self._members if _is_broken(member.guest)]
        for member in broken:
            last = member.guest.serial.last
            self._ended_verified += last.verified if last else 0
            self._members.remove(member)
            member.stack.close()
        self.home.limit("memory.high", "max")
        for _ in broken:
            self._join()
        return len(broken)

    def _join(self) -> None:
        spec = LinuxGuestSpec(
            memory_mib=self.memory_mib,
            workload_mib=self.memory_mib * 3 // 8,
            # Few seeds, so that some guests have equal memory for KSM.
            seed=self.chance.randrange(1, 4),
            merge=True,
        )
        stack = contextlib.ExitStack()
        guest = stack.enter_context(self.home.guest(spec))
        self._members.append(_Member(guest, stack))

    def _sample(self) -> None:
        self._sampled = time.monotonic()
        session = self.home.session
        vmstat = dict(line.split() for line in session.read("/proc/vmstat").splitlines())
        swap = session.read(f"{self.home.cgroup}/memory.swap.current")
        now = [guest.counters.verified for guest in self.guests]
        self._on_sample(
            Sample(
                at=time.monotonic() - self._began,
                swapped_out=int(vmstat["pswpout"]),
                swapped_in=int(vmstat["pswpin"]),
                swap=int(swap),
                sptes=sum(map(self._sptes, self.guests)),
                extra=self._extra,
                verified=self._ended_verified + sum(now),
                silence=max((guest.serial.silence for guest in self.guests), default=0.0),
            )
        )

    def _sptes(self, guest: LinuxGuest) -> int:
        """How many pages of 4 KiB KVM maps for a guest; 0 where the kernel does not tell."""
        directory = f"/sys/kernel/debug/kvm/{guest.pid}-{guest.vm_fd}"
        total = 0
        for name, pages in _SPTES.items():
            with contextlib.suppress(OSError):
                total += int(self.home.session.read(f"{directory}/{name}")) * pages
        return total


def _is_broken(guest: LinuxGuest) -> bool:
    try:
        guest.check()
    except GuestEmulationError:
        return True
    return False
