# SPDX-License-Identifier: GPL-2.0-only
"""How a vcpu's orders end, on a fake KVM that returns whatever the real one may return."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.probe import kvm, layout, vm

EXIT_IO, EXIT_MMIO = 2, 6
AREA_BYTES = 4096
SECONDS = 5.0


class FakeKvm:
    """Answers the ioctls of one vcpu; ``ends`` are what KVM_RUN does in turn.

    A number from 0 on is an exit reason, a negative one the errno of a failure; the last is
    repeated. Whatever is asked first, immediate_exit comes before it, as in the kernel.
    """

    def __init__(self) -> None:
        self.ends: list[int] = [EXIT_IO]
        self.runs = 0
        self.registers: list[kvm.Regs] = []
        self.segments: list[kvm.Sregs] = []
        self.msrs: list[kvm.Msrs] = []
        self.taken = 1
        self.port = layout.DONE_PORT
        self.fd = os.memfd_create("vcpu")
        os.ftruncate(self.fd, AREA_BYTES)
        self._area = mmap.mmap(self.fd, AREA_BYTES)
        self.run = kvm.Run.from_buffer(self._area)

    def ioctl_number(self, fd: int, request: int, argument: int = 0) -> int:
        if request == kvm.CREATE_VCPU:
            return self.fd
        if request == kvm.GET_VCPU_MMAP_SIZE:
            return AREA_BYTES
        assert request == kvm.RUN
        self.runs += 1
        if self.run.immediate_exit:
            raise OSError(errno.EINTR, "Interrupted system call")
        end = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        if end < 0:
            raise OSError(-end, os.strerror(-end))
        self.run.exit_reason = end
        self.run.exit[0] = self.port << 16
        return 0

    def ioctl(self, fd: int, request: int, argument: Any = None) -> int:
        if request == kvm.SET_REGS:
            self.registers.append(kvm.Regs.from_buffer_copy(ctypes.string_at(argument, 144)))
        if request == kvm.SET_SREGS:
            size = ctypes.sizeof(kvm.Sregs)
            self.segments.append(kvm.Sregs.from_buffer_copy(ctypes.string_at(argument, size)))
        if request == kvm.SET_MSRS:
            size = ctypes.sizeof(kvm.Msrs)
            self.msrs.append(kvm.Msrs.from_buffer_copy(ctypes.string_at(argument, size)))
            return self.taken
        return 0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKvm]:
    fake = FakeKvm()
    monkeypatch.setattr(kvm, "ioctl", fake.ioctl)
    monkeypatch.setattr(kvm, "ioctl_number", fake.ioctl_number)
    statistics = SimpleNamespace(of=lambda fd: SimpleNamespace(read=dict))
    monkeypatch.setattr(kvm, "Statistics", statistics)
    # As in run_vmm(): the signal of a kick is only there to interrupt.
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    yield fake
    signal.signal(signal.SIGUSR1, before)


@contextlib.contextmanager
def made(fake: FakeKvm, *, deeper: bool) -> Iterator[tuple[vm.Vcpu, Any]]:
    """The second vcpu of a machine, and the control memslot that its mailbox lives in."""
    control = ctypes.create_string_buffer(layout.CONTROL_BYTES)
    address = ctypes.addressof(control)
    machine = SimpleNamespace(fd=-1, kvm_fd=-1, control=address, deeper=deeper)
    yield vm.Vcpu(machine, 1), control  # type: ignore[arg-type]
    fake.ends = [EXIT_IO]


@pytest.fixture
def vcpu(fake: FakeKvm) -> Iterator[vm.Vcpu]:
    with made(fake, deeper=False) as (vcpu, _):
        yield vcpu


@pytest.fixture
def deeper(fake: FakeKvm) -> Iterator[tuple[vm.Vcpu, Any]]:
    with made(fake, deeper=True) as both:
        yield both


def done(vcpu: vm.Vcpu, **orders: int) -> dict[str, Any]:
    vcpu.order({"op": layout.OP_HAMMER, **orders})
    report = vcpu.report(SECONDS)
    assert report is not None
    return report


def test_a_vcpu_begins_at_the_payload_with_its_number(vcpu: vm.Vcpu, fake: FakeKvm) -> None:
    (registers,) = fake.registers
    assert registers.rip == layout.CODE_GPA
    assert registers.rdi == 1
    assert registers.rflags == 2
    # Each vcpu has a page for its stack, which a call leaves aligned as the ABI wants it.
    assert registers.rsp == layout.STACK_TOP_GPA + 2 * layout.PAGE_BYTES - 8


def test_a_vcpu_begins_in_long_mode_on_the_tables_of_the_control_slot(
    vcpu: vm.Vcpu, fake: FakeKvm
) -> None:
    (sregs,) = fake.segments
    assert sregs.cr3 == layout.PAGE_TABLES_GPA
    assert sregs.cr0 & (1 << 31 | 1), "paging and protection"
    assert sregs.cr4 & 1 << 5, "PAE"
    assert sregs.efer & (1 << 8 | 1 << 10) == 1 << 8 | 1 << 10, "long mode, enabled and active"
    assert (sregs.cs.l, sregs.cs.db, sregs.cs.present) == (1, 0, 1)


def test_a_deeper_vcpu_begins_at_a_vmrun_with_its_control_block(
    deeper: tuple[vm.Vcpu, Any], fake: FakeKvm
) -> None:
    (registers,) = fake.registers
    assert registers.rip == layout.NESTED_ENTRY_GPA
    assert registers.rax == layout.VMCB_GPA + layout.PAGE_BYTES
    assert registers.rdi == 1, "the guest inside the guest finds its number there"
    (msr,) = fake.msrs
    assert (msr.index, msr.data) == (0xC0010117, layout.HOST_SAVE_GPA + layout.PAGE_BYTES)
    (sregs,) = fake.segments
    assert sregs.efer & 1 << 12, "without SVME there is no VMRUN"


def test_the_control_block_of_a_deeper_vcpu_enters_the_payload(
    deeper: tuple[vm.Vcpu, Any],
) -> None:
    _, control = deeper
    block = control[layout.VMCB_GPA + layout.PAGE_BYTES : layout.VMCB_GPA + 2 * layout.PAGE_BYTES]

    def quad(offset: int) -> int:
        return int.from_bytes(block[offset : offset + 8], "little")

    assert quad(0x0B0) == layout.NESTED_TABLES_GPA
    assert quad(0x578) == layout.CODE_GPA
    assert quad(0x5D8) == layout.STACK_TOP_GPA + 2 * layout.PAGE_BYTES - 8
    assert quad(0x550) == layout.PAGE_TABLES_GPA
    assert quad(0x4D0) == 0x1500, "long mode, and SVME as VMRUN demands"
    assert block[0x410:0x414] == bytes.fromhex("08009b0a"), "a code segment of 64 bits"


def test_a_deeper_vcpu_that_starts_over_does_so_inside(
    deeper: tuple[vm.Vcpu, Any], fake: FakeKvm
) -> None:
    fake.ends = [-errno.EFAULT, EXIT_IO]
    assert done(deeper[0])["end"] == "refused"
    assert fake.registers[-1].rip == layout.CODE_GPA


def test_a_hypervisor_that_gets_its_guest_back_is_a_crash(
    deeper: tuple[vm.Vcpu, Any], fake: FakeKvm
) -> None:
    fake.port = layout.LEFT_PORT
    report = done(deeper[0])
    assert (report["end"], report["how"]) == ("crashed", "its hypervisor got it back")


def test_an_msr_that_kvm_does_not_take_is_an_error(vcpu: vm.Vcpu, fake: FakeKvm) -> None:
    fake.taken = 0
    with pytest.raises(OSError, match="MSR 0x4b564d01"):
        vcpu.want_clock(0)


def test_the_exit_at_the_end_of_an_operation_is_its_end(vcpu: vm.Vcpu) -> None:
    report = done(vcpu, seed=5)
    assert report["end"] == "done"
    assert report["seed"] == 5
    assert report["refusals"] == 0


def test_a_new_order_finds_a_clean_mailbox(vcpu: vm.Vcpu) -> None:
    vcpu.mailbox.stop = 1
    vcpu.mailbox.bad = 3
    report = done(vcpu, word=4)
    assert (report["stop"], report["bad"], report["word"]) == (0, 0, 4)


def test_signals_that_mean_nothing_do_not_end_an_operation(vcpu: vm.Vcpu, fake: FakeKvm) -> None:
    fake.ends = [-errno.EINTR, -errno.EINTR, EXIT_IO]
    assert done(vcpu)["end"] == "done"
    assert fake.runs == 3


@pytest.mark.parametrize(
    ("ends", "how"),
    [
        ([-errno.EFAULT, EXIT_IO], "EFAULT"),
        ([EXIT_MMIO, EXIT_IO], "KVM_EXIT_MMIO"),
    ],
)
def test_a_refused_access_ends_the_operation(
    vcpu: vm.Vcpu, fake: FakeKvm, ends: list[int], how: str
) -> None:
    fake.ends = ends
    report = done(vcpu)
    assert (report["end"], report["how"]) == ("refused", how)


def test_after_a_refusal_the_vcpu_starts_over(vcpu: vm.Vcpu, fake: FakeKvm) -> None:
    fake.ends = [EXIT_MMIO, EXIT_IO]
    assert done(vcpu)["end"] == "refused"
    # The second KVM_RUN completed the exit without entering the guest.
    assert fake.runs == 2
    assert fake.ends == [EXIT_IO]
    assert [registers.rip for registers in fake.registers] == [layout.CODE_GPA] * 2
    assert done(vcpu)["end"] == "done"


def test_a_patient_vcpu_tries_until_it_may(vcpu: vm.Vcpu, fake: FakeKvm) -> None:
    fake.ends = [-errno.EFAULT, -errno.EFAULT, -errno.EFAULT, EXIT_IO]
    report = done(vcpu, patient=1)
    assert (report["end"], report["refusals"]) == ("done", 3)
    fake.ends = [EXIT_IO]
    assert done(vcpu)["refusals"] == 0


def test_refusals_can_be_counted_while_it_tries(vcpu: vm.Vcpu, fake: FakeKvm) -> None:
    fake.ends = [-errno.EFAULT]
    vcpu.order({"op": layout.OP_HAMMER, "patient": 1})
    until = time.monotonic() + SECONDS
    while vcpu.refusals < 3:
        assert time.monotonic() < until
        time.sleep(0.001)
    fake.ends = [EXIT_IO]
    report = vcpu.report(SECONDS)
    assert report is not None
    assert report["refusals"] == vcpu.refusals >= 3


def test_a_homeless_vcpu_goes_on_where_there_is_no_memslot(vcpu: vm.Vcpu, fake: FakeKvm) -> None:
    fake.ends = [EXIT_MMIO, EXIT_MMIO, EXIT_IO]
    report = done(vcpu, homeless=1)
    assert (report["end"], report["refusals"]) == ("done", 0)
    assert fake.runs == 3
    assert len(fake.registers) == 1, "it did not start over"


def test_a_homeless_vcpu_that_is_not_patient_is_refused_like_any_other(
    vcpu: vm.Vcpu, fake: FakeKvm
) -> None:
    fake.ends = [EXIT_MMIO, -errno.EFAULT, EXIT_IO]
    report = done(vcpu, homeless=1)
    assert (report["end"], report["how"]) == ("refused", "EFAULT")


def test_a_patient_vcpu_begins_anew_after_an_access_that_was_emulated(
    vcpu: vm.Vcpu, fake: FakeKvm
) -> None:
    # The second run completes the exit without entering the guest.
    fake.ends = [EXIT_MMIO, -errno.EINTR, EXIT_IO]
    report = done(vcpu, patient=1)
    assert (report["end"], report["refusals"]) == ("done", 1)
    assert [registers.rip for registers in fake.registers] == [layout.CODE_GPA] * 2


def test_a_homeless_vcpu_can_be_kicked(vcpu: vm.Vcpu, fake: FakeKvm) -> None:
    fake.ends = [EXIT_MMIO]
    vcpu.order({"op": layout.OP_HAMMER, "homeless": 1})
    until = time.monotonic() + SECONDS
    while not fake.runs:
        assert time.monotonic() < until
        time.sleep(0.001)
    vcpu.kick()
    report = vcpu.report(SECONDS)
    assert report is not None
    assert report["end"] == "kicked"


def test_manners_are_no_fields_of_the_mailbox(vcpu: vm.Vcpu) -> None:
    names = {name for name, *_ in layout.Mailbox._fields_}
    assert not vm._MANNERS & names
    report = done(vcpu, patient=1, homeless=1, seed=5)
    assert report["seed"] == 5
    assert not vm._MANNERS & vars(vcpu.mailbox).keys()


def test_a_patient_vcpu_can_be_kicked(vcpu: vm.Vcpu, fake: FakeKvm) -> None:
    fake.ends = [-errno.EFAULT]
    vcpu.order({"op": layout.OP_HAMMER, "patient": 1})
    until = time.monotonic() + SECONDS
    while not vcpu.progress()["refusals"]:
        assert time.monotonic() < until
        time.sleep(0.001)
    assert vcpu.report(0) is None
    vcpu.kick()
    report = vcpu.report(SECONDS)
    assert report is not None
    assert report["end"] == "kicked"


def test_a_kick_that_came_too_late_is_not_meant_for_the_next_order(vcpu: vm.Vcpu) -> None:
    assert done(vcpu)["end"] == "done"
    vcpu.kick()
    assert done(vcpu)["end"] == "done"


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (8, "KVM_EXIT_SHUTDOWN"),
        (17, "KVM_EXIT_INTERNAL_ERROR"),
        (999, "KVM_EXIT_999"),
        (-errno.EINVAL, "KVM_RUN: Invalid argument"),
        (-errno.EIO, "KVM_RUN: Input/output error"),
    ],
)
def test_any_other_end_is_a_crash(vcpu: vm.Vcpu, fake: FakeKvm, end: int, how: str) -> None:
    fake.ends = [end, EXIT_IO]
    report = done(vcpu)
    assert (report["end"], report["how"]) == ("crashed", how)
    assert done(vcpu)["end"] == "done"


def test_no_report_is_no_report(vcpu: vm.Vcpu) -> None:
    assert vcpu.report(0) is None
