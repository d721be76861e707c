# SPDX-License-Identifier: GPL-2.0-only
"""The suite over real workers of pytest-xdist, on hosts that are Python objects."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import Deadline

pytest_plugins = ["pytester"]

UNIT = Path(__file__).parents[1] / "unit"

# Every process of the run has hosts that are objects, and writes down what it makes.
CONFTEST = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
from harness import run
from harness.errors import BuildError
from test_plugin import FakeBench, World

here = Path(__file__).parent
world = World(here)

def made(wish, *_):
    with open(here / "made", "a") as file:
        file.write(("worker" if "PYTEST_XDIST_WORKER" in os.environ else "first") + "\\n")
    if (here / "broken").exists():
        raise BuildError("The kernel does not build.")
    return world.make_parts(wish)

run.make_parts = made
run.Workbench = lambda parts, _, __, keep: FakeBench(world, keep)
"""
MANY = """
import os, pytest

@pytest.mark.parametrize("number", range(8))
def test_many(evidence, number):
    evidence.at_least("reclaim", "pages", {least}, number + 1)
    {body}
"""


@dataclasses.dataclass(frozen=True)
class Ended:
    code: int
    out: str
    results: Any
    made: list[str]
    directory: Path


class Xdist:
    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        self.path = pytester.path
        pytester.makeconftest(CONFTEST.format(path=[str(UNIT)]))
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

    def words(self, *words: str) -> list[str]:
        # What workers need not import.
        without = [f"-pno:{name}" for name in ("hypothesispytest", "cacheprovider")]
        return ["--mmu=tdp", "--results=results", "-n2", *without, *words]

    def run(self, body: str = "pass", *words: str, least: int = 1) -> Ended:
        self._pytester.makepyfile(test_inner=MANY.format(body=body, least=least))
        ended = self._pytester.runpytest_subprocess(*self.words(*words))
        return self.ended(int(ended.ret), "\n".join(ended.outlines + ended.errlines))

    def ended(self, code: int, out: str) -> Ended:
        latest = self.path / "results" / "latest" / "results.json"
        made = self.path / "made"
        return Ended(
            code,
            out,
            json.loads(latest.read_text()) if latest.exists() else None,
            made.read_text().split() if made.exists() else [],
            latest.parent.resolve(),
        )


@pytest.fixture
def xdist(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Xdist:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    temporary = tmp_path / "t"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("MMU_TEST_TMP", str(temporary))
    # These tests may be a worker's themselves.
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
        monkeypatch.delenv(name)
    return Xdist(pytester)


def test_all_workers_are_one_run_with_one_verdict(xdist: Xdist) -> None:
    ended = xdist.run()
    assert ended.code == 0, ended.out
    assert ended.results["verdict"]["word"] == "PASS"
    assert ended.results["counts"]["pass"] == 8
    ids = [test["id"] for test in ended.results["tests"]]
    assert ids == [f"test_inner.py::test_many[tdp-{number}]" for number in range(8)]
    hosts = [host["host"] for host in ended.results["qemu"]["hosts"]]
    assert sorted(hosts) == ["1-host1-tdp", "2-host1-tdp"]
    assert "8 passed" in ended.out
    assert "PASS (exit code 0)" in ended.out
    assert len(list((xdist.path / "results").iterdir())) == 2, "one, and latest"
    logs = {path.name for path in (ended.directory / "logs").iterdir()}
    assert {f"{name}.console.log" for name in hosts} <= logs
    assert ended.made == ["first", "worker", "worker"], "who makes it, and who finds it"


def test_a_failure_in_a_worker_is_the_failure_of_the_run(xdist: Xdist) -> None:
    ended = xdist.run(least=3)
    assert ended.code == 1
    assert (ended.results["counts"]["pass"], ended.results["counts"]["fail"]) == (6, 2)
    assert ended.results["tests"][0]["oracle"] == "reclaim"
    assert "2 failed, 6 passed" in ended.out


def test_the_first_failure_ends_all_if_so_wished(xdist: Xdist) -> None:
    ended = xdist.run("pass", "-x", least=20)
    assert ended.code == 1
    assert ended.results["verdict"]["word"] == "FAIL"
    assert {test["outcome"] for test in ended.results["tests"]} >= {"fail", "missing"}


def test_without_a_kernel_no_worker_runs_a_test(xdist: Xdist) -> None:
    (xdist.path / "broken").touch()
    ended = xdist.run("open('ran', 'w')")
    assert ended.code == 125, ended.out
    assert ended.made == ["first"]
    assert not (xdist.path / "ran").exists()
    assert ended.results["counts"]["missing"] == 8
    assert "The kernel does not build." in ended.out


def test_a_worker_that_is_killed_makes_no_pass(xdist: Xdist) -> None:
    ended = xdist.run("number == 5 and os.kill(os.getpid(), 9)")
    assert ended.code == 200, ended.out
    assert any("was lost" in reason for reason in ended.results["verdict"]["reasons"])
    outcomes = [test["outcome"] for test in ended.results["tests"]]
    assert outcomes[5] == "missing"
    assert outcomes.count("pass") == 7, "another worker took over"


def test_tests_of_others_alone_are_left_alone(xdist: Xdist) -> None:
    (xdist.path / "test_plain.py").write_text("def test_a(): pass\ndef test_b(): assert 0\n")
    ended = xdist._pytester.runpytest_subprocess("-n2", "test_plain.py")
    ended.assert_outcomes(passed=1, failed=1)
    assert ended.ret == 1
    assert not (xdist.path / "results").exists()
    assert not (xdist.path / "made").exists()


def test_repetitions_are_shared_out(xdist: Xdist) -> None:
    ended = xdist.run("pass", "--repeat=2")
    assert ended.code == 0, ended.out
    assert ended.results["counts"]["pass"] == 16
    assert ended.results["repetitions"] == 2


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_workers(xdist: Xdist, signum: int, code: int) -> None:
    body = "open(f'pid-{os.getpid()}', 'w').close(); import time; time.sleep(60)"
    (xdist.path / "test_inner.py").write_text(MANY.format(body=body, least=1))
    log = xdist.path / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-mpytest", *xdist.words()],
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = Deadline.after(60, "the test")
    deadline.poll(lambda: len(list(xdist.path.glob("pid-*"))) == 2)
    workers = [int(path.name.partition("-")[2]) for path in xdist.path.glob("pid-*")]
    process.send_signal(signum)
    process.wait(deadline.remaining)
    ended = xdist.ended(process.returncode, log.read_text())
    assert ended.code == code, ended.out
    assert ended.results["verdict"]["word"] == "INTERRUPTED"
    deadline.poll(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert list(Path(os.environ["MMU_TEST_TMP"]).glob("mmu-*")) == []
