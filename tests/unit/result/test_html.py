# SPDX-License-Identifier: GPL-2.0-only
"""report.html says all there is, and is nothing but text to a browser, whatever a guest wrote."""

from __future__ import annotations

import dataclasses
import datetime
import html.parser
import re

import pytest
from sample_record import SPLAT, STARTED, samples

from harness.result.html import as_html
from harness.result.outcome import Outcome
from harness.result.record import RunRecord
from harness.result.timeline import BOOT, duration, timeline

SAMPLES = samples()
_VOID = {"meta", "input", "br"}


class Page(html.parser.HTMLParser):
    """A page as a browser takes it: elements with attributes, text by element, what is open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.cells: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        if "id" in values:
            self.ids.append(values["id"] or "")
        if "href" in values:
            self.links.append(values["href"] or "")
        if tag == "td":
            self.cells.append("")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
            if "td" in self._open:
                self.cells[-1] += data


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_in_it_runs_or_is_fetched(name: str) -> None:
    page = Page(as_html(SAMPLES[name]))
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "img", "link", "iframe", "object", "embed", "form", "base"}
    for tag, values in page.elements:
        assert not [key for key in values if key.startswith("on") or key == "src"], tag
    assert all(re.match(r"#|logs/host", link) for link in page.links)
    assert "url(" not in as_html(SAMPLES[name])
    policy = [values.get("content") or "" for tag, values in page.elements if tag == "meta"]
    assert any("default-src 'none'" in text for text in policy)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_link_leads_to_its_one_place(name: str) -> None:
    page = Page(as_html(SAMPLES[name]))
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_verdict_is_the_first_thing_it_says(name: str) -> None:
    record = SAMPLES[name]
    body = Page(as_html(record)).text.partition("mmu-harness\n")[2].split()
    assert body[0] == record.verdict.word
    assert body[1:4] == ["exit", "code", str(int(record.verdict.exit_code))]


@pytest.mark.parametrize("name", SAMPLES)
def test_only_a_run_that_passed_is_green(name: str) -> None:
    page = Page(as_html(SAMPLES[name]))
    (band,) = [values["class"] for tag, values in page.elements if tag == "header"]
    colours = {"passed": "pass", "failed": "fail", "crashed": "fail"}
    assert band == f"band is-{colours.get(name, 'error')}"


@pytest.mark.parametrize("name", ["failed", "crashed", "unbuilt"])
def test_hostile_text_is_shown_as_it_came(name: str) -> None:
    assert "<script>alert('guest')</script>]]></failure><!-- {{ 7*7 }} {% raw %} &lt;" in (
        Page(as_html(SAMPLES[name])).text
    )


def test_every_outcome_has_its_cell(record: RunRecord) -> None:
    page = Page(as_html(record))
    cells = [
        (values.get("class"), values.get("data-mode"))
        for tag, values in page.elements
        if tag == "td" and "data-mode" in values
    ]
    assert cells == [
        *(("cell is-pass", "tdp"), ("cell is-fail", "shadow")),
        *(("cell is-error", "tdp"), ("cell is-none", "shadow")),
        *(("cell is-skip", "tdp"), ("cell is-none", "shadow")),
        *(("cell is-none", "tdp"), ("cell is-missing", "shadow")),
    ]


def test_a_failure_has_what_each_oracle_expected_and_saw(record: RunRecord) -> None:
    text = Page(as_html(record)).text
    card = text[text.index("What went wrong\n") :]
    assert card.index("guest page 7") < card.index("16 sptes") < card.index("1 a page")
    assert "Repeat this test alone" in card
    assert "./run check --select 'a b'" in card
    assert "notifier was not consulted in 1 test: no tracepoints" in text


def test_what_was_never_reported_is_named_with_its_reason() -> None:
    text = Page(as_html(SAMPLES["failed"])).text
    assert "2 tests: Requested, but never reported." in text
    assert "exit: a killed vmm gives all memory back [file] under shadow" in text
    assert "9 tests: hugetlb is not swapped" in text


def test_the_kernels_own_report_is_in_it() -> None:
    text = Page(as_html(SAMPLES["crashed"])).text
    assert SPLAT in text
    assert "What the kernel reported" in text


# The timeline.


def test_bars_stand_where_tests_ran() -> None:
    record = SAMPLES["passed"]
    plot = timeline(record)
    assert [lane.mode for lane in plot.lanes] == ["tdp", "tdp-legacy", "shadow"]
    outcome = record.outcomes[80]
    assert outcome.started is not None
    (bar,) = [
        bar
        for bar in plot.lanes[1].bars
        if bar.title.startswith("reclaim: what a guest only read") and "[hugetlb]" in bar.title
    ]
    began = (outcome.started - STARTED).total_seconds()
    assert bar.left == pytest.approx(began / record.seconds * 100, abs=0.01)
    assert bar.width == pytest.approx(outcome.seconds / record.seconds * 100, abs=0.01)
    assert sum(bar.kind == BOOT for lane in plot.lanes for bar in lane.bars) == len(record.hosts)


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_is_drawn_outside(name: str) -> None:
    plot = timeline(SAMPLES[name])
    for lane in plot.lanes:
        for bar in lane.bars:
            assert bar.left >= 0
            assert bar.width > 0
            assert bar.left + bar.width <= 100.001
    assert all(0 <= tick.left <= 100 for tick in plot.ticks)
    assert len(plot.ticks) <= 9


def test_a_clock_that_was_set_draws_nothing_outside() -> None:
    record = SAMPLES["passed"]
    day = datetime.timedelta(days=1)
    moved = tuple(
        dataclasses.replace(item, started=(item.started or STARTED) + (day if at % 2 else -day))
        for at, item in enumerate(record.outcomes)
    )
    for finished in (record.finished, STARTED, STARTED - day):
        plot = timeline(dataclasses.replace(record, outcomes=moved, finished=finished))
        for lane in plot.lanes:
            assert all(bar.left >= 0 and bar.left + bar.width <= 100.001 for bar in lane.bars)


def test_there_is_no_plot_of_times_that_are_not_known(record: RunRecord) -> None:
    assert timeline(record).lanes == ()
    assert "timeline" not in Page(as_html(record)).ids
    assert [item.outcome for item in record.outcomes].count(Outcome.PASS) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text
