# SPDX-License-Identifier: GPL-2.0-only
"""L0's handle of a Linux guest: QMP and SSH into it, its console, and what is wrong with it.

Who is to blame for a guest that fails is told apart here. That its kernel panics, that its memory
is not as it wrote it, that KVM cannot run it any more, that it resets itself or that it stands
still is the doing of the host's kernel, hence a Violation: the guest's own kernel and programs are
stock. That QEMU dies, that a connection breaks or that memory runs out is infrastructure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import re
from collections.abc import Sequence

from harness.command import Completed
from harness.deadline import Deadline
from harness.errors import (
    DeadlineError,
    HarnessError,
    HostLostError,
    LinuxGuestError,
    OracleUnavailable,
    QmpError,
    Violation,
)
from harness.guest.observation import View
from harness.guest.process import confine, memory_statistics
from harness.guest.session import Session
from harness.image import layout
from harness.linux_guest.beats import FAILED, READY, Counters, Serial
from harness.linux_guest.ending import complained, explained
from harness.linux_guest.spec import LinuxGuestSpec
from harness.machine.boot import forwarded_port
from harness.machine.host import Process, Shell
from harness.machine.pace import slowness
from harness.machine.qmp import Qmp
from harness.machine.splat import visible
from harness.machine.ssh import RunKeys

STALL_SECONDS = 10.0
"""How long a guest may make no progress, by its own clock."""

_SILENCE_FACTOR = 6.0
"""By how much longer, by our clock, a guest may say nothing: its clock may stand still, and under
emulation ours runs on while a host waits for a CPU."""

_COMMAND_SECONDS = 60.0
_END_SECONDS = 120.0
_MONITOR_SECONDS = 30.0
_SETTLE_SECONDS = 3.0
"""How long a report of the guest's kernel may take to arrive."""

_FIRST_MIB = 1
"""The first MiB of the guest's memory is partly covered by firmware; what is looked at is the
rest, in one piece."""

_PAGES_PER_MIB = 256
_LARGE = 2 << 20

_ORDER = """
exec 3<>"$3"
echo "$1" >"$2"
read -r answer <&3
echo "$answer"
"""


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a guest's memory that oracles can look at from outside, in the same words."""

    session: Session
    pid: int
    vm_fd: int
    hva: int
    gpa: int
    pages: int

    @property
    def views(self) -> tuple[View, ...]:
        """The one way in which the guest sees it."""
        return (View(self.vm_fd, self.gpa),)


class LinuxGuest:
    """A Linux guest whose QEMU runs in the host; made by LinuxGuests.

    ``pid``, ``vm_fd``, ``hva``, ``gpa`` and ``pages`` say where its memory is, from the second MiB
    on, for oracles that look from outside. ``cgroup`` is QEMU's alone.
    """

    def __init__(
        self,
        session: Session,
        spec: LinuxGuestSpec,
        name: str,
        process: Process,
        serial: Serial,
        qmp: Qmp,
        pid: int,
        keys: RunKeys,
        cgroup: str,
    ) -> None:
        self.session = session
        self.spec = spec
        self.cgroup = cgroup
        self.name = name
        self.serial = serial
        self.qmp = qmp
        self.pid = pid
        self.gpa = _FIRST_MIB << 20
        self.pages = (spec.memory_mib - _FIRST_MIB) * _PAGES_PER_MIB
        self.backing = spec.backing
        self.process = process
        self._keys = keys
        self._shell: Shell | None = None
        self._ready = 0
        self._killed = False
        self._gone = False
        self.hva = self.hva_of(self.gpa)
        self.vm_fd = self.descriptor("anon_inode:kvm-vm")
        self._port = forwarded_port(qmp, self._soon("The port of the guest's SSH server"))

    @property
    def views(self) -> tuple[View, ...]:
        """The one way in which the guest sees its memory."""
        return (View(self.vm_fd, self.gpa),)

    @property
    def pace(self) -> float:
        """The host's slowness, by which deadlines are stretched."""
        return self.session.host.facts.pace

    @property
    def counters(self) -> Counters:
        """What the workload said last; raises LinuxGuestError before it said anything."""
        if self.serial.last is None:
            raise LinuxGuestError(f"The workload of {self.name} has not said anything yet.")
        return self.serial.last

    # The life of the guest.

    def await_ready(self, nonce: str, deadline: Deadline) -> None:
        """Wait until the guest has booted; raises LinuxGuestError when it does not."""
        for _ in deadline.ticks():
            for line in self.serial.log.text().splitlines():
                if line.startswith(FAILED):
                    raise self._failed(visible(line.removeprefix(FAILED)))
                if line.startswith(READY):
                    return self._booted(line.split()[-1], nonce)
            # The console stays open when QEMU ends.
            if self._ended():
                raise self._failed("its QEMU ended")
        raise self._failed(str(deadline.error()))

    def _booted(self, said: str, nonce: str) -> None:
        if said != nonce:
            raise LinuxGuestError(f"Another guest than ours answers on the console of {self.name}.")
        self._ready = self.serial.log.mark()

    def check(self) -> None:
        """Raise what happened to the guest, if anything did; what the host's kernel says first."""
        self.session.host.check()
        state = self._state()
        if not state:
            # The last words of the guest come through another channel than QEMU's end.
            self.serial.log.settle(Deadline.after(_SETTLE_SECONDS * self.pace, "the guest's log"))
        for splat in self.serial.log.splats(self._ready):
            if not splat.timing:
                raise complained(self.name, splat, self.session.host.facts)
        if not state:
            raise self._died()
        if state == "internal-error":
            words = visible(self.process.stderr_tail.strip())
            raise Violation("access", f"KVM to run {self.name}", f"QEMU had to stop it: {words}")

    def _state(self) -> str:
        """QEMU's run state, or nothing when QEMU is gone."""
        if self._ended():
            return ""
        try:
            return self.status()
        except QmpError:
            # Cut off in the middle of the question.
            ending = Deadline.after(_SETTLE_SECONDS * self.pace, "The end of QEMU")
            if not any(self._ended() for _ in ending.ticks()):
                raise
            return ""

    def watch(self) -> Counters:
        """Check the guest, its content and its progress; the counters as they are now."""
        counters = self.serial.last
        if counters is not None and counters.errors:
            raise Violation(
                "content",
                "every word as the guest wrote it",
                f"{counters.errors} wrong words, the first is word {counters.word} with "
                f"{counters.seen:#x} instead of {counters.expected:#x} on page {counters.page} of "
                f"the workload of {self.name}",
            )
        # A machine that has become busy since the host's boot is measured once it matters.
        if self._stalled(self.pace) and self._stalled(pace := max(self.pace, slowness())):
            silent = self.serial.silence > STALL_SECONDS * _SILENCE_FACTOR * pace
            self.check()
            gap = f"a gap of {self.serial.longest_gap:.1f} s by its own clock"
            seen = f"nothing for {self.serial.silence:.0f} s" if silent else gap
            raise Violation(
                "progress",
                f"{self.name} to get on every {STALL_SECONDS:.0f} s",
                f"{seen}. Its threads:\n{self._where()}",
            )
        if self._ended():
            self.check()
        return self.counters

    def _stalled(self, pace: float) -> bool:
        """Whether it made no progress for longer than it may on a machine of this slowness."""
        patience = STALL_SECONDS * pace
        silent = self.serial.silence > patience * _SILENCE_FACTOR
        return silent or self.serial.longest_gap > patience

    def await_passes(self, passes: int, seconds: float = 120.0) -> Counters:
        """Wait until the workload has gone so many more times over its memory."""
        least = self.watch().passes + passes
        deadline = Deadline.after(seconds * self.pace, f"{passes} passes of the workload")
        for _ in deadline.ticks():
            if (counters := self.watch()).passes >= least:
                return counters
        raise deadline.error(f"{self.name} is in pass {counters.passes} of {least}.")

    def await_beat(self) -> Counters:
        """Wait for the next word of the workload."""
        seen = self.serial.last
        deadline = Deadline.after(_COMMAND_SECONDS * self.pace, f"A beat of {self.name}")
        for _ in deadline.ticks():
            if (last := self.serial.last) is not None and last is not seen:
                return last
            if self._ended():
                self.check()
        raise deadline.error(f"Its run state is {self.status()}.")

    def kill(self) -> None:
        """Kill QEMU with SIGKILL, and wait for its end."""
        self._killed = True
        self._signal("KILL")
        self.process.status(self._soon(f"The end of {self.name}"))
        self._gone = True

    def await_end(self) -> int:
        """Wait until somebody else has ended QEMU, as the OOM killer; its exit status."""
        deadline = Deadline.after(_END_SECONDS * self.pace, f"The end of {self.name}")
        status = self.process.status(deadline)
        self._gone = True
        return status

    def close(self) -> None:
        """End the guest, however it is doing."""
        if self._shell is not None:
            self._shell.close()
        if not self._ended():
            self.kill()

    # What is done to it.

    def run(self, argv: Sequence[str], *, check: bool = True) -> Completed:
        """Run a command in the guest; raises LinuxGuestError when there is no way in."""
        deadline = Deadline.after(_COMMAND_SECONDS * self.pace, f"{argv[0]} in {self.name}")
        try:
            if self._shell is None or not self._shell.alive:
                self._shell = self.session.host.through(self._port, self._keys, deadline)
            completed = self._shell.run(argv, deadline)
        except (HostLostError, DeadlineError) as error:
            self.check()
            raise LinuxGuestError(f"{self.name} cannot be reached over SSH: {error}") from error
        if completed.status < 0:
            self.check()
            raise LinuxGuestError(f"{argv[0]} in {self.name} was cut off; SSH into it is lost.")
        return completed.checked() if check else completed

    def order(
        self,
        order: str,
        orders: str = layout.LINUX_ORDER,
        answers: str = layout.LINUX_ANSWER,
    ) -> Counters:
        """Have the workload do something, and return its counters once that is done.

        The orders are those of guest-images/linux/workload.c.
        """
        return Counters.parsed(self.run(["sh", "-c", _ORDER, "sh", order, orders, answers]).stdout)

    def monitor(self, command: str, arguments: dict[str, object] | None = None) -> object:
        """Run a QMP command."""
        return self.qmp.execute(command, self._soon(f"The QMP command {command}"), arguments)

    def status(self) -> str:
        """QEMU's run state, as ``running`` or ``internal-error``."""
        answer = self.monitor("query-status")
        return str(answer["status"]) if isinstance(answer, dict) else ""

    def limit(self, name: str, value: int | str) -> None:
        """Set a limit of this guest alone, as ``memory.max``, in bytes or ``max``."""
        self.session.ask("write", path=f"{self.cgroup}/{name}", text=str(value))

    def confine(self, size: int) -> None:
        """Have this guest alone get by with so many bytes."""
        confine(self.session, self.cgroup, size)

    def memory_statistics(self) -> dict[str, int]:
        """What this guest alone is charged for; see the function of that name."""
        return memory_statistics(self.session, self.cgroup)

    def oom_kills(self) -> int:
        """How many of its processes the OOM killer has killed: QEMU, if any."""
        lines = self.session.read(f"{self.cgroup}/memory.events").splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    def collapse(self) -> int:
        """Have the host's kernel collapse the memory to large pages; how many it made.

        The kernel may refuse each at any time, as while a page is being used. Raises
        OracleUnavailable before commit 7d8faaf15545 ("mm/madvise: introduce MADV_COLLAPSE sync
        hugepage collapse") (in v6.1), when no kernel knew how.
        """
        refused: list[int | None] = []
        addresses = range(_up(self.hva), self.hva + (self.pages << 12) - _LARGE + 1, _LARGE)
        for address in addresses:
            try:
                self.session.ask(
                    "advise", pid=self.pid, address=address, size=_LARGE, advice="collapse"
                )
            except OSError as error:
                refused.append(error.errno)
        if refused == [errno.EINVAL] * len(addresses):
            raise OracleUnavailable("The host's kernel has no MADV_COLLAPSE, which came with v6.1.")
        return len(addresses) - len(refused)

    # Where things are.

    def window(self, gpa: int, pages: int) -> Window:
        """A part of the guest's memory, from a guest physical address on."""
        return Window(self.session, self.pid, self.vm_fd, self.hva_of(gpa), gpa, pages)

    def hva_of(self, gpa: int) -> int:
        """Where in QEMU's memory a guest physical address is."""
        answer = self.qmp.human(f"gpa2hva {gpa:#x}", self._soon("An address of the guest"))
        found = re.search(r" is (0x[0-9a-f]+)", answer)
        if found is None:
            raise LinuxGuestError(f"QEMU does not say where {gpa:#x} is: {visible(answer)}")
        return int(found[1], 16)

    def descriptor(self, pattern: str) -> int:
        """The file descriptor of QEMU that leads to something whose name begins so."""
        script = 'cd "/proc/$1/fd" && for fd in *; do echo "$fd $(readlink "$fd")"; done'
        listed = self.on_host(["sh", "-c", script, "sh", str(self.pid)]).stdout
        for line in listed.splitlines():
            number, _, name = line.partition(" ")
            if re.match(pattern, name):
                return int(number)
        raise LinuxGuestError(f"QEMU of {self.name} has no open {pattern}.")

    # How it is doing.

    def _ended(self) -> bool:
        """Whether QEMU is gone; its monitor's end tells."""
        if not self._gone:
            self._gone = self.qmp.ended
        return self._gone

    def _died(self) -> HarnessError:
        return explained(self.name, self.session.host, self.process, self.qmp, self.pid)

    def _failed(self, reason: str) -> LinuxGuestError:
        tail = visible(self.serial.log.tail(8)[-2000:]) or "(nothing)"
        words = visible(self.process.stderr_tail.strip())
        more = f" QEMU said:\n{words}" if words else ""
        return LinuxGuestError(
            f"{self.name} did not come up: {reason.rstrip('.')}. The end of its log:\n{tail}{more}"
        )

    def _where(self) -> str:
        """Where QEMU's threads sleep in the host's kernel."""
        script = 'for task in /proc/$1/task/*; do cat "$task/comm" "$task/stack"; done'
        with contextlib.suppress(HarnessError):
            return visible(self.on_host(["sh", "-c", script, "sh", str(self.pid)]).stdout)
        return "(not known)"

    def _signal(self, name: str) -> None:
        self.on_host(["kill", f"-{name}", str(self.pid)])

    def on_host(self, argv: Sequence[str]) -> Completed:
        """Run a command beside the guest, on the host."""
        return self.session.host.run(argv, self._soon(f"{argv[0]} on the host"))

    def _soon(self, what: str) -> Deadline:
        return Deadline.after(_MONITOR_SECONDS * self.pace, what)


def watch_for(guests: Sequence[LinuxGuest], seconds: float) -> None:
    """Let the guests run for a stated time, and watch them."""
    for _ in Deadline.after(seconds, "Watching guests").ticks():
        for guest in guests:
            guest.watch()


def _up(address: int) -> int:
    """The next address that a large page can have."""
    return -(-address // _LARGE) * _LARGE
