# SPDX-License-Identifier: GPL-2.0-only
"""What L0 makes of an agent's answers, the strange ones above all."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from fake_session import FakeChannel, FakeHost, session_with

from harness.deadline import Deadline
from harness.errors import (
    DeadlineError,
    GuestEmulationError,
    OracleUnavailable,
    ProbeError,
    Violation,
)
from harness.guest.session import GuestLost, parse, session


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{",
        b'{"ok": ',
        b"[]",
        b"null",
        b"17",
        b'"ok"',
        b"Traceback (most recent call last):",
        b"\xff\xfe\x00",
        b"\x00" * 1000,
    ],
)
def test_what_is_no_message_is_said_to_be_none(line: bytes) -> None:
    with pytest.raises(ProbeError, match="is no message") as caught:
        parse(line)
    assert len(str(caught.value)) < 1000


def test_a_message_is_an_object() -> None:
    assert parse(b'{"ok": [1, "\\u00e4"]}') == {"ok": [1, "\u00e4"]}


def test_an_answer_is_its_value() -> None:
    ours, channel = session_with(lambda request: {"ok": request["path"].upper()})
    assert ours.ask("read", path="/a") == "/A"
    assert ours.read("/b") == "/B"
    assert channel.requests == [{"op": "read", "path": "/a"}, {"op": "read", "path": "/b"}]


def test_no_value_is_a_value_too() -> None:
    ours, _ = session_with(lambda _: {"ok": None})
    assert ours.ask("write", path="/a", text="") is None
    assert ours.ask_guest("guest1", "report") is None


@pytest.mark.parametrize("whose", ["agent", "guest"])
def test_a_failed_system_call_is_an_os_error_with_its_errno(whose: str) -> None:
    error = {"kind": "OSError", "errno": errno.ENOMEM, "text": "[Errno 12] Cannot allocate memory"}
    ours, _ = session_with(lambda _: {"error": error})
    with pytest.raises(OSError, match=r"mprotect .*on the host.*Cannot allocate") as caught:
        ours.ask("mprotect") if whose == "agent" else ours.ask_guest("guest1", "mprotect")
    assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize("whose", ["agent", "guest"])
@pytest.mark.parametrize(
    "reply",
    [
        {"error": {"kind": "KeyError", "errno": None, "text": "'nope'"}},
        {"error": {}},
        {},
        {"okay": 1},
    ],
)
def test_what_the_probe_cannot_do_is_its_error(whose: str, reply: dict[str, object]) -> None:
    ours, _ = session_with(lambda _: reply)
    with pytest.raises(ProbeError, match="could not do nope"):
        ours.ask("nope") if whose == "agent" else ours.ask_guest("guest1", "nope")


@pytest.mark.parametrize("garbage", [b"garbage", b"[1]", b""])
def test_garbage_is_an_error_of_the_probe(garbage: bytes) -> None:
    ours, _ = session_with(lambda _: garbage)
    with pytest.raises(ProbeError, match="no message"):
        ours.ask("read", path="/")
    with pytest.raises(ProbeError, match="no message"):
        ours.ask_guest("guest1", "describe")


def test_a_vmm_that_hangs_beside_an_agent_that_answers_is_the_kernels_doing() -> None:
    ours, _ = session_with(lambda _: {"late": "77 wchan: kvm_mmu_notifier_invalidate_range_start"})
    with pytest.raises(Violation) as caught:
        ours.ask_guest("guest1", "munmap", first=0, pages=1)
    assert caught.value.oracle == "progress"
    assert "munmap of guest guest1 to return within 30 s" in caught.value.expected
    assert "kvm_mmu_notifier_invalidate_range_start" in caught.value.seen


def test_a_vmm_that_is_gone_is_lost_with_its_last_words() -> None:
    ours, _ = session_with(lambda _: {"died": {"status": 7, "said": "last words"}})
    with pytest.raises(GuestLost, match=r"guest1 is gone \(wait status 7\)\. last words") as caught:
        ours.ask_guest("guest1", "munmap")
    assert (caught.value.name, caught.value.status, caught.value.said) == (
        "guest1",
        7,
        "last words",
    )


def test_a_guest_gets_its_time_and_the_agent_some_more_to_say_that_it_is_late() -> None:
    ours, channel = session_with(lambda _: {"ok": 1}, pace=2.0)
    assert ours.patience == 60.0
    ours.ask("read", path="/")
    ours.ask_guest("guest1", "describe")
    ours.wait_guest("guest1", "report", 100.0, vcpu=1)
    assert channel.requests[1:] == [
        {"guest": "guest1", "within": 60.0, "op": "describe"},
        {"guest": "guest1", "within": 160.0, "op": "report", "seconds": 100.0, "vcpu": 1},
    ]
    alone, asked, waited = channel.deadlines
    assert alone == 60.0
    # Else L0 would give up at the moment in which the agent says who is to blame.
    assert asked >= 60.0 + 60.0
    assert waited >= 160.0 + 60.0


def test_a_silent_agent_is_no_verdict_on_the_kernel() -> None:
    class Silent(FakeChannel):
        def receive_line(self, deadline: Deadline) -> bytes:
            raise deadline.error()

    silent = Silent(lambda _: {})
    ours, _ = session_with(lambda _: {})
    ours._channel = silent
    with pytest.raises(DeadlineError, match="answer of the host's agent to read"):
        ours.ask("read", path="/")


def test_several_things_are_asked_in_one_exchange() -> None:
    ours, channel = session_with(lambda _: {"ok": [{"ok": "7"}, {"ok": None}]})
    asked = [("read", {"path": "/a"}), ("write", {"path": "/b", "text": "1"})]
    assert ours.ask_all(*asked) == ["7", None]
    assert channel.requests == [
        {
            "op": "all",
            "requests": [
                {"op": "read", "path": "/a"},
                {"op": "write", "path": "/b", "text": "1"},
            ],
        }
    ]


@pytest.mark.parametrize("before", [0, 1])
def test_the_first_of_several_that_fails_is_what_is_told(before: int) -> None:
    error = {"kind": "OSError", "errno": errno.EPERM, "text": "Operation not permitted"}
    ours, _ = session_with(lambda _: {"ok": [{"ok": 1}] * before + [{"error": error}]})
    asked: list[tuple[str, dict[str, object]]] = [("first", {}), ("second", {}), ("third", {})]
    with pytest.raises(PermissionError, match=f"{asked[before][0]} on the host: Operation not"):
        ours.ask_all(*asked)


@pytest.mark.parametrize("reply", [{"error": {"kind": "KeyError", "errno": None, "text": "all"}}])
def test_an_agent_that_cannot_be_asked_several_things_is_an_error_of_the_probe(
    reply: dict[str, object],
) -> None:
    ours, _ = session_with(lambda _: reply)
    with pytest.raises(ProbeError, match="could not do all"):
        ours.ask_all(("read", {"path": "/a"}))


def test_a_forked_child_that_is_killed_is_the_kernels_doing() -> None:
    text = "the forked child ended with wait status 7"
    ours, _ = session_with(
        lambda _: {"error": {"kind": "ChildKilled", "errno": None, "text": text}}
    )
    with pytest.raises(Violation) as caught:
        ours.ask_guest("guest1", "child")
    assert (caught.value.oracle, caught.value.seen) == ("VMM", text)
    assert "the forked child to live through child of guest guest1" in caught.value.expected


def test_no_two_things_on_a_host_have_one_name() -> None:
    ours, _ = session_with(lambda _: {})
    names = [ours.new_name(kind) for kind in ("guest", "child", "guest", "child")]
    assert len(set(names)) == 4
    assert names[0].startswith("guest")


def test_a_setting_lasts_as_long_as_its_context() -> None:
    ours, channel = session_with(lambda request: {"ok": "3\n" if request["op"] == "read" else None})
    with ours.setting("/proc/sys/x", "0"):
        assert channel.requests[-1] == {"op": "write", "path": "/proc/sys/x", "text": "0"}
    assert channel.requests[-1] == {"op": "write", "path": "/proc/sys/x", "text": "3\n"}


@pytest.mark.parametrize(
    ("error", "back"), [(OracleUnavailable, True), (GuestEmulationError, True), (Violation, False)]
)
def test_a_setting_is_put_back_where_the_host_is_kept(
    error: type[Exception], *, back: bool
) -> None:
    # What an oracle cannot say skips a test; after anything else the host is thrown away.
    raised = Violation("x", "y", "z") if error is Violation else error("x")
    ours, channel = session_with(lambda request: {"ok": "3\n" if request["op"] == "read" else None})
    with pytest.raises(error), ours.setting("/proc/sys/x", "0"):
        raise raised
    assert channel.requests[-1]["text"] == ("3\n" if back else "0")


def hello(nonce: str = "n0nce") -> bytes:
    return json.dumps({"hello": nonce, "cpus": 3}).encode()


def test_a_session_is_an_agent_that_knows_this_runs_nonce(tmp_path: Path) -> None:
    archive = tmp_path / "probe.pyz"
    archive.write_bytes(b"PK")
    channel = FakeChannel(lambda _: {"ok": 1}, hello())
    host = FakeHost(channel)
    with session(host, archive) as ours:
        assert channel.archive == b"PK"
        ((python, *_, nonce, size, path),) = host.started
        assert (python, nonce, size) == ("python3", "n0nce", "2")
        assert path.startswith("/run/")
        assert ours.cpus == 3
        assert ours.ask("exists") == 1
        assert not channel.closed
    assert channel.closed


@pytest.mark.parametrize(
    "greeting", [hello("another"), b'{"ok": 1}', b"{}", b"python3: command not found"]
)
def test_a_greeting_without_the_nonce_is_refused(tmp_path: Path, greeting: bytes) -> None:
    archive = tmp_path / "probe.pyz"
    archive.write_bytes(b"PK")
    channel = FakeChannel(lambda _: {}, greeting)
    with pytest.raises(ProbeError), session(FakeHost(channel), archive):
        pytest.fail("there is no session")
    assert channel.closed
