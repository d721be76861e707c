# SPDX-License-Identifier: GPL-2.0-only
"""What this machine lacks is named, with what to do about it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import cli, doctor
from harness.doctor import Finding, examine
from harness.errors import ExitCode, MachineUnfitError
from harness.store import Store

QEMU = "QEMU emulator version {} (Debian 1:{}+dfsg-7)\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "cache")


@pytest.fixture
def good(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that has everything."""
    monkeypatch.setattr("shutil.which", lambda name, **_: f"/usr/bin/{name}")
    usage = SimpleNamespace(free=100 << 30)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 8 << 18}.get)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(
        doctor, "run", lambda *_: SimpleNamespace(stdout=QEMU.format("10.0.2", "10.0.2"))
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def of(findings: tuple[Finding, ...], what: str) -> Finding:
    (found,) = (finding for finding in findings if finding.what == what)
    return found


@pytest.mark.usefixtures("good")
def test_a_machine_with_everything_is_fit(store: Store) -> None:
    findings = examine(store)
    assert [finding for finding in findings if not finding.good] == []
    names = [finding.what for finding in findings]
    assert len(set(names)) == len(names)
    assert {"Python", "architecture", "accelerator", "memory", "cache", "gcc"} <= set(names)


@pytest.mark.usefixtures("good")
def test_each_missing_program_names_its_package(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    findings = examine(store)
    for program, package in {**doctor._PROGRAMS, "ccache": "ccache"}.items():
        found = of(findings, program)
        assert not found.good
        assert f"The program {program} is missing" in found.text
        assert f"install the Debian package {package}." in found.text
        assert found.fatal == (program != "ccache")
    assert all(finding.good for finding in findings if finding.what not in
               {*doctor._PROGRAMS, "ccache", "emulator"})  # fmt: skip


def test_each_program_is_in_the_package_that_is_named() -> None:
    if shutil.which("dpkg") is None:
        pytest.skip("This is no Debian, so there is nobody to ask.")
    patterns = [f"*/*bin/{program}" for program in doctor._PROGRAMS]
    answer = subprocess.run(
        ["dpkg", "-S", *patterns], capture_output=True, text=True, timeout=60, check=False
    )
    owners: dict[str, set[str]] = {}
    for line in answer.stdout.splitlines():
        packages, _, path = line.rpartition(": ")
        names = {name.partition(":")[0] for name in packages.split(", ")}
        owners.setdefault(Path(path).name, set()).update(names)
    # Programs that are not installed here have no owner.
    assert len(owners) > 5
    # A kernel needs the whole of Perl, of which another package has the program.
    owners.get("perl", set()).add("perl")
    for program, found in owners.items():
        assert doctor._PROGRAMS[program] in found


@pytest.mark.usefixtures("good")
def test_an_optional_program_says_what_is_lost_without_it(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert "Not needed, but builds are repeated in full" in of(examine(store), "ccache").text


def test_with_nothing_on_the_path_the_machine_is_unfit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["mmu-harness", "doctor"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == ExitCode.UNFIT
    said = capsys.readouterr().out
    lines = {line.split()[1]: line for line in said.splitlines() if line.startswith("MISSING")}
    # Debian keeps some in sbin, which is looked at even if it is not on the PATH.
    for program, package in doctor._PROGRAMS.items():
        if shutil.which(program, path="/usr/sbin:/sbin") is None:
            assert f"install the Debian package {package}." in lines[program]
    assert "gcc" in lines
    assert "This machine cannot run the harness as it is." in said


@pytest.mark.usefixtures("good")
def test_what_only_makes_things_slower_is_no_reason_to_refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "shutil.which", lambda name, **_: None if name == "ccache" else f"/usr/bin/{name}"
    )
    monkeypatch.setattr("sys.argv", ["mmu-harness", "doctor"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == ExitCode.PASS
    said = capsys.readouterr().out
    assert "note    ccache" in said
    assert "This machine can run the harness." in said


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(("gib", "good"), [(1, False), (3, False), (3.8, True), (4, True)])
def test_a_small_machine_is_unfit(
    monkeypatch: pytest.MonkeyPatch, store: Store, gib: float, *, good: bool
) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": int(gib * (1 << 18))}
    monkeypatch.setattr("os.sysconf", sizes.get)
    found = of(examine(store), "memory")
    assert found.good == good
    assert found.text.startswith(f"{gib:.1f} GiB")


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(("gib", "good"), [(0, False), (9, False), (10, True), (500, True)])
def test_a_full_disk_is_unfit(
    monkeypatch: pytest.MonkeyPatch, store: Store, gib: int, *, good: bool
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=gib << 30))
    found = of(examine(store), "cache")
    assert found.good == good
    assert str(store.root) in found.text


@pytest.mark.usefixtures("good")
def test_the_disk_that_counts_is_that_of_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Store
) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=100 << 30)

    monkeypatch.setattr("shutil.disk_usage", usage)
    examine(store)
    assert asked == [tmp_path], "the cache itself is not made by looking"
    assert not store.root.exists()


@pytest.mark.usefixtures("good")
def test_a_cache_that_cannot_be_written_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, store: Store, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    found = of(examine(store), "cache")
    assert not found.good
    assert f"{tmp_path} is not writable" in found.text
    assert "XDG_CACHE_HOME" in found.text


@pytest.mark.usefixtures("good")
def test_another_architecture_is_unfit(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    found = of(examine(store), "architecture")
    assert (found.good, found.text) == (False, "aarch64; x86_64 is needed")


@pytest.mark.usefixtures("good")
def test_an_old_python_is_unfit(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.setattr("sys.version_info", (3, 10, 12))
    assert not of(examine(store), "Python").good


@pytest.mark.usefixtures("good")
def test_the_accelerator_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    chosen = SimpleNamespace(name="tcg", reason="because of a test")
    monkeypatch.setattr(doctor, "choose", lambda _: chosen)
    found = of(examine(store), "accelerator")
    assert (found.good, found.text) == (True, "tcg: because of a test")

    def unfit(_: str) -> None:
        raise MachineUnfitError("nothing here")

    monkeypatch.setattr(doctor, "choose", unfit)
    found = of(examine(store), "accelerator")
    assert (found.good, found.text) == (False, "nothing here")


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(
    ("accelerator", "said", "good", "text"),
    [
        ("tcg", QEMU.format("7.2.22", "7.2.22"), False, "QEMU version 7.2.22; of version 7.2"),
        ("tcg", QEMU.format("10.0.2", "10.0.2"), True, "QEMU version 10.0.2"),
        ("kvm", QEMU.format("7.2.22", "7.2.22"), True, "not needed, there is nested KVM"),
        ("tcg", "nonsense\n", False, "QEMU of an unknown version"),
    ],
)
def test_an_emulator_that_is_known_for_errors_is_noted(
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
    accelerator: str,
    said: str,
    good: bool,
    text: str,
) -> None:
    monkeypatch.setattr(doctor, "run", lambda *_: SimpleNamespace(stdout=said))
    monkeypatch.setattr(doctor, "choose", lambda _: SimpleNamespace(name=accelerator, reason=""))
    found = of(examine(store), "emulator")
    assert found.good == good
    assert good or not found.fatal
    assert text in found.text
