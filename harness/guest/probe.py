# SPDX-License-Identifier: GPL-2.0-only
"""L0's handle of a probe guest: what a scenario does to a guest and its memory.

Methods do and report; they do not judge. Pages are indices into the guest's memory, and a range
is a first page with a number of pages; by default all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from harness.errors import OracleUnavailable, ProbeError, Violation
from harness.guest.hammer import REFERENCE_PAGES, VISIT_SECONDS, Hammer
from harness.guest.memory import GuestMemory, lacking
from harness.guest.observation import View, Visit
from harness.guest.session import GuestLost, Session
from harness.guest.user import HeldDevice
from harness.machine.mmu import Mmu
from harness.probe import layout
from harness.probe.backing import BACKINGS

_NO_DAX = (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP)


class GuestFactory(Protocol):
    """What tests call to have a guest of their own; the context ends it."""

    def __call__(
        self, pages: int = ..., vcpus: int = ..., backing: str = ...
    ) -> contextlib.AbstractContextManager[ProbeGuest]:
        """A guest with ``pages`` pages of 4 KiB on memory of the kind ``backing``."""


class ProbeGuest(GuestMemory):
    """A probe guest on a host."""

    def __init__(
        self,
        session: Session,
        name: str,
        facts: Mapping[str, Any],
        cgroup: str,
        backing: str = "anon",
    ) -> None:
        super().__init__(session, name, facts, cgroup, backing)
        self.vm_fd = int(facts["vm_fd"])
        self._statistics_fd = facts["statistics_fd"]
        self.gpa = int(facts["gpa"])
        self.vcpus = int(facts["vcpus"])
        self.views: tuple[View, ...] = (View(self.vm_fd, self.gpa),)

    # How it is shown to guests.

    def open_view(self, kind: str) -> View:
        """Show the memory in one more way, from now on, or by other memslots: see probe/views.py.

        The oracles look at all ``views`` of it. Raises OracleUnavailable where KVM knows no
        system management mode.
        """
        with lacking("system management mode in KVM"):
            view = View(**self.ask("open_view", kind=kind))
        self.views = tuple(dict.fromkeys((*self.views, view)))
        return view

    def show_window(self, held: HeldDevice, source: int) -> None:
        """Have, in place of its memory, what a device shows of another process's memory.

        That begins at the address ``source``. The guest must be younger than what holds the device.
        """
        self.ask("show_window", fd=held.fd, source=source)

    def keep_clock(self, page: int, vcpu: int = 0) -> None:
        """Have KVM keep the clock of a vcpu in a page of the memory."""
        self.ask("keep_clock", vcpu=vcpu, page=page)

    def update_clock(self) -> None:
        """Have KVM write the time anew as soon as the vcpu runs."""
        self.ask("update_clock")

    # What the guest does.

    def fill(self, seed: int, first: int = 0, pages: int | None = None, step: int = 64) -> Visit:
        """Have vcpu 0 write the pattern of ``seed`` into every ``step``-th word of each page."""
        return self._carry_out(None, layout.OP_FILL, first, pages, seed=seed, step=step)

    def check(
        self,
        seed: int,
        first: int = 0,
        pages: int | None = None,
        step: int = 64,
        view: View | None = None,
    ) -> Visit:
        """Have a vcpu compare each page with the pattern of ``seed``; ``step`` as for fill."""
        return self._carry_out(view, layout.OP_CHECK, first, pages, seed=seed, step=step)

    def read(
        self, first: int = 0, pages: int = 1, word: int = 0, view: View | None = None
    ) -> Visit:
        """Have a vcpu load one word of each page; the values are ``words`` of the result."""
        visit = self._carry_out(view, layout.OP_READ, first, pages, word=word)
        if visit.end != "done":
            return visit
        words = self.ask("list", vcpu=(view or self.views[0]).vcpu, count=pages)
        return dataclasses.replace(visit, words=tuple(words))

    def write(
        self, value: int, first: int = 0, pages: int = 1, word: int = 0, view: View | None = None
    ) -> Visit:
        """Have a vcpu store ``value`` into one word of each page."""
        return self._carry_out(view, layout.OP_WRITE, first, pages, word=word, seed=value)

    @contextlib.contextmanager
    def hammering(
        self,
        vcpu: int = 0,
        first: int = 0,
        pages: int | None = None,
        *,
        writing: bool = True,
        patient: bool = False,
        alias: bool = False,
    ) -> Iterator[Hammer]:
        """A vcpu that goes over the pages without end while the context is open.

        Each visit compares the vcpu's own word with what it last wrote there, and ``writing``
        then increments it. The memory must have been filled before. ``patient`` tries a refused
        access again until it is granted, instead of ending. Through the ``alias``, a memslot that
        comes and goes, a vcpu goes on also while there is none; what it read then is nothing.
        """
        orders = self._orders(layout.OP_HAMMER, first, pages, word=vcpu, seed=int(writing))
        manners = {"patient": int(patient), "homeless": int(alias)}
        if alias:
            manners["address"] = layout.ALIAS_GPA
        hammer = self._hammer(vcpu, {**orders, **manners})
        try:
            yield hammer
        except BaseException:
            # What failed matters more than what the vcpu would still say, which may take long.
            with contextlib.suppress(Exception):
                self.ask("kick", vcpu=vcpu)
            raise
        else:
            hammer.stop()

    def hammer_unattended(self, vcpu: int = 0) -> Hammer:
        """A vcpu that writes to all pages until the VMM dies."""
        return self._hammer(vcpu, self._orders(layout.OP_HAMMER, 0, None, word=vcpu, seed=1))

    def _hammer(self, vcpu: int, orders: dict[str, int]) -> Hammer:
        self.ask("order", vcpu=vcpu, orders=orders)
        return Hammer(self, vcpu)

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[], dict[str, int]]]:
        """Another process has the VM open, too, while the context is open.

        Yields what asks it for KVM's counters of the VM, also when the VMM is gone.
        """
        self.session.ask(
            "hold_vm", name=self.name, vm_fd=self.vm_fd, statistics_fd=self._statistics_fd
        )
        yield lambda: dict(self.session.ask("held_statistics", name=self.name))
        self.session.ask("let_go", name=self.name)

    # What can be seen of it on the host.

    def statistics(self) -> dict[str, dict[str, int]]:
        """KVM's counters: ``vm`` and one key a vcpu."""
        return dict(self.ask("statistics"))

    def finish(self, vcpu: int, what: str) -> Visit:
        """Wait for the end of a vcpu's operation.

        Raises Violation when the vcpu neither ends nor can be kicked out of the kernel.
        """
        seconds = VISIT_SECONDS * self.pace * max(1.0, self.pages / REFERENCE_PAGES)
        report = self._wait(vcpu, seconds)
        if report is None:
            progress = self.ask("progress", vcpu=vcpu)
            self.ask("kick", vcpu=vcpu)
            kicked = self._wait(vcpu, seconds)
            raise Violation(
                "progress",
                f"vcpu {vcpu} to end {what} within {seconds:.0f} s",
                f"{progress['done']} page visits, at page {progress['current']}; "
                + ("it left the kernel when kicked" if kicked else "it cannot be kicked out"),
                progress["current"],
            )
        fields = {field.name for field in dataclasses.fields(Visit)} - {"words", "how"}
        visit = Visit(how=report.get("how", ""), **{name: report[name] for name in fields})
        if visit.end == "crashed":
            raise Violation(
                "guest execution",
                f"the guest to go on while {what}",
                f"vcpu {vcpu} crashed ({visit.how}) after {visit.done} page visits",
                visit.current,
            )
        return visit

    def _wait(self, vcpu: int, seconds: float) -> dict[str, Any] | None:
        try:
            report: dict[str, Any] | None = self.session.wait_guest(
                self.name, "report", seconds, vcpu=vcpu
            )
        except GuestLost as lost:
            raise self._lost(lost, "a vcpu ran") from lost
        return report

    def _carry_out(
        self, view: View | None, op: int, first: int, pages: int | None, **orders: int
    ) -> Visit:
        view = view or self.views[0]
        if view.address != layout.MEMORY_GPA:
            orders["address"] = view.address
        self.ask("order", vcpu=view.vcpu, orders=self._orders(op, first, pages, **orders))
        return self.finish(view.vcpu, f"operation {op}")

    def _orders(self, op: int, first: int, pages: int | None, **orders: int) -> dict[str, int]:
        count = self.pages - first if pages is None else pages
        if first < 0 or count < 1 or first + count > self.pages:
            raise ProbeError(f"Pages {first}+{count} are not within the guest's {self.pages}.")
        return {"op": op, "first": first, "pages": count, **orders}


@contextlib.contextmanager
def probe_guest(
    session: Session, pages: int = 2048, vcpus: int = 1, backing: str = "anon"
) -> Iterator[ProbeGuest]:
    """A new probe guest with ``pages`` pages of 4 KiB, ended when the context closes.

    ``backing`` is a name from harness/probe/backing.py.
    """
    name = session.new_name("guest")
    # Half of our own patience, so that a VMM that hangs is told apart from an agent that does.
    seconds = session.patience / 2
    kind = "nested" if session.host.facts.mmu is Mmu.NESTED else "vmm"
    try:
        answer = session.ask(
            "create",
            name=name,
            pages=pages,
            vcpus=vcpus,
            seconds=seconds,
            backing=backing,
            kind=kind,
        )
    except OSError as error:
        if kind == "nested" and error.errno == errno.ENOTSUP:
            raise OracleUnavailable(
                "The host's KVM does not offer SVM with nested paging, which the guest inside the "
                "probe guest needs."
            ) from error
        if BACKINGS[backing].file != "dax" or error.errno not in _NO_DAX:
            raise
        raise OracleUnavailable(
            f"The host has no file system with DAX ({error.strerror})."
        ) from error
    try:
        if "ok" not in answer:
            said = answer.get("died", answer)
            raise ProbeError(f"The host could not start a probe guest: {said}.")
        yield ProbeGuest(session, name, answer["ok"], answer["cgroup"], backing)
    except BaseException:
        # What failed matters more than whether the guest can still be ended: one that hangs in
        # the kernel cannot, and that is the kernel's failure.
        with contextlib.suppress(Exception):
            session.ask("close", name=name)
        raise
    session.ask("close", name=name)
