# SPDX-License-Identifier: GPL-2.0-only
"""kcidb.json, validated by the library of those who receive it."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import kcidb_io  # type: ignore[import-untyped]
import pytest
from sample_record import SPLAT, samples

from harness.result.kcidb import as_kcidb
from harness.result.record import RunRecord

SAMPLES = samples()


def report(record: RunRecord) -> Any:
    return json.loads(as_kcidb(record))


@pytest.mark.parametrize("name", SAMPLES)
def test_it_keeps_to_the_schema(name: str) -> None:
    document = report(SAMPLES[name])
    kcidb_io.schema.V5_3.validate(document)
    assert kcidb_io.schema.V5_3.is_compatible_directly(document)
    # kcidb_io checks no formats, and the database does.
    checker = jsonschema.Draft7Validator(
        kcidb_io.schema.V5_3.json, format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER
    )
    checker.validate(document)


def test_the_schema_can_refuse(record: RunRecord) -> None:
    document = report(record)
    document["tests"][0]["status"] = "MISSING"
    with pytest.raises(jsonschema.ValidationError):
        kcidb_io.schema.V5_3.validate(document)


def test_the_five_outcomes_have_the_words_of_the_database(record: RunRecord) -> None:
    tests = report(record)["tests"]
    assert [test["status"] for test in tests] == ["FAIL", "PASS", "FAIL", "ERROR", "SKIP", "MISS"]
    assert [test["misc"].get("outcome") for test in tests[1:]] == [
        *("pass", "fail", "error", "skip", "missing")
    ]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("passed", "PASS"),
        ("failed", "FAIL"),
        ("crashed", "FAIL"),
        ("unbuilt", "ERROR"),
        ("skipped", "ERROR"),
        ("empty", "MISS"),
    ],
)
def test_the_verdict_is_a_test_above_the_others(name: str, status: str) -> None:
    first, *others = report(SAMPLES[name])["tests"]
    assert (first["path"], first["status"]) == ("mmu_harness", status)
    assert all(test["path"].startswith("mmu_harness.") for test in others)


def test_a_kernel_that_cannot_be_built_is_a_build_that_failed() -> None:
    (build,) = report(SAMPLES["unbuilt"])["builds"]
    assert build["status"] == "FAIL"
    assert "expected ';'" in build["log_excerpt"]
    assert report(SAMPLES["passed"])["builds"][0]["status"] == "PASS"
    assert report(SAMPLES["empty"])["builds"][0]["status"] == "MISS"


def test_ids_are_unique_repeatable_and_of_this_run() -> None:
    once = report(SAMPLES["failed"])
    assert report(SAMPLES["failed"]) == once
    ids = [test["id"] for test in once["tests"]]
    assert len(set(ids)) == len(ids)
    assert {test["build_id"] for test in once["tests"]} == {once["builds"][0]["id"]}
    assert once["builds"][0]["id"] != report(SAMPLES["passed"])["builds"][0]["id"]


def test_a_test_has_its_place_in_the_tree_of_tests() -> None:
    paths = [test["path"] for test in report(SAMPLES["passed"])["tests"]]
    assert "mmu_harness.tdp.fork.a_hammering_guest_loses_no_write_to_forks.tdp-anon" in paths
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", path) for path in paths)


def test_what_the_kernel_said_is_at_hand() -> None:
    first, *_ = report(SAMPLES["crashed"])["tests"]
    assert SPLAT.splitlines()[1] in first["log_excerpt"]
    # The limit of the schema, on a log that is longer.
    longest = max(len(test.get("log_excerpt", "")) for test in report(SAMPLES["failed"])["tests"])
    assert 10_000 < longest <= 16_384
