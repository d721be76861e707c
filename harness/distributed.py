# SPDX-License-Identifier: GPL-2.0-only
"""The suite under pytest-xdist: each worker has a host of its own, and the first process judges.

Workers are started and given tests by pytest-xdist. The first process makes the kernel, once all
know which tests there are and before any runs; each worker finds it in the store, and sends the
outcome of a test with pytest's report of it, and what its hosts left with its last word.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import pickle
import re
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from harness.errors import HarnessError, InfrastructureError, UsageError
from harness.items import mode_of, request_of
from harness.result.directory import ResultsDirectory
from harness.result.outcome import Request, TestOutcome
from harness.result.record import HostRun
from harness.run import Run

_KEY = "mmu_harness"
"""Names what is ours among what pytest-xdist carries from process to process."""

_RESULTS = "results"


class Role(enum.Enum):
    """What a process is to a run."""

    ALONE = "alone"
    FIRST = "the first of several"
    WORKER = "one of the others"


class Suite(Protocol):
    """What the plugin of the suite is to us."""

    listener: Callable[[TestOutcome], None] | None

    @property
    def run(self) -> Run | None:
        """The run, once it has begun."""

    def open(self) -> Path:
        """The private directory of this process."""

    def begin(self, requests: Sequence[Request], results: Path | ResultsDirectory) -> Run:
        """Begin a run of these tests."""


def role(config: pytest.Config) -> Role:
    """What this process is to a run; raises UsageError for what does not go with -n."""
    if hasattr(config, "workerinput"):
        return Role.WORKER
    workers = config.getoption("tx", None)
    if config.getoption("dist", "no") == "no" or not workers or config.option.collectonly:
        return Role.ALONE
    if config.getoption("--hosts") is not None:
        raise UsageError("-n N and --hosts N both say how many hosts run at once; give one.")
    if config.getoption("--coverage"):
        raise UsageError("--coverage is measured on one host at a time; leave -n out.")
    if config.getoption("dist") == "each" or any("popen" not in str(one) for one in workers):
        raise UsageError("The suite runs once, on this machine: of pytest-xdist take -n N.")
    return Role.FIRST


def join(config: pytest.Config, suite: Suite, part: Role) -> None:
    """Have pytest-xdist and the plugin of the suite know of each other."""
    if part is Role.FIRST:
        config.pluginmanager.register(_First(config, suite), "mmu-harness-first")
    elif part is Role.WORKER and _KEY in config.workerinput:  # type: ignore[attr-defined]
        config.pluginmanager.register(_Worker(config, suite), "mmu-harness-worker")


class _First:
    """The first process: it has no tests itself."""

    def __init__(self, config: pytest.Config, suite: Suite) -> None:
        self._config = config
        self._suite = suite
        self._session: pytest.Session | None = None

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self) -> None:
        """Be there to clean up before the first worker starts."""
        self._suite.open()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where to find us."""
        node.workerinput[_KEY] = str(self._suite.open())

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Remember whom to stop."""
        self._session = session

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any) -> None:
        """Make the kernel when the tests are known, and before any is given out."""
        suite, session = self._suite, self._session
        assert session is not None
        requests = _requests(suite.open() / node.gateway.id)
        if suite.run is not None or not requests:
            return
        run = suite.begin(requests, Path(self._config.getoption("--results")))
        (suite.open() / _RESULTS).write_text(str(run.results.path))
        if not run.prepare():
            session.shouldstop = "there is no kernel to test"
            raise session.Interrupted(session.shouldstop)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the outcome that a worker sent along."""
        sent = getattr(report, _KEY, None)
        if sent is not None and self._suite.run is not None:
            self._suite.run.take(_unpacked(sent))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take what a worker's hosts left, or say that the worker was lost."""
        run = self._suite.run
        if run is None:
            return
        if isinstance(error, str) and error != "keyboard-interrupt":
            run.problem(
                InfrastructureError(
                    f"Worker {node.gateway.id} was lost ({error.rstrip('.')}), as when the machine "
                    "has no memory left; with a smaller -n fewer hosts run at once."
                )
            )
            return
        left: tuple[list[HostRun], list[HarnessError]] | None
        left = _unpacked(getattr(node, "workeroutput", {}).pop(_KEY, None))
        if left is not None:
            hosts, problems = left
            run.take_hosts(hosts)
            for problem in problems:
                run.problem(problem)


class _Worker:
    """A worker process."""

    def __init__(self, config: pytest.Config, suite: Suite) -> None:
        self._suite = suite
        self._input: dict[str, Any] = config.workerinput  # type: ignore[attr-defined]
        self._output: dict[str, Any] = config.workeroutput  # type: ignore[attr-defined]
        self._judged: TestOutcome | None = None
        self._problems: list[HarnessError] = []
        suite.listener = self._hear

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Leave word of the tests of the suite; pytest-xdist tells of their ids only."""
        requests = [request_of(item) for item in session.items if mode_of(item)]
        listed = json.dumps([dataclasses.asdict(request) for request in requests])
        self._word(self._input["workerid"]).write_text(listed)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Begin with the first test of the suite, by when the kernel has been made."""
        if self._suite.run is None and mode_of(item):
            results = ResultsDirectory(Path(self._word(_RESULTS).read_text()))
            requests = [request_of(one) for one in item.session.items if mode_of(one)]
            run = self._suite.begin(requests, results)
            number = re.sub(r"\D", "", self._input["workerid"])
            if run.prepare():
                run.enlist(int(number or 0) + 1, run.progress)
            else:
                item.session.shouldstop = "what was made is gone from the store"
                # Plain text goes through a pickle; what the first process made is its business.
                self._problems += [InfrastructureError(str(one)) for one in run.problems]
                return True
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send a test's outcome with the last report of it."""
        if self._judged is not None and report.when == "teardown":
            setattr(report, _KEY, pickle.dumps(self._judged))
            self._judged = None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """End the last host, and send what all of them left."""
        if self._suite.run is not None:
            hosts = list(self._suite.run.end_hosts())
            self._output[_KEY] = pickle.dumps((hosts, self._problems))

    def _hear(self, outcome: TestOutcome) -> None:
        self._judged = outcome

    def _word(self, name: str) -> Path:
        return Path(self._input[_KEY]) / name


def _requests(path: Path) -> list[Request]:
    return [Request(**fields) for fields in json.loads(path.read_text())]


def _unpacked(sent: bytes | None) -> Any:
    # What a worker of ours packed, and nobody between can have changed.
    return None if sent is None else pickle.loads(sent)  # noqa: S301
