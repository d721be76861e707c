# SPDX-License-Identifier: GPL-2.0-only
"""Carries a plan out: checks commits one after the other, and saves what each said at once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from harness.bisect import question as questions
from harness.bisect.history import History
from harness.bisect.plan import Answer, Case, Check, NoAnswer, plan
from harness.bisect.question import Question
from harness.bisect.report import write_reports
from harness.bisect.trial import HOST, Finding, Kind, Trial, failures, interpret
from harness.command import run_logged
from harness.deadline import Deadline
from harness.errors import (
    ExitCode,
    HarnessError,
    InfrastructureError,
    MachineUnfitError,
    UsageError,
)
from harness.machine import mmu
from harness.progress import Progress
from harness.store import Store

_CHECK_SECONDS = 6 * 3600.0
_RETRIES = 3
"""Checks in a row that ended in an infrastructure error before it is given up."""


class Checker(Protocol):
    """Checks a source tree and gives the directory of its results, and results.json if any."""

    def __call__(
        self, tree: Path, patches: Sequence[Path], looked_for: frozenset[Kind], results: Path
    ) -> tuple[Path, Mapping[str, Any] | None]:
        """Run the check on fresh boots, with everything it leaves below ``results``."""


class HarnessChecker:
    """``mmu-harness check`` in a process of its own."""

    def __init__(
        self,
        question: Question,
        progress: Progress,
        program: Sequence[str] = (sys.executable, "-m", "harness"),
    ) -> None:
        self._question = question
        self._progress = progress
        self._program = tuple(program)

    def __call__(
        self, tree: Path, patches: Sequence[Path], looked_for: frozenset[Kind], results: Path
    ) -> tuple[Path, Mapping[str, Any] | None]:
        """Run it; raises what its exit code means when it came to no verdict at all."""
        # What a check left that was killed before its result was saved.
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir(parents=True)
        log = results / "check.log"
        # An option before the tests, which may follow a double dash.
        command, *words = self.words(tree, patches, looked_for)
        ended = run_logged(
            [*self._program, command, f"--results={results}", *words],
            Deadline.after(_CHECK_SECONDS, "A check of a revision"),
            log,
            # It is not for a check on the way to annotate a job.
            env={"CI": "true", "GITHUB_ACTIONS": "false"},
            on_line=self._progress.update,
        )
        for found in sorted(results.glob("*/results.json")):
            if not found.parent.is_symlink():
                document: Mapping[str, Any] = json.loads(found.read_text("utf-8"))
                return found.parent, document
        # Without a verdict on the commit this decides nothing, except not to go on in vain.
        said = "\n".join(log.read_text("utf-8", "replace").strip().splitlines()[-3:])
        raising: dict[int, type[HarnessError]] = {
            ExitCode.USAGE: UsageError,
            ExitCode.UNFIT: MachineUnfitError,
        }
        if ended.status in raising:
            raise raising[ended.status](said)
        return results, None

    def words(
        self, tree: Path, patches: Sequence[Path], looked_for: frozenset[Kind]
    ) -> tuple[str, ...]:
        """The arguments; only the tests that can show the failure, once it is known."""
        question = self._question
        tests = sorted({kind.test for kind in looked_for})
        narrow = bool(tests) and HOST not in tests
        modes = sorted({kind.mmu for kind in looked_for}) if narrow else question.modes
        words = ["check", "--ci", f"--kernel={tree}", f"--accel={question.accelerator}"]
        words += [f"--patch={patch}" for patch in patches]
        words += [f"--config={fragment}" for fragment in question.fragments]
        words += [f"--mmu={mode}" for mode in modes]
        words += [f"--jobs={question.jobs}"] if question.jobs else []
        if narrow:
            return (*words, "--", *tests)
        words += ["-k", question.select] if question.select else []
        return (*words, "--", *question.tests) if question.tests else tuple(words)


class Bisection:
    """One bisection; ``directory`` receives its state, its results and its reports."""

    def __init__(
        self,
        question: Question,
        history: History,
        checker: Checker,
        directory: Path,
        progress: Progress,
    ) -> None:
        self._question = question
        self._history = history
        self._checker = checker
        self._directory = directory
        self._progress = progress
        self._broke = 0

    def run(self) -> Answer | NoAnswer:
        """Go on from where the state is until there is an answer, or a reason why not.

        Raises InfrastructureError after several checks in a row that said nothing, and whatever
        ends a check without any other commit changing it. The state is saved before.
        """
        question, history = self._question, self._history
        case = questions.load(self._directory, question)
        if case.trials:
            self._progress.note(f"Going on after {len(case.trials)} checks.")
        while True:
            action = plan(case, lambda marks: history.position(question.good, question.bad, marks))
            if not isinstance(action, Check):
                questions.save(self._directory, question, case, action)
                write_reports(self._directory, question, case, history, action)
                return action
            trial = self._check(case, action)
            case = dataclasses.replace(case, trials=(*case.trials, trial))
            questions.save(self._directory, question, case)
            self._progress.note(f"{trial.finding}: {trial.reason}")
            self._give_up(trial)

    def _check(self, case: Case, action: Check) -> Trial:
        number = len(case.trials) + 1
        results = self._directory / "checks" / f"{number:04}-{action.commit[:12]}"
        began = time.monotonic()
        title = self._history.title(action.commit)
        with self._progress.phase(f"{number}. {title}: {action.why}"):
            tree = self._history.checkout(action.commit)
            # One that is in this revision already would not apply, and is no reason to skip it.
            patches = [one for one in self._question.patches if not self._history.has(one)]
            where, document = self._checker(tree, patches, case.looked_for, results)
        if document is None:
            finding, reason = Finding.INFRASTRUCTURE, "The check ended without a result."
        else:
            finding, reason = interpret(document, case.looked_for)
        return Trial(
            commit=action.commit,
            purpose=action.purpose,
            finding=finding,
            kinds=failures(document) if document else (),
            reason=reason,
            binary=document["kernel"].get("binary_digest") if document else None,
            seconds=round(time.monotonic() - began, 1),
            results=str(where.relative_to(self._directory)),
        )

    def _give_up(self, trial: Trial) -> None:
        self._broke = self._broke + 1 if trial.finding is Finding.INFRASTRUCTURE else 0
        if self._broke > _RETRIES:
            raise InfrastructureError(
                f"{self._broke} checks in a row ended in an infrastructure error, the last with: "
                f"{trial.reason} All that is known is kept; the same command goes on from here."
            )


def find_first_bad(
    store: Store,
    progress: Progress,
    *,
    source: str,
    good: str,
    bad: str,
    error: float,
    select: str | None,
    modes: Sequence[str],
    patches: Sequence[str],
    fragments: Sequence[str],
    accel: str,
    jobs: int | None,
    results: str,
    tests: Sequence[str],
) -> tuple[Answer | NoAnswer, Path]:
    """Bisect as the command line asks for, and give the answer and the directory of its reports.

    The checkout of all bisections of a source is one, so that they share a build tree.
    """
    path = Path(source).expanduser().absolute()
    if not path.is_dir():
        raise UsageError(f"There is no directory {path} to bisect in.")
    where = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    history = History(path, store.directory("bisect") / f"linux-{where}")

    def waiting() -> None:
        progress.note("Waiting for another bisection of this source.")

    with store.lock(f"bisect-{where}", waiting=waiting):
        history.open()
        question = Question(
            source=path,
            good=history.resolve(good),
            bad=history.resolve(bad),
            select=select,
            tests=tuple(tests),
            modes=tuple(str(mmu.parse(mode)) for mode in modes),
            patches=tuple(Path(patch).absolute() for patch in patches),
            fragments=tuple(Path(fragment).absolute() for fragment in fragments),
            accelerator=accel,
            jobs=jobs,
            error=error,
        )
        directory = Path(results).absolute() / f"bisect-{store.digest(question.key())[:12]}"
        directory.mkdir(parents=True, exist_ok=True)
        checker = HarnessChecker(question, progress)
        return Bisection(question, history, checker, directory, progress).run(), directory


def bisect_code(answer: Answer | NoAnswer) -> ExitCode:
    """0 for an answer; 201 for revisions that do not differ as said; 125 for a range."""
    if isinstance(answer, Answer):
        return ExitCode.PASS
    return ExitCode.USAGE if answer.bad_input else ExitCode.UNTESTABLE
