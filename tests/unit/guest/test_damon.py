# SPDX-License-Identifier: GPL-2.0-only
"""DAMON as a tree of files, which come about as numbers of them are written."""

from __future__ import annotations

import errno
import os
import re
from typing import Any

import pytest
from fake_session import Request, session_with

from harness.errors import OracleUnavailable
from harness.guest import damon as module
from harness.guest.damon import PHYSICAL, VIRTUAL, Region, damon
from harness.guest.probe import ProbeGuest

FACTS = {
    "pid": 70, "vm_fd": 9, "statistics_fd": 10, "hva": 0x1000, "gpa": 1 << 30,
    "pages": 8, "vcpus": 1, "path": "",
}  # fmt: skip
ADMIN = "/sys/kernel/mm/damon/admin/kdamonds"
TRIED = f"{ADMIN}/0/contexts/0/schemes/0/tried_regions"


class Sysfs:
    """What DAMON was told, and the regions that it tells."""

    def __init__(
        self, operations: str = "vaddr fvaddr paddr", *, lacks: str = "", watcher: bool = False
    ) -> None:
        self._watcher = watcher
        self.told: dict[str, str] = {}
        self.log: list[tuple[str, str]] = []
        self.regions: list[tuple[int, int, int]] = []
        self._operations = operations
        self._lacks = lacks

    def __call__(self, request: Request) -> Any:
        if request["op"] == "all":
            return {"ok": [self(each) for each in request["requests"]]}
        path = request["path"]
        if request["op"] == "exists":
            return {"ok": self.exists(path)}
        if request["op"] == "read":
            return {"ok": self.read(path)}
        if not self.exists(path):
            return {"error": {"kind": "OSError", "errno": errno.ENOENT, "text": os.strerror(2)}}
        self.told[path] = request["text"]
        self.log.append((path.removeprefix(f"{ADMIN}/"), request["text"]))
        return {"ok": None}

    def exists(self, path: str) -> bool:
        if self._lacks and self._lacks in path:
            return False
        if path == module._STATISTICS:
            return self._watcher
        if found := re.fullmatch(rf"{TRIED}/(\d+)", path):
            return int(found[1]) < len(self.regions)
        # A directory with a number is there if that many were asked for.
        for head in re.finditer(r"/(\w+)/(\d+)(?=/)", path):
            number = self.told.get(f"{path[: head.start()]}/{head[1]}/nr_{head[1]}", "0")
            if head[1] != "tried_regions" and int(number) <= int(head[2]):
                return False
        return True

    def read(self, path: str) -> str:
        if path == module._STATISTICS:
            return "Y\n"
        if path.endswith("avail_operations"):
            return "\n".join(self._operations.split()) + "\n"
        number, name = path.removeprefix(f"{TRIED}/").split("/")
        return f"{self.regions[int(number)][('start', 'end', 'nr_accesses').index(name)]}\n"


def guest_on(sysfs: Sysfs) -> ProbeGuest:
    return ProbeGuest(session_with(sysfs)[0], "guest1", FACTS, "")


def test_damon_samples_what_it_was_told_and_is_put_away() -> None:
    sysfs = Sysfs()
    with damon(guest_on(sysfs), VIRTUAL, [(0x1000, 0x5000), (0x5000, 0x9000)]):
        said = {path.removeprefix(f"{ADMIN}/0/contexts/0/"): text
                for path, text in sysfs.told.items()}  # fmt: skip
        assert said["operations"] == "fvaddr"
        assert said["targets/0/pid_target"] == "70"
        edges = [f"targets/0/regions/{n}/{edge}" for n in (0, 1) for edge in ("start", "end")]
        assert [int(said[name]) for name in edges] == [0x1000, 0x5000, 0x5000, 0x9000]
        assert sysfs.log[-1] == ("0/state", "on")
    assert sysfs.log[-2:] == [("0/state", "off"), ("nr_kdamonds", "0")]


def test_the_kernels_own_watcher_makes_room_for_as_long() -> None:
    sysfs = Sysfs(watcher=True)
    with damon(guest_on(sysfs), VIRTUAL, [(0, 1)]):
        assert sysfs.log[0] == (module._STATISTICS, "N")
    assert [entry[0] for entry in sysfs.log[-3:]] == ["0/state", "nr_kdamonds", module._STATISTICS]
    assert sysfs.log[-1][1].strip() == "Y"


def test_physical_regions_are_of_no_process() -> None:
    sysfs = Sysfs()
    with damon(guest_on(sysfs), PHYSICAL, [(0x200000, 0x400000)]):
        assert not [path for path in sysfs.told if path.endswith("pid_target")]


def test_a_window_is_asked_for_and_read() -> None:
    sysfs = Sysfs()
    with damon(guest_on(sysfs), VIRTUAL, [(0x1000, 0x9000)]) as watched:
        sysfs.regions = [(0x1000, 0x3000, 17), (0x3000, 0x9000, 0)]
        assert watched.window() == [Region(0x1000, 0x3000, 17), Region(0x3000, 0x9000, 0)]
        assert sysfs.log[-1] == ("0/state", "update_schemes_tried_regions")
        sysfs.regions = [(0, 1, 2)] * (module._MOST_REGIONS + 5)
        assert len(watched.window()) == module._MOST_REGIONS


@pytest.mark.parametrize(
    ("sysfs", "said"),
    [
        (Sysfs(lacks="kdamonds"), "no DAMON"),
        (Sysfs("vaddr paddr"), "does not do fvaddr"),
        (Sysfs(lacks="tried_regions"), "does not tell"),
    ],
)
def test_a_kernel_that_cannot_is_said_so_and_nothing_is_left(sysfs: Sysfs, said: str) -> None:
    with pytest.raises(OracleUnavailable, match=said), damon(guest_on(sysfs), VIRTUAL, [(0, 1)]):
        pytest.fail("it was not said")
    assert not sysfs.log or sysfs.log[-1] == ("nr_kdamonds", "0")
