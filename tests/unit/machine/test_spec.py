# SPDX-License-Identifier: GPL-2.0-only
"""The command line says what the description says, whatever the paths are called."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from harness.machine.accelerator import Accelerator
from harness.machine.mmu import Mmu
from harness.machine.spec import HostSpec, RunPaths, argv, escaped, kernel_command_line

TCG = Accelerator("tcg", "because")
KVM = Accelerator("kvm", "because")
SPEC = HostSpec(kernel=Path("/k/bzImage"), root=Path("/i/root.ext4"), accelerator=TCG)
RUN = RunPaths(Path("/run/h0"))


def values(words: tuple[str, ...], option: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == option]


def disks(words: tuple[str, ...]) -> dict[str, dict[str, object]]:
    blocks = [json.loads(text) for text in values(words, "-blockdev")]
    return {block["node-name"]: block for block in blocks}


def filename(words: tuple[str, ...], name: str) -> str:
    file = disks(words)[name]["file"]
    assert isinstance(file, dict)
    return str(file["filename"])


def test_the_same_description_gives_the_same_command_line() -> None:
    assert argv(SPEC, RUN) == argv(dataclasses.replace(SPEC), RunPaths(Path("/run/h0")))


def test_nothing_comes_from_defaults_and_the_sandbox_is_on() -> None:
    words = argv(SPEC, RUN)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert values(words, "-display") == ["none"]
    assert values(words, "-sandbox")[0].split(",")[0] == "on"
    assert "spawn=deny" in values(words, "-sandbox")[0]


@pytest.mark.parametrize(
    ("accelerator", "accel", "cpu"), [(TCG, "tcg,thread=multi", "max"), (KVM, "kvm", "host")]
)
def test_one_accelerator_is_named(accelerator: Accelerator, accel: str, cpu: str) -> None:
    words = argv(dataclasses.replace(SPEC, accelerator=accelerator), RUN)
    assert values(words, "-accel") == [accel]
    assert values(words, "-cpu") == [cpu]
    assert not any("accel=" in word for word in words)


def test_only_overlay_and_swap_can_be_written() -> None:
    words = argv(dataclasses.replace(SPEC, modules=Path("/m/modules.ext4")), RUN)
    assert {name: block["read-only"] for name, block in disks(words).items()} == {
        "root": False,
        "modules": True,
        "seed": True,
        "swap": False,
    }
    assert filename(words, "root") == "/run/h0/root.qcow2"
    assert "/i/root.ext4" not in " ".join(words)


def test_the_root_is_the_first_disk_because_the_kernel_is_told_vda() -> None:
    devices = [word for word in values(argv(SPEC, RUN), "-device") if "virtio-blk" in word]
    assert "serial=root" in devices[0]
    assert "root=/dev/vda" in kernel_command_line(SPEC).split()


def test_no_swap_no_disk() -> None:
    assert "swap" not in disks(argv(dataclasses.replace(SPEC, swap_mib=0), RUN))


def test_network_leads_nowhere_but_to_ssh_on_loopback() -> None:
    (network,) = values(argv(SPEC, RUN), "-netdev")
    assert "restrict=on" in network
    assert "hostfwd=tcp:127.0.0.1:0-:22" in network


def test_two_qmp_sockets_one_client_each() -> None:
    words = argv(SPEC, RUN)
    sockets = [word for word in values(words, "-chardev") if word.startswith("socket")]
    assert [word.split(",")[2] for word in sockets] == ["path=/run/h0/qmp", "path=/run/h0/dbg"]
    assert len(values(words, "-mon")) == 2


@pytest.mark.parametrize(
    "name", ["with space", "with,comma", "-dash", "quote'\"", "json:{}", "a:b", "new\nline", "ü"]
)
def test_hostile_paths_arrive_unharmed(name: str) -> None:
    base = Path("/base") / name
    spec = HostSpec(
        kernel=base / "bzImage",
        root=base / "root",
        accelerator=TCG,
        initrd=base / "initrd",
        modules=base / "modules",
    )
    words = argv(spec, RunPaths(base))
    assert values(words, "-kernel") == [str(base / "bzImage")]
    assert values(words, "-initrd") == [str(base / "initrd")]
    assert filename(words, "modules") == str(base / "modules")
    assert filename(words, "seed") == str(base / "seed.tar")
    socket = values(words, "-chardev")[1]
    assert socket.replace(",,", "\0").split(",")[2].replace("\0", ",") == f"path={base}/qmp"


def test_relative_path_with_a_leading_dash_is_no_option() -> None:
    words = argv(dataclasses.replace(SPEC, kernel=Path("-enable-kvm")), RUN)
    assert not values(words, "-kernel")[0].startswith("-")


def test_comma_is_escaped() -> None:
    assert escaped(Path("/a,b,,c")) == "/a,,b,,,,c"


def test_memory_and_cpus_are_spread_over_nodes() -> None:
    spec = dataclasses.replace(SPEC, accelerator=KVM, memory_mib=1001, cpus=4, numa_nodes=2)
    words = argv(spec, RUN)
    sizes = [word.rpartition("size=")[2] for word in values(words, "-object")]
    assert sizes == ["501M", "500M"]
    nodes = [word for word in values(words, "-numa") if word.startswith("cpu")]
    assert [word.split(",")[1] for word in nodes] == [f"node-id={node}" for node in (0, 0, 1, 1)]
    assert values(argv(dataclasses.replace(SPEC, numa_nodes=1), RUN), "-numa") == []


def test_nothing_runs_on_the_first_of_emulated_cpus() -> None:
    emulated = dataclasses.replace(SPEC, accelerator=TCG, cpus=2, numa_nodes=2)
    assert emulated.cpus_in_use == "1-2"
    words = argv(emulated, RUN)
    assert "cpus=3" in values(words, "-smp")[0].split(",")
    nodes = [word for word in values(words, "-numa") if word.startswith("cpu")]
    assert [word.split(",")[1] for word in nodes] == [f"node-id={node}" for node in (0, 0, 1)]
    real = dataclasses.replace(emulated, accelerator=KVM)
    assert real.cpus_in_use == "0-1"
    assert "cpus=2" in values(argv(real, RUN), "-smp")[0].split(",")


@pytest.mark.parametrize("mmu", list(Mmu))
def test_mmu_mode_reaches_the_kernel(mmu: Mmu) -> None:
    line = kernel_command_line(dataclasses.replace(SPEC, mmu=mmu)).split()
    assert set(mmu.parameters) <= set(line)


def test_parameters_of_the_caller_come_last() -> None:
    line = kernel_command_line(dataclasses.replace(SPEC, parameters=("loglevel=7", "a=b")))
    assert line.endswith("loglevel=7 a=b")


def test_delay_loop_is_preset_only_under_emulation() -> None:
    assert "lpj=" in kernel_command_line(SPEC)
    assert "lpj=" not in kernel_command_line(dataclasses.replace(SPEC, accelerator=KVM))


def test_persistent_memory_comes_on_top_of_the_other() -> None:
    words = argv(dataclasses.replace(SPEC, memory_mib=1000, pmem_mib=64), RUN)
    assert values(words, "-m") == ["1000M,slots=1,maxmem=1064M"]
    (pmem,) = (word for word in values(words, "-object") if "id=pmem" in word)
    # A kind of memory that has a file: QEMU answers a flush by syncing that.
    assert pmem == "memory-backend-memfd,id=pmem,size=64M,share=on"
    assert "virtio-pmem-pci,memdev=pmem" in values(words, "-device")
    assert values(argv(SPEC, RUN), "-m") == [f"{SPEC.memory_mib}M"]
    assert "pmem" not in " ".join(argv(SPEC, RUN))
