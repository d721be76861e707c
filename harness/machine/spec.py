# SPDX-License-Identifier: GPL-2.0-only
"""From a frozen description of a host to QEMU's command line, without side effects."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from harness.image import layout
from harness.machine.accelerator import Accelerator
from harness.machine.mmu import Mmu

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_PARAMETERS = (
    "console=ttyS0",
    # From the first line on, so that a kernel that dies early says why.
    "earlyprintk=serial,ttyS0,115200",
    # Warnings and worse reach the console; printing everything costs time under emulation.
    "loglevel=5",
    "root=/dev/vda",
    "rootfstype=ext4",
    "rw",
    f"init={layout.HOST_INIT}",
    # A panic ends QEMU at once (-no-reboot). An oops does not: the log of it must come out, and
    # what a half-dead kernel does next is judged by its first report anyway.
    "panic=-1",
    # Addresses that are the same in each run make two reports of one bug look alike.
    "nokaslr",
    # Keys and connections of this run need no more entropy than QEMU hands over.
    "random.trust_cpu=on",
    "random.trust_bootloader=on",
    # Nothing in a host is worth protecting, and each mitigation slows an emulated CPU.
    "mitigations=off",
    "transparent_hugepage=madvise",
    # QEMU's clock is that of L0; waiting to refine it, or for ports that are not there, is idle.
    "tsc=reliable",
    "no_timer_check",
    "8250.nr_uarts=1",
    "edd=off",
    # Loading a module waits for several grace periods.
    "rcupdate.rcu_expedited=1",
)

_TCG_PARAMETERS = (
    # Calibrating the delay loop of each CPU takes 0.1 s, and on a busy machine measures noise.
    # Delays only matter to devices of flesh and bone; 5,000 BogoMIPS is about right.
    "lpj=10000000",
)


@dataclasses.dataclass(frozen=True)
class HostSpec:
    """What a host is made of; paths are of files on L0 that QEMU may read, sizes are MiB.

    ``root`` and ``modules`` are raw ext4 images, which are never written to; ``data`` is a raw
    image that the host may write to. ``pmem_mib`` is memory that the host has as a persistent
    device, empty at each boot. ``parameters`` are added at the end of the kernel's command line.
    ``cpus`` is how many CPUs processes and guests have; an emulated host has one more.
    """

    kernel: Path
    root: Path
    accelerator: Accelerator
    initrd: Path | None = None
    modules: Path | None = None
    data: Path | None = None
    mmu: Mmu = Mmu.TDP
    memory_mib: int = 2048
    cpus: int = 2
    numa_nodes: int = 2
    swap_mib: int = 1024
    pmem_mib: int = 0
    parameters: tuple[str, ...] = ()
    sysctl: tuple[tuple[str, str], ...] = ()

    @property
    def bystanders(self) -> int:
        """How many of the first CPUs no process may use, and so no guest.

        Each CPU that QEMU emulates writes to a word of the first one's state whenever it restores
        its FPU, and takes from it what the first one noted there meanwhile of its guest: see
        docs/emulation.md.
        """
        return 1 if self.accelerator.name == "tcg" else 0

    @property
    def all_cpus(self) -> int:
        """How many CPUs the machine has."""
        return self.bystanders + self.cpus

    @property
    def cpus_in_use(self) -> str:
        """The CPUs that processes and guests have, as taskset and cpuset write them."""
        return f"{self.bystanders}-{self.all_cpus - 1}"


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """The files of one running host; ``directory`` is private, and short (sockets live there)."""

    directory: Path

    @property
    def qmp(self) -> Path:
        """The QMP socket of the harness."""
        return self.directory / "qmp"

    @property
    def debugger(self) -> Path:
        """The QMP socket of drgn: each takes one client."""
        return self.directory / "dbg"

    @property
    def stub(self) -> Path:
        """The socket of QEMU's GDB stub, once something was to be written to memory."""
        return self.directory / "gdb"

    @property
    def overlay(self) -> Path:
        """What the host writes to its root."""
        return self.directory / "root.qcow2"

    @property
    def seed(self) -> Path:
        """Keys, nonce and settings for the host."""
        return self.directory / "seed.tar"

    @property
    def swap(self) -> Path:
        """The host's swap."""
        return self.directory / "swap"


def kernel_command_line(spec: HostSpec) -> str:
    """The parameters of the kernel; the last of two equal ones counts, so the caller's do."""
    words = [*_PARAMETERS]
    if spec.accelerator.name == "tcg":
        words += [*_TCG_PARAMETERS, f"irqaffinity={spec.cpus_in_use}"]
    words += [*spec.mmu.parameters, *spec.parameters]
    return " ".join(words)


def argv(spec: HostSpec, run: RunPaths, qemu: str = "qemu-system-x86_64") -> tuple[str, ...]:
    """The whole command line of QEMU.

    The serial console is QEMU's standard output. Port 0 in the forwarding lets the kernel of L0
    choose a free port, so that no other program can take it first.
    """
    words = [qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-sandbox", _SANDBOX, "-name", "mmu-harness"]
    words += _processor(spec)
    words += _memory(spec)
    words += ["-kernel", str(spec.kernel.absolute()), "-append", kernel_command_line(spec)]
    if spec.initrd is not None:
        words += ["-initrd", str(spec.initrd.absolute())]
    words += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    for name, path in (("qmp", run.qmp), ("debugger", run.debugger)):
        socket = f"socket,id={name},path={escaped(path)},server=on,wait=off"
        words += ["-chardev", socket, "-mon", f"chardev={name},mode=control"]
    # Tells drgn where the kernel is; the kernel fills it in through fw_cfg.
    words += ["-device", "vmcoreinfo"]
    words += _disks(spec, run)
    words += _pmem(spec)
    words += ["-netdev", "user,id=net,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"]
    # Without its option ROM, which would only offer to boot from the network.
    words += ["-device", "virtio-net-pci,netdev=net,romfile="]
    words += ["-device", "virtio-rng-pci"]
    return tuple(words)


def escaped(path: Path) -> str:
    """A path as a value among QEMU's comma-separated options."""
    return str(path).replace(",", ",,")


def _processor(spec: HostSpec) -> list[str]:
    accelerator = "tcg,thread=multi" if spec.accelerator.name == "tcg" else "kvm"
    # Controllers that nothing is attached to only take time to probe.
    machine = "q35,sata=off,smbus=off,usb=off,vmport=off"
    return [
        *("-machine", machine, "-accel", accelerator, "-cpu", spec.accelerator.cpu),
        # A socket each: the kernel warns about cores of one socket in different NUMA nodes.
        *("-smp", f"cpus={spec.all_cpus},sockets={spec.all_cpus},cores=1,threads=1"),
    ]


def _memory(spec: HostSpec) -> list[str]:
    """The host's memory in equal NUMA nodes, and its CPUs spread over them."""
    most = f",slots=1,maxmem={spec.memory_mib + spec.pmem_mib}M" if spec.pmem_mib else ""
    words = ["-m", f"{spec.memory_mib}M{most}"]
    if spec.numa_nodes < 2:
        return words
    size = spec.memory_mib // spec.numa_nodes
    for node in range(spec.numa_nodes):
        share = spec.memory_mib - size * (spec.numa_nodes - 1) if node == 0 else size
        words += ["-object", f"memory-backend-ram,id=ram{node},size={share}M"]
        words += ["-numa", f"node,nodeid={node},memdev=ram{node}"]
    for cpu in range(spec.all_cpus):
        node = max(cpu - spec.bystanders, 0) * spec.numa_nodes // spec.cpus
        words += ["-numa", f"cpu,node-id={node},socket-id={cpu},core-id=0,thread-id=0"]
    return words


def _pmem(spec: HostSpec) -> list[str]:
    """A persistent memory device. QEMU syncs what is behind it, so that must be a file."""
    if not spec.pmem_mib:
        return []
    return [
        *("-object", f"memory-backend-memfd,id=pmem,size={spec.pmem_mib}M,share=on"),
        *("-device", "virtio-pmem-pci,memdev=pmem"),
    ]


def _disks(spec: HostSpec, run: RunPaths) -> list[str]:
    words = _disk(layout.ROOT_SERIAL, run.overlay, "qcow2", writable=True)
    if spec.modules is not None:
        words += _disk(layout.MODULES_SERIAL, spec.modules, "raw", writable=False)
    if spec.data is not None:
        words += _disk(layout.DATA_SERIAL, spec.data, "raw", writable=True)
    words += _disk(layout.SEED_SERIAL, run.seed, "raw", writable=False)
    if spec.swap_mib > 0:
        words += _disk(layout.SWAP_SERIAL, run.swap, "raw", writable=True)
    return words


def _disk(serial: str, path: Path, driver: str, *, writable: bool) -> list[str]:
    """One virtio disk. In JSON no path can be taken for anything else."""
    block = {
        "driver": driver,
        "node-name": serial,
        "read-only": not writable,
        # What a host writes need not survive it, so nothing waits for L0's disk.
        "cache": {"no-flush": True},
        "file": {
            "driver": "file",
            "filename": str(path.absolute()),
            "cache": {"no-flush": True},
        },
    }
    return [
        *("-blockdev", json.dumps(block)),
        *("-device", f"virtio-blk-pci,drive={serial},serial={serial}"),
    ]
