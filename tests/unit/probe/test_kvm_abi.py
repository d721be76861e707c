# SPDX-License-Identifier: GPL-2.0-only
"""The probe's idea of the kernel's ABI against this machine's kernel headers."""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path

import pytest
from c_program import numbers

from harness.probe import agent, kvm, memory

STRUCTURES = {
    "struct kvm_userspace_memory_region": kvm.MemoryRegion,
    "struct kvm_regs": kvm.Regs,
    "struct kvm_segment": kvm.Segment,
    "struct kvm_dtable": kvm.Dtable,
    "struct kvm_sregs": kvm.Sregs,
}
REQUESTS = (
    "GET_API_VERSION",
    "CREATE_VM",
    "CHECK_EXTENSION",
    "GET_VCPU_MMAP_SIZE",
    "GET_SUPPORTED_CPUID",
    "CREATE_VCPU",
    "SET_USER_MEMORY_REGION",
    "SET_TSS_ADDR",
    "RUN",
    "SET_REGS",
    "GET_SREGS",
    "SET_SREGS",
    "SET_CPUID2",
    "GET_STATS_FD",
)


@pytest.fixture(autouse=True)
def headers() -> None:
    if not Path("/usr/include/linux/kvm.h").exists():
        pytest.skip("There is no <linux/kvm.h> here (Debian package linux-libc-dev).")


def test_structures_have_the_size_and_the_fields_of_the_kernel(tmp_path: Path) -> None:
    expected = {f"sizeof({name})": ctypes.sizeof(ours) for name, ours in STRUCTURES.items()}
    expected |= {
        f"offsetof({name}, {field})": getattr(ours, field).offset
        for name, ours in STRUCTURES.items()
        for field, *_ in ours._fields_
    }
    assert numbers(list(expected), ["<linux/kvm.h>"], tmp_path) == expected


def test_the_head_of_a_run_is_that_of_the_kernel(tmp_path: Path) -> None:
    fields = [name for name, *_ in kvm.Run._fields_ if name != "exit"]
    expected = {f"offsetof(struct kvm_run, {name})": getattr(kvm.Run, name).offset
                for name in fields}  # fmt: skip
    expected["offsetof(struct kvm_run, mmio.phys_addr)"] = kvm.Run.exit.offset
    assert numbers(list(expected), ["<linux/kvm.h>"], tmp_path) == expected


def test_requests_have_the_numbers_of_the_kernel(tmp_path: Path) -> None:
    said = numbers([f"KVM_{name}" for name in REQUESTS], ["<linux/kvm.h>"], tmp_path)
    assert said == {name: getattr(kvm, name.removeprefix("KVM_")) for name in said}
    assert len(said) >= len(REQUESTS) - 1, "only the newest may be missing from old headers"


def test_exits_have_the_names_of_the_kernel(tmp_path: Path) -> None:
    names = {f"KVM_EXIT_{name}": number for number, name in kvm.EXIT_NAMES.items()}
    said = numbers(list(names), ["<linux/kvm.h>"], tmp_path)
    assert said == {name: names[name] for name in said}
    assert said.keys() >= names.keys() - {"KVM_EXIT_MEMORY_FAULT"}
    for number in (kvm.EXIT_IO, kvm.EXIT_MMIO, kvm.EXIT_SHUTDOWN):
        assert number in kvm.EXIT_NAMES


def test_the_cpuid_buffer_is_as_long_as_the_kernel_may_fill(tmp_path: Path) -> None:
    asked = ["sizeof(struct kvm_cpuid2)", "sizeof(struct kvm_cpuid_entry2)"]
    head, entry = numbers(asked, ["<linux/kvm.h>"], tmp_path).values()
    assert head + entry * kvm._MOST_CPUID_ENTRIES == kvm._CPUID_BYTES


def test_advice_has_the_numbers_of_the_kernel(tmp_path: Path) -> None:
    names = {f"MADV_{name.upper()}": number for name, number in memory.ADVICE.items()}
    assert numbers(list(names), ["<asm/mman.h>"], tmp_path) == names


def test_protections_have_the_numbers_of_the_kernel(tmp_path: Path) -> None:
    asked = ["PROT_NONE", "PROT_READ", "PROT_READ | PROT_WRITE"]
    said = numbers(asked, ["<asm/mman.h>"], tmp_path)
    assert list(said.values()) == [memory.PROTECTION[n] for n in ("none", "read", "readwrite")]


def test_move_pages_has_the_number_of_the_kernel(tmp_path: Path) -> None:
    name = "__NR_move_pages"
    assert numbers([name], ["<asm/unistd_64.h>"], tmp_path) == {name: agent._MOVE_PAGES}


def test_a_failed_ioctl_says_why() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        kvm.ioctl_number(-1, kvm.RUN)
    assert caught.value.errno == errno.EBADF
    assert not kvm.refused(caught.value)
    assert kvm.refused(OSError(errno.EFAULT, "Bad address"))
