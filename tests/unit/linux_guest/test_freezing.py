# SPDX-License-Identifier: GPL-2.0-only
"""Guests stand still, as far as they can, and go on afterwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import HostLostError, OracleUnavailable
from harness.linux_guest import freezing
from harness.linux_guest.freezing import frozen


class FakeSession:
    """A cgroup of which the ``looks`` say in turn what becomes of it; the last goes on."""

    def __init__(self, *looks: str) -> None:
        self.host = SimpleNamespace(facts=SimpleNamespace(pace=1.0))
        self.looks = list(looks)
        self.log: list[str] = []

    def ask(self, op: str, path: str, text: str) -> None:
        assert (op, path) == ("write", "/cg/cgroup.freeze")
        self.log.append(text)

    def read(self, path: str) -> str:
        assert path == "/cg/cgroup.events"
        self.log.append("?")
        return (
            f"populated 1\nfrozen {self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]}\n"
        )


def test_they_are_awaited_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    session: Any = FakeSession("0", "0", "1")
    with frozen(session, "/cg"):
        assert session.log == ["1", "?", "?", "?"]
    assert session.log[-1] == "0"


def test_who_cannot_stop_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing, "_SECONDS", 0.05)
    session: Any = FakeSession("0")
    with frozen(session, "/cg"):
        session.log.append("looked at")
    assert session.log[-2:] == ["looked at", "0"]


def test_a_kernel_that_cannot_freeze_lets_them_run() -> None:
    session: Any = FakeSession("0")

    def refuse(op: str, path: str, text: str) -> None:
        raise FileNotFoundError(path)

    session.ask = refuse
    with frozen(session, "/cg"):
        assert session.log == []


def test_they_go_on_after_a_test_that_is_skipped_but_not_on_a_host_that_is_lost() -> None:
    for error, last in ((OracleUnavailable("no"), "0"), (HostLostError("gone"), "?")):
        session: Any = FakeSession("1")
        with pytest.raises(type(error)), frozen(session, "/cg"):
            raise error
        assert session.log[-1] == last
