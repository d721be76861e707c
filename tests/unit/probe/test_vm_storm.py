# SPDX-License-Identifier: GPL-2.0-only
"""VMs that are created by the dozen, on a fake KVM and, where there is one, on this machine's."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import in_child

from harness.probe import kvm, registration

KNOB = "/proc/thread-self/fail-nth"


class FakeSystem:
    """Stands for the module ``os``: /dev/kvm, and the knob that makes allocations fail.

    ``allocations`` are those that creating a VM makes, each with what comes of its failure: an
    errno, or 0 where KVM can do without.
    """

    def __init__(self) -> None:
        self.allocations: list[int] = []
        self.refusal = 0
        self.open_files: set[int] = set()
        self.most_open = 0
        self.created: list[int] = []
        self.forked = 0
        self.reaped: list[int] = []
        self.failed: list[int] = []
        self._fail_nth = 0
        self._next = 100
        self._knobs: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _opened(self) -> int:
        self._next += 1
        self.open_files.add(self._next)
        self.most_open = max(self.most_open, len(self.open_files))
        return self._next

    def open(self, path: str, flags: int) -> int:
        assert flags == os.O_RDWR | os.O_CLOEXEC
        assert path in (KNOB, "/dev/kvm")
        fd = self._opened()
        if path == KNOB:
            self._knobs.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self.open_files.remove(fd)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        assert fd in self._knobs
        assert offset == 0
        self._fail_nth = int(data)
        return len(data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        assert fd in self._knobs
        return f"{self._fail_nth}\n".encode()[:size]

    def create_vm(self, fd: int, request: int, argument: int = 0) -> int:
        assert fd in self.open_files
        assert request == kvm.CREATE_VM
        if argument:
            raise OSError(errno.EINVAL, "Invalid argument")
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self._allocate()
        machine = self._opened()
        self.created.append(machine)
        return machine

    def fork(self) -> int:
        self._allocate()
        self.forked += 1
        return 1000 + self.forked

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        assert options == 0
        self.reaped.append(pid)
        return pid, 0

    def _allocate(self) -> None:
        for number, outcome in enumerate(self.allocations, 1):
            if self._fail_nth:
                self._fail_nth -= 1
                if not self._fail_nth:
                    self.failed.append(number)
                    if outcome:
                        raise OSError(outcome, os.strerror(outcome))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    fake = FakeSystem()
    monkeypatch.setattr(registration, "os", fake)
    monkeypatch.setattr(kvm, "ioctl_number", fake.create_vm)
    return fake


def test_a_storm_has_all_vms_of_a_round_at_once(fake: FakeSystem) -> None:
    assert registration.storm(count=5, rounds=3) == 15
    assert len(fake.created) == 15
    assert fake.most_open == 1 + 5
    assert not fake.open_files


def test_a_storm_in_which_a_vm_is_refused_is_an_error(fake: FakeSystem) -> None:
    fake.refusal = errno.ENOMEM
    with pytest.raises(OSError, match="Cannot allocate memory"):
        registration.storm(count=5, rounds=3)
    assert not fake.open_files


def test_a_machine_type_that_there_is_not_is_refused_each_time(fake: FakeSystem) -> None:
    assert registration.refused(7) == {"EINVAL": 7}
    assert fake.created == []
    assert not fake.open_files


@pytest.mark.parametrize(
    ("allocations", "ends"),
    [
        ([errno.ENOMEM], {"ENOMEM": 1}),
        ([errno.ENOMEM, 0, errno.ENOMEM], {"ENOMEM": 2, "ok": 1}),
        ([errno.ENOMEM, errno.EFAULT], {"ENOMEM": 1, "EFAULT": 1}),
        ([0] * 12, {"ok": 12}),
        ([999], {"999": 1}),
        ([], {}),
    ],
)
def test_each_allocation_fails_once(
    fake: FakeSystem, allocations: list[int], ends: dict[str, int]
) -> None:
    fake.allocations = allocations
    assert registration.without_memory() == ends
    assert not fake.open_files, "what was created is closed"
    assert fake._fail_nth == 0, "nothing fails afterwards"


def test_each_allocation_may_fail_several_times(fake: FakeSystem) -> None:
    fake.allocations = [errno.ENOMEM, 0]

    def attempt() -> str:
        return registration.ended(fake._allocate)

    ends = registration.with_each_allocation_failing(attempt, times=3)
    assert ends == {"ENOMEM": 3, "ok": 3}
    assert fake.failed == [1, 1, 1, 2, 2, 2]
    assert not fake.open_files


def test_each_third_allocation_of_a_fork_fails_once(fake: FakeSystem) -> None:
    fake.allocations = [errno.ENOMEM, 0, 0, 0, 0, 0, errno.EAGAIN]
    assert registration.forks_without_memory() == {"ENOMEM": 1, "ok": 1, "EAGAIN": 1}
    assert fake.failed == [1, 4, 7]
    assert fake.reaped == [1001, 1002], "each child that there was"
    assert fake._fail_nth == 0
    assert not fake.open_files


def test_a_vm_that_never_goes_well_is_an_error(
    fake: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "_MOST_FAULTS", 20)
    fake.allocations = [errno.ENOMEM] * 50
    with pytest.raises(RuntimeError, match="it has not gone well after 20 failures"):
        registration.without_memory()
    assert not fake.open_files


def test_a_signal_comes_at_another_moment_of_each_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGALRM)
    arrived: list[int] = []
    moments: list[float] = []
    undone: list[str] = []

    def make() -> str:
        # How long it takes; without a signal all of it passes.
        began = time.monotonic()
        arrived.clear()
        while (passed := time.monotonic() - began) < 0.02:
            if arrived:
                moments.append(passed)
                raise InterruptedError(errno.EINTR, "Interrupted")
        return "made"

    install = signal.signal
    monkeypatch.setattr(
        signal,
        "signal",
        lambda number, _: install(number, lambda *_: arrived.append(number)),
    )
    try:
        ends = registration.whenever_a_signal_comes(make, undone.append, 20)
    finally:
        install(signal.SIGALRM, before)
    # Three without a signal, and those whose signal came when they were over.
    assert ends["ok"] >= 3
    assert ends["EINTR"] + ends["ok"] == 23
    assert ends["EINTR"] >= 10
    assert undone == ["made"] * ends["ok"]
    assert max(moments) > 2 * min(moments)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_vms_are_created_under_signals(fake: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGALRM)
    ends = [0, 0, 0, errno.EINTR, 0]

    def create(fd: int, request: int, argument: int = 0) -> int:
        if number := ends.pop(0):
            raise OSError(number, os.strerror(number))
        return fake._opened()

    monkeypatch.setattr(kvm, "ioctl_number", create)
    try:
        assert registration.under_signals(2) == {"ok": 4, "EINTR": 1}
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not fake.open_files


# The same with a real KVM.


@pytest.fixture
def real() -> None:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"/dev/kvm cannot be opened here: {error.strerror}.")


def _descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")  # noqa: PTH208


def closing(run: Callable[[], Any]) -> Any:
    """What a function returns in a forked child, which has no more files open afterwards."""

    def counted() -> Any:
        before = _descriptors()
        answer = run()
        assert _descriptors() == before
        return answer

    return in_child(counted)


@pytest.mark.usefixtures("real")
def test_real_vms_come_and_go() -> None:
    assert closing(lambda: registration.storm(count=3, rounds=2)) == 6


@pytest.mark.usefixtures("real")
def test_a_real_kvm_refuses_the_machine_type() -> None:
    assert closing(lambda: registration.refused(4)) == {"EINVAL": 4}


@pytest.mark.usefixtures("real")
def test_a_real_kvm_creates_a_vm_or_says_that_it_was_interrupted() -> None:
    ends = closing(lambda: registration.under_signals(10))
    assert ends.keys() <= {"ok", "EINTR"}
    assert sum(ends.values()) == 13


@pytest.mark.usefixtures("real")
def test_a_real_kvm_does_without_memory() -> None:
    if not Path(KNOB).exists():
        pytest.skip("This kernel has no CONFIG_FAULT_INJECTION with fail-nth.")
    ends = closing(registration.without_memory)
    assert ends.keys() <= {"ok", "ENOMEM"}
    assert ends["ENOMEM"] >= 1
