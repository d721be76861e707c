# SPDX-License-Identifier: GPL-2.0-only
"""L0's handle of a process with secondary MMUs: what is asked, and what becomes of the answers."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from fake_session import FakeChannel, Request, session_with

from harness.errors import ProbeError, Violation
from harness.guest.hammer import Child
from harness.guest.user import Access, Device, NotifierUser, What, notifier_user

PAGES = 8
FACTS = {"pid": 40, "hva": 0x40000000, "pages": PAGES, "path": ""}


class Agent:
    """Answers requests by name of the operation; whatever has no answer gets null."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def __call__(self, request: Request) -> Any:
        value = self.answers.get(request["op"])
        return value(request) if callable(value) else {"ok": value}


def user_with(**answers: Any) -> tuple[NotifierUser, FakeChannel]:
    session, channel = session_with(Agent(**answers))
    return NotifierUser(session, "user1", FACTS, "/cgroup"), channel


def asked(channel: FakeChannel, op: str) -> Request:
    """The last request of an operation, without what each to a guest has."""
    request = next(request for request in reversed(channel.requests) if request["op"] == op)
    return {name: value for name, value in request.items() if name not in ("op", "within")}


def test_a_user_is_made_and_ended_with_its_context() -> None:
    session, channel = session_with(Agent(create={"ok": FACTS, "cgroup": "/cgroup/x"}))
    with notifier_user(session, PAGES, "memfd") as user:
        assert (user.pid, user.pages, user.cgroup, user.backing) == (
            40,
            PAGES,
            "/cgroup/x",
            "memfd",
        )
    made = asked(channel, "create")
    assert (made["kind"], made["pages"], made["backing"]) == ("user", PAGES, "memfd")
    assert asked(channel, "close") == {"name": made["name"]}


def test_a_user_that_does_not_start_is_ended_and_no_violation() -> None:
    session, channel = session_with(Agent(create={"died": {"status": 256, "said": "no device"}}))
    with pytest.raises(ProbeError, match="no device"), notifier_user(session, PAGES, "anon"):
        pass
    assert asked(channel, "close")


def test_devices_have_names_of_their_own() -> None:
    user, channel = user_with()
    first, second = user.attached("remote", "sleepy", "signalled"), user.device()
    assert first.name != second.name
    assert asked(channel, "attach") == {
        "guest": "user1", "name": first.name, "kind": "remote", "flags": ["sleepy", "signalled"],
    }  # fmt: skip


def test_an_access_is_of_all_pages_by_default() -> None:
    user, channel = user_with(load={"words": [5] * PAGES}, store={"words": []})
    device = user.device()
    assert device.load(word=3) == Access(words=(5,) * PAGES, done=PAGES)
    assert asked(channel, "load")["pages"] == PAGES
    assert device.store(9, 2, word=1).refused == 0
    request = asked(channel, "store")
    assert (request["first"], request["pages"], request["value"]) == (2, PAGES - 2, 9)


def test_an_access_that_is_refused_says_where() -> None:
    user, _ = user_with(load={"refused": 14, "done": 3})
    assert user.device().load() == Access(refused=14, done=3)


def test_a_child_is_asked_about_the_device_that_it_has() -> None:
    user, channel = user_with(fork=99)
    device = user.device()
    with user.forked() as child:
        device.within(child).attach("tlb")
    request = asked(channel, "child")["request"]
    assert request == {"op": "attach", "name": device.name, "kind": "tlb", "flags": []}
    assert isinstance(child, Child)


def test_callbacks_come_as_what_they_are() -> None:
    user, _ = user_with(records=[[1, 0, 4096, 1, 0, 1, 40], [2, 0, 4096, 2, 0, 1, 40]])
    assert [call.what for call in user.device().callbacks()] == [What.START, What.END]


def test_a_device_that_is_held_is_asked_of_the_agent() -> None:
    user, channel = user_with(device_fd=5, hold_device=11, held_device={"starts": 1})
    device = user.device()
    with device.held() as held:
        assert held.fd == 11, "the descriptor that guests made from now on have"
        assert asked(channel, "hold_device") == {"name": device.name, "user": "user1", "fd": 5}
        assert held.state() == {"starts": 1}
        assert asked(channel, "held_device") == {"name": device.name, "what": "state"}
        held.let_go()
    assert asked(channel, "drop_device") == {"name": device.name}


def test_who_stalls_is_let_go_whatever_happens() -> None:
    user, channel = user_with(device_fd=5)

    def fail() -> None:
        with user.device().stalling():
            assert asked(channel, "stall")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert asked(channel, "held_device")["what"] == "let_go"


def test_hammering_begins_with_a_whole_round_and_ends_with_the_context() -> None:
    rounds = iter((0, 0, 1))
    user, channel = user_with(hammered=lambda _: {"ok": next(rounds)})
    device = user.device()
    with device.hammering(4):
        assert asked(channel, "begin_hammering")["word"] == 4
    assert next(rounds, None) is None
    assert asked(channel, "end_hammering")


@pytest.mark.parametrize(("number", "raised"), [(errno.ESTALE, Violation), (errno.EFAULT, OSError)])
def test_an_entry_of_a_free_page_is_the_kernels_doing(number: int, raised: type[Exception]) -> None:
    error = {"kind": "Refused", "errno": number, "text": os.strerror(number)}
    user, _ = user_with(hammered=1, end_hammering=lambda _: {"error": error})
    with pytest.raises(raised) as caught, user.device().hammering():
        pass
    assert isinstance(caught.value, Violation) == (number == errno.ESTALE)


def test_a_device_that_does_not_get_through_a_round_makes_no_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.guest.user._HAMMER_SECONDS", 0.01)
    user, _ = user_with(hammered=0)
    with pytest.raises(Violation, match="progress"), user.device().hammering():
        pass


def test_rounds_have_less_time_than_an_answer() -> None:
    user, channel = user_with(play={"rounds": 7, "lost": 2}, leave={"rounds": 3})
    device = Device(user, "a")
    assert device.play("fork", 9) == (7, 2)
    assert asked(channel, "play")["seconds"] < user.session.patience
    assert user.leave("both", 5) == {"rounds": 3}
    assert asked(channel, "leave")["seconds"] < user.session.patience
