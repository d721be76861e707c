# SPDX-License-Identifier: GPL-2.0-only
"""junit.xml is well-formed, and keeps the outcomes apart that JUnit throws together."""

from __future__ import annotations

import dataclasses
from xml.etree import ElementTree as ET

import pytest
from sample_record import samples

from harness.result.junit import as_junit
from harness.result.outcome import Outcome, TestOutcome
from harness.result.record import RunRecord

SAMPLES = samples()


@pytest.fixture
def root(record: RunRecord) -> ET.Element:
    return ET.fromstring(as_junit(record))


def case(root: ET.Element, name: str) -> ET.Element:
    (found,) = [item for item in root.iter("testcase") if name in item.get("name", "")]
    return found


def test_there_is_a_suite_for_each_mode_with_right_sums(root: ET.Element) -> None:
    sums = {
        suite.get("name"): tuple(
            int(suite.get(key, "")) for key in ("tests", "failures", "errors", "skipped")
        )
        for suite in root.iter("testsuite")
    }
    assert sums == {"tdp": (3, 0, 1, 1), "shadow": (2, 1, 1, 0), "verdict": (1, 1, 0, 0)}
    assert [root.get(key) for key in ("tests", "failures", "errors", "skipped")] == [
        *("6", "2", "2", "1")
    ]


@pytest.mark.parametrize(
    ("name", "outcome", "elements"),
    [
        ("test_gone[tdp-anon]", "pass", []),
        ("test_gone[shadow-anon]", "fail", ["failure", "system-out"]),
        ("test_error", "error", ["error"]),
        ("test_lost", "missing", ["error"]),
        ("test_skip", "skip", ["skipped"]),
    ],
)
def test_each_outcome_has_its_element_and_its_own_name(
    root: ET.Element, name: str, outcome: str, elements: list[str]
) -> None:
    found = case(root, name)
    assert [child.tag for child in found if child.tag != "properties"] == elements
    properties = {item.get("name"): item.get("value") for item in found.iter("property")}
    assert properties["outcome"] == outcome


def test_a_failure_says_how_to_repeat_it(root: ET.Element) -> None:
    text = case(root, "test_gone[shadow-anon]").findtext("failure", "")
    assert "expected: 0 sptes" in text
    assert "oracle:   sptes, guest page 7" in text
    assert "repeat:   ./run check --select 'a b'" in text


def test_what_xml_cannot_hold_is_not_written(record: RunRecord) -> None:
    # A test's id is ours and not escaped on construction, so the writer must see to it.
    odd = TestOutcome("t\0.py::\ud800\ufffe\x1b", Outcome.SKIP, "tdp", "anon", 0.0)
    root = ET.fromstring(as_junit(dataclasses.replace(record, outcomes=(odd,))))
    found, _ = root.iter("testcase")
    assert (found.get("classname"), found.get("name")) == ("t", "")


@pytest.mark.parametrize("name", SAMPLES)
def test_only_a_run_that_passed_is_green_to_those_who_count(name: str) -> None:
    root = ET.fromstring(as_junit(SAMPLES[name]))
    bad = sum(int(root.get(key, "")) for key in ("failures", "errors"))
    assert (bad == 0) == (name == "passed")
    verdict = case(root, "verdict")
    kinds = {"passed": set(), "failed": {"failure"}, "crashed": {"failure"}}
    assert {child.tag for child in verdict} == kinds.get(name, {"error"})
    sums = [
        sum(int(suite.get(key, "")) for suite in root.iter("testsuite"))
        for key in ("tests", "failures", "errors", "skipped")
    ]
    assert sums == [int(root.get(key, "")) for key in ("tests", "failures", "errors", "skipped")]


def test_the_verdict_says_why() -> None:
    error = case(ET.fromstring(as_junit(SAMPLES["skipped"])), "verdict").findtext("error", "")
    assert "All tests were skipped." in error
    assert "UNTESTABLE (exit code 125)" in error
