# SPDX-License-Identifier: GPL-2.0-only
"""The archive that goes to hosts, run here by this machine's own Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from harness import probe
from harness.errors import CommandError, MachineUnfitError
from harness.guest import zipapp
from harness.guest.session import _LOADER
from harness.guest.zipapp import probe_zipapp
from harness.probe import layout
from harness.store import Store

SECONDS = 30


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("There is no gcc here.")
    return probe_zipapp(Store(tmp_path_factory.mktemp("store")))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    copy = tmp_path / "probe"
    shutil.copytree(Path(probe.__file__).parent, copy)
    return copy


def talk(archive: Path, requests: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
    # -I and -S: nothing that happens to be installed here may help. In a directory of its own,
    # so that only the archive can be imported.
    return subprocess.run(
        [sys.executable, "-I", "-S", archive, *words],
        input=requests,
        capture_output=True,
        cwd=archive.parent,
        timeout=SECONDS,
        check=False,
    )


def test_the_agent_greets_with_the_nonce_and_ends_with_its_input(archive: Path) -> None:
    ended = talk(archive, b"", "n0nce")
    assert (ended.returncode, ended.stderr) == (0, b"")
    (hello,) = map(json.loads, ended.stdout.splitlines())
    assert hello["hello"] == "n0nce"
    assert hello["cpus"] >= 1


def test_the_agent_may_come_by_the_way_of_its_requests(archive: Path, tmp_path: Path) -> None:
    here, content = tmp_path / "here.pyz", archive.read_bytes()
    words = [sys.executable, "-I", "-S", "-c", _LOADER, "n0nce", str(len(content)), str(here)]
    request = b'{"op": "exists", "path": "/proc/self"}\n'
    ended = subprocess.run(
        words, input=content + request, capture_output=True, timeout=SECONDS, check=True
    )
    hello, exists = map(json.loads, ended.stdout.splitlines())
    assert hello["hello"] == "n0nce"
    assert exists == {"ok": True}
    assert here.read_bytes() == content


def test_the_agent_answers_a_line_with_a_line(archive: Path) -> None:
    requests = [{"op": "exists", "path": "/proc/self"}, {"op": "nothing"}, {"op": "read"}]
    ended = talk(archive, b"".join(json.dumps(each).encode() + b"\n" for each in requests), "n")
    _, exists, nothing, read = map(json.loads, ended.stdout.splitlines())
    assert exists == {"ok": True}
    assert nothing["error"]["kind"] == "KeyError"
    assert read["error"]["kind"] == "TypeError"


def test_the_archive_holds_the_probe_and_nothing_else_of_the_harness(archive: Path) -> None:
    with zipfile.ZipFile(archive) as inside:
        names = {name for name in inside.namelist() if not name.endswith("/")}
    modules = {path.name for path in Path(probe.__file__).parent.glob("*.py")}
    expected = {
        "__main__.py",
        "harness/__init__.py",
        *(f"harness/probe/{each}" for each in modules),
    }
    compiled = {f"{name}c" for name in expected}
    assert names == {*expected, *compiled, "harness/probe/payload.bin"}


def test_the_same_python_compiles_nothing(archive: Path) -> None:
    code = f"import sys; sys.path[:0] = [{str(archive)!r}]; import harness.probe.vmm as vmm"
    words = [sys.executable, "-I", "-S", "-c", f"{code}; print(vmm.__spec__.origin)"]
    said = subprocess.run(words, capture_output=True, timeout=SECONDS, check=True).stdout
    assert said.strip().endswith(b"vmm.pyc")


def test_another_python_compiles_them_itself(archive: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.pyz"
    with zipfile.ZipFile(archive) as theirs, zipfile.ZipFile(foreign, "w") as ours:
        for name in theirs.namelist():
            content = theirs.read(name)
            ours.writestr(name, b"\0\0\r\n" + content[4:] if name.endswith(".pyc") else content)
    ended = talk(foreign, b"", "n0nce")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert json.loads(ended.stdout)["hello"] == "n0nce"


def test_every_module_in_the_archive_can_be_imported_without_the_harness(archive: Path) -> None:
    lines = ["import sys", f"sys.path[:] = [{str(archive)!r}, *sys.path]"]
    lines += [
        f"import harness.probe.{path.stem}"
        for path in sorted(Path(probe.__file__).parent.glob("*.py"))
        if path.stem != "__init__"
    ]
    lines.append(
        "import importlib.resources as r; print(len(r.files('harness.probe')"
        ".joinpath('payload.bin').read_bytes()))"
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "\n".join(lines)],
        capture_output=True,
        cwd=archive.parent,
        timeout=SECONDS,
        check=False,
    )
    assert ended.stderr == b""
    assert int(ended.stdout) > 0


def test_it_is_made_once_for_each_state_of_its_source(archive: Path, source: Path) -> None:
    store = Store(archive.parents[2])
    before = archive.stat()
    assert probe_zipapp(store) == archive
    assert archive.stat() == before
    digest = zipapp._digest(source)
    assert digest == zipapp._digest(Path(probe.__file__).parent)
    for name in ("vm.py", "payload/payload.h", "payload/payload.c", "payload/payload.lds"):
        (source / name).write_text((source / name).read_text() + "\n")
        assert zipapp._digest(source) != digest
        digest = zipapp._digest(source)
    (source / "vm.pyc").write_text("what Python leaves behind does not matter")
    assert zipapp._digest(source) == digest


def payload_of(source: Path, tmp_path: Path) -> bytes:
    target = tmp_path / "payload.bin"
    zipapp._compile_payload(source / "payload", target)
    return target.read_bytes()


def test_the_payload_fits_between_its_neighbours(source: Path, tmp_path: Path) -> None:
    payload = payload_of(source, tmp_path)
    assert 0 < len(payload) <= layout.MAILBOX_GPA - layout.CODE_GPA


def test_the_first_byte_of_the_payload_is_its_entry(source: Path, tmp_path: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("There is no nm here.")
    script = source / "payload" / "payload.lds"
    elf = tmp_path / "payload.elf"
    flags = [flag for flag in zipapp._FLAGS if "oformat" not in flag]
    code = source / "payload" / "payload.c"
    subprocess.run(
        ["gcc", *flags, "-Wl,-T", f"-Wl,{script}", "-o", elf, code], check=True, timeout=SECONDS
    )
    listing = subprocess.run(
        ["nm", "--numeric-sort", elf], capture_output=True, text=True, check=True, timeout=SECONDS
    )
    symbols = [line.split() for line in listing.stdout.splitlines()]
    assert symbols[0] == [f"{layout.CODE_GPA:016x}", "T", "entry"]
    assert all(int(address, 16) < layout.MAILBOX_GPA for address, _, _ in symbols)


@pytest.mark.parametrize(
    "mistake", ["static int unused_function(void) { return 1; }", "int f(void) { int x; }", "no C"]
)
def test_a_payload_with_a_warning_does_not_compile(
    source: Path, tmp_path: Path, mistake: str
) -> None:
    code = source / "payload" / "payload.c"
    code.write_text(f"{code.read_text()}\n{mistake}\n")
    with pytest.raises(CommandError, match="error"):
        payload_of(source, tmp_path)


def test_a_machine_without_a_compiler_is_unfit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    store = Store(tmp_path)
    with pytest.raises(MachineUnfitError, match="Debian package gcc"):
        probe_zipapp(store)
    assert not list(tmp_path.rglob("probe.pyz"))
