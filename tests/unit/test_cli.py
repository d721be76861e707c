# SPDX-License-Identifier: GPL-2.0-only
"""The command line: what it passes on, and the exit code for whatever goes wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import __version__, cli, plugin, suite
from harness.bisect.drive import Bisection
from harness.bisect.plan import Answer, NoAnswer
from harness.campaign import Plan
from harness.catalogue import Entry
from harness.comparison import Comparison, Measurement
from harness.errors import (
    BuildError,
    CommandError,
    ExitCode,
    HarnessError,
    HostLostError,
    MachineUnfitError,
    OracleUnavailable,
    UsageError,
    Violation,
)
from harness.kernel.architecture import Architecture
from harness.kernel.claims import CASES, Claims, Finding, Selection
from harness.kernel.portability import Compiled, Portability
from harness.kill_matrix import Matrix, Run, judged
from harness.machine import mmu
from harness.soak.drive import Order
from harness.soak.timeline import Soak
from harness.store import Store
from harness.workbench import Wish

SECONDS = 60

Command = Callable[..., int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Runs the command line in this process and returns its exit code."""
    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {signum: signal.getsignal(signum) for signum in signals}

    def run(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["mmu-harness", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert type(caught.value.code) is int, "an enum would be printed instead"
        return caught.value.code

    yield run
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, list[str], list[str]]]:
    """What check() was called with."""
    calls: list[tuple[str | None, list[str], list[str]]] = []

    def check(expression: str | None, tests: Sequence[str], options: Sequence[str]) -> int:
        calls.append((expression, list(tests), list(options)))
        return ExitCode.UNTESTABLE

    monkeypatch.setattr(suite, "check", check)
    return calls


# Usage.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["--frobnicate"], "No such option"),
        (["check", "--frobnicate"], "No such option"),
        (["check", "--kernel"], "requires an argument"),
        (["build", "--jobs", "many"], "'many' is not a valid integer"),
        (["build", "--jobs", "0"], "0 is not in the range"),
        (["build", "unexpected"], "unexpected extra argument"),
        (["doctor", "unexpected"], "unexpected extra argument"),
        (["boot", "--mmu", "ept"], "choose one of tdp, tdp-legacy, shadow, nested"),
        (["boot", "--accel", "hvf"], "choose one of auto, kvm, tcg"),
        (["build", "--kernel", "deb:nothing"], "deb:linux-source-V"),
        (["build", "--control", "nope"], "There is no control 'nope'; choose one of"),
        (["controls", "nope"], "There is no control 'nope'; choose one of"),
        (["controls", "--mmu", "ept"], "choose one of tdp, tdp-legacy, shadow, nested"),
        (["controls", "--kernel", "deb:linux-image-6.1"], "is built already"),
        (["compare", "--kernel", "deb:linux-image-6.1"], "is built already"),
        (["cross", "--kernel", "deb:linux-image-6.1"], "is built already"),
        (["cross", "--arch", "sparc"], "choose arm64, ppc64el"),
        (["cross", "--arch", ""], "choose arm64, ppc64el"),
        (["compare", "unexpected"], "unexpected extra argument"),
    ],
)
def test_bad_usage_is_201_and_says_what_is_wrong(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert command(*words) == 201
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_nothing_at_all_is_bad_usage_that_lists_the_commands(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 201
    said = capsys.readouterr()
    assert all(name in said.err + said.out for name in ("check", "build", "boot", "doctor"))


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["check", "--help"], ["boot", "-h"]])
def test_help_is_no_error(
    command: Command, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert command(*words) == 0
    assert "Usage: " in capsys.readouterr().out


def test_the_help_tells_the_exit_codes(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command("--help")
    said = capsys.readouterr().out
    assert all(str(int(code)) in said for code in ExitCode)


def test_the_version_is_told(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--version") == 0
    assert __version__ in capsys.readouterr().out


# Errors.


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("No."), 201),
        (MachineUnfitError("No."), 202),
        (BuildError("No."), 125),
        (HostLostError("No."), 200),
        (CommandError(["make"], 2, "No."), 200),
        (OracleUnavailable("No."), 125),
        (Violation("references", "1", "2"), 1),
        (OSError(errno.ENOSPC, "No space left on device"), 200),
        (MemoryError("No."), 200),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_error_has_its_code_and_is_told_in_a_line(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(suite, "check", fail)
    assert command("check") == code
    said = capsys.readouterr().err
    assert said.lstrip().startswith("mmu-harness: ")
    assert "Traceback" not in said
    assert "bug" not in said


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("division by zero"), OSError(errno.ENOENT, "x"), KeyError("x")]
)
def test_what_nobody_expected_is_a_bug_and_shows_where(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(suite, "check", fail)
    assert command("check") == 203
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert type(error).__name__ in said
    assert "This is a bug in the harness" in said


def test_a_bug_that_knows_itself_is_a_bug(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise HarnessError("An invariant does not hold.")

    monkeypatch.setattr(suite, "check", fail)
    assert command("check") == 203


# What check passes on.


def test_the_verdict_of_a_check_is_the_exit_code(
    command: Command, checked: list[tuple[str | None, list[str], list[str]]]
) -> None:
    assert command("check") == 125
    ((expression, tests, options),) = checked
    assert (expression, tests) == (None, [])
    assert "--kernel=deb:linux-source-6.12" in options
    assert "--accel=auto" in options
    assert "--results=results" in options
    assert not [option for option in options if option.startswith(("--jobs", "--control", "--mmu"))]


def repository(path: Path) -> Callable[..., None]:
    """A repository with three commits; what is returned runs git in it."""
    path.mkdir()
    who = {f"GIT_{role}_NAME": "A. Developer" for role in ("AUTHOR", "COMMITTER")}
    who |= {f"GIT_{role}_EMAIL": "a@example.org" for role in ("AUTHOR", "COMMITTER")}
    environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": "/dev/null"}

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=path, env=environment, check=True, capture_output=True)

    git("init", "-q")
    for number in range(3):
        git("commit", "-q", "--allow-empty", "-m", str(number))
    return git


def test_under_git_bisect_run_the_kernel_is_the_tree_that_is_bisected(
    command: Command,
    checked: list[tuple[str | None, list[str], list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    git = repository(tmp_path / "linux")
    (tmp_path / "linux" / "mm").mkdir()
    monkeypatch.chdir(tmp_path / "linux" / "mm")
    command("check")
    git("bisect", "start", "HEAD", "HEAD~2")
    command("check")
    command("check", "--kernel=deb:linux-source-6.12", "--results=out")
    git("bisect", "reset")
    command("check")
    kernels = [next(word for word in options if "--kernel=" in word) for *_, options in checked]
    debian = "--kernel=deb:linux-source-6.12"
    assert kernels == [debian, f"--kernel={tmp_path / 'linux'}", debian, debian]
    results = [next(word for word in options if "--results=" in word) for *_, options in checked]
    hidden = f"--results={tmp_path / 'linux' / '.mmu-harness' / 'results'}"
    assert results == ["--results=results", hidden, "--results=out", "--results=results"]


def test_every_option_reaches_the_plugin_under_its_name(
    command: Command, checked: list[tuple[str | None, list[str], list[str]]]
) -> None:
    command(
        *("check", "--kernel", "linux/", "--patch", "a.patch", "--patch", "b.patch"),
        *("--config", "x.config", "--jobs", "3", "--mmu", "tdp", "--mmu", "shadow"),
        *("--accel", "tcg", "--control", "sptes", "--results", "out", "-k", "fork and not child"),
        *("--repeat", "20", "--until-fail", "--same-hosts", "--strict", "--hosts", "2"),
        *("--quick", "--max-failures", "7"),
        *("tests/kvm/test_fork.py", "tests/kvm/test_unmap.py::test_x[tdp]"),
    )
    ((expression, tests, options),) = checked
    assert expression == "fork and not child"
    assert tests == ["tests/kvm/test_fork.py", "tests/kvm/test_unmap.py::test_x[tdp]"]
    assert sorted(options) == sorted(
        [
            "--kernel=linux/", "--patch=a.patch", "--patch=b.patch", "--config=x.config",
            "--jobs=3", "--mmu=tdp", "--mmu=shadow", "--accel=tcg", "--control=sptes",
            "--results=out", "--repeat=20", "--until-fail", "--same-hosts", "--no-skips",
            "--hosts=2", "--quick", "--max-failures=7",
        ]
    )  # fmt: skip
    assert [each for each in options if each.startswith("--patch")] == [
        "--patch=a.patch",
        "--patch=b.patch",
    ], "patches apply in the order given"


def test_every_option_is_one_that_the_plugin_knows(
    checked: list[tuple[str | None, list[str], list[str]]], command: Command
) -> None:
    known: list[str] = []
    group = SimpleNamespace(addoption=lambda name, **_: known.append(name))
    parser = SimpleNamespace(getgroup=lambda *_: group)
    plugin.pytest_addoption(parser)  # type: ignore[arg-type]
    known.remove("--coverage")  # that is a command here
    flags = {"--no-skips": "--strict"}  # where pytest has an option of the same name already
    valued = [name for name in known if name not in flags]
    words = [*flags.values(), *(word for name in valued for word in (name, "1"))]
    command("check", *words)
    command("coverage", *words)
    (_, _, options), (_, _, more) = checked
    assert {option.partition("=")[0] for option in options} == set(known)
    assert more == [*options, "--coverage"]


@pytest.mark.parametrize("value", ["-x", "--kernel", "--results=elsewhere", "-k", "a=b", "", " "])
def test_a_value_may_look_like_an_option(
    command: Command, checked: list[tuple[str | None, list[str], list[str]]], value: str
) -> None:
    command("check", f"--kernel={value}", f"--patch={value}", "-k", value)
    ((expression, _, options),) = checked
    assert f"--kernel={value}" in options
    assert f"--patch={value}" in options
    assert expression == value


def test_a_test_may_look_like_an_option(
    command: Command, checked: list[tuple[str | None, list[str], list[str]]]
) -> None:
    command("check", "--", "-x.py")
    assert checked[0][1] == ["-x.py"]


# Building and booting.


@pytest.fixture
def wishes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Wish]:
    """What was wished for; nothing is made of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wished: list[Wish] = []

    def make_kernel(wish: Wish, *_: object) -> tuple[Any, None]:
        wished.append(wish)
        return SimpleNamespace(entry=Path("/store/kernel/1"), image=Path("/boot/vmlinuz")), None

    def make_parts(wish: Wish, *_: object) -> Any:
        wished.append(wish)
        return SimpleNamespace(kernel="kernel", probe="probe")

    monkeypatch.setattr(cli, "make_kernel", make_kernel)
    monkeypatch.setattr(cli, "make_parts", make_parts)
    return wished


def test_a_build_prints_where_the_kernel_is_and_nothing_else(
    command: Command, wishes: list[Wish], capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("--kernel", "linux", "--patch", "a", "--config", "b", "--jobs", "2", "--control", "c",
             "--vmlinux", "d")  # fmt: skip
    assert command("build", *words) == 0
    assert capfd.readouterr().out == "/store/kernel/1\n"
    asked = Wish("linux", (Path("a"),), (Path("b"),), control="c", jobs=2, vmlinux=Path("d"))
    assert wishes == [asked]


def test_a_prebuilt_kernel_is_where_it_was(
    command: Command,
    wishes: list[Wish],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prebuilt = SimpleNamespace(entry=None, image=Path("/boot/vmlinuz"))
    monkeypatch.setattr(cli, "make_kernel", lambda *_: (prebuilt, None))
    assert command("build") == 0
    assert capfd.readouterr().out == "/boot/vmlinuz\n"


@pytest.mark.parametrize("guest", [False, True])
def test_a_booted_host_gets_a_shell_and_its_status_is_ours(
    command: Command, wishes: list[Wish], monkeypatch: pytest.MonkeyPatch, *, guest: bool
) -> None:
    happened: list[str] = []

    @contextlib.contextmanager
    def opened(what: str, value: object, *_: object) -> Iterator[object]:
        happened.append(what)
        yield value
        happened.append(f"end of {what}")

    filled = SimpleNamespace(
        fill=lambda seed: happened.append("fill"), pid=1, pages=2, hva=3, cgroup="c"
    )
    monkeypatch.setattr(cli, "host_spec", lambda parts, mode: f"spec of {mode}")
    monkeypatch.setattr(cli, "boot_host", lambda spec, *_: opened(spec, "host"))
    monkeypatch.setattr(cli, "session", lambda host, probe: opened("session", host))
    monkeypatch.setattr(cli, "probe_guest", lambda agent: opened("guest", filled))

    def interact(host: object) -> int:
        happened.append(f"shell on {host}")
        return 7

    monkeypatch.setattr(cli, "interact", interact)
    assert command("boot", "--mmu", "shadow", *(["--guest"] if guest else [])) == 7
    assert wishes[0].modes == (mmu.Mmu.SHADOW,)
    inner = ["session", "guest", "fill"] if guest else []
    outer = ["end of guest", "end of session"] if guest else []
    assert happened == [
        "spec of shadow", *inner, "shell on host", *outer, "end of spec of shadow",
    ]  # fmt: skip


# Trying patches.

CHANGE = "--- a/Kconfig\n+++ b/Kconfig\n@@ -1 +1 @@\n-{}\n+new\n"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that passes for kernel source, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = tmp_path / "my linux"
    (root / "arch/x86").mkdir(parents=True)
    (root / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 3\n")
    (root / "Kconfig").write_text("old\n")
    (root / "arch/x86/Kconfig").write_text("")
    return root


def contents(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (CHANGE.format("old"), 0, ["Kconfig: applied", "hunk #1 (line 1) applied", "=> applied"]),
        (CHANGE.format("no"), 125, ["hunk #1 (line 1) rejected", "=> rejected"]),
        (CHANGE.format("new").replace("+new", "+old"), 0, ["=> already applied"]),
        (
            "mm: \x1b[31mred\n" + CHANGE.format("old").replace("a/Kconfig", "/dev/null")
            .replace("-1 +1", "-0,0 +1").replace("-old\n", ""),
            125,
            ["mm: \\x1b[31mred", "=> not applicable: this tree already has Kconfig"],
        ),
    ],
)  # fmt: skip
def test_a_patch_is_tried_and_the_source_stays_as_it_is(
    command: Command,
    tree: Path,
    capfd: pytest.CaptureFixture[str],
    text: str,
    code: int,
    said: list[str],
) -> None:
    patch = tree.parent / "-x.patch"
    patch.write_text(text)
    before = contents(tree)
    assert command("patch", "--kernel", str(tree), "--", str(patch)) == code
    out = capfd.readouterr().out
    assert all(words in out for words in said), out
    assert contents(tree) == before


def test_what_comes_after_a_rejected_patch_is_not_tried(
    command: Command, tree: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tree.parent / "bad").write_text(CHANGE.format("no"))
    words = [str(tree.parent / "bad")] * 3
    assert command("patch", "--kernel", str(tree), *words) == 125
    assert "2 more not tried" in capfd.readouterr().out


def test_patches_need_source_and_files(
    command: Command, tree: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("patch", "--kernel", str(tree)) == 201
    assert command("patch", "--kernel", str(tree), str(tree / "none")) == 201
    assert command("patch", "--kernel", str(tree), str(tree / "Kconfig")) == 125
    assert "there is no diff in it" in capfd.readouterr().err


# The store, and the claims about the configuration.


def entry(store: Store, release: str) -> Path:
    path = store.entry("debian", {"package": release}, lambda p: (p / "x").touch())
    os.close(store._held.pop(path))
    os.utime(path / "key.json", (1, 1))
    return path


def test_the_store_is_listed_and_cleaned(
    command: Command,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert command("kernels") == 0
    assert f"0 in {tmp_path}/mmu-harness" in capfd.readouterr().out
    old = entry(Store(), "linux-image-1")
    assert command("kernels") == 0
    assert "linux-image-1" in capfd.readouterr().out
    assert command("kernels", "--older-than", "1", "--dry-run") == 0
    assert "Would remove: package linux-image-1" in capfd.readouterr().out
    assert command("kernels", "--at-most", "1") == 0
    assert "nothing to remove" in capfd.readouterr().out
    assert old.is_dir()
    assert command("kernels", "--at-most", "0") == 0
    assert "Removed: package linux-image-1" in capfd.readouterr().out
    assert not old.exists()
    held = Store().entry("debian", {"package": "held"}, lambda p: (p / "x").touch())
    assert command("kernels", "--older-than", "0") == 0
    assert "In use, kept: package held" in capfd.readouterr().out
    assert held.is_dir()
    assert command("kernels", "--at-most", "-1") == 201


@pytest.mark.parametrize(("problems", "code", "said"), [
    ((), 0, "The claims hold."),
    (("System.map has x",), 1, "System.map has x"),
])  # fmt: skip
def test_claims_that_do_not_hold_are_a_fail(
    command: Command, tree: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, problems: tuple[str, ...], code: int, said: str,
) -> None:  # fmt: skip
    finding = Finding(CASES[2], "n", "n", (), {"mm/memory.o": ()}, problems)
    built: list[bool] = []

    def check(self: Claims, *, build: bool) -> object:
        built.append(build)
        return Selection(("KVM", "MMU_NOTIFIER"), ("KVM", "OTHER")), (finding,)

    monkeypatch.setattr(Claims, "check", check)
    assert command("kconfig", "--kernel", str(tree)) == code
    out = capfd.readouterr().out
    assert said in out
    assert "KVM selects MMU_NOTIFIER, as do 2 in all." in out
    assert command("kconfig", "--kernel", str(tree), "--no-build") == code
    assert built == [True, False]
    assert command("kconfig", "--kernel", str(tree / "none")) == 125


@pytest.mark.parametrize(("problems", "code", "said"), [
    ((), 0, "It compiles everywhere."),
    (("mm/x.c does not",), 1, "It does not compile everywhere."),
])  # fmt: skip
def test_code_that_does_not_compile_for_others_is_a_fail(
    command: Command, tree: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, problems: tuple[str, ...], code: int, said: str,
) -> None:  # fmt: skip
    asked: list[list[str]] = []

    def check(self: Portability, architectures: Sequence[Architecture]) -> object:
        asked.append([one.name for one in architectures])
        objects = {"mm": 2, "kernel/fork.o": 1, "virt/kvm": 0}
        return (Compiled("arm64", False, "gcc", "n", objects, {}, problems),)

    monkeypatch.setattr(Portability, "check", check)
    assert command("cross", "--kernel", str(tree)) == code
    out = capfd.readouterr().out
    assert said in out
    assert "no user" in out
    assert all(problem in out for problem in problems)
    words = ("--arch", "ppc64el", "--arch", "arm64", "--arch", "ppc64el")
    assert command("cross", "--kernel", str(tree), *words) == code
    assert asked == [["arm64", "ppc64el"], ["ppc64el", "arm64"]]
    assert command("cross", "--kernel", str(tree / "none")) == 125


@pytest.mark.parametrize("name", ["patch", "build", "check"])
def test_a_patch_may_come_from_standard_input(
    tree: Path, name: str, wishes: list[Wish], command: Command,
    checked: list[tuple[str | None, list[str], list[str]]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    text = CHANGE.format("old")
    stdin = SimpleNamespace(buffer=SimpleNamespace(read=text.encode))
    monkeypatch.setattr(sys, "stdin", stdin)
    words = ("--", "-") if name == "patch" else ("--patch", "-")
    assert command(name, "--kernel", str(tree), *words) == (125 if name == "check" else 0)
    (kept,) = (tree.parent / "mmu-harness/patches").iterdir()
    assert kept.read_text() == text
    if name == "build":
        assert wishes[0].patches == (kept,)
    if name == "check":
        assert f"--patch={kept}" in checked[0][2]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_ends_a_build_in_good_order(
    command: Command,
    wishes: list[Wish],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signum: signal.Signals,
    code: int,
) -> None:
    directories: list[Path] = []

    def make_kernel(wish: Wish, store: Any, progress: object) -> None:
        directories.append(store.root)
        os.kill(os.getpid(), signum)

    monkeypatch.setattr(cli, "make_kernel", make_kernel)
    assert command("build") == code
    assert f"Interrupted by {signum.name}" in capsys.readouterr().err
    assert directories


@pytest.mark.parametrize(("outcome", "code"), [("fail", 0), ("pass", 1)])
def test_controls_prints_the_matrix_and_ends_with_its_code(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    outcome: str,
    code: int,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plans: list[Plan] = []

    class Campaign:
        directory = tmp_path / "results"

        def __init__(self, plan: Plan, *_: object) -> None:
            plans.append(plan)

        def run(self) -> Matrix:
            item = Entry("spte-kept", "sptes go", "a bug", sees=("test_fork",))
            oracle = "translations" if outcome == "fail" else None
            test = {"id": "tests/kvm/test_fork.py::test_x[tdp]", "mmu": "tdp", "backing": "anon"}
            judged_as: dict[str, object] = {
                "outcome": outcome,
                "oracle": oracle,
                "message": "stale",
            }
            row = judged(
                item, Run(code=0, results={"tests": [{**test, **judged_as, "oracles": []}]})
            )
            return Matrix("a kernel", Run(0), (row,))

    monkeypatch.setattr("harness.campaign.Campaign", Campaign)
    assert command("controls", "--mmu=shadow", "--accel=tcg", "spte-kept") == code
    assert plans == [Plan("deb:linux-source-6.12", ("spte-kept",), ("shadow",), "tcg")]
    said = capfd.readouterr().out
    assert "spte-kept" in said
    assert ("fork: x (translations)" in said) is (outcome == "fail")
    assert str(tmp_path / "results") in said


@pytest.mark.parametrize(("swapped", "code"), [(8, 0), (7, 1)])
def test_compare_prints_both_kernels_and_whether_the_claim_holds(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    swapped: int,
    code: int,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = Measurement(8, {"swapped": 0}, {})
    after = Measurement(8, {"swapped": swapped}, {})
    found = Comparison("a kernel", "6.12", before, after)
    monkeypatch.setattr("harness.comparing.compared", lambda *_: (found, tmp_path / "results"))
    assert command("compare") == code
    said = capfd.readouterr().out
    assert "0 (0.0%)" in said
    assert str(tmp_path / "results") in said


@pytest.mark.parametrize(
    ("failure", "code"),
    [(None, 0), (Violation("content", "this", "that"), 1), (HostLostError("gone"), 200)],
)
def test_soak_passes_on_what_is_asked_and_ends_with_what_went_wrong(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    failure: HarnessError | None,
    code: int,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[Any] = []

    def soaked(wish: Wish, order: Order, *_: object) -> tuple[Soak, HarnessError | None, Path]:
        asked.append((wish, order))
        seen = Soak(order.seed, "6.12", 9.0, (), (), 0, str(failure or ""))
        return seen, failure, tmp_path / "results"

    monkeypatch.setattr("harness.soak.drive.soaked", soaked)
    words = ["--guests", "5", "--guest-memory", "160", "--duration", "60", "--seed", "77"]
    assert command("soak", *words, "--control", "pre-notifier", "--mmu", "shadow") == code
    ((wish, order),) = asked
    assert order == Order(5, 160, 60.0, 77)
    assert (wish.modes, wish.control) == ((mmu.Mmu.SHADOW,), "pre-notifier")
    said = capfd.readouterr().out
    assert "seed 77" in said
    assert str(tmp_path / "results") in said


# The real thing, as a process of its own.


def process(*words: str, directory: Path) -> subprocess.CompletedProcess[str]:
    code = "from harness.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=directory,
        env={**os.environ, "XDG_CACHE_HOME": str(directory)},
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--mmu", "ept"],
            "There is no MMU mode 'ept'; choose one of tdp, tdp-legacy, shadow, nested.",
        ),
        (["-k", "and and", "tests/kvm/test_exit.py"], "and and"),
    ],
)
def test_a_check_with_bad_words_is_bad_usage(tmp_path: Path, words: list[str], said: str) -> None:
    ended = process("check", *words, directory=tmp_path)
    assert ended.returncode == 201, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


# Bisecting.


def bisection(directory: Path, *words: str) -> list[str]:
    return [
        *("bisect", "--good", "good", "--bad", "main", "--source", str(directory / "linux")),
        *("--results", str(directory / "results"), *words),
    ]


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a repository ``linux``, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    script = (
        "git init -q -b main linux && cd linux && git config user.name a && "
        "git config user.email a@example.org && echo 1 >f && git add f && git commit -q -m one && "
        "git tag good && echo 2 >f && git commit -q -a -m two"
    )
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True)
    return tmp_path


def test_a_bisection_asks_for_what_was_said_and_prints_the_summary(
    command: Command,
    history: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Any] = []

    def run(self: Any) -> Answer:
        asked.append(self._question)
        (self._directory / "summary.txt").write_text("First bad commit: it\n")
        return Answer("c", ("p",), identical=False)

    monkeypatch.setattr(Bisection, "run", run)
    words = bisection(history, "--mmu", "tdp", "--select", "fork", "--patch", "a", "--jobs", "2")
    assert command(*words, "--error", "0.05", "--config", "c", "--accel", "tcg", "t.py::x") == 0
    (question,) = asked
    assert (question.select, question.tests, question.modes) == ("fork", ("t.py::x",), ("tdp",))
    assert (question.error, question.jobs, question.accelerator) == (0.05, 2, "tcg")
    assert question.patches == (Path.cwd() / "a",)
    assert question.fragments == (Path.cwd() / "c",)
    assert question.source == history / "linux"
    assert len(question.good) == len(question.bad) == 40
    assert question.good != question.bad
    said = capsys.readouterr().out
    assert "First bad commit: it" in said
    assert f"Results: {history / 'results' / 'bisect-'}" in said


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (NoAnswer("The bad revision did not fail.", bad_input=True), 201),
        (NoAnswer("Only commits that cannot be tested are left.", ("a", "b")), 125),
    ],
)
def test_a_bisection_without_an_answer_is_no_success(
    command: Command,
    history: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: NoAnswer,
    code: int,
) -> None:
    def run(self: Any) -> NoAnswer:
        (self._directory / "summary.txt").write_text(answer.reason)
        return answer

    monkeypatch.setattr(Bisection, "run", run)
    assert command(*bisection(history)) == code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--good", "nope"], 'There is no commit "nope"'),
        (["--source", "/nonexistent"], "There is no directory /nonexistent"),
        (["--error", "0"], "The error bound is a probability"),
        (["--mmu", "ept"], "choose one of tdp, tdp-legacy, shadow, nested"),
    ],
)
def test_a_bisection_of_nothing_is_bad_usage(
    command: Command,
    history: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    assert command(*bisection(history, *words)) == 201
    assert said in capsys.readouterr().err
