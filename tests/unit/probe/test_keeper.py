# SPDX-License-Identifier: GPL-2.0-only
"""The process that keeps a VM: it lives as long as its parent, and no longer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import in_child

from harness.probe import keeper, kvm
from harness.probe.system import checked, libc

SECONDS = 10.0
_PR_SET_CHILD_SUBREAPER = 36


def reached(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


def sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def made(log: Path) -> Callable[..., int]:
    """A KVM that hands out descriptors and writes down what it was asked for."""

    def ioctl_number(fd: int, request: int, argument: int = 0) -> int:
        with log.open("a") as file:
            file.write(f"{request:#x} ")
        return os.open(os.devnull, os.O_RDONLY)

    return ioctl_number


def test_it_has_vms_with_a_vcpu_each_and_dies_with_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "asked"
    monkeypatch.setattr(keeper, "_DEVICE", os.devnull)
    monkeypatch.setattr(kvm, "ioctl_number", made(log))
    requests = (kvm.CREATE_VM, kvm.CREATE_VCPU, kvm.CREATE_VM, kvm.CREATE_IRQCHIP, kvm.CREATE_VCPU)
    asked = "".join(f"{request:#x} " for request in requests)

    def parent() -> int:
        pid = keeper.keep_a_vm()
        assert reached(lambda: log.exists() and log.read_text() == asked and sleeps(pid))
        return pid

    checked(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1))
    try:
        pid = in_child(parent)
        _, status = os.waitpid(pid, 0)
    finally:
        checked(libc.prctl(_PR_SET_CHILD_SUBREAPER, 0))
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_a_host_without_kvm_goes_on_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> int:
        raise OSError(19, "No such device")

    monkeypatch.setattr(kvm, "ioctl_number", none)
    pid = keeper.keep_a_vm()
    assert os.waitpid(pid, 0)[1] == 0
