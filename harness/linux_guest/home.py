# SPDX-License-Identifier: GPL-2.0-only
"""Where Linux guests live on a host: their image, their cgroups, and the making of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import secrets
from collections.abc import Callable, Iterator

from harness.deadline import Deadline
from harness.errors import HarnessError, LinuxGuestError, OracleUnavailable
from harness.guest.process import confine
from harness.guest.session import Session
from harness.image import layout
from harness.image.linux_guest import LinuxImage, linux_seed
from harness.linux_guest.beats import Serial
from harness.linux_guest.freezing import frozen
from harness.linux_guest.guest import LinuxGuest
from harness.linux_guest.spec import LinuxGuestPaths, LinuxGuestSpec, argv
from harness.machine.host import Process
from harness.machine.qmp import connected_over
from harness.machine.ssh import RunKeys

BOOT_SECONDS = 60.0
"""How long a guest may take to boot on a fast machine; under emulation it takes 5 s."""

_PUT_SECONDS = 60.0
_START_SECONDS = 30.0

_FILES = "/var/tmp/mmu-linux-guest"  # noqa: S108 - on the host's disk, and nobody else is there
_CGROUPS = "/sys/fs/cgroup"

_CONSOLE_BYTES = 1 << 20
"""What a guest that is well says in an hour."""

# A cpuset may give who enters it more CPUs than it had: see harness/probe/cpus.py.
_ENTER = """
cpus=$(taskset -p $$) && echo $$ >"$1/cgroup.procs" && taskset -p "${cpus##* }" $$ >/dev/null &&
echo $$ && shift && exec "$@"
"""
# The memory of the log is made by us, so that none of it is charged to the guest.
_FOLLOW = ': >"$1"; fallocate -n -l "$2" "$1"; exec tail -c +1 -f "$1"'
_COMBINE = 'cat "$1" "$2" >"$3"'


@dataclasses.dataclass(frozen=True)
class _Place:
    """A cgroup for those of guests, and the files and keys with which they boot."""

    cgroup: str
    kernel: str
    initramfs: str
    nonce: str
    keys: RunKeys


class LinuxGuests:
    """The Linux guests of one test; the memory cgroups of all of them are in ``cgroup``."""

    def __init__(self, session: Session, place: _Place) -> None:
        self.session = session
        self._place = place
        self._hopeless = False

    @property
    def cgroup(self) -> str:
        """The directory of the cgroup that those of all guests are in."""
        return self._place.cgroup

    def limit(self, name: str, value: int | str) -> None:
        """Set a limit of all guests together, as ``memory.high``, in bytes or ``max``."""
        self.session.ask("write", path=f"{self.cgroup}/{name}", text=str(value))

    def confine(self, size: int) -> None:
        """Have all guests together get by with so many bytes."""
        confine(self.session, self.cgroup, size)

    def statistics(self) -> dict[str, int]:
        """memory.stat and memory.events of all guests together."""
        lines = [
            line
            for name in ("memory.stat", "memory.events")
            for line in self.session.read(f"{self.cgroup}/{name}").splitlines()
        ]
        return {name: int(value) for name, value in (line.split() for line in lines)}

    @contextlib.contextmanager
    def guest(self, spec: LinuxGuestSpec | None = None) -> Iterator[LinuxGuest]:
        """A guest that has booted, or waits for a migration; ended when the context closes.

        Raises LinuxGuestError when it does not come up.
        """
        spec = spec or LinuxGuestSpec()
        host = self.session.host
        name = self.session.new_name("linux")
        boot = Deadline.after(BOOT_SECONDS * host.facts.pace, f"The boot of {name}")
        paths = LinuxGuestPaths(
            kernel=self._place.kernel,
            initramfs=self._place.initramfs,
            serial=f"{layout.RUN_DIRECTORY}/{name}.serial",
            memory=f"{_FILES}/{name}.memory",
            disk=f"{_FILES}/{name}.disk",
            window=f"{_FILES}/{name}.window",
        )
        cgroup = f"{self.cgroup}/{name}"
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._own_cgroup(cgroup))
            follower = host.background(
                ["sh", "-c", _FOLLOW, "sh", paths.serial, str(_CONSOLE_BYTES)], boot
            )
            serial = Serial(follower)
            stack.callback(self._keep, name, serial)
            stack.callback(serial.close)
            if spec.disk_mib:
                host.run(["truncate", f"--size={spec.disk_mib}M", paths.disk], boot)
            process = stack.enter_context(
                host.background(["sh", "-c", _ENTER, "sh", cgroup, *argv(spec, paths, name)], boot)
            )
            pid = _pid(process, boot, name)
            stack.callback(self._end, pid, paths)
            qmp = stack.enter_context(
                connected_over(process, host.directory / f"{name}.qmp.log", boot)
            )
            guest = LinuxGuest(
                self.session, spec, name, process, serial, qmp, pid, self._place.keys, cgroup
            )
            if not spec.incoming:
                guest.await_ready(self._place.nonce, boot)
            try:
                yield guest
            except BaseException:
                # What failed matters more than whether the guest can still be ended.
                self._attempt(guest.close)
                raise
            guest.close()

    def _keep(self, name: str, serial: Serial) -> None:
        """Bring the guest's console home."""
        text = serial.log.text()
        (self.session.host.directory / f"{name}.serial.log").write_text(text, errors="replace")

    def _end(self, pid: int, paths: LinuxGuestPaths) -> None:
        """Have nothing left of a guest, whether its end was orderly or not."""
        deadline = Deadline.after(_START_SECONDS * self.session.host.facts.pace, "Ending a guest")
        script = 'kill -KILL "$1" 2>/dev/null; shift; rm -f "$@"'
        files = (paths.memory, paths.serial, paths.disk, paths.window)
        words = ["sh", "-c", script, "sh", str(pid), *files]
        self._attempt(lambda: self.session.host.run(words, deadline))

    @contextlib.contextmanager
    def _own_cgroup(self, path: str) -> Iterator[None]:
        """A cgroup for the processes of one guest."""
        self.session.ask("make_directory", path=path)
        try:
            yield
        except BaseException:
            self._attempt(lambda: _remove(self.session, path))
            raise
        _remove(self.session, path)

    def _attempt(self, tidy: Callable[[], object]) -> None:
        """Tidy up if that can be done; a host that let us wait in vain once is not asked again."""
        if self._hopeless:
            return
        try:
            tidy()
        except HarnessError:
            self._hopeless = True


@contextlib.contextmanager
def linux_guests(session: Session, image: LinuxImage) -> Iterator[LinuxGuests]:
    """A place for Linux guests on the host of ``session``, gone when the context closes.

    The image is brought to the host when its first guest is wanted, so that hosts without Linux
    guests boot no slower for them. Raises OracleUnavailable on a kernel without memory cgroups.
    """
    host = session.host
    _require_memory_cgroups(session)
    deadline = Deadline.after(_PUT_SECONDS * host.facts.pace, "Bringing the image of Linux guests")
    kernel, base = f"{_FILES}/{image.digest}.kernel", f"{_FILES}/{image.digest}.initramfs"
    if not session.ask("exists", path=base):
        host.run(["mkdir", "-p", _FILES], deadline)
        host.put(kernel, image.kernel.read_bytes(), deadline)
        host.put(base, image.initramfs.read_bytes(), deadline)
    keys = RunKeys.generate()
    nonce = secrets.token_hex(16)
    seed = {
        f"{layout.LINUX_SEED}/nonce": f"{nonce}\n".encode(),
        f"{layout.LINUX_SEED}/host_key": keys.host_dropbear,
        "/root/.ssh/authorized_keys": keys.authorized,
    }
    name = session.new_name("mmu-linux")
    initramfs = f"{_FILES}/{name}.initramfs"
    host.put(f"{initramfs}.seed", linux_seed(seed), deadline, mode=0o600)
    host.run(["sh", "-c", _COMBINE, "sh", base, f"{initramfs}.seed", initramfs], deadline)
    cgroup = f"{_CGROUPS}/{name}"
    session.ask("make_directory", path=cgroup)
    session.ask("write", path=f"{cgroup}/cgroup.subtree_control", text="+memory")
    place = _Place(cgroup, kernel, initramfs, nonce, keys)
    still = functools.partial(frozen, session, cgroup)
    with host.pausing_inside(still) if host.facts.emulated else contextlib.nullcontext():
        yield LinuxGuests(session, place)
    deadline = Deadline.after(_START_SECONDS * host.facts.pace, "Removing a guest's files")
    host.run(["rm", "-f", initramfs, f"{initramfs}.seed"], deadline)
    _remove(session, cgroup)


def _require_memory_cgroups(session: Session) -> None:
    control = f"{_CGROUPS}/cgroup.subtree_control"
    if not session.ask("exists", path=control) or "memory" not in session.read(control).split():
        raise OracleUnavailable("The host's kernel has no memory cgroups (MEMCG).")


def _remove(session: Session, cgroup: str) -> None:
    """Remove a cgroup, which a process leaves only a moment after its end was told."""
    deadline = Deadline.after(_START_SECONDS * session.host.facts.pace, "Removing a cgroup")
    deadline.poll(
        lambda: session.host.run(["rmdir", cgroup], deadline, check=False).status == 0,
        "A process is still in it.",
    )


def _pid(process: Process, deadline: Deadline, name: str) -> int:
    """The process id that the shell says before it becomes QEMU."""
    try:
        return int(process.receive_line(deadline))
    except (ValueError, HarnessError) as error:
        raise LinuxGuestError(f"QEMU of {name} could not be started: {error}") from error
