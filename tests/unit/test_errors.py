# SPDX-License-Identifier: GPL-2.0-only
"""The exception tree says rightly who is to blame."""

from __future__ import annotations

import inspect
import signal

import pytest

from harness import errors
from harness.errors import ExitCode, HarnessError

CLASSES = [
    item
    for item in vars(errors).values()
    if inspect.isclass(item) and issubclass(item, HarnessError)
]


def test_the_codes_are_those_that_git_bisect_and_shells_expect() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "PASS": 0,
        "FAIL": 1,
        "UNTESTABLE": 125,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
        "INFRASTRUCTURE": 200,
        "USAGE": 201,
        "UNFIT": 202,
        "BUG": 203,
    }


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_docstring_draws_every_class_with_its_code(kind: type[HarnessError]) -> None:
    drawing = errors.__doc__ or ""
    (line,) = [
        line for line in drawing.splitlines() if kind.__name__ in line.replace("─", " ").split()
    ]
    assert kind.__doc__
    code = next((word.rstrip(",") for word in line.split() if word.rstrip(",").isdigit()), None)
    if code is not None and kind is not errors.Interrupted:
        assert kind.exit_code == int(code)


@pytest.mark.parametrize(
    ("root", "code"),
    [
        (errors.Violation, 1),
        (errors.KernelUntestableError, 125),
        (errors.InfrastructureError, 200),
    ],
)
def test_a_branch_has_one_code(root: type[HarnessError], code: int) -> None:
    branch = [kind for kind in CLASSES if issubclass(kind, root)]
    assert len(branch) > 1
    assert {int(kind.exit_code) for kind in branch} == {code}


def test_no_other_branch_can_make_a_test_fail() -> None:
    failing = {kind for kind in CLASSES if issubclass(kind, AssertionError)}
    assert failing == {errors.Violation, errors.KernelSplat}
    assert {kind for kind in CLASSES if kind.exit_code is ExitCode.FAIL} == failing


def test_a_violation_names_oracle_page_and_what_was_expected() -> None:
    error = errors.Violation("references", "1 reference", "2 references", page=7)
    assert str(error) == "references on guest page 7: expected 1 reference; seen: 2 references"
    assert errors.Violation("sptes", "0", "3").page is None


@pytest.mark.parametrize(
    ("signum", "code"),
    [
        (signal.SIGINT, ExitCode.INTERRUPTED),
        (signal.SIGTERM, ExitCode.TERMINATED),
        (signal.SIGHUP, ExitCode.TERMINATED),
    ],
)
def test_an_interruption_has_the_code_of_its_signal(signum: int, code: ExitCode) -> None:
    error = errors.Interrupted(signum)
    assert error.exit_code is code
    assert signal.Signals(signum).name in str(error)


def test_a_command_that_failed_shows_the_end_of_its_output_only() -> None:
    output = "\n".join(f"line {number}" for number in range(100))
    text = str(errors.CommandError(["make", "all"], 2, output, "See the log."))
    assert text.startswith("make exited with 2.")
    assert text.endswith("line 99\nSee the log.")
    assert "line 91" not in text
    assert "was killed by SIGKILL" in str(errors.CommandError(["make"], -9, ""))
