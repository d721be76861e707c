# SPDX-License-Identifier: GPL-2.0-only
"""Real Linux guests that are broken on purpose, and what is said then, by whose fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from harness.deadline import Deadline
from harness.errors import LinuxGuestError, QmpError, Violation
from harness.guest.session import Session, session
from harness.guest.settings import no_swap
from harness.image.linux_guest import LinuxImage, linux_image
from harness.janitor import Janitor
from harness.linux_guest.guest import LinuxGuest
from harness.linux_guest.home import LinuxGuests, linux_guests
from harness.linux_guest.spec import LinuxGuestSpec
from harness.machine.boot import boot
from harness.machine.mmu import Mmu
from harness.progress import Silent
from harness.store import Store
from harness.workbench import Wish, host_spec, make_parts

SMALL = LinuxGuestSpec(memory_mib=96, workload_mib=8)
GONE = r"did not come up|has no open anon_inode:kvm-vm"


@pytest.fixture(scope="module")
def janitor() -> Iterator[Janitor]:
    with Janitor() as janitor:
        yield janitor


@pytest.fixture(scope="module")
def store(janitor: Janitor) -> Store:
    """The user's own, which has the default kernel already."""
    return Store(adopt=janitor.adopt, release=janitor.release)


@pytest.fixture(scope="module")
def image(store: Store) -> LinuxImage:
    return linux_image(store, Silent())


@pytest.fixture(scope="module")
def agent(janitor: Janitor, store: Store) -> Iterator[Session]:
    parts = make_parts(Wish(), store, Silent())
    directory = janitor.directory / "h"
    directory.mkdir()
    with (
        boot(host_spec(parts, Mmu.TDP), directory, parts.kernel, Silent()) as host,
        session(host, parts.probe) as session_,
    ):
        yield session_


@pytest.fixture
def guests(agent: Session, image: LinuxImage) -> Iterator[LinuxGuests]:
    with linux_guests(agent, image) as guests:
        yield guests


@pytest.fixture
def guest(guests: LinuxGuests) -> Iterator[LinuxGuest]:
    with guests.guest(SMALL) as guest:
        yield guest


def awaited(guest: LinuxGuest) -> None:
    """Wait for the end of the guest, by watching it as a scenario does."""
    guest.await_passes(10**9, seconds=30)


def test_a_guest_keeps_to_the_cpus_that_processes_have(guest: LinuxGuest) -> None:
    def allowed(process: object) -> str:
        status = guest.session.read(f"/proc/{process}/status").splitlines()
        return dict(line.split(":\t", 1) for line in status)["Cpus_allowed_list"]

    assert allowed(guest.pid) == allowed(1)
    there = guest.session.read("/sys/devices/system/cpu/online").strip()
    assert (allowed(1) != there) == guest.session.host.facts.emulated, "see HostSpec.bystanders"


def test_a_guest_that_panics_is_a_failure_of_its_host(guest: LinuxGuest) -> None:
    # Nobody answers this command, for there is nobody any more.
    with pytest.raises(Violation, match="sysrq triggered crash") as caught:
        guest.run(["sh", "-c", "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger"])
    assert caught.value.oracle == "guest"


def test_a_qemu_that_somebody_kills_is_infrastructure(guest: LinuxGuest) -> None:
    guest.on_host(["kill", "-KILL", str(guest.pid)])
    with pytest.raises(LinuxGuestError, match="was killed"):
        awaited(guest)


def test_a_qemu_that_leaves_is_infrastructure(guest: LinuxGuest) -> None:
    guest.monitor("quit")
    with pytest.raises(LinuxGuestError, match="ended with status 0"):
        awaited(guest)


def test_a_relay_that_is_cut_is_infrastructure(guest: LinuxGuest) -> None:
    guest.process.close()
    with pytest.raises(LinuxGuestError, match="was cut"):
        awaited(guest)
    with pytest.raises(QmpError):
        guest.monitor("query-status")


def test_ssh_that_is_lost_is_infrastructure_and_the_guest_goes_on(guest: LinuxGuest) -> None:
    with pytest.raises(LinuxGuestError, match="cannot be reached over SSH"):
        guest.run(["sh", "-c", "killall -9 dropbear"])
    guest.await_passes(1)
    guest.check()


def test_a_guest_too_large_for_its_cgroup_is_infrastructure(guests: LinuxGuests) -> None:
    guests.limit("memory.swap.max", 0)
    with guests.guest(SMALL) as guest:
        guests.limit("memory.max", 24 << 20)
        with pytest.raises(LinuxGuestError, match="OOM killer"):
            awaited(guest)
    guests.limit("memory.max", "max")


def test_a_host_out_of_memory_is_infrastructure_and_the_host_goes_on(guest: LinuxGuest) -> None:
    host = guest.session.host
    soon = Deadline.after(120, "eating the host's memory")
    with no_swap(guest.session):
        guest.on_host(["sh", "-c", f"echo 1000 >/proc/{guest.pid}/oom_score_adj"])
        # Takes what there is and more, so it is the next one whom the OOM killer ends.
        host.run(["python3", "-c", "[b'x' * (1 << 26) for _ in range(64)]"], soon, check=False)
        with pytest.raises(LinuxGuestError, match="OOM killer"):
            awaited(guest)
    host.check()


def test_a_full_disk_of_the_host_is_infrastructure(guests: LinuxGuests) -> None:
    host = guests.session.host
    soon = Deadline.after(60, "filling the host's disk")
    free = host.run(["stat", "-f", "-c", "%a %S", "/var/tmp"], soon).stdout.split()
    size = int(free[0]) * int(free[1]) - (4 << 20)
    host.run(["fallocate", f"--length={size}", "/var/tmp/full"], soon)
    spec = dataclasses.replace(SMALL, backing="file")
    try:
        # QEMU may be gone before it is asked where the memory is.
        with pytest.raises(LinuxGuestError, match=GONE), guests.guest(spec):
            pytest.fail("no guest has its memory in a file for which there is no room")
    finally:
        host.run(["rm", "/var/tmp/full"], soon)
    host.check()


def test_a_guest_that_cannot_boot_is_infrastructure(guests: LinuxGuests) -> None:
    with (
        # QEMU may be gone before it is asked where the memory is.
        pytest.raises(LinuxGuestError, match=GONE),
        guests.guest(LinuxGuestSpec(memory_mib=16)),
    ):
        pytest.fail("no kernel fits into so little memory")


def test_nothing_is_left_of_any_of_them(agent: Session) -> None:
    found = agent.host.run(
        ["sh", "-c", "ls -d /sys/fs/cgroup/mmu-linux*; pgrep qemu-system; true"],
        Deadline.after(30, "looking for what is left"),
    )
    assert found.stdout == ""
    agent.host.check()
