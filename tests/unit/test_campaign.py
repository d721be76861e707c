# SPDX-License-Identifier: GPL-2.0-only
"""A campaign runs the good kernel, then each control, as checks of their own."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness import campaign
from harness.campaign import Asked, Campaign, Plan, chosen, read_run
from harness.catalogue import CATALOGUE
from harness.command import Completed
from harness.control import all_controls
from harness.errors import ExitCode, HarnessError, UsageError
from harness.kernel.reference import parse
from harness.kill_matrix import Fate
from harness.machine.accelerator import Accelerator
from harness.progress import Silent
from harness.store import Store

KERNEL = "deb:linux-source-6.12"
NAME = "sptes-survive-mprotect"
SEES = "tests/kvm/test_mprotect.py::test_a_read_only_range_is_read[tdp-anon-aligned]"
BLIND = "tests/kvm/test_fork.py::test_the_child_does_not_see[tdp-anon]"


def results(code: int, **outcomes: str) -> dict[str, Any]:
    tests: list[dict[str, Any]] = [
        {
            "id": {"sees": SEES, "blind": BLIND}[name],
            "outcome": outcome,
            "mmu": "tdp",
            "backing": "anon",
            "oracle": "translations" if outcome == "fail" else None,
            "oracles": [],
            "message": "",
        }
        for name, outcome in outcomes.items()
    ]
    return {"tests": tests, "verdict": {"reasons": [f"code {code}"]}, "qemu": {"hosts": []}}


class Checks:
    """Stands for the check command: writes what it was told, and keeps what it was asked."""

    def __init__(self, *answers: tuple[int, dict[str, Any] | None]) -> None:
        self.answers = list(answers)
        self.asked: list[list[str]] = []

    def __call__(self, argv: Sequence[str], deadline: object, log: Path, **_: object) -> Completed:
        words = [str(word) for word in argv]
        self.asked.append(words)
        code, document = self.answers.pop(0)
        given = next(word for word in words if word.startswith("--results="))
        run = Path(given.removeprefix("--results=")) / "20260101T000000Z-1"
        (run / "logs").mkdir(parents=True)
        (run / "logs" / "host1-tdp.console.log").write_text("one\nlast words\n\n")
        (run.parent / "latest").symlink_to(run.name)
        if document is not None:
            (run / "results.json").write_text(json.dumps(document))
        return Completed(tuple(words), code, "", "", 2.0)

    def keep(self, words: Sequence[str]) -> int:
        """The command of a check that is forked: keeps its words for forked()."""
        self.words = list(words)
        return 0

    def forked(self, action: Callable[[], int], deadline: object, log: Path) -> tuple[int, float]:
        action()
        done = self(self.words, deadline, log)
        return done.status, done.seconds


@pytest.fixture
def run_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a plan with checks that answer as told; returns the matrix, and has the files."""
    monkeypatch.setattr(campaign, "make_kernel", lambda *_: None)
    monkeypatch.setattr(campaign, "choose", lambda _: Accelerator("tcg", "told so"))

    def run(plan: Plan, checks: Checks) -> Any:
        monkeypatch.setattr(campaign, "run_logged", checks)
        monkeypatch.setattr(campaign, "run_forked", checks.forked)
        # What another process asks is not to be seen here.
        plan = dataclasses.replace(plan, at_once=plan.at_once or 1)
        return Campaign(plan, Store(tmp_path / "store"), tmp_path, Silent(), checks.keep).run()

    return run


GOOD = (0, results(0, sees="pass", blind="pass"))
KILLED = (1, results(1, sees="fail", blind="pass"))


def test_the_good_kernel_comes_first_and_has_the_patches_alone(
    run_plan: Any, tmp_path: Path
) -> None:
    checks = Checks(GOOD, KILLED)
    matrix = run_plan(Plan(KERNEL, (NAME,)), checks)
    assert [row.fate for row in matrix.rows] == [Fate.KILLED]
    good, control = checks.asked
    series = all_controls(parse(KERNEL), Store(tmp_path / "store"), Silent())
    assert sum(word.startswith("--patch=") for word in good) == len(series.patches)
    assert not any(word.startswith("--control") for word in good)
    assert f"--control={NAME}" in control
    assert not any(word.startswith("--patch") for word in control)
    assert all("--mmu=tdp" in words for words in checks.asked)
    selection = good[-1]
    assert selection.startswith("-k(")
    assert "(test_mprotect and read_only and anon-aligned and tdp)" in selection
    assert control[-2:] == [BLIND, SEES], "a host is thrown away after a test that failed"
    written = json.loads((tmp_path / "latest" / "kill-matrix.json").read_text())
    assert written["exit_code"] == 0
    assert [row["name"] for row in written["controls"]] == [NAME]
    assert NAME in (tmp_path / "latest" / "kill-matrix.txt").read_text()


def test_a_mode_that_was_asked_for_takes_the_place_of_the_catalogues(run_plan: Any) -> None:
    shadow = json.loads(json.dumps(GOOD[1]).replace("tdp", "shadow"))
    checks = Checks((0, shadow), KILLED)
    run_plan(Plan(KERNEL, (NAME,), modes=("shadow",)), checks)
    assert all("--mmu=shadow" in words and "--mmu=tdp" not in words for words in checks.asked)
    assert checks.asked[1][-1] == SEES.replace("tdp", "shadow")


def test_a_control_whose_scenarios_the_good_kernel_did_not_run_is_an_error(run_plan: Any) -> None:
    matrix = run_plan(Plan(KERNEL, (NAME,)), Checks((0, results(0))))
    assert matrix.rows[0].fate is Fate.ERROR


def test_a_control_that_needs_what_this_kernel_lacks_is_not_observable(run_plan: Any) -> None:
    lacking = results(0, sees="skip", blind="pass")
    lacking["tests"][0]["message"] = "The host's kernel has no such thing."
    checks = Checks((0, lacking))
    matrix = run_plan(Plan(KERNEL, (NAME,)), checks)
    assert [(row.fate, row.why) for row in matrix.rows] == [
        (Fate.UNOBSERVABLE, "The host's kernel has no such thing.")
    ]
    assert len(checks.asked) == 1, "it is not run for nothing"


def test_no_control_is_run_on_a_good_kernel_that_fails(run_plan: Any, tmp_path: Path) -> None:
    matrix = run_plan(Plan(KERNEL, (NAME,)), Checks(KILLED))
    assert matrix.rows == ()
    assert json.loads((tmp_path / "latest" / "kill-matrix.json").read_text())["exit_code"] == 1


def test_what_broke_once_is_tried_again(run_plan: Any) -> None:
    broken = (200, results(200, sees="error"))
    matrix = run_plan(Plan(KERNEL, (NAME,)), Checks(GOOD, broken, KILLED))
    assert matrix.rows[0].fate is Fate.KILLED
    assert matrix.rows[0].seconds == 4.0


def test_what_broke_twice_is_a_stop(run_plan: Any) -> None:
    broken = (200, results(200, sees="error"))
    matrix = run_plan(Plan(KERNEL, (NAME,)), Checks(GOOD, broken, broken))
    assert matrix.rows[0].fate is Fate.STOPPED
    assert "last words" in matrix.rows[0].why


def test_controls_that_are_checked_at_once_come_back_in_order(run_plan: Any) -> None:
    names = ("sptes-survive-mprotect", "sptes-survive-fork", "sptes-survive-unmap")

    class Fitting(Checks):
        """Answers what is asked: the good kernel first, then whatever a worker takes."""

        def __call__(self, argv: Sequence[str], *arguments: Any, **named: Any) -> Completed:
            good = not any(word.startswith("--control") for word in argv)
            self.answers = [GOOD if good else KILLED]
            assert good or "--hosts=1" in argv
            return super().__call__(argv, *arguments, **named)

    matrix = run_plan(Plan(KERNEL, names, at_once=2), Fitting())
    assert [row.name for row in matrix.rows] == [
        "sptes-survive-unmap",
        "sptes-survive-mprotect",
        "sptes-survive-fork",
    ]
    fates = {row.name: row.fate for row in matrix.rows}
    assert fates["sptes-survive-mprotect"] is Fate.KILLED
    assert 0 < matrix.seconds < 60


@pytest.mark.parametrize(
    ("cpus", "gib", "expected"), [(2, 24, 3), (4, 8, 2), (1, 1, 1), (64, 512, 8), (None, 16, 2)]
)
def test_as_many_are_checked_at_once_as_the_machine_bears(
    cpus: int | None, gib: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gib << 18}
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert campaign._bearable() == expected


def test_a_worker_that_breaks_is_no_result(
    run_plan: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    class Breaking(Checks):
        def __call__(self, argv: Sequence[str], *arguments: Any, **named: Any) -> Completed:
            if any(word.startswith("--control") for word in argv):
                raise RuntimeError("a bug")
            return super().__call__(argv, *arguments, **named)

    names = ("sptes-survive-mprotect", "sptes-survive-fork")
    with pytest.raises(HarnessError, match="A worker of the campaign ended with status 1"):
        run_plan(Plan(KERNEL, names, at_once=2), Breaking(GOOD))
    assert "a bug" in capfd.readouterr().err


def test_every_scenario_is_asked_when_that_is_wished(run_plan: Any) -> None:
    also = "tests/kvm/test_userfault.py::test_the_guest_waits_x[tdp-anon]"
    good = json.loads(json.dumps(GOOD[1]))
    good["tests"].append({**good["tests"][0], "id": also})
    for asked in (Asked.FEW, Asked.EVERY):
        every = asked is Asked.EVERY
        checks = Checks((0, good), KILLED)
        run_plan(Plan(KERNEL, (NAME,), asked=asked), checks)
        assert (also in checks.asked[1]) is every
        (expression,) = (word for word in checks.asked[0] if word.startswith("-k"))
        assert ("test_userfault" in expression) is every


def test_linux_guests_are_asked_alone(run_plan: Any, tmp_path: Path) -> None:
    storm = "tests/linux/test_swap_storm.py::test_guests_get_by_x[tdp-2-128-48]"
    good = json.loads(json.dumps(GOOD[1]))
    good["tests"].append({**good["tests"][0], "id": storm})
    failed = {**good["tests"][0], "id": storm, "outcome": "fail"}
    checks = Checks((0, good), (1, {**KILLED[1], "tests": [failed]}))
    matrix = run_plan(Plan(KERNEL, ("pre-notifier",), asked=Asked.LINUX), checks)
    assert [word for word in checks.asked[1] if "::" in word] == [storm]
    (expression,) = (word for word in checks.asked[0] if word.startswith("-k"))
    assert "test_reclaim" not in expression
    assert [row.fate for row in matrix.rows] == [Fate.KILLED]


def test_only_controls_that_linux_guests_see_are_tried_on_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _, entries = chosen(Plan(KERNEL, asked=Asked.LINUX), store, Silent())
    assert {"pre-notifier", "sptes-survive-reclaim"} <= {item.name for item in entries}
    assert all(item.linux for item in entries)
    blind = next(item.name for item in CATALOGUE if not item.linux)
    with pytest.raises(UsageError, match="No scenario with Linux guests"):
        chosen(Plan(KERNEL, (blind,), asked=Asked.LINUX), store, Silent())


def test_an_interrupt_leaves_what_was_done(run_plan: Any, tmp_path: Path) -> None:
    class Interrupting(Checks):
        def __call__(self, *arguments: Any, **named: Any) -> Completed:
            if not self.answers:
                raise KeyboardInterrupt
            return super().__call__(*arguments, **named)

    with pytest.raises(KeyboardInterrupt):
        run_plan(Plan(KERNEL), Interrupting(GOOD, KILLED))
    written = json.loads((tmp_path / "latest" / "kill-matrix.json").read_text())
    assert [row["name"] for row in written["controls"]] == [CATALOGUE[0].name]
    assert written["exit_code"] == 130


def test_the_controls_of_a_plan_are_in_the_order_of_the_series(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = Plan(KERNEL, ("pre-notifier", "sptes-survive-unmap"))
    series, entries = chosen(plan, store, Silent())
    assert [item.name for item in entries] == ["sptes-survive-unmap", "pre-notifier"]
    assert len(chosen(Plan(KERNEL), store, Silent())[1]) == len(series.names)


def test_bad_usage_leaves_no_results(run_plan: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        run_plan(Plan(KERNEL, ("nonsense",)), Checks())
    assert not (tmp_path / "latest").exists()


@pytest.mark.parametrize("name", ["nonsense", "", "--help"])
def test_an_unknown_control_is_bad_usage_that_lists_the_known_ones(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(UsageError, match=r"choose one of .*pre-notifier"):
        chosen(Plan(KERNEL, (name,)), Store(tmp_path), Silent())


def test_a_check_that_wrote_nothing_has_its_code_alone(tmp_path: Path) -> None:
    assert read_run(tmp_path, 203, 1.0).code == 203
    assert read_run(tmp_path, 203, 1.0).results == {}
    assert read_run(tmp_path, -9, 1.0).code == ExitCode.INFRASTRUCTURE
