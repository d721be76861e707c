# SPDX-License-Identifier: GPL-2.0-only
"""The probe's idea of the kernel's ABI against this machine's kernel headers."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

import pytest
from c_program import numbers
from fake_statistics import statistics_file

from harness.probe import backing, kvm, memory, race, storage, system, userfault

STRUCTURES = {
    "struct kvm_userspace_memory_region": kvm.MemoryRegion,
    "struct kvm_regs": kvm.Regs,
    "struct kvm_segment": kvm.Segment,
    "struct kvm_dtable": kvm.Dtable,
    "struct kvm_sregs": kvm.Sregs,
}
NOT_THERE = {"UNKNOWN": 0x2, "DELALLOC": 0x4, "ENCODED": 0x8, "UNWRITTEN": 0x800}
REQUESTS = (
    "GET_API_VERSION",
    "CREATE_VM",
    "CHECK_EXTENSION",
    "GET_VCPU_MMAP_SIZE",
    "GET_SUPPORTED_CPUID",
    "CREATE_VCPU",
    "CREATE_IRQCHIP",
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
    names = {f"MADV_{name.upper()}": number for name, number in backing.ADVICE.items()}
    assert numbers(list(names), ["<asm/mman.h>"], tmp_path) == names


def test_protections_have_the_numbers_of_the_kernel(tmp_path: Path) -> None:
    asked = ["PROT_NONE", "PROT_READ", "PROT_READ | PROT_WRITE"]
    said = numbers(asked, ["<asm/mman.h>"], tmp_path)
    assert list(said.values()) == [memory.PROTECTION[n] for n in ("none", "read", "readwrite")]


def test_system_calls_have_the_numbers_of_the_kernel(tmp_path: Path) -> None:
    names = {f"__NR_{name}": number for name, number in system.NUMBERS.items()}
    assert numbers(list(names), ["<asm/unistd_64.h>"], tmp_path) == names


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (
            "<linux/mman.h>",
            {
                "MAP_SHARED": backing._SHARED,
                "MAP_PRIVATE": backing._PRIVATE,
                "MAP_FIXED": backing._FIXED,
                "MAP_ANONYMOUS": backing._ANONYMOUS,
                "MAP_NORESERVE": backing._NORESERVE,
                "MAP_HUGETLB": backing._HUGETLB,
                "MAP_HUGE_2MB": backing._HUGE_2MB,
                "MS_SYNC": memory._MS_SYNC,
                "MREMAP_MAYMOVE": memory._MREMAP_MAYMOVE,
                "MREMAP_FIXED": memory._MREMAP_FIXED,
                "MREMAP_DONTUNMAP": memory._MREMAP_DONTUNMAP,
            },
        ),
        (
            "<linux/memfd.h>",
            {
                "MFD_CLOEXEC": backing._MFD_CLOEXEC,
                "MFD_HUGETLB": backing._MFD_HUGETLB,
                "MFD_HUGE_2MB": backing._HUGE_2MB,
            },
        ),
        (
            "<linux/falloc.h>",
            {
                "FALLOC_FL_KEEP_SIZE": memory._KEEP_SIZE,
                "FALLOC_FL_PUNCH_HOLE": memory._PUNCH_HOLE,
            },
        ),
        ("<linux/mempolicy.h>", {"MPOL_MF_MOVE": race._MPOL_MF_MOVE}),
    ],
)
def test_flags_have_the_values_of_the_kernel(
    tmp_path: Path, header: str, names: dict[str, int]
) -> None:
    # An enumerator is no macro; the parentheses make it an expression.
    said = numbers([f"({name})" for name in names], [header], tmp_path)
    assert said == {f"({name})": value for name, value in names.items()}


def test_userfaultfd_has_the_numbers_of_the_kernel(tmp_path: Path) -> None:
    features = {
        "UFFD_FEATURE_PAGEFAULT_FLAG_WP": userfault.FEATURES["write-protect"],
        "UFFD_FEATURE_WP_HUGETLBFS_SHMEM": userfault.FEATURES["write-protect-files"],
        "UFFD_FEATURE_WP_UNPOPULATED": userfault.FEATURES["write-protect-unpopulated"],
        "UFFD_FEATURE_WP_ASYNC": userfault.FEATURES["write-protect-async"],
        "UFFD_FEATURE_MOVE": userfault.FEATURES["move"],
    }
    newer = {"UFFDIO_MOVE", "UFFD_FEATURE_WP_UNPOPULATED", "UFFD_FEATURE_WP_ASYNC"}
    assert len(features) == len(userfault.FEATURES)
    names = {
        "UFFD_API": userfault._API_VERSION,
        "UFFDIO_API": userfault._API,
        "UFFDIO_REGISTER": userfault._REGISTER,
        "UFFDIO_UNREGISTER": userfault._UNREGISTER,
        "UFFDIO_MOVE": userfault._MOVE,
        "UFFDIO_WRITEPROTECT": userfault._WRITEPROTECT,
        "UFFDIO_REGISTER_MODE_MISSING": userfault._MODE_MISSING,
        "UFFDIO_REGISTER_MODE_WP": userfault._MODE_WP,
        "UFFDIO_WRITEPROTECT_MODE_WP": int(True),
        "UFFD_EVENT_PAGEFAULT": userfault._EVENT_PAGEFAULT,
        **features,
    }
    said = numbers(list(names), ["<linux/ioctl.h>", "<linux/userfaultfd.h>"], tmp_path)
    assert said == {name: names[name] for name in said}
    newer.add("UFFD_FEATURE_MOVE")
    assert said.keys() >= names.keys() - newer, "those came from v6.4 to v6.8"


def test_the_scan_of_a_pagemap_has_the_numbers_of_the_kernel(tmp_path: Path) -> None:
    headers = ["<linux/ioctl.h>", "<linux/fs.h>"]
    if not numbers(["PAGEMAP_SCAN"], headers, tmp_path):
        pytest.skip("These kernel headers have no PAGEMAP_SCAN, which came with v6.7.")
    names = {
        "PAGEMAP_SCAN": userfault._PAGEMAP_SCAN,
        "PM_SCAN_WP_MATCHING": userfault._SCAN_PROTECTS,
        "PM_SCAN_CHECK_WPASYNC": userfault._SCAN_CHECKS,
        "PAGE_IS_WRITTEN": userfault._IS_WRITTEN,
    }
    order = (
        "size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages",
        "category_inverted", "category_mask", "category_anyof_mask", "return_mask",
    )  # fmt: skip
    places = {f"offsetof(struct pm_scan_arg, {name})": 8 * n for n, name in enumerate(order)}
    sizes = {
        "sizeof(struct pm_scan_arg)": userfault._SCAN.size,
        "sizeof(struct page_region)": userfault._REGION.size,
    }
    expected = {**names, **places, **sizes}
    assert numbers(list(expected), headers, tmp_path) == expected


def test_where_files_are_is_asked_in_the_words_of_the_kernel(tmp_path: Path) -> None:
    expected = {
        "FS_IOC_FIEMAP": storage._FIEMAP,
        "sizeof(struct fiemap)": storage._HEADER.size,
        "offsetof(struct fiemap, fm_mapped_extents)": 20,
        "offsetof(struct fiemap, fm_extent_count)": 24,
        "sizeof(struct fiemap_extent)": storage._EXTENT.size,
        "offsetof(struct fiemap_extent, fe_logical)": 0,
        "offsetof(struct fiemap_extent, fe_physical)": 8,
        "offsetof(struct fiemap_extent, fe_length)": 16,
        "offsetof(struct fiemap_extent, fe_flags)": 40,
        "FIEMAP_EXTENT_LAST": storage._LAST,
    }
    expected |= {f"FIEMAP_EXTENT_{name}": bit for name, bit in NOT_THERE.items()}
    assert sum(NOT_THERE.values()) == storage._NOT_THERE
    headers = ["<linux/ioctl.h>", "<linux/fs.h>", "<linux/fiemap.h>"]
    assert numbers(list(expected), headers, tmp_path) == expected


def test_userfaultfd_speaks_in_the_structures_of_the_kernel(tmp_path: Path) -> None:
    # Each is as long as what is packed for it, and has its words in the order of the packing.
    expected = {
        "sizeof(struct uffdio_api)": struct.calcsize("<QQQ"),
        "sizeof(struct uffdio_register)": struct.calcsize("<QQQQ"),
        "offsetof(struct uffdio_register, mode)": 16,
        "sizeof(struct uffdio_range)": struct.calcsize("<QQ"),
        "sizeof(struct uffdio_writeprotect)": struct.calcsize("<QQQ"),
        "offsetof(struct uffdio_writeprotect, mode)": 16,
        "sizeof(struct uffd_msg)": userfault._MESSAGE_BYTES,
        "offsetof(struct uffd_msg, event)": 0,
        "offsetof(struct uffd_msg, arg.pagefault.address)": 16,
    }
    assert numbers(list(expected), ["<linux/userfaultfd.h>"], tmp_path) == expected


def test_pages_that_userfaultfd_moves_are_said_as_the_kernel_says_it(tmp_path: Path) -> None:
    header = "<linux/userfaultfd.h>"
    if not numbers(["UFFDIO_MOVE"], [header], tmp_path):
        pytest.skip("These kernel headers have no UFFDIO_MOVE, which came with v6.8.")
    order = ("dst", "src", "len", "mode", "move")
    expected = {f"offsetof(struct uffdio_move, {name})": 8 * n for n, name in enumerate(order)}
    expected["sizeof(struct uffdio_move)"] = struct.calcsize("<QQQQq")
    assert numbers(list(expected), [header], tmp_path) == expected


def test_statistics_are_laid_out_as_in_the_kernel(tmp_path: Path) -> None:
    header = ("flags", "name_size", "num_desc", "id_offset", "desc_offset", "data_offset")
    expected = {f"offsetof(struct kvm_stats_header, {name})": 4 * n
                for n, name in enumerate(header)}  # fmt: skip
    places = {"flags": 0, "exponent": 4, "size": 6, "offset": 8, "bucket_size": 12, "name": 16}
    expected |= {f"offsetof(struct kvm_stats_desc, {name})": at for name, at in places.items()}
    assert numbers(list(expected), ["<linux/kvm.h>"], tmp_path) == expected


def test_counters_are_read_by_name_and_histograms_left_out() -> None:
    fd = statistics_file({"exits": [7], "halts": [1, 2, 3], "pages_4k": [(1 << 64) - 1]})
    statistics = kvm.Statistics(fd)
    assert statistics.read() == {"exits": 7, "pages_4k": (1 << 64) - 1}
    statistics.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_counters_are_read_anew_each_time() -> None:
    fd = statistics_file({"exits": [7], "other": [8]})
    statistics = kvm.Statistics(fd)
    assert statistics.fd == fd
    os.pwrite(fd, struct.pack("<Q", 9), os.fstat(fd).st_size - 16)
    assert statistics.read() == {"exits": 9, "other": 8}
    statistics.close()


def test_the_counters_of_a_vm_are_behind_its_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def ioctl_number(fd: int, request: int, argument: int = 0) -> int:
        asked.append((fd, request))
        return statistics_file({"exits": [7]})

    monkeypatch.setattr(kvm, "ioctl_number", ioctl_number)
    statistics = kvm.Statistics.of(33)
    assert asked == [(33, kvm.GET_STATS_FD)]
    assert statistics.read() == {"exits": 7}
    statistics.close()


@pytest.mark.parametrize(
    ("number", "known"), [(errno.ENOTTY, True), (errno.EINVAL, True), (errno.EMFILE, False)]
)
def test_a_kernel_without_counters_has_none(
    monkeypatch: pytest.MonkeyPatch, number: int, known: bool
) -> None:
    def ioctl_number(fd: int, request: int, argument: int = 0) -> int:
        raise OSError(number, "no")

    monkeypatch.setattr(kvm, "ioctl_number", ioctl_number)
    if not known:
        with pytest.raises(OSError, match="no"):
            kvm.Statistics.of(33)
        return
    statistics = kvm.Statistics.of(33)
    assert statistics.fd is None
    assert statistics.read() == {}
    statistics.close()


def test_a_failed_ioctl_says_why() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        kvm.ioctl_number(-1, kvm.RUN)
    assert caught.value.errno == errno.EBADF
    assert not kvm.refused(caught.value)
    assert kvm.refused(OSError(errno.EFAULT, "Bad address"))
