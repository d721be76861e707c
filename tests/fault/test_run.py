# SPDX-License-Identifier: GPL-2.0-only
"""./run on machines that lack things: with programs that only pretend, in a path with blanks."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.deadline import Deadline

ROOT = Path(__file__).parents[2]
REAL = (
    *("cat", "chmod", "dirname", "env", "flock", "grep", "mkdir", "mv", "readlink", "rm", "sh"),
    *("sha256sum", "sleep", "touch"),
)

# A python3 whose venv has a pip that writes down its arguments and "installs" two programs.
PYTHON = r"""#!/bin/sh
case "$*" in
*"-m venv"*)
    for last; do :; done
    echo "venv" >>"$CALLS"
    mkdir -p "$last/bin" "$last/lib"
    printf '#!/bin/sh\necho "pip 1 from %s/lib/pip"\n' "$last" >"$last/bin/pip"
    cat "$0" >"$last/bin/python"
    chmod +x "$last/bin/pip" "$last/bin/python"
    ;;
*"-m pip install"*)
    echo "pip in $PWD: $*" >>"$CALLS"
    for program in mmu-harness tox; do
        printf '#!/bin/sh\necho %s "$@"\n' "$program" >".venv/bin/$program"
        chmod +x ".venv/bin/$program"
    done
    sleep "${PIP_SLEEPS-0}"
    exit "${PIP_STATUS-0}"
    ;;
*--version*) echo "Python 3.11.2" ;;
esac
"""

APT_GET = """#!/bin/sh
echo "apt-get $*" >>"$CALLS"
case "$*" in
*install*) [ -z "${APT_FAILS-}" ] && touch "$INSTALLED" ;;
esac
"""

DPKG_QUERY = """#!/bin/sh
for package; do
    case "$package" in
    -*|*:*) ;;
    bc) [ ! -e "$INSTALLED" ] || echo installed:bc ;;
    kmod) if [ -e "$INSTALLED" ]; then echo installed:kmod; else echo config-files:kmod; fi ;;
    *) echo "installed:$package" ;;
    esac
done
exit 1
"""

SUDO = """#!/bin/sh
echo "sudo $*" >>"$CALLS"
exec env "$@"
"""


@dataclasses.dataclass(frozen=True)
class Machine:
    checkout: Path
    programs: Path
    calls: Path
    installed: Path

    def program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.checkout / "run"), *words],
            cwd="/",
            env={
                "PATH": str(self.programs),
                "CALLS": str(self.calls),
                "INSTALLED": str(self.installed),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        with self.start(*words, **environment) as process:
            out, err = process.communicate(timeout=30)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def called(self) -> list[str]:
        """What was called since the last time."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    checkout = tmp_path / "a check[out],x"
    programs = tmp_path / "bin"
    checkout.mkdir()
    programs.mkdir()
    for name in ("run", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, checkout)
    for name in REAL:
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    machine = Machine(checkout, programs, tmp_path / "calls", tmp_path / "installed")
    machine.program("python3", PYTHON)
    machine.program("apt-get", APT_GET)
    machine.program("dpkg-query", DPKG_QUERY)
    machine.program("id", "#!/bin/sh\necho 0\n")
    return machine


@pytest.fixture
def ready(machine: Machine) -> Machine:
    machine.installed.touch()
    assert machine.run("doctor").returncode == 0
    machine.called()
    return machine


def test_a_fresh_machine_gets_what_is_missing_and_nothing_else(machine: Machine) -> None:
    done = machine.run("check", "--kernel", "a b")
    assert (done.returncode, done.stdout) == (0, "mmu-harness check --kernel a b\n")
    assert "Missing Debian packages: bc kmod\n" in done.stderr
    calls = machine.called()
    assert [call for call in calls if "install --no-install-recommends bc kmod" in call]
    assert calls[-2] == "venv"
    assert calls[-1].startswith(f"pip in {machine.checkout}: -m pip install ")
    assert calls[-1].endswith("-c constraints.txt -e .")


def test_with_everything_in_place_nothing_is_called(ready: Machine) -> None:
    done = ready.run("check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "mmu-harness check\n", "")
    assert ready.called() == []


def test_test_brings_the_tools_of_developers_once(ready: Machine) -> None:
    done = ready.run("test", "-e", "unit")
    assert (done.returncode, done.stdout) == (0, "tox run -e unit\n")
    (call,) = ready.called()
    assert call.endswith("-e .[dev]")
    assert ready.run("test").returncode == 0
    assert ready.run("check").returncode == 0
    assert ready.called() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_pins_are_installed_into_the_same_environment(ready: Machine, name: str) -> None:
    with (ready.checkout / name).open("a") as file:
        file.write("# changed\n")
    assert ready.run("check").returncode == 0
    (call,) = ready.called()
    assert call.startswith("pip in")


def test_a_checkout_that_was_moved_gets_a_new_environment(ready: Machine) -> None:
    moved = dataclasses.replace(ready, checkout=ready.checkout.with_name("moved"))
    ready.checkout.rename(moved.checkout)
    assert moved.run("check").returncode == 0
    assert moved.called()[0] == "venv"


def test_it_can_be_called_through_a_link(ready: Machine, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(ready.checkout / "run")
    shutil.copy(ready.checkout / "pyproject.toml", tmp_path)
    environment = {"PATH": str(ready.programs), "INSTALLED": str(ready.installed)}
    out = subprocess.check_output([tmp_path / "link", "check"], env=environment, text=True)
    assert out == "mmu-harness check\n"


@pytest.mark.parametrize("signum", [None, 15])
def test_an_installation_that_did_not_end_is_begun_again(
    machine: Machine, signum: int | None
) -> None:
    machine.installed.touch()
    if signum is None:
        done = machine.run("check", PIP_STATUS="1")
        assert (done.returncode, done.stdout) == (200, "")
        assert "pip could not install the project" in done.stderr
    else:
        with machine.start("check", PIP_SLEEPS="2") as process:
            Deadline.after(20, "pip").poll(
                lambda: machine.calls.exists() and "pip in" in machine.calls.read_text()
            )
            process.send_signal(signum)
            process.communicate()
            assert process.returncode != 0
    machine.called()
    assert machine.run("check").stdout == "mmu-harness check\n"
    assert [call[:6] for call in machine.called()] == ["pip in"]
    assert machine.run("check").returncode == 0
    assert machine.called() == []


def test_what_failed_half_way_is_not_taken_for_what_was_there_before(ready: Machine) -> None:
    pins = ready.checkout / "constraints.txt"
    before = pins.read_text()
    pins.write_text(before + "# changed\n")
    assert ready.run("check", PIP_STATUS="1").returncode == 200
    pins.write_text(before)
    ready.called()
    assert ready.run("check").returncode == 0
    assert [call[:6] for call in ready.called()] == ["pip in"]


def test_two_runs_at_once_install_once(machine: Machine) -> None:
    with (
        machine.start("one", PIP_SLEEPS="1") as one,
        machine.start("two", PIP_SLEEPS="1") as two,
    ):
        out = {process.communicate()[0] for process in (one, two)}
    assert out == {"mmu-harness one\n", "mmu-harness two\n"}
    calls = machine.called()
    assert sum(call.startswith("pip in") for call in calls) == 1
    assert sum("install --no-install-recommends" in call for call in calls) == 1


def test_a_plain_user_goes_through_sudo(machine: Machine) -> None:
    machine.program("id", "#!/bin/sh\necho 1000\n")
    machine.program("sudo", SUDO)
    assert machine.run("check").returncode == 0
    assert any(call.startswith("sudo DEBIAN_FRONTEND=noninteractive") for call in machine.called())


def test_a_plain_user_without_sudo_is_told_what_to_run(machine: Machine) -> None:
    machine.program("id", "#!/bin/sh\necho 1000\n")
    done = machine.run("check")
    assert (done.returncode, done.stdout) == (202, "")
    assert "as root, run: apt-get install bc kmod\n" in done.stderr
    assert machine.called() == []


def test_a_mirror_that_fails_is_tried_once_more_with_fresh_lists(machine: Machine) -> None:
    done = machine.run("check", APT_FAILS="1")
    assert (done.returncode, done.stdout) == (200, "")
    assert "apt-get could not install bc kmod" in done.stderr
    calls = [call for call in machine.called() if call.startswith("apt-get")]
    assert [("update" in call, "install" in call) for call in calls][-2:] == [
        (True, False),
        (False, True),
    ]
    assert not (machine.checkout / ".venv").exists()


@pytest.mark.parametrize("absent", ["dpkg-query", "apt-get"])
def test_another_distribution_is_told_so(machine: Machine, absent: str) -> None:
    (machine.programs / absent).unlink()
    done = machine.run("check")
    assert (done.returncode, done.stdout) == (202, "")
    assert done.stderr == ("run: this is not a Debian system; Debian 12 and 13 are supported.\n")


def test_a_python_that_is_too_old_is_told_so(machine: Machine) -> None:
    machine.installed.touch()
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        machine.program(name, "#!/bin/sh\nexit 1\n")
    script = machine.checkout / "run"
    script.write_text(script.read_text().replace("/usr/bin/python3 ", ""))
    done = machine.run("check")
    assert done.returncode == 202
    assert "Python 3.11 or newer with venv is needed" in done.stderr


def test_the_script_is_plain_sh() -> None:
    dash = shutil.which("dash")
    if dash is None:
        pytest.skip("dash is not installed")
    subprocess.run([dash, "-n", ROOT / "run"], check=True)
    assert os.access(ROOT / "run", os.X_OK)
