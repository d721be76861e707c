# SPDX-License-Identifier: GPL-2.0-only
"""What hosts are made of, when they come and go, and what they leave behind as evidence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import workbench
from harness.command import Completed
from harness.control import Control
from harness.deadline import Deadline
from harness.errors import (
    BootError,
    DeadlineError,
    ExitCode,
    HostLostError,
    KernelSplat,
    MachineUnfitError,
    PatchError,
    QemuError,
    UsageError,
)
from harness.image.rootfs import HostImage
from harness.kernel.model import Kernel
from harness.kernel.reference import DebianSource
from harness.machine.accelerator import Accelerator
from harness.machine.console import ConsoleLog
from harness.machine.host import HostFacts
from harness.machine.mmu import Mmu
from harness.machine.spec import HostSpec, kernel_command_line
from harness.machine.splat import find_splats
from harness.progress import Silent
from harness.store import Store
from harness.workbench import END_MARK, Parts, Wish, Workbench, host_spec, make_kernel, make_parts

KERNEL = Kernel(Path("/k/bzImage"), "6.12.1", "0" * 64, "deb:linux-source-6.12")
CONTROL = Control("leak", (Path("/p/0001.patch"),))
TCG = Accelerator("tcg", "because of a test")

MOST_HUGETLB_PAGES = 4 + 4 + 2 * 4
"""Of a guest of 8 MiB, of its forked child, and on each of two nodes to move to."""

OOPS = """\
[    9.000001] BUG: unable to handle page fault for address: ffffc90000000000
[    9.000002] Oops: Oops: 0000 [#1] SMP
[    9.000003] ---[ end trace 0000000000000000 ]---
"""
WARNING = """\
[    1.000001] ------------[ cut here ]------------
[    1.000002] WARNING: CPU: 0 PID: 1 at mm/memory.c:1 do_something+0x1/0x2
[    1.000003] ---[ end trace 0000000000000000 ]---
"""
STALE_CODE = (Path(__file__).parent / "machine" / "logs" / "stale-code-tcg-6.12.txt").read_text()
LOCKUP = "[   50.000001] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [python3:70]\n"


def parts(control: Control | None = None) -> Parts:
    image = HostImage(Path("/i/root.ext4"), "1" * 64, "bookworm", (), Path("/i/busybox"))
    modules, initrd = Path("/m/modules.ext4"), Path("/r/initrd")
    return Parts(KERNEL, image, initrd, modules, Path("/z/probe.pyz"), TCG, control)


# What hosts are made of.


@pytest.fixture
def obtained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What kernels were asked for."""
    calls: list[dict[str, Any]] = []

    def obtain(ref: Any, patches: Sequence[Path], store: Any, progress: Any, jobs: Any,
               *, fragments: Sequence[Path], vmlinux: Path | None) -> Kernel:  # fmt: skip
        calls.append(
            {
                "ref": ref,
                "patches": list(patches),
                "jobs": jobs,
                "fragments": list(fragments),
                "vmlinux": vmlinux,
            }
        )
        return KERNEL

    def find_control(name: str, ref: Any, *_: Any) -> Control:
        if name != CONTROL.name:
            raise UsageError("There is no such control.")
        return CONTROL

    monkeypatch.setattr(workbench, "obtain", obtain)
    monkeypatch.setattr(workbench, "find_control", find_control)
    return calls


def test_a_kernel_is_made_as_it_was_wished_for(
    obtained: list[dict[str, Any]], tmp_path: Path
) -> None:
    wish = Wish(
        "deb:linux-source-6.1", (Path("a"), Path("b")), (Path("c"),), jobs=3, vmlinux=Path("d")
    )
    assert make_kernel(wish, Store(tmp_path), Silent()) == (KERNEL, None)
    assert obtained == [
        {
            "ref": DebianSource("deb:linux-source-6.1", "6.1"),
            "patches": [Path("a"), Path("b")],
            "jobs": 3,
            "fragments": [Path("c")],
            "vmlinux": Path("d"),
        }
    ]


def test_the_patches_of_a_control_come_before_the_users(
    obtained: list[dict[str, Any]], tmp_path: Path
) -> None:
    wish = Wish(patches=(Path("mine.patch"),), control="leak")
    assert make_kernel(wish, Store(tmp_path), Silent()) == (KERNEL, CONTROL)
    assert obtained[0]["patches"] == [Path("/p/0001.patch"), Path("mine.patch")]


@pytest.mark.parametrize(
    "wish", [Wish(control="nope"), Wish(kernel="deb:nothing"), Wish(kernel="")]
)
def test_bad_wishes_are_known_before_anything_is_made(
    obtained: list[dict[str, Any]], tmp_path: Path, wish: Wish
) -> None:
    with pytest.raises(UsageError):
        make_kernel(wish, Store(tmp_path), Silent())
    assert obtained == []


def test_an_accelerator_that_is_not_there_is_known_before_anything_is_made(
    obtained: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(requested: str) -> Accelerator:
        raise MachineUnfitError(f"no {requested}")

    monkeypatch.setattr(workbench, "choose", choose)
    with pytest.raises(MachineUnfitError, match="no kvm"):
        make_parts(Wish(accelerator="kvm"), Store(tmp_path), Silent())
    assert obtained == []


@pytest.mark.usefixtures("obtained")
def test_all_parts_are_made_and_the_accelerator_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = parts(CONTROL)
    notes: list[str] = []

    class Progress(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    monkeypatch.setattr(workbench, "choose", lambda requested: TCG)
    monkeypatch.setattr(workbench, "host_image", lambda *_: wanted.image)
    monkeypatch.setattr(workbench, "initramfs", lambda *_: wanted.initrd)
    monkeypatch.setattr(workbench, "modules_disk", lambda *_: wanted.modules)
    monkeypatch.setattr(workbench, "probe_zipapp", lambda _: wanted.probe)
    assert make_parts(Wish(control="leak"), Store(tmp_path), Progress()) == wanted
    assert notes == ["Accelerator tcg: because of a test"]


@pytest.mark.parametrize("mode", list(Mmu))
def test_a_host_is_made_of_the_parts(mode: Mmu) -> None:
    spec = host_spec(parts(), mode)
    assert (spec.kernel, spec.root) == (KERNEL.image, Path("/i/root.ext4"))
    assert (spec.initrd, spec.modules) == (Path("/r/initrd"), Path("/m/modules.ext4"))
    assert (spec.accelerator, spec.mmu) == (TCG, mode)
    # A host has hugetlb pages, and nothing that drops sptes unasked.
    assert dict(spec.sysctl)["kernel.numa_balancing"] == "0"
    assert int(dict(spec.sysctl)["vm.nr_hugepages"]) >= MOST_HUGETLB_PAGES
    assert "mmu_control" not in kernel_command_line(spec)
    assert "mmu_control=leak" in kernel_command_line(host_spec(parts(CONTROL), mode)).split()


# Hosts that come and go.


class FakeHost:
    """A host with a console; ``fails`` is what a command in it runs into."""

    def __init__(self, spec: HostSpec, number: int, booted: str = "") -> None:
        self.nonce = f"nonce{number}"
        self.log = ConsoleLog()
        self.log.append(booted.encode())
        self.fails: Exception | None = None
        self.dmesg = ""
        self.swallows = False
        self.facts = HostFacts(
            release="6.12.1",
            accelerator="tcg",
            accelerator_reason="",
            qemu_version="7.2.0",
            mmu=spec.mmu,
            vendor="AuthenticAMD",
            parameters={},
            boot_seconds=3.5,
            pace=1.0,
            argv=("qemu",),
            boot_reports=find_splats(booted),
        )

    def run(
        self,
        argv: Sequence[str],
        deadline: Deadline,
        *,
        stdin: bytes | None = None,
        check: bool = True,
    ) -> Completed:
        if self.fails is not None:
            raise self.fails
        if list(argv) == ["dmesg"]:
            return Completed(tuple(argv), 0, self.dmesg, "", 0.0)
        assert list(argv) == ["tee", "/dev/kmsg"]
        assert stdin is not None
        assert stdin.startswith(b"<2>"), "it must pass any filter of the console"
        if not self.swallows:
            self.log.append(b"[   99.000000] " + stdin.removeprefix(b"<2>"))
        self.log.close()
        return Completed(tuple(argv), 0, "", "", 0.0)


class Machines:
    """Boots fake hosts, and remembers what happened to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.happened: list[str] = []
        self.hosts: list[FakeHost] = []
        self.errors: dict[Mmu, Exception] = {}
        self.passing: list[Exception] = []
        self.booted = ""
        self.dmesg = ""
        self.ending: Exception | None = None
        monkeypatch.setattr(workbench, "boot", self._boot)
        monkeypatch.setattr(workbench, "session", self._session)

    @contextlib.contextmanager
    def _boot(self, spec: HostSpec, directory: Path, kernel: Kernel, _: object) -> Iterator[Any]:
        assert kernel is KERNEL
        assert directory.stat().st_mode & 0o777 == 0o700
        self.happened.append(f"boot {directory.name}")
        if self.passing:
            raise self.passing.pop(0)
        if (error := self.errors.get(spec.mmu)) is not None:
            raise error
        host = FakeHost(spec, len(self.hosts) + 1, self.booted)
        host.dmesg = self.dmesg
        self.hosts.append(host)
        (directory / "qemu.log").write_bytes(b"what QEMU said")
        (directory / "root.qcow2").write_bytes(b"no log")
        yield host
        self.happened.append(f"end {directory.name}")
        if self.ending is not None:
            raise self.ending

    @contextlib.contextmanager
    def _session(self, host: FakeHost, probe: Path) -> Iterator[Any]:
        assert probe == Path("/z/probe.pyz")
        yield SimpleNamespace(host=host)


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(monkeypatch)


@pytest.fixture
def kept() -> dict[str, bytes]:
    return {}


Make = Callable[..., Workbench]


@pytest.fixture
def make(machines: Machines, tmp_path: Path, kept: dict[str, bytes]) -> Make:
    def make(control: Control | None = None) -> Workbench:
        return Workbench(parts(control), tmp_path, Silent(), kept.__setitem__)

    return make


@pytest.fixture
def bench(make: Make) -> Workbench:
    return make()


def test_a_host_is_kept_for_its_mode(bench: Workbench, machines: Machines) -> None:
    first = bench.session(Mmu.TDP)
    assert bench.session(Mmu.TDP) is first
    assert machines.happened == ["boot host1-tdp"]
    assert bench.hosts == ()


def test_another_mode_is_another_host_and_only_one_runs(
    bench: Workbench, machines: Machines
) -> None:
    bench.session(Mmu.TDP)
    bench.session(Mmu.SHADOW)
    assert machines.happened == ["boot host1-tdp", "end host1-tdp", "boot host2-shadow"]
    assert [run.evidence.host for run in bench.hosts] == ["host1-tdp"]


def test_after_a_host_is_discarded_the_next_is_new(bench: Workbench, machines: Machines) -> None:
    first = bench.session(Mmu.TDP)
    bench.discard()
    bench.discard()
    assert bench.session(Mmu.TDP) is not first
    assert machines.happened == ["boot host1-tdp", "end host1-tdp", "boot host2-tdp"]


def test_a_mode_that_does_not_boot_is_not_tried_again(bench: Workbench, machines: Machines) -> None:
    error = machines.errors[Mmu.SHADOW] = BootError("It did not come up.")
    for _ in range(2):
        with pytest.raises(BootError) as caught:
            bench.session(Mmu.SHADOW)
        assert caught.value is error
    bench.session(Mmu.TDP)
    assert machines.happened == ["boot host1-shadow", "boot host2-tdp"]


def test_a_failure_of_our_own_is_tried_once_more(bench: Workbench, machines: Machines) -> None:
    machines.passing = [DeadlineError("The agent did not start.")]
    assert bench.session(Mmu.TDP) is bench.session(Mmu.TDP)
    assert machines.happened == ["boot host1-tdp", "boot host2-tdp"]


def test_a_failure_of_our_own_that_stays_is_not_tried_for_ever(
    bench: Workbench, machines: Machines
) -> None:
    machines.errors[Mmu.TDP] = DeadlineError("The agent did not start.")
    for _ in range(2):
        with pytest.raises(DeadlineError):
            bench.session(Mmu.TDP)
    assert machines.happened == ["boot host1-tdp", "boot host2-tdp"]


def test_a_host_that_comes_to_its_end_proves_it(
    bench: Workbench, machines: Machines, kept: dict[str, bytes]
) -> None:
    bench.session(Mmu.TDP)
    bench.discard()
    (run,) = bench.hosts
    assert run.evidence.came_up
    assert run.evidence.log_end_mark
    assert run.evidence.crashes == ()
    assert (run.evidence.host, run.evidence.mmu) == ("host1-tdp", "tdp")
    assert run.evidence.nonce_expected == "nonce1"
    assert (run.release, run.qemu_version, run.boot_seconds) == ("6.12.1", "7.2.0", 3.5)
    assert f"{END_MARK} nonce1".encode() in kept["host1-tdp.console.log"]
    assert kept["host1-tdp.qemu.log"] == b"what QEMU said"
    names = {"host1-tdp.console.log", "host1-tdp.dmesg.log", "host1-tdp.qemu.log"}
    assert set(kept) == names


@pytest.mark.parametrize(
    "error",
    [HostLostError("Gone."), QemuError("Gone."), KernelSplat("oops", "BUG: unable to handle")],
)
def test_a_host_that_is_beyond_its_end_is_recorded_and_its_logs_are_kept(
    bench: Workbench, machines: Machines, kept: dict[str, bytes], error: Exception
) -> None:
    bench.session(Mmu.TDP)
    machines.hosts[0].fails = error
    machines.ending = error if isinstance(error, QemuError) else None
    bench.discard()
    assert not bench.hosts[0].evidence.log_end_mark
    assert "host1-tdp.console.log" in kept
    assert bench.session(Mmu.TDP), "there can be another"


def test_an_end_mark_that_does_not_come_out_is_none(bench: Workbench, machines: Machines) -> None:
    bench.session(Mmu.TDP)
    machines.hosts[0].swallows = True
    bench.discard()
    assert not bench.hosts[0].evidence.log_end_mark


def test_an_end_mark_of_another_time_is_none(bench: Workbench, machines: Machines) -> None:
    bench.session(Mmu.TDP)
    machines.hosts[0].log.append(f"{END_MARK} nonce1\n".encode())
    machines.hosts[0].swallows = True
    bench.discard()
    assert not bench.hosts[0].evidence.log_end_mark


def test_complaints_of_the_kernel_are_in_the_record(bench: Workbench, machines: Machines) -> None:
    bench.session(Mmu.TDP)
    machines.hosts[0].log.append(OOPS.encode())
    bench.discard()
    (crash,) = bench.hosts[0].evidence.crashes
    assert crash.kind == "oops"
    assert "unable to handle page fault" in crash.excerpt


def test_what_it_complained_about_while_it_booted_is_not_the_tests_doing(
    bench: Workbench, machines: Machines
) -> None:
    machines.booted = WARNING
    bench.session(Mmu.TDP)
    machines.hosts[0].log.append(OOPS.encode())
    bench.discard()
    assert [crash.kind for crash in bench.hosts[0].evidence.crashes] == ["oops"]


def test_a_slow_machine_is_no_crash(bench: Workbench, machines: Machines) -> None:
    bench.session(Mmu.TDP)
    machines.hosts[0].log.append(LOCKUP.encode())
    bench.discard()
    assert bench.hosts[0].evidence.crashes == ()


def test_what_the_emulator_did_is_no_crash_of_the_kernel(
    bench: Workbench, machines: Machines
) -> None:
    bench.session(Mmu.TDP)
    machines.hosts[0].log.append(OOPS.encode() + STALE_CODE.encode())
    bench.discard()
    assert [crash.kind for crash in bench.hosts[0].evidence.crashes] == ["oops"]


def test_the_log_of_a_test_is_what_came_since(bench: Workbench, machines: Machines) -> None:
    assert bench.log_position == 0
    assert bench.log_since(0) == ""
    bench.session(Mmu.TDP)
    machines.hosts[0].log.append(b"before\n")
    position = bench.log_position
    machines.hosts[0].log.append(b"during\n")
    assert bench.log_since(position) == "during\n"
    bench.discard()
    assert bench.log_since(position) == ""


# Controls.


def test_a_control_is_believed_when_the_kernel_says_so(make: Make, machines: Machines) -> None:
    machines.dmesg = "[    0.100000] mmu_control: leak is on\n"
    make(CONTROL).session(Mmu.TDP)
    assert machines.happened == ["boot host1-tdp"]


@pytest.mark.parametrize("dmesg", ["", "mmu_control: other is on\n", "Unknown: mmu_control=leak\n"])
def test_a_kernel_that_does_not_say_so_is_no_control(
    make: Make, machines: Machines, dmesg: str
) -> None:
    machines.dmesg = dmesg
    with pytest.raises(BootError, match="so it is no control") as caught:
        make(CONTROL).session(Mmu.TDP)
    assert caught.value.exit_code == ExitCode.UNTESTABLE
    assert "mmu_control=leak" in str(caught.value)
    assert machines.hosts


def test_a_kernel_without_control_is_not_asked(make: Make, machines: Machines) -> None:
    make().session(Mmu.TDP)
    assert machines.hosts[0].dmesg == ""


def test_a_control_for_no_such_kernel_is_not_replaced_by_another(tmp_path: Path) -> None:
    with pytest.raises(PatchError):
        make_kernel(
            Wish("deb:linux-source-2.6", control="sptes-survive-unmap"), Store(tmp_path), Silent()
        )
