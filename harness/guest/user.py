# SPDX-License-Identifier: GPL-2.0-only
"""L0's handle of a process with secondary MMUs that are not KVM; docs/secondary-mmus.md."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from harness.deadline import Deadline
from harness.errors import ProbeError, Violation
from harness.guest.hammer import Child
from harness.guest.memory import GuestMemory
from harness.guest.session import Session

_PLAY_SECONDS = 12.0
"""How long rounds may take; less than an answer may."""

_HAMMER_SECONDS = 10.0


class What(enum.IntEnum):
    """Which callback a record is of, as notifier_user.h has it."""

    START = 1
    END = 2
    RELEASE = 3


@dataclasses.dataclass(frozen=True)
class Callback:
    """One call of a notifier: its place in the order of all, and the addresses [start, end).

    ``event`` is the kernel's enum mmu_notifier_event, for people; ``pid`` is who called.
    ``blockable`` says whether it might sleep, ``refused`` that it did not do what it was asked,
    ``late`` that a page of the range was free already.
    """

    number: int
    start: int
    end: int
    what: What
    event: int
    pid: int
    blockable: bool
    refused: bool
    late: bool

    @classmethod
    def of(cls, fields: Sequence[int]) -> Callback:
        """From the fields of struct nu_record, in their order."""
        number, start, end, what, event, flags, pid = fields
        bits = (bool(flags & bit) for bit in (1, 2, 4))
        return cls(number, start, end, What(what), event, pid, *bits)


@dataclasses.dataclass(frozen=True)
class Access:
    """What a device got of an access: ``words``, or after ``done`` pages the errno ``refused``."""

    words: tuple[int, ...] = ()
    refused: int = 0
    done: int = 0


class Device:
    """A secondary MMU of a user; in a ``child`` of it, as that child has it."""

    def __init__(self, user: NotifierUser, name: str, child: Child | None = None) -> None:
        self._user = user
        self._child = child
        self.name = name

    def within(self, child: Child) -> Device:
        """The same device in a child that was forked off since it was opened."""
        return Device(self._user, self.name, child)

    def ask(self, op: str, **arguments: Any) -> Any:
        """One request about this device, to the process that has it."""
        asked = self._user if self._child is None else self._child
        return asked.ask(op, name=self.name, **arguments)

    def attach(self, kind: str = "tlb", *flags: str) -> None:
        """Attach it to the memory of its process."""
        self.ask("attach", kind=kind, flags=list(flags))

    def detach(self) -> None:
        """Take it off again."""
        self.ask("detach")

    def close(self) -> None:
        """Close this process's descriptor of it."""
        self.ask("close_device")

    def load(self, first: int = 0, pages: int | None = None, word: int = 0) -> Access:
        """Read a word of each page through its TLB."""
        return self._access("load", first, pages, word=word)

    def store(self, value: int, first: int = 0, pages: int | None = None, word: int = 0) -> Access:
        """Write a word of each page through its TLB."""
        return self._access("store", first, pages, word=word, value=value)

    def callbacks(self) -> tuple[Callback, ...]:
        """Its callbacks since the last time that it was asked, in order."""
        return tuple(map(Callback.of, self.ask("records")))

    def state(self) -> dict[str, int]:
        """Its counters; notifier_user.h says what they mean."""
        return dict(self.ask("state"))

    @contextlib.contextmanager
    def stalling(self) -> Iterator[None]:
        """A thread of the process sleeps where no signal reaches it while the context is open."""
        with self.held() as held:
            self.ask("stall")
            try:
                yield
            finally:
                # Whatever happened meanwhile: who sleeps there cannot be ended.
                held.let_go()

    @contextlib.contextmanager
    def hammering(self, word: int = 0) -> Iterator[None]:
        """A thread of the process writes to all of its memory by the device, over and over.

        Raises Violation when it does not get through a round, and when an entry of a page that
        was free has ended it.
        """
        self.ask("begin_hammering", word=word)
        deadline = Deadline.after(_HAMMER_SECONDS * self._user.pace, "Hammering")
        for _ in deadline.ticks():
            if self._user.ask("hammered"):
                break
        else:
            raise Violation("progress", "a thread to write to all pages", "it has not")
        yield
        try:
            self._user.ask("end_hammering")
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            wrong = "one, which a thread met that writes"
            raise Violation("secondary TLB", "no entry of a page that is free", wrong) from error

    def play(self, kind: str, rounds: int) -> tuple[int, int]:
        """Rounds of an operation against the thread that hammers; see probe/hammering.py.

        Returns how many there was time for, and how many writes went where nobody finds them.
        """
        seconds = _PLAY_SECONDS * self._user.pace
        played = self._user.ask("play", kind=kind, rounds=rounds, seconds=seconds)
        return int(played["rounds"]), int(played["lost"])

    @contextlib.contextmanager
    def held(self) -> Iterator[HeldDevice]:
        """The agent has the device, too, while the context is open."""
        session = self._user.session
        fd = self.ask("device_fd")
        held = session.ask("hold_device", name=self.name, user=self._user.name, fd=fd)
        yield HeldDevice(session, self.name, held)
        session.ask("drop_device", name=self.name)

    def _access(self, op: str, first: int, pages: int | None, **arguments: Any) -> Access:
        count = self._user.pages - first if pages is None else pages
        answer = self.ask(op, first=first, pages=count, **arguments)
        if "refused" in answer:
            return Access(refused=answer["refused"], done=answer["done"])
        return Access(words=tuple(answer["words"]), done=count)


class HeldDevice:
    """A device that the agent has, whatever becomes of the user's process.

    ``fd`` is its descriptor there, and in the VMM of each guest that is made meanwhile.
    """

    def __init__(self, session: Session, name: str, fd: int) -> None:
        self.fd = fd
        self._session = session
        self._name = name

    def callbacks(self) -> tuple[Callback, ...]:
        """Its callbacks since the last time that anybody asked, in order."""
        return tuple(map(Callback.of, self._ask("records")))

    def state(self) -> dict[str, int]:
        """Its counters."""
        return dict(self._ask("state"))

    def let_go(self) -> None:
        """Wake the thread that stalls."""
        self._ask("let_go")

    def _ask(self, what: str) -> Any:
        return self._session.ask("held_device", name=self._name, what=what)


class NotifierUser(GuestMemory):
    """A process on a host with memory of its own, on which secondary MMUs can be attached."""

    def device(self) -> Device:
        """One more device, not attached yet."""
        name = self.session.new_name("device")
        self.ask("open_device", name=name)
        return Device(self, name)

    def attached(self, kind: str = "tlb", *flags: str) -> Device:
        """One more device, attached."""
        device = self.device()
        device.attach(kind, *flags)
        return device

    def leave(self, way: str, rounds: int) -> dict[str, int]:
        """Children of it attach a device and end; see probe/leaving.py for what is returned."""
        seconds = _PLAY_SECONDS * self.pace
        return dict(self.ask("leave", way=way, rounds=rounds, seconds=seconds))


class UserFactory(Protocol):
    """What tests call to have a user of their own; the context ends it."""

    def __call__(
        self, pages: int = ..., backing: str = ...
    ) -> contextlib.AbstractContextManager[NotifierUser]:
        """A user with ``pages`` pages of 4 KiB of the kind ``backing``."""


@contextlib.contextmanager
def notifier_user(session: Session, pages: int, backing: str) -> Iterator[NotifierUser]:
    """A new user with ``pages`` pages of memory, ended when the context closes."""
    name = session.new_name("user")
    answer = session.ask(
        "create",
        name=name,
        pages=pages,
        vcpus=0,
        seconds=session.patience / 2,
        backing=backing,
        kind="user",
    )
    try:
        if "ok" not in answer:
            raise ProbeError(f"The host could not start a user: {answer.get('died', answer)}.")
        yield NotifierUser(session, name, answer["ok"], answer["cgroup"], backing)
    except BaseException:
        # As for a guest: what failed matters more than whether the process can still be ended.
        with contextlib.suppress(Exception):
            session.ask("close", name=name)
        raise
    session.ask("close", name=name)
