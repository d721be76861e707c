# SPDX-License-Identifier: GPL-2.0-only
"""Boots a host with Linux guests, puts them under one scenario after the other, and reports."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import (
    GuestEmulationError,
    HarnessError,
    InfrastructureError,
    KernelUntestableError,
    OracleUnavailable,
    UsageError,
    Violation,
)
from harness.guest.session import Session
from harness.image.linux_guest import linux_image
from harness.linux_guest.home import linux_guests
from harness.machine.spec import HostSpec
from harness.progress import Progress
from harness.result.directory import ResultsDirectory, write_atomically
from harness.soak import timeline
from harness.soak.crowd import Crowd
from harness.soak.steps import STEPS, chosen
from harness.soak.timeline import Sample, Soak, Step
from harness.store import Store
from harness.workbench import Parts, Wish, Workbench, make_parts

_DUMP_SECONDS = 600.0

_MOST_BROKEN = 3
"""Not so many scenarios in a row may end with a guest that the emulator broke."""

_HOST_MIB, _QEMU_MIB = 512, 64
"""What a host has to have for itself, and for each guest besides that guest's memory."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What a soak is asked: how many guests of what size in MiB, for how many seconds."""

    guests: int
    memory_mib: int
    seconds: float
    seed: int


def soaked(
    wish: Wish, order: Order, store: Store, directory: Path, parent: Path, progress: Progress
) -> tuple[Soak, HarnessError | None, Path]:
    """Soak in the first of the wish's modes; what was seen, what ended it early, and the results.

    ``directory`` is private to the run. A Violation, or whatever else went wrong on the host, is
    returned, with an image of the host's memory in the results; raises as make_parts does, and
    UsageError for guests that a host has no room for.
    """
    _require_room(order, HostSpec.memory_mib)
    parts = make_parts(wish, store, progress)
    image = linux_image(store, progress)
    results = ResultsDirectory.create(parent.absolute(), datetime.datetime.now(datetime.UTC))
    bench = Workbench(parts, directory, progress, results.keep)
    diary = _Diary(parts, order, progress)
    failure: HarnessError | None = None
    with contextlib.ExitStack() as stack:
        stack.callback(bench.discard)
        session = bench.session(wish.modes[0])
        image_of_memory = results.path / "host-memory.kdump"
        try:
            with (
                progress.phase("Soak"),
                _memory_kept(session, image_of_memory, progress),
                linux_guests(session, image) as home,
            ):
                progress.update("the guests boot")
                chance = random.Random(order.seed)  # noqa: S311 - chance that can be repeated
                with (
                    Crowd(home, order.guests, order.memory_mib, chance, diary.take) as crowd,
                    _memory_kept(session, image_of_memory, progress),
                ):
                    _soak(crowd, order, diary)
        except (Violation, InfrastructureError) as error:
            failure = error
        except OracleUnavailable as error:
            raise KernelUntestableError(str(error)) from error
        finally:
            soak = diary.closed(failure)
            _write(soak, results.path)
    return soak, failure, results.path


def _require_room(order: Order, host_mib: int) -> None:
    """All guests must fit into the host at once: there is a scenario without swap."""
    wanted = order.guests * (order.memory_mib + _QEMU_MIB) + _HOST_MIB
    if wanted > host_mib:
        raise UsageError(
            f"{order.guests} guests of {order.memory_mib} MiB want a host of {wanted} MiB when "
            f"swap is off, and hosts have {host_mib} MiB; ask for fewer or smaller ones."
        )


def _soak(crowd: Crowd, order: Order, diary: _Diary) -> None:
    """One scenario after the other until the time is over, and one has come to its end.

    Raises GuestEmulationError where too many in a row did not, and OracleUnavailable on a host that
    can be put under none.
    """
    until = Deadline.after(order.seconds, "The soak")
    impossible: set[str] = set()
    completed = in_a_row = 0
    crowd.audit()
    for name in chosen(crowd):
        if until.expired and completed:
            return
        if name in impossible:
            continue
        diary.begin(name)
        try:
            lacking = _lacking(crowd, name)
            crowd.audit()
        except GuestEmulationError as error:
            in_a_row += 1
            if in_a_row == _MOST_BROKEN or not (replaced := crowd.replace_broken()):
                raise
            diary.broken(replaced, error)
            continue
        in_a_row = 0
        if lacking is None:
            completed += 1
            continue
        diary.impossible(name, lacking)
        impossible.add(name)
        if impossible == STEPS.keys():
            raise lacking


def _lacking(crowd: Crowd, name: str) -> OracleUnavailable | None:
    """Put the guests under a scenario; what the host lacks for it, if anything."""
    try:
        STEPS[name](crowd)
    except OracleUnavailable as error:
        return error
    return None


class _Diary:
    """Keeps what a soak saw, and says it."""

    def __init__(self, parts: Parts, order: Order, progress: Progress) -> None:
        self._parts = parts
        self._order = order
        self._progress = progress
        self._steps: list[Step] = []
        self._samples: list[Sample] = []
        self._broken = 0
        self._began = time.monotonic()
        progress.note(f"Seed {order.seed}")

    def begin(self, name: str) -> None:
        """A scenario begins."""
        at = self._samples[-1].at if self._samples else 0.0
        self._steps.append(Step(at, name))

    def impossible(self, name: str, why: OracleUnavailable) -> None:
        """This host cannot be put under a scenario."""
        self._progress.note(f"Not tried any more: {name}. {why}")

    def broken(self, guests: int, why: GuestEmulationError) -> None:
        """Guests were broken by the emulator, and others are there instead."""
        self._broken += guests
        self._progress.note(f"{why} Another guest takes its place.")

    def take(self, sample: Sample) -> None:
        """Keep a look at the guests."""
        before = self._samples[-1] if self._samples else sample
        self._samples.append(sample)
        step = self._steps[-1].name if self._steps else "boot"
        self._progress.update(timeline.live_line(step, before, sample))

    def closed(self, failure: HarnessError | None) -> Soak:
        """All of it."""
        return Soak(
            seed=self._order.seed,
            kernel=self._parts.kernel.release,
            seconds=time.monotonic() - self._began,
            steps=tuple(self._steps),
            samples=tuple(self._samples),
            # Linux counts in KiB.
            own_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
            broken=self._broken,
            failure=str(failure) if failure else "",
        )


def _explained(session: Session, error: HarnessError) -> HarnessError:
    """What the host's kernel says beats what we noticed."""
    try:
        session.host.check()
    except HarnessError as first:
        return first
    return error


@contextlib.contextmanager
def _memory_kept(session: Session, path: Path, progress: Progress) -> Iterator[None]:
    """Save the host's memory as it is when something goes wrong, before anybody tidies up.

    Raises what tells best what happened. Of several of these inside each other the first saves.
    """
    try:
        yield
    except (Violation, InfrastructureError) as error:
        explained = _explained(session, error)
        if not path.exists():
            _save_memory(session, path, progress)
        if explained is error:
            raise
        raise explained from error


def _save_memory(session: Session, path: Path, progress: Progress) -> None:
    """Leave the host's memory as a file that crash and drgn open; a note where that fails."""
    deadline = Deadline.after(_DUMP_SECONDS, "Saving the host's memory")
    try:
        with progress.phase("Save the host's memory"):
            session.host.dump(path, deadline)
    except HarnessError as error:
        progress.note(f"The host's memory could not be saved: {error}")


def _write(soak: Soak, directory: Path) -> None:
    for name, format_ in (
        ("soak.txt", timeline.as_text),
        ("soak.svg", timeline.as_svg),
        ("soak.json", timeline.as_json),
    ):
        write_atomically(directory / name, format_(soak).encode("utf-8", "backslashreplace"))
