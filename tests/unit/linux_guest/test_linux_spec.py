# SPDX-License-Identifier: GPL-2.0-only
"""The command line of a Linux guest's QEMU says what the description says."""

from __future__ import annotations

import dataclasses

import pytest

from harness.linux_guest.spec import (
    BACKINGS,
    LinuxGuestPaths,
    LinuxGuestSpec,
    argv,
    kernel_command_line,
)

PATHS = LinuxGuestPaths("/k", "/i", "/s", "/m", "/d", "/w")


def values(words: tuple[str, ...], option: str) -> list[str]:
    """What follows each mention of an option."""
    return [words[index + 1] for index, word in enumerate(words) if word == option]


def test_a_plain_guest_has_what_is_asked_and_no_more() -> None:
    words = argv(LinuxGuestSpec(memory_mib=80, vcpus=2), PATHS, "linux3")
    assert values(words, "-m") == ["80M"]
    assert values(words, "-smp") == ["2"]
    assert values(words, "-name") == ["linux3"]
    assert values(words, "-accel") == ["kvm"]
    assert values(words, "-kernel") == ["/k"]
    assert values(words, "-initrd") == ["/i"]
    assert "path=/s" in values(words, "-chardev")[0]
    assert values(words, "-object") == ["memory-backend-ram,id=ram,size=80M,merge=off"]
    assert "-incoming" not in words
    assert not [word for word in words if "ivshmem" in word or "virtio-blk" in word]


def test_the_guest_may_not_reach_anything_outside() -> None:
    (network,) = values(argv(LinuxGuestSpec(), PATHS, "x"), "-netdev")
    assert "restrict=on" in network
    assert "hostfwd=tcp:127.0.0.1:0-:22" in network


@pytest.mark.parametrize("backing", BACKINGS)
def test_its_memory_is_of_the_kind_asked_for(backing: str) -> None:
    words = argv(LinuxGuestSpec(backing=backing, merge=True), PATHS, "x")
    (memory,) = values(words, "-object")
    assert memory.startswith("memory-backend-")
    assert ("share=on" in memory) == (backing != "anon")
    assert ("hugetlb=on" in memory) == (backing == "hugetlb")
    assert ("mem-path=/m" in memory) == (backing == "file")
    assert memory.endswith("merge=on")


def test_options_bring_their_devices() -> None:
    spec = LinuxGuestSpec(
        pluggable_mib=128, window_mib=8, disk_mib=16, reporting=True, incoming=True
    )
    words = argv(spec, PATHS, "x")
    assert values(words, "-m") == ["128M,slots=4,maxmem=256M"]
    assert "memory-backend-memfd,share=on,seal=off,id=window,size=8M" in values(words, "-object")
    assert "ivshmem-plain,memdev=window" in values(words, "-device")
    assert any("free-page-reporting=on" in word for word in values(words, "-device"))
    assert values(words, "-drive")[0].startswith("file=/d,")
    assert values(words, "-incoming") == ["defer"]


def test_memory_that_is_shared_may_be_a_file() -> None:
    words = argv(LinuxGuestSpec(window_mib=8, window="file"), PATHS, "x")
    shared = "memory-backend-file,share=on,mem-path=/w,id=window,size=8M"
    assert shared in values(words, "-object")


def test_memory_that_grows_begins_with_none() -> None:
    words = argv(LinuxGuestSpec(elastic_mib=256), PATHS, "x")
    assert values(words, "-m") == ["128M,slots=4,maxmem=384M"]
    assert "memory-backend-ram,id=elastic,size=256M" in values(words, "-object")
    (device,) = [word for word in values(words, "-device") if "virtio-mem" in word]
    assert "memdev=elastic" in device
    assert "requested-size=0" in device


def test_the_guests_init_is_told_its_workload() -> None:
    words = kernel_command_line(LinuxGuestSpec(workload_mib=33, seed=9)).split()
    assert "mmu_workload_mib=33" in words
    assert "mmu_seed=9" in words


def test_a_guest_and_the_target_of_its_migration_differ_in_nothing_else() -> None:
    spec = LinuxGuestSpec(backing="memfd", merge=True)
    there = argv(dataclasses.replace(spec, incoming=True), PATHS, "x")
    assert there == (*argv(spec, PATHS, "x"), "-incoming", "defer")
