# SPDX-License-Identifier: GPL-2.0-only
"""A whole VMM with a real guest, where this machine's KVM runs one; no nesting is needed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.guest.observation import unpack
from harness.guest.zipapp import _compile_payload
from harness.probe import kvm, layout, race, views, vmm
from harness.probe.layout import OP_CHECK, OP_FILL, OP_HAMMER, OP_READ, OP_WRITE, pattern
from harness.probe.vm import VirtualMachine

PAGES = 256
STEP = 64
SEED = 7
SECONDS = 10.0
WORDS_A_PAGE = len(range(layout.FIRST_PATTERN_WORD, layout.PAGE_WORDS, STEP))


class Vmm:
    """The test's end of the connection to a VMM."""

    def __init__(self, pid: int, connection: socket.socket, cgroup: Path) -> None:
        self.pid = pid
        self.cgroup = cgroup
        self._connection = connection
        self._stream = connection.makefile("rwb")

    def hang_up(self) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)

    def answer(self, op: str, **arguments: Any) -> dict[str, Any]:
        self._stream.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
        self._stream.flush()
        reply: dict[str, Any] = json.loads(self._stream.readline())
        return reply

    def ask(self, op: str, **arguments: Any) -> Any:
        reply = self.answer(op, **arguments)
        assert "ok" in reply, reply
        return reply["ok"]

    def order(
        self, op: int, first: int = 0, pages: int = PAGES, vcpu: int = 0, **more: int
    ) -> None:
        orders = {"op": op, "first": first, "pages": pages, "step": STEP, "seed": SEED, **more}
        self.ask("order", vcpu=vcpu, orders=orders)

    def report(self, vcpu: int = 0) -> dict[str, Any]:
        found = self.ask("report", vcpu=vcpu, seconds=SECONDS)
        assert found is not None, self.ask("progress", vcpu=vcpu)
        return dict(found)

    def do(self, op: int, first: int = 0, pages: int = PAGES, vcpu: int = 0, **more: int) -> Any:
        self.order(op, first, pages, vcpu, **more)
        return self.report(vcpu)

    def done(self, op: int, first: int = 0, pages: int = PAGES, **more: int) -> dict[str, Any]:
        report: dict[str, Any] = self.do(op, first, pages, **more)
        assert (report["end"], report["done"]) == ("done", pages), report
        return report

    def read(self, first: int, pages: int, word: int) -> list[int]:
        self.done(OP_READ, first, pages, word=word)
        return list(self.ask("list", vcpu=0, count=pages))

    def refused(self, op: int, page: int, first: int = 0, **more: int) -> None:
        """An operation on all pages from ``first`` on is refused at ``page``."""
        report = self.do(op, first, PAGES - first, **more)
        assert report["end"] == "refused", report
        assert report["how"] in ("EFAULT", "KVM_EXIT_MMIO")
        assert (report["current"], report["done"]) == (page, page - first + 1)

    def await_progress(self, counter: str, least: int, vcpu: int = 0) -> None:
        until = time.monotonic() + SECONDS
        while (progress := self.ask("progress", vcpu=vcpu))[counter] < least:
            assert time.monotonic() < until, progress
            time.sleep(0.002)


@pytest.fixture(scope="session")
def payload(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    target = tmp_path_factory.mktemp("payload") / "payload.bin"
    _compile_payload(Path(vmm.__file__).parent / "payload", target)
    return target.read_bytes()


@pytest.fixture
def start(payload: bytes, tmp_path: Path) -> Iterator[Callable[..., Vmm]]:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"/dev/kvm cannot be opened here: {error.strerror}.")
    with contextlib.ExitStack() as stack:

        def make(vcpus: int = 1, backing: str = "anon") -> Vmm:
            ours, theirs = socket.socketpair()
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    ours.close()
                    path = str(tmp_path / "file")
                    vmm.run_vmm(theirs, str(tmp_path), PAGES, vcpus, payload, backing, path)
                os._exit(1)
            theirs.close()
            stack.callback(_end, pid, ours)
            return Vmm(pid, ours, tmp_path)

        yield make


def _end(pid: int, connection: socket.socket) -> None:
    connection.close()
    with contextlib.suppress(ProcessLookupError):  # a test may have waited for it already
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def guest(start: Callable[..., Vmm]) -> Vmm:
    return start()


@pytest.fixture
def filled(guest: Vmm) -> Vmm:
    guest.done(OP_FILL)
    return guest


def test_a_vmm_says_where_things_are_and_enters_its_cgroup(guest: Vmm) -> None:
    facts = guest.ask("describe")
    assert facts["pid"] == guest.pid
    assert facts["pages"] == PAGES
    assert facts["vcpus"] == 1
    assert facts["gpa"] == layout.MEMORY_GPA
    assert facts["hva"] % layout.LARGE_PAGE_BYTES == 0
    assert "kvm-vm" in str(Path(f"/proc/{guest.pid}/fd/{facts['vm_fd']}").readlink())
    assert "stats" in str(Path(f"/proc/{guest.pid}/fd/{facts['statistics_fd']}").readlink())
    assert (guest.cgroup / "cgroup.procs").read_text() == str(guest.pid)


def test_what_the_guest_fills_the_vmm_sees(filled: Vmm) -> None:
    for word in (0, 1, 2, 2 + STEP, 2 + (WORDS_A_PAGE - 1) * STEP):
        expected = [pattern(SEED, page, word) for page in range(PAGES)]
        assert filled.ask("peek", first=0, pages=PAGES, word=word) == expected
    assert filled.ask("peek", first=0, pages=PAGES, word=3) == [0] * PAGES


def test_what_the_vmm_writes_the_guest_sees(filled: Vmm) -> None:
    filled.ask("poke", first=10, pages=2, word=5, value=(1 << 64) - 1)
    assert filled.read(9, 4, word=5) == [0, (1 << 64) - 1, (1 << 64) - 1, 0]


def test_the_guest_writes_one_word_of_each_page_and_no_other(filled: Vmm) -> None:
    filled.done(OP_WRITE, 20, 3, word=9, seed=0xABC)
    assert filled.ask("peek", first=19, pages=5, word=9) == [0, 0xABC, 0xABC, 0xABC, 0]
    assert filled.ask("peek", first=19, pages=5, word=8) == [0] * 5
    assert filled.ask("peek", first=19, pages=5, word=10) == [0] * 5


def test_a_check_finds_nothing_where_nothing_is_wrong(filled: Vmm) -> None:
    assert filled.done(OP_CHECK)["bad"] == 0
    assert filled.done(OP_CHECK, 100, 10)["bad"] == 0


def test_a_check_tells_the_first_wrong_word_and_how_many(filled: Vmm) -> None:
    word = 2 + STEP
    filled.ask("poke", first=30, pages=3, word=word, value=1)
    report = filled.done(OP_CHECK)
    assert report["bad"] == 3
    assert (report["bad_page"], report["bad_word"]) == (30, word)
    assert (report["bad_expected"], report["bad_seen"]) == (pattern(SEED, 30, word), 1)


def test_a_check_with_another_seed_finds_every_word_wrong(filled: Vmm) -> None:
    assert filled.done(OP_CHECK, seed=SEED + 1)["bad"] == PAGES * WORDS_A_PAGE


def test_pages_that_changed_places_are_found(filled: Vmm) -> None:
    words = [filled.ask("peek", first=page, pages=1, word=2)[0] for page in (40, 41)]
    filled.ask("poke", first=40, pages=1, word=2, value=words[1])
    filled.ask("poke", first=41, pages=1, word=2, value=words[0])
    assert filled.done(OP_CHECK)["bad"] == 2


def test_only_memory_that_was_touched_is_present(guest: Vmm) -> None:
    guest.done(OP_WRITE, 5, 2, word=0)
    entries = np.frombuffer(unpack(guest.ask("pagemap", first=0, pages=PAGES)), np.uint64)
    assert np.flatnonzero(entries & np.uint64(1 << 63)).tolist() == [5, 6]
    core = np.frombuffer(unpack(guest.ask("mincore", first=0, pages=PAGES)), np.uint8)
    assert np.flatnonzero(core & 1).tolist() == [5, 6]


def test_an_unmapped_page_is_refused_and_its_neighbours_are_not(filled: Vmm) -> None:
    filled.ask("munmap", first=5, pages=1)
    filled.refused(OP_CHECK, page=5)
    filled.refused(OP_WRITE, page=5, first=5, word=3)
    assert filled.done(OP_CHECK, 0, 5)["bad"] == 0
    assert filled.done(OP_CHECK, 6, PAGES - 6)["bad"] == 0


def test_fresh_memory_in_a_hole_is_zero_for_the_guest(filled: Vmm) -> None:
    filled.ask("munmap", first=5, pages=1)
    filled.refused(OP_CHECK, page=5)
    filled.ask("remap", first=5, pages=1)
    assert filled.read(5, 1, word=2) == [0]
    assert filled.done(OP_CHECK)["bad"] == WORDS_A_PAGE


def test_discarded_memory_is_zero_for_the_guest(filled: Vmm) -> None:
    filled.ask("madvise", first=8, pages=2, advice="dontneed")
    assert filled.read(8, 2, word=2) == [0, 0]


def test_read_only_memory_is_read_and_not_written(filled: Vmm) -> None:
    filled.ask("mprotect", first=9, pages=2, protection="read")
    assert filled.done(OP_CHECK)["bad"] == 0
    filled.refused(OP_WRITE, page=9, word=3, seed=1)
    assert filled.ask("peek", first=8, pages=4, word=3) == [1, 0, 0, 0]
    filled.ask("mprotect", first=9, pages=2, protection="readwrite")
    filled.done(OP_WRITE, word=3, seed=2)
    assert filled.ask("peek", first=8, pages=4, word=3) == [2] * 4


def test_inaccessible_memory_is_not_even_read(filled: Vmm) -> None:
    filled.ask("mprotect", first=9, pages=1, protection="none")
    filled.refused(OP_CHECK, page=9)
    filled.ask("mprotect", first=9, pages=1, protection="readwrite")
    assert filled.done(OP_CHECK)["bad"] == 0


def test_no_memory_is_there_without_its_memslot(filled: Vmm) -> None:
    filled.ask("set_slot", size_pages=0)
    filled.refused(OP_CHECK, page=0)
    filled.ask("set_slot", size_pages=PAGES)
    assert filled.done(OP_CHECK)["bad"] == 0


def test_a_memslot_may_begin_elsewhere_in_the_memory(filled: Vmm) -> None:
    filled.ask("set_slot", size_pages=0)
    filled.ask("set_slot", size_pages=10, hva_page=100)
    expected = [pattern(SEED, 100 + page, 2) for page in range(10)]
    assert filled.read(0, 10, word=2) == expected


def test_two_hammering_vcpus_keep_out_of_each_others_words(start: Callable[..., Vmm]) -> None:
    guest = start(vcpus=2)
    guest.done(OP_FILL)
    for vcpu in (0, 1):
        guest.order(OP_HAMMER, vcpu=vcpu, word=vcpu, seed=1)
    for vcpu in (0, 1):
        guest.await_progress("rounds", 3, vcpu)
        assert guest.ask("report", vcpu=vcpu, seconds=0) is None, "a hammer does not end by itself"
    for vcpu in (0, 1):
        guest.ask("stop", vcpu=vcpu)
        report = guest.report(vcpu)
        assert (report["end"], report["bad"]) == ("done", 0)
        assert report["done"] >= 3 * PAGES
        # What it counted up is what it was filled with, plus one a visit.
        seen = guest.ask("peek", first=0, pages=PAGES, word=vcpu)
        visits = [
            have - pattern(SEED, page, vcpu) & (1 << 64) - 1 for page, have in enumerate(seen)
        ]
        assert sum(visits) == report["done"]
    assert guest.done(OP_CHECK)["bad"] == 0


def test_each_vcpu_has_a_list_of_its_own(start: Callable[..., Vmm]) -> None:
    guest = start(vcpus=2)
    guest.done(OP_FILL)
    assert guest.do(OP_READ, 3, 2, vcpu=1, word=2)["end"] == "done"
    guest.done(OP_READ, 7, 2, word=2)
    for vcpu, first in ((1, 3), (0, 7)):
        expected = [pattern(SEED, page, 2) for page in (first, first + 1)]
        assert guest.ask("list", vcpu=vcpu, count=2) == expected


def test_a_hammer_that_only_reads_writes_nothing(filled: Vmm) -> None:
    filled.order(OP_HAMMER, word=0, seed=0)
    filled.await_progress("rounds", 2)
    filled.ask("stop", vcpu=0)
    assert filled.report()["bad"] == 0
    seen = filled.ask("peek", first=0, pages=PAGES, word=0)
    assert seen == [pattern(SEED, page, 0) for page in range(PAGES)]


def test_a_hammer_notices_a_word_that_changed_behind_its_back(filled: Vmm) -> None:
    filled.order(OP_HAMMER, word=0, seed=1)
    filled.await_progress("rounds", 1)
    filled.ask("madvise", first=17, pages=1, advice="dontneed")
    filled.await_progress("bad", 1)
    filled.ask("stop", vcpu=0)
    report = filled.report()
    assert (report["bad"], report["bad_page"], report["bad_word"]) == (1, 17, 0)
    assert report["bad_seen"] == 0


def test_a_hammer_ends_where_it_is_refused(filled: Vmm) -> None:
    filled.order(OP_HAMMER, word=0, seed=1)
    filled.await_progress("rounds", 1)
    filled.ask("munmap", first=33, pages=1)
    report = filled.report()
    assert (report["end"], report["current"], report["bad"]) == ("refused", 33, 0)


def test_a_patient_hammer_goes_on_when_it_may_again(filled: Vmm) -> None:
    filled.order(OP_HAMMER, word=0, seed=1, patient=1)
    filled.await_progress("rounds", 1)
    filled.ask("mprotect", first=33, pages=1, protection="read")
    assert filled.ask("report", vcpu=0, seconds=0.2) is None
    filled.await_progress("refusals", 1)
    # Where refusals come as MMIO, it begins anew each time.
    assert filled.ask("progress", vcpu=0)["current"] <= 33
    filled.ask("mprotect", first=33, pages=1, protection="readwrite")
    filled.await_progress("rounds", filled.ask("progress", vcpu=0)["rounds"] + 2)
    filled.ask("stop", vcpu=0)
    assert (report := filled.report())["end"] == "done"
    assert report["bad"] == 0


def test_a_kicked_vcpu_leaves_and_obeys_again(filled: Vmm) -> None:
    filled.order(OP_HAMMER, word=0, seed=1)
    filled.await_progress("rounds", 1)
    filled.ask("kick", vcpu=0)
    assert filled.report()["end"] == "kicked"
    assert filled.done(OP_CHECK)["bad"] == 0
    assert filled.read(0, 1, word=2) == [pattern(SEED, 0, 2)]


def test_a_kick_that_comes_after_the_end_does_no_harm(filled: Vmm) -> None:
    filled.ask("kick", vcpu=0)
    assert filled.done(OP_CHECK)["bad"] == 0


def test_a_child_has_its_own_copy_and_the_guest_stays_with_the_parent(filled: Vmm) -> None:
    filled.ask("fork", name="one")

    def child(op: str, **arguments: Any) -> Any:
        return filled.ask("child", name="one", request={"op": op, **arguments})

    old = [pattern(SEED, page, 2) for page in range(3)]
    assert child("peek", first=0, pages=3, word=2) == old
    child("poke", first=0, pages=1, word=2, value=1)
    filled.ask("poke", first=1, pages=1, word=2, value=2)
    filled.done(OP_WRITE, 2, 1, word=2, seed=3)
    assert child("peek", first=0, pages=3, word=2) == [1, *old[1:]]
    assert filled.read(0, 3, word=2) == [old[0], 2, 3]
    assert filled.ask("peek", first=0, pages=3, word=2) == [old[0], 2, 3]
    assert filled.ask("end_child", name="one") == 0


# Other kinds of memory.


@pytest.mark.parametrize("backing", ["thp", "memfd", "file-shared", "file-private", "ksm"])
def test_a_guest_runs_on_each_kind_of_memory(start: Callable[..., Vmm], backing: str) -> None:
    guest = start(backing=backing)
    assert guest.read(0, PAGES, word=2) == [0] * PAGES
    guest.done(OP_FILL)
    assert guest.done(OP_CHECK)["bad"] == 0
    expected = [pattern(SEED, page, 2) for page in range(PAGES)]
    assert guest.ask("peek", first=0, pages=PAGES, word=2) == expected


def test_what_the_guest_writes_is_in_the_file(start: Callable[..., Vmm], tmp_path: Path) -> None:
    guest = start(backing="file-shared")
    guest.done(OP_WRITE, 3, 2, word=1, seed=7)
    words = np.fromfile(tmp_path / "file", np.uint64).reshape(PAGES, layout.PAGE_WORDS)
    assert np.flatnonzero(words[:, 1] == 7).tolist() == [3, 4]


def test_what_the_guest_writes_to_private_memory_is_not_in_the_file(
    start: Callable[..., Vmm], tmp_path: Path
) -> None:
    guest = start(backing="file-private")
    guest.done(OP_WRITE, 3, 2, word=1, seed=7)
    assert not np.fromfile(tmp_path / "file", np.uint64).any()


def test_a_hole_in_the_file_is_zero_for_the_guest(start: Callable[..., Vmm]) -> None:
    guest = start(backing="memfd")
    guest.done(OP_FILL)
    guest.ask("punch", first=8, pages=2)
    assert guest.read(7, 4, word=2) == [pattern(SEED, 7, 2), 0, 0, pattern(SEED, 10, 2)]


def test_memory_beyond_the_end_of_its_file_is_refused(start: Callable[..., Vmm]) -> None:
    guest = start(backing="memfd")
    guest.done(OP_FILL)
    guest.ask("truncate", pages=100)
    guest.refused(OP_CHECK, page=100)
    assert guest.done(OP_CHECK, 0, 100)["bad"] == 0


def test_the_memslot_follows_memory_that_moved(filled: Vmm) -> None:
    address = filled.ask("move", first=0, pages=PAGES)
    filled.refused(OP_CHECK, page=0)
    filled.ask("follow", address=address)
    assert filled.done(OP_CHECK)["bad"] == 0


# Races, aliases and userfaultfd with a real vcpu; what they do wrong is told by fakes elsewhere.


@pytest.mark.parametrize("kind", ["discard", "discard-all", "punch", "fork", "pageout"])
def test_a_race_is_played_against_a_vcpu_in_full_run(start: Callable[..., Vmm], kind: str) -> None:
    guest = start(backing="memfd" if kind == "punch" else "anon")
    guest.done(OP_FILL)
    guest.order(OP_HAMMER, 33, 1, word=0, patient=1)
    guest.await_progress("done", 1)
    played = guest.ask("race", kind=kind, vcpu=0, page=33, rounds=5, seconds=SECONDS)
    assert played == {"rounds": 5, "lost": 0}
    guest.ask("stop", vcpu=0)
    assert guest.report()["end"] == "done"


def test_the_way_of_a_vcpu_in_full_run_is_crossed(start: Callable[..., Vmm]) -> None:
    guest = start()
    guest.done(OP_FILL)
    guest.order(OP_HAMMER, 33, race.SPAN, word=0, patient=1)
    guest.await_progress("done", 1)
    played = guest.ask("race", kind="discard-ahead", vcpu=0, page=33, rounds=20, seconds=SECONDS)
    assert played == {"rounds": 20, "lost": 0}
    guest.ask("stop", vcpu=0)
    assert guest.report()["bad"] > 20, "what it found was zero again and again"


@pytest.mark.parametrize("kind", ["protect", "move"])
def test_a_race_awaits_that_the_vcpu_is_refused(start: Callable[..., Vmm], kind: str) -> None:
    guest = start()
    guest.done(OP_FILL)
    guest.order(OP_HAMMER, 33, 1, word=0, patient=1)
    guest.await_progress("done", 1)
    played = guest.ask("race", kind=kind, vcpu=0, page=33, rounds=5, seconds=1.0)
    early = guest.ask("report", vcpu=0, seconds=0)
    if early and early["how"] == "KVM_EXIT_MMIO":
        pytest.skip("This machine's KVM gives refused accesses to the VMM as MMIO.")
    assert played == {"rounds": 5, "lost": 0}
    guest.ask("stop", vcpu=0)
    report = guest.report()
    assert (report["end"], report["bad"]) == ("done", 0)
    assert report["refusals"] >= 5


def test_a_vcpu_goes_on_through_an_alias_that_comes_and_goes(start: Callable[..., Vmm]) -> None:
    guest = start(vcpus=2)
    guest.done(OP_FILL)
    guest.ask("begin_aliasing")
    guest.order(OP_HAMMER, vcpu=1, word=1, seed=0, patient=1, address=layout.ALIAS_GPA, homeless=1)
    guest.order(OP_HAMMER, vcpu=0, word=0, seed=1, patient=1)
    for vcpu in (0, 1):
        guest.await_progress("rounds", 2, vcpu)
    assert guest.ask("end_aliasing") >= 1
    for vcpu in (0, 1):
        guest.ask("stop", vcpu=vcpu)
        report = guest.report(vcpu)
        assert report["end"] == "done"
        # What the other read while there was no memslot is nothing, and no error.
        assert vcpu == 1 or report["bad"] == 0
    assert guest.done(OP_CHECK)["bad"] == 0


def protected(guest: Vmm, first: int, pages: int) -> None:
    """Write-protect a range through userfaultfd, where that can be done."""
    wanted = {"first": first, "pages": pages, "features": ["write-protect"]}
    answer = guest.answer("protect_by_userfault", **wanted)
    if "error" in answer:
        pytest.skip(f"userfaultfd cannot protect here: {answer['error']['text']}.")


def test_a_vcpu_waits_where_userfaultfd_protects_until_it_is_let(filled: Vmm) -> None:
    protected(filled, 32, 64)
    assert filled.done(OP_CHECK)["bad"] == 0
    assert filled.ask("faults") == []
    for page in (40, 95, 100):
        filled.done(OP_WRITE, page, 1, word=3, seed=9)
    assert filled.ask("faults") == [8, 63]
    assert filled.ask("peek", first=40, pages=1, word=3) == [9]
    filled.ask("end_protection")
    filled.done(OP_WRITE, word=3, seed=10)
    assert filled.ask("peek", first=0, pages=PAGES, word=3) == [10] * PAGES


def test_pages_that_userfaultfd_moves_are_zero_for_the_guest(filled: Vmm) -> None:
    answer = filled.answer("move_by_userfault", first=8, pages=2)
    if "error" in answer:
        pytest.skip(f"UFFDIO_MOVE cannot be used here: {answer['error']['text']}.")
    assert filled.read(7, 4, word=2) == [pattern(SEED, 7, 2), 0, 0, pattern(SEED, 10, 2)]


def test_counters_count(filled: Vmm) -> None:
    before = filled.ask("statistics")
    assert before.keys() == {"vm", "0"}
    assert "pages_4k" in before["vm"]
    filled.done(OP_CHECK)
    after = filled.ask("statistics")
    assert after.keys() == before.keys()
    assert all(after[who].keys() == before[who].keys() for who in after)
    assert after["0"]["exits"] > before["0"]["exits"]


def test_more_vcpus_than_there_are_words_for_are_refused(payload: bytes) -> None:
    for vcpus in (0, layout.MOST_VCPUS + 1):
        with pytest.raises(ValueError, match=f"1 to {layout.MOST_VCPUS} vcpus, not {vcpus}"):
            VirtualMachine(vcpus, payload)


def test_the_vmm_ends_when_its_peer_is_gone(start: Callable[..., Vmm]) -> None:
    guest = start()
    guest.ask("describe")
    guest.hang_up()
    until = time.monotonic() + SECONDS
    while (ended := os.waitpid(guest.pid, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < until
        time.sleep(0.002)
    assert ended == (guest.pid, 0)


# More than one memslot and one VM.


def words(guest: Vmm, view: dict[str, int]) -> list[int]:
    """One word of each page as the vcpu of a view reads it."""
    vcpu = view["vcpu"]
    guest.done(OP_READ, 0, PAGES, vcpu=vcpu, word=3, address=view["address"])
    return list(guest.ask("list", vcpu=vcpu, count=PAGES))


@pytest.mark.parametrize("kind", views.KINDS)
def test_each_view_shows_the_memory_and_follows_it(filled: Vmm, kind: str) -> None:
    facts = filled.ask("describe")
    if kind == "management-mode" and not management_mode_is_known():
        pytest.skip("KVM on this machine has no system management mode.")
    view = filled.ask("open_view", kind=kind)
    assert words(filled, view) == filled.ask("peek", first=0, pages=PAGES, word=3)
    filled.ask("madvise", first=0, pages=PAGES, advice="dontneed")
    assert words(filled, view) == [0] * PAGES
    assert (view["vm_fd"] != facts["vm_fd"]) == (kind == "second-vm")
    assert (view["gpa"] != facts["gpa"]) == (kind in ("alias", "read-only"))
    assert (view["address"] != view["gpa"]) == (kind == "second-mapping")
    assert (view["vcpu"] == 1) == (kind == "second-vm")


def test_a_view_that_is_read_only_is_not_written_through(filled: Vmm) -> None:
    view = filled.ask("open_view", kind="read-only")
    report = filled.do(OP_WRITE, 3, 1, word=3, address=view["address"])
    assert (report["end"], report["current"]) == ("refused", 3)
    filled.done(OP_CHECK)


def test_a_view_in_pieces_has_a_memslot_of_one_page() -> None:
    made: list[tuple[int, int, int, int]] = []
    machine: Any = SimpleNamespace(fd=1, set_slot=lambda *slot: made.append(slot))
    views.pieces(machine, SimpleNamespace(pages=PAGES, hva=0))  # type: ignore[arg-type]
    (_, _, _, gone), *pieces = made
    assert gone == 0
    sizes = [size // layout.PAGE_BYTES for *_, size in pieces]
    assert 1 in sizes
    assert sum(sizes) == PAGES
    assert len({slot for slot, *_ in pieces}) == len(pieces)
    for (_, gpa, hva, size), (_, after, hva_after, _) in itertools.pairwise(pieces):
        assert (gpa + size, hva + size) == (after, hva_after)


def test_a_clock_is_kept_in_the_page_that_the_memory_has_now(filled: Vmm) -> None:
    filled.ask("keep_clock", vcpu=0, page=9)

    def factor() -> int:
        filled.ask("update_clock")
        filled.done(OP_CHECK, 0, 9)
        return int(filled.ask("peek", first=9, pages=1, word=3)[0])

    before = factor()
    assert before
    filled.ask("madvise", first=9, pages=1, advice="dontneed")
    assert filled.ask("peek", first=9, pages=1, word=3) == [0]
    assert factor() == before


def management_mode_is_known() -> bool:
    """KVM_CAP_X86_SMM."""
    with Path("/dev/kvm").open("rb", buffering=0) as device:
        return kvm.ioctl_number(device.fileno(), kvm.CHECK_EXTENSION, 117) > 0
