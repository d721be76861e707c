# SPDX-License-Identifier: GPL-2.0-only
"""KVM's count of invalidations, set in the memory of a host that is a dictionary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import OracleUnavailable
from harness.oracle import sequence as module
from harness.oracle.sequence import invalidations_counted, preset_sequence

ADDRESS, PLACE = 0xFFFF_C900_0000_1234, 0x5678


class FakeHost:
    """A host whose memory is looked at and written to; ``happened`` is what was done to it."""

    def __init__(self) -> None:
        self.happened: list[object] = []
        self.stopped = False

    def debugger(self) -> Any:
        return {"init_mm": SimpleNamespace(address_of_=lambda: "the kernel's mm")}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.stopped = True
        yield
        self.stopped = False

    def write_physical(self, address: int, data: bytes) -> None:
        self.happened.append((address, data))


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def guest(host: FakeHost) -> Any:
    return SimpleNamespace(session=SimpleNamespace(host=host), pid=70, vm_fd=9)


def found(host: FakeHost, monkeypatch: pytest.MonkeyPatch, kvm: object) -> None:
    """Have the VM of the guest be this one, and its memory be mapped."""

    def virtual_machine(program: object, pid: int, vm_fd: int) -> object:
        assert host.stopped
        assert (pid, vm_fd) == (70, 9)
        return kvm

    def follow_phys(mm: object, address: object) -> int:
        assert host.stopped
        assert (mm, address) == ("the kernel's mm", ADDRESS)
        return PLACE

    monkeypatch.setattr(module, "virtual_machine", virtual_machine)
    monkeypatch.setattr(module, "follow_phys", follow_phys)


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, b"\0" * 8),
        ((1 << 31) - 15, b"\xf1\xff\xff\x7f\0\0\0\0"),
        ((1 << 64) - 1, b"\xff" * 8),
        # It wraps as the kernel's does.
        ((1 << 64) + 5, b"\x05" + b"\0" * 7),
        (-1, b"\xff" * 8),
    ],
)
def test_the_count_is_written_where_it_is(
    host: FakeHost, guest: Any, monkeypatch: pytest.MonkeyPatch, value: int, data: bytes
) -> None:
    count = SimpleNamespace(address_of_=lambda: ADDRESS)
    found(host, monkeypatch, SimpleNamespace(mmu_invalidate_seq=count))
    preset_sequence(guest, value)
    assert host.happened == [(PLACE, data)]


def test_a_count_of_another_name_cannot_be_set(
    host: FakeHost, guest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(host, monkeypatch, SimpleNamespace(mmu_seq=0))
    with pytest.raises(OracleUnavailable, match=r"none of mmu_invalidate_seq, mmu_notifier_seq"):
        preset_sequence(guest, 1)
    assert host.happened == []
    with pytest.raises(OracleUnavailable, match="none of"):
        invalidations_counted(guest)


@pytest.mark.parametrize("name", ["mmu_invalidate_seq", "mmu_notifier_seq"])
def test_the_count_is_read_as_it_stands(
    host: FakeHost, guest: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found(host, monkeypatch, SimpleNamespace(**{name: 41}))
    assert invalidations_counted(guest) == 41
    assert not host.stopped
    assert host.happened == []
