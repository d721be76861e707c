# SPDX-License-Identifier: GPL-2.0-only
"""The comparison shows what was measured, and says when a kernel does not keep the promise."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree

import pytest

from harness import comparison
from harness.comparison import Comparison, Measurement, as_json, as_svg, as_text, rows, shares

SVG = "{http://www.w3.org/2000/svg}"

OLD = Measurement(
    4096,
    {"swapped": 12, "unpinned": 0, "merged": 0, "migrated": 0},
    {"fill": 1.25, "swap out": 30.0},
)
NEW = Measurement(
    4096,
    {"swapped": 4096, "unpinned": 4096, "merged": 4080, "migrated": 4096},
    {"fill": 1.5, "swap out": 0.5},
)
BOTH = Comparison("deb:linux-source-6.12", "6.12.117", OLD, NEW)


def changed(**counts: int | None) -> Comparison:
    after = dataclasses.replace(NEW, counts={**NEW.counts, **counts})
    return dataclasses.replace(BOTH, after=after)


def test_the_table_has_both_kernels_side_by_side() -> None:
    table = {what: (before, after) for what, before, after in rows(BOTH)}
    assert table["pages swapped out"] == ("12 (0.3%)", "4096 (100.0%)")
    assert table["seconds to swap out"] == ("30.0", "0.5")
    assert len(table) == len(shares()) + 2
    assert "6.12.117" in as_text(BOTH)


def test_the_claim_holds_only_for_all_pages() -> None:
    assert BOTH.claim_holds
    assert changed(merged=None).claim_holds, "what cannot be measured says nothing"
    for what in shares():
        assert not changed(**{what: 4000}).claim_holds
    assert "Only 4095 of 4096 pages were swapped out." in as_text(changed(swapped=4095))


def test_what_was_not_measured_is_said() -> None:
    assert "not measured" in as_text(changed(migrated=None))
    assert "not measured" in as_svg(changed(migrated=None))


def test_the_picture_has_bars_as_long_as_the_shares() -> None:
    picture = ElementTree.fromstring(as_svg(BOTH))
    bars = [bar for bar in picture.iter(f"{SVG}rect") if bar.get("x")]
    widths = [int(bar.get("width", "")) for bar in bars][: 2 * len(shares())]
    full = comparison._FULL
    assert widths[0] == max(1, round(full * 12 / 4096))
    assert widths[1] == full
    assert widths[5] == round(full * 4080 / 4096)
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert "100.0%" in texts
    assert "0.3%" in texts


@pytest.mark.parametrize("name", ['<kernel> & "co"', "a\nb"])
def test_a_kernels_name_is_text_in_the_picture(name: str) -> None:
    picture = ElementTree.fromstring(as_svg(dataclasses.replace(BOTH, kernel=name)))
    assert any(name in (text.text or "") for text in picture.iter(f"{SVG}text"))


def test_the_document_can_be_read_again() -> None:
    read = json.loads(as_json(BOTH))
    assert read["claim_holds"] is True
    assert read["before"]["counts"]["swapped"] == 12
    assert read["after"]["seconds"]["fill"] == 1.5
