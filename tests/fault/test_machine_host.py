# SPDX-License-Identifier: GPL-2.0-only
"""A real kernel in a real host: what it can do, and what is said when it dies in various ways."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import (
    BootError,
    CommandError,
    DeadlineError,
    ExitCode,
    HostLostError,
    KernelSplat,
    OracleUnavailable,
    QemuError,
)
from harness.janitor import Janitor
from harness.machine.boot import boot
from harness.machine.mmu import Mmu
from harness.machine.qemu_host import QemuHost
from harness.machine.spec import HostSpec
from harness.progress import Silent
from harness.store import Store
from harness.workbench import Parts, Wish, host_spec, make_parts


def soon(seconds: float = 30) -> Deadline:
    return Deadline.after(seconds, "the test")


@pytest.fixture(scope="module")
def janitor() -> Iterator[Janitor]:
    with Janitor() as janitor:
        yield janitor


@pytest.fixture(scope="module")
def parts(janitor: Janitor) -> Parts:
    """The default kernel, which the suite needs as well, from the user's own store."""
    return make_parts(Wish(), Store(adopt=janitor.adopt, release=janitor.release), Silent())


@pytest.fixture(scope="module")
def base(janitor: Janitor) -> Path:
    return janitor.directory


@contextlib.contextmanager
def booted(parts: Parts, run: Path, **changes: object) -> Iterator[QemuHost]:
    run.mkdir()
    spec: HostSpec = dataclasses.replace(host_spec(parts, Mmu.TDP), **changes)  # type: ignore[arg-type]
    with boot(spec, run, parts.kernel, Silent()) as host:
        yield host


@pytest.fixture(scope="module")
def host(parts: Parts, base: Path) -> Iterator[QemuHost]:
    settings = (("vm.swappiness", "7"),)
    with booted(parts, base / "h", sysctl=settings) as host:
        yield host


def test_host_is_what_was_asked_for(host: QemuHost, parts: Parts) -> None:
    host.check()
    assert host.facts.release == parts.kernel.release
    assert host.facts.boot_reports == ()
    assert host.facts.notes == ()
    assert len(host.nonce) == 32
    script = (
        "cat /proc/sys/vm/swappiness; wc -l </proc/swaps; ls -d /sys/devices/system/node/node?;"
        "cat /sys/fs/cgroup/cgroup.subtree_control; cat /sys/kernel/mm/transparent_hugepage/enabled"
    )
    words = host.run(["/bin/sh", "-c", script], soon()).stdout.split()
    assert words[:4] == [
        "7",
        "2",
        "/sys/devices/system/node/node0",
        "/sys/devices/system/node/node1",
    ]
    assert "memory" in words
    assert "[madvise]" in words


def test_file_arrives_whole(host: QemuHost) -> None:
    data = bytes(range(256)) * 4096
    host.put("/tmp/it's a file", data, soon(), mode=0o600)
    summed = host.run(["sh", "-c", 'stat -c %a "$0"; wc -c <"$0"', "/tmp/it's a file"], soon())
    assert summed.stdout.split() == ["600", str(len(data))]


def test_failing_command_is_an_error_only_when_checked(host: QemuHost) -> None:
    assert host.run(["sh", "-c", "exit 3"], soon(), check=False).status == 3
    with pytest.raises(CommandError, match="exited with 3"):
        host.run(["sh", "-c", "exit 3"], soon())


def test_slow_command_is_a_deadline_and_the_host_lives_on(host: QemuHost) -> None:
    with pytest.raises(DeadlineError):
        host.run(["sleep", "60"], soon(0.5))
    host.check()
    assert host.run(["echo", "alive"], soon()).stdout == "alive\n"


def test_processes_keep_to_the_cpus_that_guests_may_have(host: QemuHost, parts: Parts) -> None:
    status = host.run(["cat", "/proc/self/status"], soon()).stdout
    allowed = dict(line.split(":\t", 1) for line in status.splitlines())["Cpus_allowed_list"]
    assert allowed == host_spec(parts, Mmu.TDP).cpus_in_use


def test_memory_can_be_read_while_the_cpus_stand_still(host: QemuHost) -> None:
    with host.paused():
        try:
            program = host.debugger()
        except OracleUnavailable as error:
            pytest.skip(str(error))
        assert host.qmp.execute("query-status", soon())["status"] == "paused", "and still are"
        release = program["init_uts_ns"].name.release.string_().decode()
    assert release == host.facts.release
    assert host.run(["true"], soon()).status == 0


def test_what_runs_on_the_host_stands_still_before_its_cpus_do(host: QemuHost) -> None:
    order: list[str] = []

    def state() -> str:
        return str(host.qmp.execute("query-status", soon())["status"])

    @contextlib.contextmanager
    def still() -> Iterator[None]:
        order.append(state())
        yield
        order.append(state())

    with host.pausing_inside(still), host.paused():
        order.append(state())
    assert order == ["running", "paused", "running"]
    with host.paused():
        assert len(order) == 3, "it was for as long as the context was open"


def test_memory_is_saved_although_nothing_on_the_host_stands_still(
    host: QemuHost, tmp_path: Path
) -> None:
    def still() -> contextlib.AbstractContextManager[None]:
        raise HostLostError("gone")

    with host.pausing_inside(still):
        host.dump(tmp_path / "memory", Deadline.after(300, "the dump"))
    assert (tmp_path / "memory").stat().st_size > 1 << 20


def test_report_in_the_log_is_raised_once(host: QemuHost) -> None:
    line = "<4>WARNING: CPU: 0 PID: 1 at mm/rmap.c:1 for_the_test+0x1/0x2"
    host.run(["sh", "-c", f"echo '{line}' >/dev/kmsg"], soon())
    with pytest.raises(KernelSplat, match="for_the_test") as caught:
        soon().poll(lambda: host.check())
    assert caught.value.exit_code == ExitCode.FAIL
    host.check()


def test_report_of_a_starved_machine_is_not_raised(host: QemuHost) -> None:
    mark = host.log.mark()
    line = "<3>rcu: INFO: rcu_preempt self-detected stall on CPU"
    host.run(["sh", "-c", f"echo '{line}' >/dev/kmsg"], soon())
    assert soon().poll(lambda: host.log.splats(mark))[0].timing
    host.check()
    host.run(["true"], soon())
    assert host.log.splats(mark)[0].timing


def test_crash_beats_the_lost_connection(parts: Parts, base: Path) -> None:
    with (
        booted(parts, base / "crash") as host,
        pytest.raises(KernelSplat, match="sysrq triggered crash") as caught,
    ):
        host.run(["sh", "-c", "echo c >/proc/sysrq-trigger"], soon())
    assert caught.value.exit_code == ExitCode.FAIL


def test_crash_during_a_conversation(parts: Parts, base: Path) -> None:
    with booted(parts, base / "talk") as host, host.channel(["cat"]) as channel:
        channel.send(b"hello\n")
        assert channel.receive_line(soon()) == b"hello"
        host.run(["sh", "-c", "(sleep 0.2; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &"], soon())
        with pytest.raises(KernelSplat, match="sysrq triggered crash"):
            channel.receive_line(soon())


def test_our_qemu_dying_is_never_the_kernels_failure(parts: Parts, base: Path) -> None:
    with booted(parts, base / "kill") as host:
        os.kill(host.qemu.pid, signal.SIGKILL)
        with pytest.raises(QemuError, match="killed by signal 9") as caught:
            host.run(["true"], soon())
        assert caught.value.exit_code == ExitCode.INFRASTRUCTURE
        with pytest.raises(QemuError):
            host.check()


def test_host_that_switches_itself_off_is_lost(parts: Parts, base: Path) -> None:
    with booted(parts, base / "off") as host, pytest.raises(HostLostError, match="itself off"):
        host.run(["busybox", "poweroff", "-f"], soon())


def test_mode_that_the_kernel_did_not_take(parts: Parts, base: Path) -> None:
    with (
        pytest.raises(BootError, match=r"did not take the MMU mode tdp: kvm_amd.npt"),
        booted(parts, base / "mode", parameters=("kvm_amd.npt=0",)),
    ):
        pytest.fail("it came up")


def test_kernel_without_kvm(parts: Parts, base: Path) -> None:
    with (
        pytest.raises(BootError, match="this kernel has no KVM") as caught,
        booted(parts, base / "no", parameters=("module_blacklist=kvm_amd,kvm_intel",)),
    ):
        pytest.fail("it came up")
    assert caught.value.exit_code == ExitCode.UNTESTABLE


def test_modules_of_another_kernel(parts: Parts, base: Path) -> None:
    with (
        pytest.raises(BootError, match="this kernel has no KVM"),
        booted(parts, base / "other", modules=None),
    ):
        pytest.fail("it came up")
