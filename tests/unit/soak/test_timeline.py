# SPDX-License-Identifier: GPL-2.0-only
"""What a soak says and draws of what it saw."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET

import pytest

from harness.soak.timeline import Sample, Soak, Step, as_json, as_svg, as_text, live_line

MIB = 1 << 20
FIRST = Sample(0.0, 1000, 500, 0, 4000, 0, 0, 0.4)
SECOND = Sample(10.0, 1000 + 2560, 500 + 1280, 32 * MIB, 2000, 3, 640 * MIB, 1.25)
SOAK = Soak(7, "6.12.1", 20.0, (Step(0.0, "swap storm"), Step(10.0, "merge")), (FIRST, SECOND), 90 * MIB)  # fmt: skip  # noqa: E501


def test_the_live_line_has_rates_since_the_look_before() -> None:
    line = live_line("merge", FIRST, SECOND)
    assert line.startswith("merge: swap out 1.0, in 0.5 MiB/s; 3 extra references; ")
    assert "slowest beat 1.2 s" in line
    assert line.endswith("640 MiB verified, 64.0 MiB/s")


def test_the_first_live_line_divides_by_nothing() -> None:
    assert "out 0.0" in live_line("boot", FIRST, FIRST)


def test_the_closing_lines_name_the_seed_and_the_rate() -> None:
    text = as_text(SOAK)
    assert "2 scenarios in 20 s with seed 7" in text
    assert "640 MiB verified, 32.0 MiB/s" in text
    assert "90 MiB of memory" in text
    assert "Failed" not in text


def test_a_failure_is_told_with_its_scenario() -> None:
    text = as_text(dataclasses.replace(SOAK, failure="content: expected this; seen: that"))
    assert "Failed in merge: content" in text


def test_json_has_all_of_it() -> None:
    document = json.loads(as_json(SOAK))
    assert document["seed"] == 7
    assert document["steps"][1] == {"at": 10.0, "name": "merge"}
    assert document["samples"][1]["extra"] == 3


@pytest.mark.parametrize("failure", ["", "<b>bad & ugly</b>\nsecond line"])
def test_the_picture_is_svg_whatever_a_guest_says(failure: str) -> None:
    picture = ET.fromstring(as_svg(dataclasses.replace(SOAK, failure=failure)))
    lines = [item for item in picture.iter() if item.tag.endswith("polyline")]
    assert len(lines) == 4
    assert all(len(line.attrib["points"].split()) == 2 for line in lines)
    titles = [item.text for item in picture.iter() if item.tag.endswith("title")]
    assert titles == ["swap storm", "merge"]
    texts = [item.text or "" for item in picture.iter() if item.tag.endswith("text")]
    assert ("<b>bad & ugly</b>" in texts) == bool(failure)
    assert {"0 s", "20 s", "swap storm", "merge"} <= set(texts)


def test_scenarios_that_follow_fast_are_not_written_over_each_other() -> None:
    steps = tuple(Step(at / 10, f"step {at}") for at in range(200))
    picture = ET.fromstring(as_svg(dataclasses.replace(SOAK, steps=steps)))
    texts = [item.text or "" for item in picture.iter() if item.tag.endswith("text")]
    assert 40 < sum(text.startswith("step") for text in texts) < 100
    titles = [item for item in picture.iter() if item.tag.endswith("title")]
    assert len(titles) == 200


def test_a_soak_that_saw_nothing_is_drawn_too() -> None:
    empty = Soak(1, "6.12.1", 0.0, (), (), 0, "it did not boot")
    ET.fromstring(as_svg(empty))
    assert "Failed in the boot" in as_text(empty)
