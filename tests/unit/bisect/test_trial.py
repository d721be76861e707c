# SPDX-License-Identifier: GPL-2.0-only
"""What a results.json says about the failure that is looked for."""

from __future__ import annotations

import random

import pytest
from fake_check import LEAKY, OTHER, checked

from harness.bisect.trial import HOST, Finding, Kind, failures, interpret
from harness.errors import HarnessError, MachineUnfitError, UsageError

LEAK = Kind(LEAKY, "tdp", "references")
NOTHING: frozenset[Kind] = frozenset()


@pytest.mark.parametrize(
    ("words", "first", "later"),
    [
        ("pass", Finding.PASSES, Finding.PASSES),
        ("leak 1", Finding.FAILS, Finding.FAILS),
        ("leak 1\nother", Finding.FAILS, Finding.FAILS),
        ("other", Finding.FAILS, Finding.PASSES),
        ("worse", Finding.FAILS, Finding.OTHERWISE),
        ("log WARNING", Finding.FAILS, Finding.PASSES),
        ("build", Finding.UNTESTABLE, Finding.UNTESTABLE),
        ("boot", Finding.UNTESTABLE, Finding.UNTESTABLE),
        ("infra", Finding.INFRASTRUCTURE, Finding.INFRASTRUCTURE),
        ("infra\nbuild", Finding.INFRASTRUCTURE, Finding.INFRASTRUCTURE),
    ],
)
def test_what_a_check_says(words: str, first: Finding, later: Finding) -> None:
    everything = checked(words, random.Random(0), NOTHING)
    assert interpret(everything, NOTHING)[0] is first
    assert interpret(everything, frozenset({LEAK}))[0] is later


def test_failures_are_told_apart_by_test_mode_and_oracle() -> None:
    document = checked("leak 1\nother", random.Random(0), NOTHING)
    assert failures(document) == (Kind(OTHER, "tdp", "access"), LEAK)
    assert failures(checked("worse", random.Random(0), NOTHING)) == (
        Kind(LEAKY, "tdp", "translations"),
    )


def test_reports_of_the_log_are_told_apart_by_their_kind() -> None:
    document = checked("log WARNING", random.Random(0), NOTHING)
    assert failures(document) == (Kind(HOST, "tdp", "kernel log: WARNING"),)
    looked_for = frozenset({Kind(HOST, "tdp", "kernel log: lockdep")})
    assert interpret(document, looked_for)[0] is Finding.PASSES
    test = checked("leak 1", random.Random(0), NOTHING)
    failed = next(item for item in test["tests"] if item["outcome"] == "fail")
    failed["oracle"] = "kernel log"
    failed["oracles"] = [{"name": "kernel log", "status": "violated", "seen": "KASAN: bad access"}]
    assert failures(test) == (Kind(LEAKY, "tdp", "kernel log: KASAN"),)


def test_a_test_that_was_skipped_has_not_passed() -> None:
    document = checked("pass", random.Random(0), NOTHING)
    next(item for item in document["tests"] if item["id"] == LEAKY)["outcome"] = "skip"
    assert interpret(document, frozenset({LEAK}))[0] is Finding.UNTESTABLE
    assert interpret(document, NOTHING)[0] is Finding.PASSES


@pytest.mark.parametrize(
    ("code", "error"), [(201, UsageError), (202, MachineUnfitError), (203, HarnessError)]
)
def test_what_no_other_commit_would_change_ends_it(code: int, error: type[Exception]) -> None:
    document = checked("infra", random.Random(0), NOTHING)
    document["verdict"]["exit_code"] = code
    with pytest.raises(error, match="The host is gone"):
        interpret(document, NOTHING)


@pytest.mark.parametrize("code", [130, 143, 200])
def test_what_says_nothing_of_the_kernel_is_tried_again(code: int) -> None:
    document = checked("infra", random.Random(0), NOTHING)
    document["verdict"]["exit_code"] = code
    assert interpret(document, NOTHING)[0] is Finding.INFRASTRUCTURE
