# SPDX-License-Identifier: GPL-2.0-only
"""What the probe and the module with secondary MMUs agree on, as a C compiler sees it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
from c_program import numbers

from harness import secondary_mmu
from harness.guest.user import Callback, What
from harness.probe import device
from harness.probe.device import Access, Attach, Device, Record, Refused, State

HEADER = Path(secondary_mmu.__file__).with_name("notifier_user.h")

STRUCTURES = {
    "nu_attach": Attach,
    "nu_access": Access,
    "nu_record": Record,
    "nu_state": State,
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Numbers of the header."""
    wanted = [f"NU_{name}" for name in ("ATTACH", "DETACH", "ACCESS", "STATE", "STALL", "LET_GO")]
    wanted += [f"NU_{name.upper()}" for name in (*device.KINDS, *device.FLAGS)]
    wanted += [f"NU_{what.name}" for what in What]
    wanted += ["NU_BLOCKABLE", "NU_REFUSED", "NU_LATE"]
    for name, structure in STRUCTURES.items():
        wanted.append(f"sizeof(struct {name})")
        wanted += [f"offsetof(struct {name}, {field[0]})" for field in structure._fields_]
    return numbers(wanted, [f'"{HEADER}"'], tmp_path_factory.mktemp("abi"))


@pytest.mark.parametrize("name", ["ATTACH", "DETACH", "ACCESS", "STATE", "STALL", "LET_GO"])
def test_commands_have_their_numbers(told: dict[str, int], name: str) -> None:
    assert getattr(device, name) == told[f"NU_{name}"]


def test_kinds_flags_and_callbacks_have_theirs(told: dict[str, int]) -> None:
    for table in (device.KINDS, device.FLAGS):
        for name, value in table.items():
            assert value == told[f"NU_{name.upper()}"]
    for what in What:
        assert what == told[f"NU_{what.name}"]
    for name in ("BLOCKABLE", "REFUSED", "LATE"):
        fields = [1, 0, 0, What.START, 0, told[f"NU_{name}"], 1]
        callback = Callback.of(fields)
        bits = {bit: getattr(callback, bit) for bit in ("blockable", "refused", "late")}
        assert [bit for bit, on in bits.items() if on] == [name.lower()]


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_are_laid_out_alike(told: dict[str, int], name: str) -> None:
    structure = STRUCTURES[name]
    assert ctypes.sizeof(structure) == told[f"sizeof(struct {name})"]
    for field in structure._fields_:
        offset = getattr(structure, field[0]).offset
        assert offset == told[f"offsetof(struct {name}, {field[0]})"]


def test_records_are_read_until_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "records"
    one = Record(1, 0x1000, 0x2000, 1, 0, 1, 42)
    two = Record(2, 0x1000, 0x2000, 2, 0, 1, 42)
    path.write_bytes(bytes(one) + bytes(two))
    ours = Device(os.open(path, os.O_RDONLY))
    assert ours.records() == [[1, 0x1000, 0x2000, 1, 0, 1, 42], [2, 0x1000, 0x2000, 2, 0, 1, 42]]
    assert ours.records() == []
    ours.close()


def test_an_access_that_is_refused_says_after_how_many_pages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "device").touch()
    ours = Device(os.open(tmp_path / "device", os.O_RDWR))

    def refuse(command: int, argument: Access) -> None:
        assert command == device.ACCESS
        assert (argument.address, argument.count, argument.word, argument.write) == (4096, 3, 5, 1)
        words = (ctypes.c_uint64 * 3).from_address(argument.words)
        assert list(words) == [9, 9, 9]
        argument.done = 2
        raise PermissionError(14, "Bad address")

    monkeypatch.setattr(ours, "_control", refuse)
    with pytest.raises(Refused) as caught:
        ours.store(4096, 3, 5, 9)
    assert (caught.value.errno, caught.value.done) == (14, 2)
    ours.close()


def test_the_words_that_were_read_are_returned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "device").touch()
    ours = Device(os.open(tmp_path / "device", os.O_RDWR))

    def fill(command: int, argument: Access) -> None:
        assert argument.write == 0
        words = (ctypes.c_uint64 * argument.count).from_address(argument.words)
        words[:] = [7, 8]

    monkeypatch.setattr(ours, "_control", fill)
    assert ours.load(0, 2, 0) == [7, 8]
    ours.close()
