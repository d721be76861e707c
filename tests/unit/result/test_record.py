# SPDX-License-Identifier: GPL-2.0-only
"""results.json keeps to its schema, whatever a guest printed."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.result.record import SCHEMA, RunRecord, as_json

_SCHEMA = Path(__file__).parents[3] / "docs" / "results.schema.json"


def parsed(record: RunRecord) -> Any:
    return json.loads(as_json(record))


def validate(document: Any) -> None:
    schema = json.loads(_SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)


def test_it_keeps_to_the_schema(record: RunRecord) -> None:
    validate(parsed(record))


def test_a_run_that_never_began_keeps_to_the_schema_too(record: RunRecord) -> None:
    kernel = dataclasses.replace(
        record.kernel, release=None, image_digest=None, config_digest=None, control=None
    )
    machine = dataclasses.replace(record.machine, accelerator=None, versions={})
    empty = dataclasses.replace(record, outcomes=(), hosts=(), kernel=kernel, machine=machine)
    validate(parsed(empty))


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("schema", SCHEMA + 1), ("tests", {}), ("started", "yesterday"), ("verdict", "PASS")],
)
def test_the_schema_can_refuse(record: RunRecord, key: str, wrong: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate({**parsed(record), key: wrong})


def test_the_schema_refuses_a_pass_without_evidence(record: RunRecord) -> None:
    document = parsed(record)
    passed = next(test for test in document["tests"] if test["outcome"] == "pass")
    passed["oracles"] = [oracle for oracle in passed["oracles"] if oracle["status"] != "agrees"]
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


def test_there_is_one_object_for_each_requested_test(record: RunRecord) -> None:
    tests = parsed(record)["tests"]
    assert [test["outcome"] for test in tests] == ["pass", "fail", "error", "skip", "missing"]
    assert tests[4] | {"message": ""} == {
        "id": "t.py::test_lost[shadow]",
        "outcome": "missing",
        "mmu": "shadow",
        "backing": "thp",
        "repetition": 0,
        "started": None,
        "seconds": 0.0,
        "message": "",
        "oracle": None,
        "page": None,
        "oracles": [],
        "log_excerpt": "",
        "command": None,
    }


def test_a_fail_says_who_saw_what_on_which_page(record: RunRecord) -> None:
    failed = parsed(record)["tests"][1]
    assert (failed["oracle"], failed["page"]) == ("sptes", 7)
    report = failed["oracles"][1]
    assert report["expected"] == "0 sptes"
    assert report["seen"].startswith("16 sptes \\x1b[2J")
    assert report["detail"] == {"pages": {"7": 0x1000}}


def test_the_command_repeats_the_run(record: RunRecord) -> None:
    assert shlex.split(parsed(record)["command"]) == list(record.command)


def test_no_control_character_reaches_the_file(record: RunRecord) -> None:
    text = as_json(record)
    text.encode("utf-8")  # no lone surrogate either
    assert not {character for character in text if ord(character) < 32} - {"\n"}


def test_times_are_utc_wherever_the_run_was(record: RunRecord) -> None:
    zone = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    moved = dataclasses.replace(record, started=record.started.astimezone(zone))
    assert parsed(moved)["started"] == "2026-01-02T03:04:05.678+00:00"


def test_a_clock_that_was_set_back_gives_no_negative_time(record: RunRecord) -> None:
    assert (
        dataclasses.replace(
            record, finished=record.started.min.replace(tzinfo=datetime.UTC)
        ).seconds
        == 0.0
    )
