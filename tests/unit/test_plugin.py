# SPDX-License-Identifier: GPL-2.0-only
"""The suite inside pytest, on hosts that are Python objects: from options to the verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from harness import plugin, run, suite
from harness.errors import (
    BootError,
    BuildError,
    ExitCode,
    HarnessError,
    Interrupted,
    OracleUnavailable,
    UsageError,
)
from harness.janitor import Janitor
from harness.kernel.model import Kernel
from harness.machine.accelerator import Accelerator
from harness.machine.mmu import Mmu
from harness.result.coverage import Cell, Coverage, Site
from harness.result.outcome import Request
from harness.result.record import HostRun
from harness.result.verdict import Crash, Evidence
from harness.workbench import Wish

pytest_plugins = ["pytester"]

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

PASSING = """
def test_a(evidence):
    evidence.at_least("reclaim", "pages", 1, 2)
"""


class FakeHost:
    """What tests of the suite hold here; ``problem`` is what its log says."""

    def __init__(self, mode: Mmu) -> None:
        self.facts = SimpleNamespace(pace=1.0, mmu=mode)
        self.problem: Exception | None = None

    def check(self) -> None:
        if self.problem is not None:
            raise self.problem


class FakeBench:
    """Stands for the workbench: gives hosts, and remembers which and when they went."""

    def __init__(self, world: World, keep: Callable[[str, bytes], object]) -> None:
        self._world = world
        self._keep = keep
        self._mode: Mmu | None = None
        self._session: Any = None
        self.hosts: list[HostRun] = []
        self.log_position = 0
        self._prefix = ""

    def enlist(self, worker: int, progress: object) -> None:
        self._prefix = f"{worker}-"

    def session(self, mode: Mmu) -> Any:
        if (error := self._world.hopeless.get(mode)) is not None:
            raise error
        if mode is not self._mode:
            self.discard()
            self._mode = mode
            self._session = SimpleNamespace(host=FakeHost(mode), cpus=2)
            self._world.happened.append(f"boot {mode}")
        return self._session

    def log_since(self, position: int) -> str:
        return "the log of the test"

    def discard(self) -> None:
        if self._mode is None:
            return
        name = f"{self._prefix}host{len(self.hosts) + 1}-{self._mode}"
        evidence = Evidence(name, self._mode, name, name, True, self._world.crashes)
        self.hosts.append(HostRun(evidence))
        self._keep(f"{name}.console.log", b"the whole log")
        self._world.happened.append(f"end {self._mode}")
        self._mode = None


class World:
    """What this machine can make."""

    def __init__(self, directory: Path) -> None:
        self.happened: list[str] = []
        self.wishes: list[Wish] = []
        self.hopeless: dict[Mmu, HarnessError] = {}
        self.crashes: tuple[Crash, ...] = ()
        self.problem: Exception | None = None
        config = directory / "config"
        config.write_text("CONFIG_KVM=y\n")
        self.kernel = Kernel(directory / "bzImage", "6.12.1", "0" * 64, "linux/", config=config)

    def make_parts(self, wish: Wish, *_: object) -> Any:
        self.wishes.append(wish)
        if self.problem is not None:
            raise self.problem
        accelerator = Accelerator("tcg", "because of a test")
        return SimpleNamespace(kernel=self.kernel, accelerator=accelerator, control=None)


class FakeJanitor:
    """Starts no helper, which takes a while; the real one is asked for by ``janitor``."""

    directory = Path("/nonexistent")

    def __enter__(self) -> FakeJanitor:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left."""

    def adopt(self, directory: Path) -> None:
        raise AssertionError("nothing is made here")

    release = adopt


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(plugin, "Janitor", FakeJanitor)
    monkeypatch.setattr(run, "make_parts", world.make_parts)
    monkeypatch.setattr(run, "Workbench", lambda parts, _, __, keep: FakeBench(world, keep))
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield world
    for signum, handler in before.items():
        signal.signal(signum, handler)


@dataclasses.dataclass(frozen=True)
class Ended:
    """A run of an inner pytest: its exit code, what it printed, and results.json if any."""

    code: int
    out: str
    err: str
    results: Any
    directory: Path | None

    @property
    def test(self) -> Any:
        """The only test."""
        (test,) = self.results["tests"]
        return test


Judge = Callable[..., Ended]


@pytest.fixture
def judge(pytester: pytest.Pytester, world: World) -> Judge:
    """Runs the text of a test module in the suite, by default in one MMU mode."""

    def judge(text: str, *words: str, modes: tuple[str, ...] = ("tdp",)) -> Ended:
        pytester.makepyfile(test_inner=f"import pytest\nfrom harness import errors\n{text}")
        options = [f"--mmu={mode}" for mode in modes]
        # Each run would import Hypothesis anew and collect garbage several times.
        names = ("cacheprovider", "hypothesispytest", "unraisableexception")
        without = [f"-pno:{name}" for name in names]
        ended = pytester.runpytest_inprocess(*without, *options, *words)
        latest = pytester.path / "results" / "latest"
        results = latest / "results.json"
        return Ended(
            int(ended.ret),
            (ended.outlines and "\n".join(ended.outlines)) or "",
            "\n".join(ended.errlines),
            json.loads(results.read_text()) if results.exists() else None,
            latest if latest.exists() else None,
        )

    return judge


# Tests without KVM.

WITHOUT_KVM = """
def test_a(notifier_user, evidence):
    evidence.at_least("callbacks", "calls", 1, 2)

def test_b(evidence):
    evidence.at_least("reclaim", "pages", 1, 2)

def test_c(notifier_user, probe_guest, evidence):
    evidence.at_least("callbacks", "calls", 1, 2)
"""


class FakeSecondary:
    """Stands for the module with secondary MMUs; ``error`` is why there is none."""

    error: ClassVar[HarnessError | None] = None
    made: ClassVar[list[Wish]] = []
    loaded: ClassVar[list[Any]] = []

    def __init__(self, wish: Wish, *_: object) -> None:
        self.made.append(wish)

    def require(self) -> None:
        if self.error is not None:
            raise self.error

    def load(self, session: Any) -> None:
        self.loaded.append(session.host.facts.mmu)


@pytest.fixture
def secondary(monkeypatch: pytest.MonkeyPatch) -> type[FakeSecondary]:
    monkeypatch.setattr(run, "SecondaryMmus", FakeSecondary)
    monkeypatch.setattr(FakeSecondary, "made", [])
    monkeypatch.setattr(FakeSecondary, "loaded", [])
    return FakeSecondary


def test_a_test_without_kvm_runs_once_and_the_module_is_made_once(
    judge: Judge, secondary: type[FakeSecondary]
) -> None:
    ended = judge(WITHOUT_KVM, modes=("shadow", "tdp"))
    assert ended.code == 0
    ran = sorted((test["id"].rpartition(":")[2], test["mmu"]) for test in ended.results["tests"])
    assert ran == [
        ("test_a[shadow]", "shadow"),
        ("test_b[shadow]", "shadow"),
        ("test_b[tdp]", "tdp"),
        ("test_c[shadow]", "shadow"),
        ("test_c[tdp]", "tdp"),
    ], "the third has a guest, too, and so depends on the mode"
    assert len(secondary.made) == 1
    assert secondary.loaded == [Mmu.SHADOW, Mmu.SHADOW, Mmu.TDP]


def test_a_run_with_kvm_alone_makes_no_module(judge: Judge, secondary: type[FakeSecondary]) -> None:
    assert judge(PASSING).code == 0
    assert not secondary.made


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (OracleUnavailable("no headers"), "skip", 0),
        (BuildError("it does not build"), "error", 125),
    ],
)
def test_a_module_that_is_not_to_be_had_costs_its_own_tests_and_no_host(
    judge: Judge,
    world: World,
    secondary: type[FakeSecondary],
    monkeypatch: pytest.MonkeyPatch,
    error: HarnessError,
    outcome: str,
    code: int,
) -> None:
    monkeypatch.setattr(secondary, "error", error)
    ended = judge(WITHOUT_KVM)
    assert ended.code == code
    outcomes = {test["id"].rpartition("::")[2]: test for test in ended.results["tests"]}
    assert outcomes["test_a[tdp]"]["outcome"] == outcome
    assert str(error) in outcomes["test_a[tdp]"]["message"]
    assert outcomes["test_b[tdp]"]["outcome"] == "pass"
    assert world.happened == ["boot tdp", "end tdp"]


# Options.


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--mmu=ept", "There is no MMU mode 'ept'; choose one of tdp, tdp-legacy, shadow, nested."),
        ("--patch=-", "Standard input is pytest's own; use mmu-harness check --patch -."),
        ("--accel=hvf", "There is no accelerator 'hvf'; choose one of auto, kvm, tcg."),
        ("--control=x", "There is no control 'x'; choose one of"),
        ("--kernel=deb:linux", "give deb:linux-source-V with a series"),
        ("--kernel=http://x/y", "give an https address"),
        ("--patch=none", "--patch: none cannot be read: there is no such file."),
        ("--config=none", "--config: none cannot be read"),
        ("--vmlinux=none", "--vmlinux: none cannot be read"),
        ("--jobs=0", "--jobs takes a number from 1 on."),
        ("--repeat=0", "--repeat takes a number from 1 on."),
        ("--repeat=x", "invalid int value: 'x'"),
        ("--until-fail", "--until-fail goes with --repeat N"),
        ("--same-hosts", "--same-hosts goes with --repeat N"),
        ("-n2 --hosts=2", "both say how many hosts run at once"),
        ("-n2 --coverage", "--coverage is measured on one host at a time"),
        ("-n2 --dist=each", "of pytest-xdist take -n N"),
    ],
)
def test_bad_options_are_bad_usage_that_names_the_valid_values(
    judge: Judge, word: str, said: str
) -> None:
    ended = judge(PASSING, *word.split())
    assert ended.code == pytest.ExitCode.USAGE_ERROR
    assert said in ended.err
    assert ended.directory is None


def test_options_are_the_wish(judge: Judge, world: World, pytester: pytest.Pytester) -> None:
    pytester.makefile("", a="", b="", c="")
    judge(
        PASSING,
        *("--kernel=linux/", "--patch=a", "--patch=b", "--config=c", "--accel=tcg"),
        *("--control=pre-notifier", "--jobs=3"),
        modes=("shadow", "tdp", "shadow"),
    )
    assert world.wishes == [
        Wish(
            kernel="linux/",
            patches=(Path("a"), Path("b")),
            fragments=(Path("c"),),
            modes=(Mmu.SHADOW, Mmu.TDP),
            accelerator="tcg",
            control="pre-notifier",
            jobs=3,
        )
    ]


def test_without_options_the_defaults_are_wished_for(judge: Judge, world: World) -> None:
    judge(PASSING, modes=())
    assert world.wishes == [Wish()]


HEADER = r"""kernel: deb:linux-source-6\.12, patch a, with pre-notifier broken on purpose; \
requested configuration [0-9a-f]{12}
hosts: accelerator tcg; MMU modes tdp, 3 times"""


def test_the_header_says_what_is_tested(judge: Judge, pytester: pytest.Pytester) -> None:
    pytester.makefile("", a="")
    words = ("--patch=a", "--control=pre-notifier", "--accel=tcg", "--repeat=3", "--collect-only")
    ended = judge(PASSING, *words)
    assert re.search(HEADER.replace("\\\n", ""), ended.out)


def test_a_fragment_of_the_user_is_in_the_digest_of_the_header(
    judge: Judge, pytester: pytest.Pytester
) -> None:
    fragment = pytester.makefile(".config", mine="# why not\nCONFIG_KASAN=y\n")
    heads = [
        re.search("requested configuration ([0-9a-f]{12})", judge(PASSING, "--co", *words).out)
        for words in ((), (f"--config={fragment}",))
    ]
    assert heads[0]
    assert heads[1]
    assert heads[0][1] != heads[1][1]


# Collection.

MIXED = """
def test_plain():
    pass

def test_first(evidence):
    evidence.at_least("x", "y", 0, 0)

@pytest.mark.parametrize("where", ["a", "b"])
def test_second(host, evidence, where):
    evidence.at_least("x", "y", 0, 0)

def test_third(probe_guest):
    pass

class TestMore:
    def test_fourth(self, guest):
        pass

    def test_fifth(self, large_guest):
        pass
"""


def collected(ended: Ended) -> list[str]:
    return [line.split("::", 1)[1] for line in ended.out.splitlines() if "::" in line]


def test_tests_of_the_suite_run_once_in_each_mode_mode_by_mode(judge: Judge) -> None:
    ended = judge(MIXED, "--collect-only", "-q", modes=("shadow", "tdp"))

    def in_mode(mode: str) -> list[str]:
        return [
            f"test_first[{mode}]",
            f"test_second[{mode}-a]",
            f"test_second[{mode}-b]",
            f"test_third[{mode}]",
            f"TestMore::test_fourth[{mode}]",
            f"TestMore::test_fifth[{mode}]",
        ]

    assert sorted(collected(ended)) == sorted(["test_plain", *in_mode("shadow"), *in_mode("tdp")])
    marks = ["shadow" in name for name in collected(ended)[1:]]
    assert marks == sorted(marks, reverse=True), "each mode is one host"
    assert collected(ended)[0] == "test_plain"


def test_without_a_mode_there_are_the_default_ones(judge: Judge) -> None:
    ended = judge(PASSING, "--collect-only", "-q", modes=())
    assert collected(ended) == ["test_a[tdp]", "test_a[shadow]"]


def test_collecting_makes_nothing(judge: Judge, world: World) -> None:
    ended = judge(PASSING, "--collect-only")
    assert ended.code == 0
    assert ended.directory is None
    assert world.wishes == []


def test_a_run_without_tests_of_the_suite_is_left_alone(judge: Judge, world: World) -> None:
    ended = judge("def test_a(): pass\ndef test_b(): assert False\n")
    assert ended.code == pytest.ExitCode.TESTS_FAILED
    assert ended.directory is None
    assert world.wishes == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_modules_that_cannot_be_collected_make_nothing(judge: Judge, world: World) -> None:
    ended = judge(PASSING + "\nraise ZeroDivisionError\n")
    assert ended.code == pytest.ExitCode.INTERRUPTED
    assert ended.directory is None
    assert world.wishes == []


def test_hosts_come_and_go_mode_by_mode(judge: Judge, world: World) -> None:
    text = PASSING + PASSING.replace("test_a", "test_b")
    ended = judge(text, modes=("tdp", "shadow"))
    assert ended.code == ExitCode.PASS
    assert world.happened == ["boot tdp", "end tdp", "boot shadow", "end shadow"]


def test_plain_tests_among_them_are_no_part_of_the_verdict(judge: Judge) -> None:
    ended = judge(PASSING + "def test_b():\n    pass\n")
    assert ended.code == ExitCode.PASS
    assert [test["id"] for test in ended.results["tests"]] == ["test_inner.py::test_a[tdp]"]


# Outcomes.

OUTCOMES = {
    "evidence that agrees": (
        'evidence.at_least("reclaim", "pages", 1, 2)',
        "pass", 0,
    ),
    "a violation": (
        'evidence.at_least("reclaim", "pages", 3, 2)',
        "fail", 1,
    ),
    "a violation that no oracle saw": (
        'raise errors.Violation("VMM", "life", "death")',
        "fail", 1,
    ),
    "a splat": (
        'raise errors.KernelSplat("oops", "BUG: unable to handle")',
        "fail", 1,
    ),
    "an assertion": (
        "assert 1 == 2",
        "error", 203,
    ),
    "a bug": (
        "{}['x']",
        "error", 203,
    ),
    "a lost host": (
        'raise errors.HostLostError("The connection is gone.")',
        "error", 200,
    ),
    "an error of the probe": (
        'raise errors.ProbeError("It said nothing.")',
        "error", 200,
    ),
    "a full disk": (
        'raise OSError(28, "No space left on device")',
        "error", 200,
    ),
    "a skip": (
        'pytest.skip("no second node")',
        "skip", 125,
    ),
    "an oracle that is all there is": (
        'raise errors.OracleUnavailable("There is no vmlinux.")',
        "skip", 125,
    ),
    "pytest's own failure": (
        'pytest.fail("no")',
        "error", 203,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_test_is_judged_by_what_it_raised(judge: Judge, name: str) -> None:
    body, outcome, code = OUTCOMES[name]
    ended = judge(f"def test_a(evidence):\n    {body}\n")
    assert (ended.test["outcome"], ended.code) == (outcome, code)
    assert ended.results["verdict"]["exit_code"] == code


@pytest.mark.parametrize("fixture", ["host", "evidence"])
def test_a_test_that_asks_no_oracle_cannot_pass(judge: Judge, fixture: str) -> None:
    # That the kernel's log is clean says nothing about what the test is about.
    ended = judge(f"def test_a({fixture}): pass\n")
    assert (ended.test["outcome"], ended.code) == ("error", 200)
    assert "no oracle agreed" in ended.test["message"]


@pytest.mark.parametrize(
    ("raised", "outcome", "code"),
    [
        ("errors.BootError('It did not come up.')", "error", 125),
        ("errors.Violation('kernel log', 'silence', 'noise')", "fail", 1),
        ("errors.OracleUnavailable('No.')", "skip", 125),
        ("ZeroDivisionError", "error", 203),
    ],
)
def test_what_is_raised_in_a_setup_counts_the_same(
    judge: Judge, raised: str, outcome: str, code: int
) -> None:
    ended = judge(
        f"@pytest.fixture\ndef broken(evidence):\n    raise {raised}\ndef test_a(broken): pass\n"
    )
    assert (ended.test["outcome"], ended.code) == (outcome, code)


LOG = """
def test_a(host, evidence):
    evidence.at_least("reclaim", "pages", 1, 2)
    host.problem = {problem}
    {body}
"""
SPLAT = "errors.KernelSplat('lockdep', 'possible circular locking dependency')"


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("pass", "fail"),
        ("pytest.skip('no second node')", "fail"),
        ("raise errors.HostLostError('The connection is gone.')", "fail"),
        ("raise errors.OracleUnavailable('No.')", "fail"),
        ("assert False", "fail"),
    ],
)
def test_a_complaint_of_the_kernel_beats_everything(judge: Judge, body: str, outcome: str) -> None:
    ended = judge(LOG.format(problem=SPLAT, body=body))
    assert (ended.test["outcome"], ended.code) == (outcome, 1)
    assert ended.test["oracle"] == "kernel log"
    assert "circular locking" in ended.test["message"]


def test_the_first_of_two_violations_is_told(judge: Judge) -> None:
    body = "raise errors.Violation('references', '1', '2', 7)"
    ended = judge(LOG.format(problem=SPLAT, body=body))
    assert (ended.test["oracle"], ended.test["page"]) == ("references", 7)


@pytest.mark.parametrize(
    ("body", "problem", "outcome", "code"),
    [
        ("pass", "errors.HostLostError('Gone.')", "error", 200),
        ("pytest.skip('no node')", "errors.HostLostError('Gone.')", "error", 200),
        ("raise errors.Violation('x', 'y', 'z')", "errors.HostLostError('Gone.')", "fail", 1),
        ("raise errors.BootError('No.')", "errors.HostLostError('Gone.')", "error", 125),
        # What ended a test is not taken back by what its end could not say.
        ("raise errors.HostLostError('No.')", "errors.OracleUnavailable('No.')", "error", 200),
        ("raise errors.Violation('x', 'y', 'z')", "errors.OracleUnavailable('No.')", "fail", 1),
    ],
)
def test_errors_at_the_end_of_a_test_do_not_hide_what_came_before(
    judge: Judge, body: str, problem: str, outcome: str, code: int
) -> None:
    ended = judge(LOG.format(problem=problem, body=body))
    assert (ended.test["outcome"], ended.code) == (outcome, code)


@pytest.mark.parametrize(
    ("body", "happened"),
    [
        ("evidence.at_least('x', 'y', 1, 1)", ["boot tdp", "end tdp"]),
        ("pass", ["boot tdp", "end tdp"] * 2),  # without evidence
        ("pytest.skip('no')", ["boot tdp", "end tdp"]),
        ("raise errors.Violation('x', 'y', 'z')", ["boot tdp", "end tdp"] * 2),
        ("raise errors.ProbeError('No.')", ["boot tdp", "end tdp"] * 2),
        ("assert False", ["boot tdp", "end tdp"] * 2),
    ],
)
def test_a_host_is_kept_only_while_tests_pass(
    judge: Judge, world: World, body: str, happened: list[str]
) -> None:
    judge(f"def test_a(evidence):\n    {body}\n{PASSING.replace('test_a', 'test_b')}")
    assert world.happened == happened


# Verdicts.


def test_a_failure_beats_errors_and_passes(judge: Judge) -> None:
    ended = judge(
        PASSING
        + "def test_b(evidence):\n    raise errors.HostLostError('Gone.')\n"
        + "def test_c(evidence):\n    raise errors.Violation('x', 'y', 'z')\n"
        + "def test_d(evidence):\n    pytest.skip('no')\n"
    )
    assert ended.code == 1
    assert ended.results["verdict"]["word"] == "FAIL"
    counts = {"pass": 1, "fail": 1, "error": 1, "skip": 1, "missing": 0}
    assert ended.results["counts"] == counts


def test_a_kernel_that_cannot_be_made_ends_the_run_before_its_first_test(
    judge: Judge, world: World
) -> None:
    world.problem = BuildError("make ended with 2.")
    ended = judge("def test_a(evidence):\n    raise SystemExit('it ran')\n")
    assert ended.code == 125
    assert ended.test["outcome"] == "missing"
    assert ended.results["problems"] == ["make ended with 2."]
    assert ended.results["verdict"]["reasons"] == ["make ended with 2."]
    assert world.happened == []


def test_what_the_user_got_wrong_is_usage_even_when_it_shows_late(
    judge: Judge, world: World
) -> None:
    world.problem = UsageError("There is no control 'x'.")
    assert judge(PASSING).code == 201


def test_a_mode_that_does_not_boot_leaves_the_others_their_results(
    judge: Judge, world: World
) -> None:
    world.hopeless[Mmu.SHADOW] = BootError("It did not come up.")
    ended = judge(PASSING, modes=("tdp", "shadow"))
    outcomes = {test["mmu"]: test["outcome"] for test in ended.results["tests"]}
    assert outcomes == {"tdp": "pass", "shadow": "error"}
    assert ended.code == 125


def test_a_crash_between_tests_is_a_failure(judge: Judge, world: World) -> None:
    world.crashes = (Crash("oops", "BUG: unable to handle page fault"),)
    ended = judge(PASSING)
    assert ended.test["outcome"] == "pass"
    assert ended.code == 1


def test_the_end_of_a_run_at_the_first_failure_leaves_the_others_missing(judge: Judge) -> None:
    ended = judge(
        "def test_a(evidence):\n    raise errors.Violation('x', 'y', 'z')\n"
        + PASSING.replace("test_a", "test_b"),
        "-x",
    )
    assert ended.code == 1
    assert [test["outcome"] for test in ended.results["tests"]] == ["fail", "missing"]


@pytest.mark.parametrize("hosts", ["--hosts=1", "--hosts=2"])
def test_a_run_ends_when_enough_tests_failed_whatever_else_went_wrong(
    judge: Judge, hosts: str
) -> None:
    ended = judge(
        "import pytest\n"
        "@pytest.mark.parametrize('number', range(40))\n"
        "def test_a(evidence, number):\n"
        "    if number % 2:\n"
        "        raise errors.Violation('x', 'y', 'z')\n"
        "    raise errors.ProbeError('no verdict')\n",
        "--max-failures=3",
        hosts,
    )
    assert ended.code == 1
    outcomes = [test["outcome"] for test in ended.results["tests"]]
    # Each of two hosts may have had a test under way.
    assert 3 <= outcomes.count("fail") <= 4
    assert "error" in outcomes, "errors do not count"
    assert outcomes.count("missing") > 20
    assert "tests failed, so no more are asked; --max-failures 0 asks all of them." in ended.out


def test_with_no_limit_all_tests_are_asked(judge: Judge) -> None:
    ended = judge(
        "import pytest\n"
        "@pytest.mark.parametrize('number', range(30))\n"
        "def test_a(evidence, number):\n"
        "    raise errors.Violation('x', 'y', 'z')\n",
        "--max-failures=0",
    )
    assert [test["outcome"] for test in ended.results["tests"]] == ["fail"] * 30
    assert "no more are asked" not in ended.out


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)]
)
def test_a_signal_ends_the_run_with_results_and_its_code(
    judge: Judge, world: World, signum: signal.Signals, code: int
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ended = judge(
        PASSING
        + f"import os\ndef test_b(evidence):\n    os.kill(os.getpid(), {int(signum)})\n"
        + PASSING.replace("test_a", "test_c")
    )
    assert ended.code == code
    assert ended.results["verdict"]["word"] == "INTERRUPTED"
    assert [test["outcome"] for test in ended.results["tests"]] == ["pass", "missing", "missing"]
    assert world.happened == ["boot tdp", "end tdp"]


# What is written down.


def test_the_results_say_what_was_tested_and_how_to_repeat_it(
    judge: Judge, pytester: pytest.Pytester
) -> None:
    pytester.makefile(".patch", **{"a b": ""})
    ended = judge(PASSING, "--patch=a b.patch", "--accel=tcg", "--kernel=linux/")
    test = ended.test
    assert (test["id"], test["mmu"], test["backing"]) == (
        "test_inner.py::test_a[tdp]",
        "tdp",
        "anon",
    )
    names = [report["name"] for report in test["oracles"]]
    assert names == ["reclaim", "kernel log"]
    repeat = "mmu-harness check --kernel linux/ --patch 'a b.patch' --mmu tdp --accel tcg"
    assert ended.results["command"] == repeat
    assert test["command"] == f"{repeat} 'test_inner.py::test_a[tdp]'"
    assert ended.results["kernel"]["release"] == "6.12.1"
    assert ended.results["config"]["symbols"]["KVM"] == "y"
    assert ended.results["host"]["accelerator_reason"] == "because of a test"
    assert ended.results["problems"] == []


def test_logs_and_configuration_are_kept(judge: Judge) -> None:
    directory = judge(PASSING).directory
    assert directory is not None
    logs = directory / "logs"
    assert (logs / "host1-tdp.console.log").read_bytes() == b"the whole log"
    assert (logs / "kernel.config").read_text() == "CONFIG_KVM=y\n"
    assert (directory / "junit.xml").exists()


def test_the_log_is_quoted_where_a_test_did_not_pass(judge: Judge) -> None:
    text = PASSING + "def test_b(evidence):\n    raise errors.Violation('x', 'y', 'z')\n"
    passed, failed = judge(text).results["tests"]
    assert passed["log_excerpt"] == ""
    assert failed["log_excerpt"] == "the log of the test"


def test_a_backing_that_is_a_parameter_is_told(judge: Judge) -> None:
    ended = judge(
        "@pytest.mark.parametrize('backing', ['thp'])\n"
        "def test_a(evidence, backing):\n    evidence.at_least('x', 'y', 0, 0)\n"
    )
    assert ended.test["backing"] == "thp"


GUESTS = """
def test_plain(guest):
    pass

@pytest.mark.parametrize("backing", ["memfd", "thp"])
def test_on_each(guest, backing):
    pass

def test_large(large_guest):
    pass

def test_made(probe_guest):
    with probe_guest(vcpus=2, backing="ksm"):
        pass
    with probe_guest(64):
        pass
"""


def test_a_guest_is_on_the_memory_that_its_test_is_parametrized_with(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int, str]] = []

    def new_guest(session: Any, pages: int, vcpus: int, backing: str) -> Any:
        made.append((pages, vcpus, backing))
        return contextlib.nullcontext()

    monkeypatch.setattr(plugin, "new_guest", new_guest)
    ended = judge(GUESTS)
    assert made == [
        (2048, 1, "anon"),
        (2048, 1, "memfd"),
        (2048, 1, "thp"),
        (16384, 1, "anon"),
        (2048, 2, "ksm"),
        (64, 1, "anon"),
    ]
    told = [test["backing"] for test in ended.results["tests"]]
    assert told == ["anon", "memfd", "thp", "anon", "anon"]


def test_a_linux_guest_is_up_for_its_test_and_gone_after_it(
    judge: Judge, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Guests:
        @contextlib.contextmanager
        def guest(self) -> Iterator[str]:
            world.happened.append("guest up")
            yield "a guest"
            world.happened.append("guest gone")

    monkeypatch.setattr(run.Run, "linux_image", lambda _: "image", raising=True)
    monkeypatch.setattr(
        plugin, "place_for_linux_guests", lambda session, image: contextlib.nullcontext(Guests())
    )
    ended = judge(
        "def test_a(linux_guest, evidence):\n"
        "    assert linux_guest == 'a guest'\n"
        "    evidence.at_least('content', 'passes', 1, 2)\n",
        "--mmu=nested",
    )
    assert ended.code == ExitCode.PASS, ended.out
    assert world.happened == [
        "boot tdp", "guest up", "guest gone", "end tdp", "boot nested", "end nested"
    ]  # fmt: skip
    deeper = ended.results["tests"][1]
    assert deeper["outcome"] == "skip", "it has no guest of its own"


def test_the_verdict_is_shown_at_the_end(judge: Judge) -> None:
    ended = judge(PASSING)
    assert "PASS" in ended.out
    assert f"Results: {ended.directory.resolve() if ended.directory else ''}" in ended.out


def test_results_go_where_they_are_wanted(judge: Judge, pytester: pytest.Pytester) -> None:
    judge(PASSING, "--results=else/where")
    assert (pytester.path / "else/where/latest/results.json").exists()


def test_results_that_cannot_be_written_end_the_session_before_it_begins(
    judge: Judge, world: World
) -> None:
    ended = judge(PASSING, "--results=/proc/none")
    assert ended.code == ExitCode.INFRASTRUCTURE
    assert "The results cannot be written to /proc/none" in ended.out
    assert "INTERNALERROR" not in ended.out
    assert world.wishes == []


def test_the_janitor_is_there_during_a_run_and_gone_after_it(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Janitor] = []

    def janitor() -> Janitor:
        opened.append(Janitor())
        return opened[-1]

    monkeypatch.setattr(plugin, "Janitor", janitor)
    mark = os.environ.get("MMU_HARNESS_RUN")
    inside = f"assert os.environ['MMU_HARNESS_RUN'] != {mark!r}"
    ended = judge(f"{PASSING}    import os; {inside}\n")
    assert ended.code == ExitCode.PASS
    assert len(opened) == 1
    assert not opened[0].directory.exists()
    assert os.environ.get("MMU_HARNESS_RUN") == mark


# Coverage.


class FakeRecorder:
    """Has seen one site in each test that was watched."""

    site = Site("__mmu_notifier_release", "exit_mmap", "mm/mmap.c", 1925)
    happened: ClassVar[list[str]] = []

    def __init__(self, kernel: Kernel, progress: object) -> None:
        self._cells: list[Cell] = []

    @contextlib.contextmanager
    def watching(self, session: Any, request: Request) -> Iterator[None]:
        self.happened.append(f"watch {session.host.facts.mmu}")
        try:
            yield
        finally:
            self.happened.append("done")
            self._cells.append(Cell(request.id, request.mmu, request.id, {self.site: 1}))

    def result(self) -> Coverage:
        return Coverage("6.12.1", (self.site,), tuple(self._cells))


WATCHED = """
import pytest
from test_plugin import FakeRecorder

@pytest.fixture
def mine(host):
    yield
    FakeRecorder.happened.append("torn down")

def test_a(evidence, mine):
    assert FakeRecorder.happened[-1] == "watch tdp"
    evidence.at_least("reclaim", "pages", 1, 2)

def test_b(host):
    raise errors.Violation("reclaim", "0 pages", "7")
"""


def test_coverage_watches_each_test_to_the_end_of_its_fixtures(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "Recorder", FakeRecorder)
    monkeypatch.setattr(FakeRecorder, "happened", [])
    ended = judge(WATCHED, "--coverage")
    assert FakeRecorder.happened == ["watch tdp", "torn down", "done", "watch tdp", "done"]
    assert ended.code == ExitCode.FAIL, "the verdict is that of the tests"
    assert ended.directory is not None
    written = json.loads((ended.directory / "coverage.json").read_text())
    ids = ["test_inner.py::test_a[tdp]", "test_inner.py::test_b[tdp]"]
    assert written["sites"][0]["reached_by"] == ids
    assert "1 of 1 notifier sites" in ended.out
    assert ended.out.index("notifier sites") < ended.out.index("FAIL (exit code 1)")


def test_without_the_option_nothing_is_watched(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(run, "Recorder", never)
    ended = judge(PASSING)
    assert ended.code == ExitCode.PASS
    assert ended.directory is not None
    assert not (ended.directory / "coverage.json").exists()


# The other door.


@pytest.fixture
def check(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., int]]:
    """suite.check() on a module with the given text."""
    modules, path = dict(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)

    def check(text: str, *options: str, expression: str | None = None) -> int:
        (tmp_path / "test_checked.py").write_text(
            f"import pytest\nfrom harness import errors\n{text}"
        )
        words = ["--mmu=tdp", *options]
        code = suite.check(expression, ["test_checked.py"], words)
        assert type(code) is int
        return code

    yield check
    sys.path[:] = path
    for name in sys.modules.keys() - modules.keys():
        if name.startswith("test_checked"):
            del sys.modules[name]


Check = Callable[..., int]


def test_check_returns_the_code_of_the_verdict_and_shows_phases(
    check: Check, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert check(PASSING) == 0
    said = capsys.readouterr().out
    assert "PASS" in said
    assert "... tdp a" in said.splitlines()
    results = json.loads((tmp_path / "results/latest/results.json").read_text())
    assert results["counts"]["pass"] == 1


def test_in_ci_a_phase_is_one_line(
    check: Check, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert check(PASSING, "--ci") == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "tdp a" in line] == [
        line for line in said.splitlines() if line.startswith("✓ tdp a  ")
    ]
    assert "✓ tdp a  " in said
    assert "::" not in said
    assert "\x1b" not in said


def test_in_a_job_of_github_only_we_give_commands(
    check: Check,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    text = "def test_a(evidence):\n    raise errors.Violation('x', 'y', '\\n::error::guest')\n"
    assert check(text, "--ci") == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    stop = next(number for number, line in enumerate(lines) if line.startswith("::stop-commands"))
    resumed = lines.index(f"::{lines[stop].rpartition('::')[2]}::")
    assert stop < lines.index("::error::guest") < resumed
    assert [line.partition(" title=")[0] for line in lines[resumed + 1 :]] == ["::error"] * 2
    assert "FAIL" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise errors.HostLostError('Gone.')", 200),
        ("pytest.skip('no')", 125),
        ("raise KeyboardInterrupt", 130),
    ],
)
def test_check_has_no_codes_of_pytest(check: Check, body: str, code: int) -> None:
    assert check(f"def test_a(evidence):\n    {body}\n") == code


def test_a_phase_that_did_not_pass_shows_as_such(
    check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    check(
        "def test_a(evidence):\n    raise errors.Violation('x', 'y', 'z')\n"
        + PASSING.replace("_a", "_b")
    )
    said = capsys.readouterr().out
    assert "✗ tdp a" in said
    assert "✓ tdp b" in said


def test_a_selection_that_matches_nothing_is_bad_usage(
    check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(PASSING, expression="nothing") == 201
    assert "matched no test" in capsys.readouterr().out


def test_a_file_that_is_not_there_is_bad_usage(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert suite.check(None, ["no-such-test.py"], ["--mmu=tdp"]) == 201
    assert world.wishes == []


def test_an_expression_selects(check: Check, tmp_path: Path) -> None:
    text = PASSING + PASSING.replace("test_a", "test_b")
    assert check(text, expression="test_b") == 0
    results = json.loads((tmp_path / "results/latest/results.json").read_text())
    assert [test["id"].rpartition("::")[2] for test in results["tests"]] == ["test_b[tdp]"]


def test_a_module_that_cannot_be_read_says_why(
    check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    code = check("raise ZeroDivisionError('on purpose')\n")
    assert code == 203
    assert "on purpose" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_told_by_a_check(
    check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(PASSING, "--results=/proc/none") == 200
    assert "mmu-harness: The results cannot be written to /proc/none" in capsys.readouterr().err


def test_an_interrupt_before_the_first_test_is_an_interrupt(check: Check) -> None:
    with pytest.raises(Interrupted) as caught:
        check("raise KeyboardInterrupt\n")
    assert caught.value.exit_code == 130


def test_check_finds_tests_of_the_project_from_anywhere(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    called: list[list[str]] = []

    def main(arguments: list[str], plugins: object) -> pytest.ExitCode:
        called.append(arguments)
        return pytest.ExitCode.USAGE_ERROR

    monkeypatch.setattr("pytest.main", main)
    assert suite.check(None, ["tests/kvm/test_fork.py::test_x[tdp]"], []) == 201
    assert suite.check(None, [], []) == 201
    (tmp_path / "mine.py").touch()
    assert suite.check("a or b", ["mine.py::test_y"], ["--mmu=tdp"]) == 201
    project, default, mine = called
    root = Path(plugin.__file__).parents[1]
    assert project[-1] == f"{root}/tests/kvm/test_fork.py::test_x[tdp]"
    assert default[-2:] == [f"{root}/tests/kvm", f"{root}/tests/notifier"]
    assert mine[-3:] == ["--mmu=tdp", "-k=a or b", "mine.py::test_y"]
