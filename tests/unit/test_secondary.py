# SPDX-License-Identifier: GPL-2.0-only
"""The module with secondary MMUs on its way into hosts; what keeps it out is told to its tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import secondary
from harness.control import Control
from harness.errors import BuildError, CommandError, OracleUnavailable
from harness.kernel.model import Kernel
from harness.progress import Silent
from harness.secondary import SecondaryMmus
from harness.store import Store
from harness.workbench import Wish


class FakeHost:
    """Keeps what is put there and run; ``refuses`` to load the module if it is told so."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.facts = SimpleNamespace(pace=1.0)
        self.files: dict[str, bytes] = {}
        self.ran: list[list[str]] = []
        self._refuses = refuses

    def put(self, path: str, data: bytes, deadline: object) -> None:
        self.files[path] = data

    def run(self, argv: list[str], deadline: object) -> None:
        self.ran.append(argv)
        if self._refuses:
            raise CommandError(argv, 1, "insmod: Invalid module format")


class FakeSession:
    def __init__(self, host: FakeHost) -> None:
        self.host = host

    def ask(self, op: str, path: str) -> bool:
        assert (op, path) == ("exists", "/sys/module/notifier_user")
        return bool(self.host.ran)


@dataclasses.dataclass
class Building:
    """Stands for the rooms that build: what they were asked for, and what they answer."""

    headers: Path | None
    module: Path
    error: Exception | None = None
    asked: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)

    def headers_for(
        self, kernel: Kernel, reference: Any, patches: Any, *rest: Any, **more: Any
    ) -> Any:
        self.asked.append((kernel.origin, reference.text, patches, more))
        return self.headers

    def external_module(self, source: Path, name: str, *rest: Any) -> Path:
        assert (source / f"{name}.c").is_file()
        assert (source / "Kbuild").is_file()
        if self.error is not None:
            raise self.error
        return self.module


@pytest.fixture
def building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Building:
    (tmp_path / "it.ko").write_bytes(b"module")
    building = Building(tmp_path, tmp_path / "it.ko")
    monkeypatch.setattr(secondary, "headers_for", building.headers_for)
    monkeypatch.setattr(secondary, "external_module", building.external_module)
    return building


def mmus(
    tmp_path: Path, *, control: Control | None = None, config: str | None = None
) -> SecondaryMmus:
    path = None
    if config is not None:
        path = tmp_path / "config"
        path.write_text(config)
    kernel = Kernel(Path("/image"), "6.12.1", "d", "deb:linux-source-6.12", config=path)
    parts: Any = SimpleNamespace(kernel=kernel, control=control)
    wish = Wish(patches=(Path("mine.patch"),))
    return SecondaryMmus(wish, parts, Store(tmp_path / "cache"), Silent())


def load(ours: SecondaryMmus, host: FakeHost) -> None:
    ours.load(FakeSession(host))  # type: ignore[arg-type]


def test_the_module_is_loaded_once_into_each_host(tmp_path: Path, building: Building) -> None:
    ours, first, second = mmus(tmp_path), FakeHost(), FakeHost()
    for host in (first, first, second):
        load(ours, host)
    for host in (first, second):
        assert host.ran == [["insmod", "/run/notifier_user.ko"]]
        assert host.files == {"/run/notifier_user.ko": b"module"}
    assert len(building.asked) == 1


def test_it_is_built_for_the_kernel_with_its_control_below_the_users_patches(
    tmp_path: Path, building: Building
) -> None:
    mmus(tmp_path, control=Control("x", (Path("a.patch"), Path("b.patch"))))
    origin, reference, patches, more = building.asked[0]
    assert origin == reference == "deb:linux-source-6.12"
    assert patches == (Path("a.patch"), Path("b.patch"), Path("mine.patch"))
    assert more == {"fragments": ()}


def test_a_kernel_without_headers_skips_with_what_is_missing(
    tmp_path: Path, building: Building
) -> None:
    building.headers = None
    ours = mmus(tmp_path)
    for _ in range(2):
        with pytest.raises(OracleUnavailable, match="came without the headers"):
            ours.require()


def test_a_kernel_that_takes_no_modules_skips(tmp_path: Path, building: Building) -> None:
    with pytest.raises(OracleUnavailable, match="CONFIG_MODULES"):
        load(mmus(tmp_path, config="CONFIG_KVM=y\n"), FakeHost())
    assert not building.asked
    load(mmus(tmp_path, config="CONFIG_MODULES=y\n"), FakeHost())


def test_a_module_that_does_not_build_is_told_to_each_test(
    tmp_path: Path, building: Building
) -> None:
    building.error = BuildError("it does not")
    ours, host = mmus(tmp_path), FakeHost()
    for _ in range(2):
        with pytest.raises(BuildError, match="it does not"):
            load(ours, host)
    assert not host.ran


def test_a_module_that_does_not_load_is_an_error_of_ours(
    tmp_path: Path, building: Building
) -> None:
    with pytest.raises(CommandError, match="Invalid module format") as caught:
        load(mmus(tmp_path), FakeHost(refuses=True))
    assert caught.value.exit_code == 200
