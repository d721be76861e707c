# SPDX-License-Identifier: GPL-2.0-only
"""A check that does what a file of the tree says, and real histories to check.

The file ``verdict`` of a tree has a word a line: ``pass``, ``leak RATE`` (the failure), ``other``
(a failure of another test), ``worse`` (the same test, another oracle), ``log KIND`` (a report in
the kernel's log), ``build`` and ``boot`` (cannot be tested), ``infra``.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import random
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.bisect.trial import Kind
from harness.errors import BootError, BuildError, HostLostError
from harness.result.outcome import OracleReport, OracleStatus, Outcome, Request, TestOutcome
from harness.result.outcome import completed as complete
from harness.result.record import HostRun, KernelFacts, MachineFacts, RunRecord, document
from harness.result.verdict import Crash, Evidence, judge

LEAKY = "tests/kvm/test_unmap.py::test_gone[tdp]"
OTHER = "tests/kvm/test_fork.py::test_child[tdp]"
NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)

_AGREES = OracleReport("content", OracleStatus.AGREES)


def checked(words: str, chance: random.Random, looked_for: frozenset[Kind]) -> Any:
    """The results.json of a check of a tree with these words, made by the real judge."""
    lines = [line.split() for line in words.splitlines()]
    said = {line[0] for line in lines if line}
    problems: list[BaseException] = []
    if "build" in said:
        problems.append(BuildError("make failed."))
    if "boot" in said:
        problems.append(BootError("No init."))
    if "infra" in said:
        problems.append(HostLostError("The host is gone."))
    leaks = any(line[0] == "leak" and chance.random() < float(line[1]) for line in lines if line)
    crashes = tuple(Crash(line[1], "text") for line in lines if line and line[0] == "log")
    tests = {
        LEAKY: "references" if leaks else "translations" if "worse" in said else None,
        OTHER: "access" if "other" in said else None,
    }
    wanted = {kind.test for kind in looked_for} & tests.keys() or tests.keys()
    requests = [Request(id_, "tdp", "anon") for id_ in sorted(wanted)]
    outcomes = [] if problems else [_outcome(item.id, tests[item.id]) for item in requests]
    evidence = [] if problems else [Evidence("host1-tdp", "tdp", "n", "n", True, crashes)]
    digest = hashlib.sha256(words.encode()).hexdigest()
    record = RunRecord(
        judge(requests, outcomes, evidence, problems),
        complete(requests, outcomes),
        KernelFacts("tree", "6.12.0", digest, digest, binary_digest=digest),
        MachineFacts("x86_64", 2, "tcg"),
        tuple(HostRun(item) for item in evidence),
        ("mmu-harness", "check"),
        NOW,
        NOW,
        tuple(str(problem) for problem in problems),
    )
    return document(record)


def _outcome(id_: str, oracle: str | None) -> TestOutcome:
    if oracle is None:
        return TestOutcome(id_, Outcome.PASS, "tdp", "anon", 1.0, (_AGREES,))
    seen = OracleReport(oracle, OracleStatus.VIOLATED, "1", "2")
    return TestOutcome(id_, Outcome.FAIL, "tdp", "anon", 1.0, (seen,), message="2 seen")


class FakeChecker:
    """Checks by reading; remembers the trees that it was shown, and may be told to end us."""

    def __init__(self, seed: int = 1) -> None:
        self.chance = random.Random(seed)
        self.seen: list[str] = []
        self.patches: list[tuple[Path, ...]] = []
        self.kill_after: int | None = None

    def __call__(
        self, tree: Path, patches: Sequence[Path], looked_for: frozenset[Kind], results: Path
    ) -> tuple[Path, Mapping[str, Any] | None]:
        if self.kill_after is not None and len(self.seen) >= self.kill_after:
            raise KeyboardInterrupt
        words = (tree / "verdict").read_text()
        self.seen.append((tree / "number").read_text().strip())
        self.patches.append(tuple(patches))
        return results, checked(words, self.chance, looked_for)


class Repository:
    """A real repository of a user."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str) -> str:
        environment = {
            **os.environ,
            **{f"GIT_{who}_NAME": "A. Developer" for who in ("AUTHOR", "COMMITTER")},
            **{f"GIT_{who}_EMAIL": "a@example.org" for who in ("AUTHOR", "COMMITTER")},
            "GIT_CONFIG_GLOBAL": "/dev/null",
        }
        return subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def commit(self, number: int | str, words: str, **files: str) -> str:
        """Commit a tree whose check says ``words``."""
        contents = {"number": f"{number}\n", "verdict": words, **files}
        for name, text in contents.items():
            (self.path / name).write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", f"Change number {number}")
        return self.git("rev-parse", "HEAD")

    def linear(self, words: Sequence[str]) -> list[str]:
        return [self.commit(number, each) for number, each in enumerate(words)]
