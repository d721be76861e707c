# SPDX-License-Identifier: GPL-2.0-only
"""From a frozen description of a Linux guest to the command line of its QEMU, without side effects.

That QEMU is Debian's, in the host; paths are paths of the host.
"""

from __future__ import annotations

import dataclasses
from typing import Final

# Without system management mode the guest has one address space, and each page one spte.
_MACHINE = "q35,sata=off,smbus=off,usb=off,vmport=off,smm=off,memory-backend=ram"

_PARAMETERS = (
    "console=ttyS0",
    # Errors and worse reach the console: that is where a guest's panic is read from.
    "loglevel=4",
    # With -no-reboot a panic ends QEMU at once.
    "panic=-1",
    "oops=panic",
    # A guest that memory could be plugged into above 4 GiB would set 64 MiB aside for devices that
    # cannot reach there, of which it has none.
    "swiotlb=noforce",
    # What a boot under two layers of emulation need not wait for.
    "mitigations=off",
    "no_timer_check",
    "tsc=reliable",
    "lpj=10000000",
    "8250.nr_uarts=1",
    "edd=off",
    "random.trust_cpu=on",
    "random.trust_bootloader=on",
    "rcupdate.rcu_expedited=1",
    "cryptomgr.notests",
)

BACKINGS: Final = {
    "anon": "memory-backend-ram",
    "memfd": "memory-backend-memfd,share=on",
    "file": "memory-backend-file,share=on,mem-path={path}",
    "hugetlb": "memory-backend-memfd,share=on,hugetlb=on,hugetlbsize=2M",
}
"""What the guest's memory can be, as QEMU's memory backends."""

WINDOWS: Final = {
    # Without the seals that QEMU puts on such files, so that others may change their size.
    "memfd": "memory-backend-memfd,share=on,seal=off",
    "file": "memory-backend-file,share=on,mem-path={path}",
}
"""What memory that is shared with others can be."""

ELASTIC: Final = "virtio-mem"
"""The name of the device with memory that grows and shrinks."""


@dataclasses.dataclass(frozen=True)
class LinuxGuestSpec:
    """What a Linux guest is made of; sizes are MiB.

    Of its memory a guest needs 70 MiB for its kernel and itself; the rest is for a workload.

    ``workload_mib`` is what its workload verifies without end, with patterns made from ``seed``;
    guests with equal seeds have equal pages. ``merge`` leaves the memory to KSM, ``reporting`` has
    the guest give back what it does not use. ``pluggable_mib`` is how much memory can be plugged in
    later as DIMMs, and ``elastic_mib`` that of a virtio-mem device, which begins with none.
    ``window_mib`` is the size of shared memory of the kind ``window`` that is no RAM of the guest,
    but a PCI device, and ``disk_mib`` that of a disk. A guest that is ``incoming`` does not boot,
    but waits for another's migration, from a guest of the same description.
    """

    memory_mib: int = 128
    workload_mib: int = 48
    seed: int = 1
    vcpus: int = 1
    backing: str = "anon"
    merge: bool = False
    reporting: bool = False
    pluggable_mib: int = 0
    elastic_mib: int = 0
    window_mib: int = 0
    window: str = "memfd"
    disk_mib: int = 0
    incoming: bool = False


@dataclasses.dataclass(frozen=True)
class LinuxGuestPaths:
    """The files of a Linux guest in the host."""

    kernel: str
    initramfs: str
    serial: str
    memory: str
    disk: str
    window: str


def kernel_command_line(spec: LinuxGuestSpec) -> str:
    """The parameters of the guest's kernel, with those that it hands on to the guest's init."""
    ours = (f"mmu_workload_mib={spec.workload_mib}", f"mmu_seed={spec.seed}")
    return " ".join((*_PARAMETERS, *ours))


def argv(spec: LinuxGuestSpec, paths: LinuxGuestPaths, name: str) -> tuple[str, ...]:
    """The whole command line of QEMU, whose standard input and output are its QMP monitor."""
    words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
    words += ["-no-reboot", "-name", name, "-machine", _MACHINE, "-accel", "kvm", "-cpu", "host"]
    # Ready in a tenth of the time that SeaBIOS takes.
    words += ["-bios", "qboot.rom", "-smp", str(spec.vcpus)]
    words += ["-m", _memory(spec), "-object", _backend(spec, paths)]
    words += ["-kernel", paths.kernel, "-initrd", paths.initramfs]
    words += ["-append", kernel_command_line(spec)]
    words += ["-chardev", f"file,id=serial,path={paths.serial},append=on"]
    words += ["-serial", "chardev:serial"]
    words += ["-chardev", "stdio,id=qmp,signal=off", "-mon", "chardev=qmp,mode=control"]
    # The host's kernel chooses a free port of its loopback; only L0 comes in through it.
    words += ["-netdev", "user,id=net,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"]
    words += ["-device", "virtio-net-pci,netdev=net,romfile="]
    reporting = "on" if spec.reporting else "off"
    words += ["-device", f"virtio-balloon-pci,id=balloon,free-page-reporting={reporting}"]
    if spec.elastic_mib:
        words += ["-object", f"memory-backend-ram,id=elastic,size={spec.elastic_mib}M"]
        words += ["-device", f"virtio-mem-pci,id={ELASTIC},memdev=elastic,requested-size=0"]
    if spec.window_mib:
        window = WINDOWS[spec.window].format(path=paths.window)
        words += ["-object", f"{window},id=window,size={spec.window_mib}M"]
        words += ["-device", "ivshmem-plain,memdev=window"]
    if spec.disk_mib:
        # With the host's page cache, which competes with guests for memory as it does in the field.
        words += ["-drive", f"file={paths.disk},if=none,id=disk,format=raw,cache=writeback"]
        words += ["-device", "virtio-blk-pci,drive=disk"]
    if spec.incoming:
        words += ["-incoming", "defer"]
    return tuple(words)


def _memory(spec: LinuxGuestSpec) -> str:
    size = f"{spec.memory_mib}M"
    more = spec.pluggable_mib + spec.elastic_mib
    return f"{size},slots=4,maxmem={spec.memory_mib + more}M" if more else size


def _backend(spec: LinuxGuestSpec, paths: LinuxGuestPaths) -> str:
    kind = BACKINGS[spec.backing].format(path=paths.memory)
    merge = "on" if spec.merge else "off"
    return f"{kind},id=ram,size={spec.memory_mib}M,merge={merge}"
