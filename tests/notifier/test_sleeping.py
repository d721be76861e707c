# SPDX-License-Identifier: GPL-2.0-only
"""Callbacks that sleep: wherever they may, and nowhere else."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable

import pytest

from harness.deadline import Deadline
from harness.errors import Violation
from harness.guest.hammer import Child
from harness.guest.user import Callback, HeldDevice, NotifierUser, UserFactory, What
from harness.oracle.secondary import SecondaryEvidence

pytestmark = pytest.mark.secondary_mmu

OLD = 0x0D
NEW = 0x2E
FEW_PAGES = 64
MANY_PAGES = 2048
REAPED_SECONDS = 20.0


def _fork(user: NotifierUser) -> None:
    with user.forked():
        user.host_write(OLD, 0, user.pages)


CHANGES: dict[str, Callable[[NotifierUser], object]] = {
    "discard": lambda user: user.madvise("dontneed"),
    "protect": lambda user: user.mprotect("read"),
    "fork": _fork,
    "reclaim": lambda user: user.reclaim(),
    "migrate": lambda user: [user.move_to_node(node) for node in (1, 0)],
    "move": lambda user: user.move_away(leaving=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_callbacks_may_sleep(
    notifier_user: UserFactory, evidence: SecondaryEvidence, change: str
) -> None:
    # A kernel that calls from where nobody may sleep says so in its log.
    with notifier_user(FEW_PAGES) as user:
        device = user.attached("tlb", "sleepy")
        evidence.granted("writing", device.store(OLD))
        device.callbacks()
        CHANGES[change](user)
        calls = evidence.well_told(device)
        evidence.told_of(user, calls)
        blocking = [call for call in calls if call.what is What.START and call.blockable]
        evidence.at_least("callbacks", "starts that may sleep", 1, len(blocking))
        seen = evidence.granted("reading", device.load())
        by_cpu = user.host_read(0, user.pages)
        evidence.equal("the device to see what the CPU sees", by_cpu, seen)
        evidence.no_extra_references(user)


# Memory of one process that another one maps.


def _window(user: NotifierUser, child: Child, name: str) -> list[int]:
    return list(child.ask("peek_window", name=name, first=0, pages=user.pages, word=0))


@pytest.mark.parametrize("change", CHANGES)
def test_another_process_sees_the_memory_as_its_owner_does(
    notifier_user: UserFactory, evidence: SecondaryEvidence, change: str
) -> None:
    with notifier_user(FEW_PAGES) as user:
        user.host_write(OLD, 0, user.pages)
        device = user.device()
        with user.forked() as child:
            # Pages that the child shares would not be migrated.
            user.host_write(OLD, 0, user.pages)
            device.attach("remote", "sleepy")
            child.ask("open_window", name=device.name, writable=False)
            before = _window(user, child, device.name)
            evidence.equal("the owner's words", [OLD] * user.pages, before)
            evidence.no_extra_references(user)
            device.callbacks()
            CHANGES[change](user)
            state = device.state()
            evidence.complete(state)
            evidence.told_of(user, device.callbacks())
            by_owner = user.host_read(0, user.pages)
            seen = _window(user, child, device.name)
            evidence.equal("the other process to see what the owner sees", by_owner, seen)
            if change != "protect":
                user.host_write(NEW, 0, user.pages)
                written = _window(user, child, device.name)
                evidence.equal("it to see what is written", [NEW] * user.pages, written)
            evidence.no_extra_references(user)


def test_what_another_process_writes_the_owner_has(
    notifier_user: UserFactory, evidence: SecondaryEvidence
) -> None:
    with notifier_user(FEW_PAGES) as user:
        device = user.device()
        with user.forked() as child:
            device.attach("remote")
            child.ask("open_window", name=device.name)
            whole = {"name": device.name, "first": 0, "pages": user.pages, "word": 0}
            child.ask("poke_window", **whole, value=NEW)
            seen = user.host_read(0, user.pages)
            evidence.equal("the owner to have it", [NEW] * user.pages, seen)
            evidence.swapped_out(user, user.reclaim())
            evidence.equal(
                "it after swapping", [NEW] * user.pages, _window(user, child, device.name)
            )
            evidence.no_extra_references(user)


# Out of memory: nobody may sleep for whom the kernel waits.


def _reaped(user: NotifierUser, held: HeldDevice) -> list[Callback]:
    """What the device was told until somebody did who cannot wait."""
    calls: list[Callback] = []
    deadline = Deadline.after(REAPED_SECONDS * user.pace, "The OOM reaper")
    for _ in deadline.ticks():
        calls += held.callbacks()
        if any(call.what is What.START and not call.blockable for call in calls):
            return calls
    raise Violation(
        "reclaim",
        "the memory of a victim that cannot end to be reaped",
        f"no call that must not sleep within {REAPED_SECONDS * user.pace:.0f} s",
    )


@pytest.mark.parametrize("refusing", [False, True], ids=["willing", "refusing"])
def test_each_start_that_must_not_sleep_has_its_end(
    notifier_user: UserFactory, evidence: SecondaryEvidence, refusing: bool
) -> None:
    # commit c2655835fd8c ("mm/mmu_notifiers: ensure range_end() is paired with range_start()") (in
    # v5.12): where one notifier refuses, those that were told before it must hear of the end.
    with contextlib.ExitStack() as stack:
        user = stack.enter_context(notifier_user(MANY_PAGES))
        # The last one that was attached is called first.
        held = [stack.enter_context(user.attached("tlb", "sleepy").held())]
        if refusing:
            refuser = stack.enter_context(user.attached("refuser", "sleepy").held())
            held.append(stack.enter_context(user.attached("tlb", "sleepy").held()))
        with user.device().stalling():
            user.limit("memory.swap.max", 0)
            used = user.memory_statistics()["memory.current"]
            user.limit("memory.max", used + user.bytes // 2)
            user.ask("write_on", value=NEW, word=0)
            told = _reaped(user, held[0])
            if refusing:
                evidence.at_least("callbacks", "refusals", 1, refuser.state()["refusals"])
        status = user.await_death()
        evidence.equal("the OOM killer to end the user", [signal.SIGKILL], [status or 0])
        for number, each in enumerate(held):
            calls = evidence.well_told(each, told if number == 0 else ())
            evidence.told_of(user, calls, 0, 1)
            evidence.counted("releases", 1, each.state()["releases"])
        evidence.memory_given_back(user)
