# SPDX-License-Identifier: GPL-2.0-only
"""Annotations are one line each, and a summary's Markdown is ours alone."""

from __future__ import annotations

import html
import re

import pytest
from sample_record import HOSTILE, samples

from harness.result.github import as_annotations, as_markdown
from harness.result.record import RunRecord

SAMPLES = samples()
_COMMAND = re.compile(r"::(error|warning|notice) title=([^:,\n\r]*)::([^\n\r]*)")


def commands(record: RunRecord) -> list[tuple[str, str, str]]:
    """Level, title and text of each, unescaped as GitHub does."""
    found = [_COMMAND.fullmatch(line) for line in as_annotations(record).splitlines()]
    return [
        tuple(
            part.replace("%0A", "\n").replace("%3A", ":").replace("%2C", ",").replace("%25", "%")
            for part in each.groups()
        )  # type: ignore[misc]
        for each in found
        if each
    ]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_line_is_one_annotation(name: str) -> None:
    text = as_annotations(SAMPLES[name])
    assert len(commands(SAMPLES[name])) == len(text.splitlines()) == text.count("\n")


@pytest.mark.parametrize(
    ("name", "level", "title"),
    [
        ("passed", "notice", "mmu-harness: PASS (exit code 0)"),
        ("failed", "error", "mmu-harness: FAIL (exit code 1)"),
        ("crashed", "error", "mmu-harness: FAIL (exit code 1)"),
        ("unbuilt", "error", "mmu-harness: UNTESTABLE (exit code 125)"),
        ("skipped", "error", "mmu-harness: UNTESTABLE (exit code 125)"),
        ("empty", "error", "mmu-harness: ERROR (exit code 201)"),
    ],
)
def test_the_verdict_comes_first(name: str, level: str, title: str) -> None:
    assert commands(SAMPLES[name])[0][:2] == (level, title)


def test_only_what_the_kernel_did_is_an_error(record: RunRecord) -> None:
    _, *others = commands(record)
    assert [(level, title.partition(":")[0]) for level, title, _ in others] == [
        ("error", "fail"),
        ("warning", "error"),
        ("warning", "missing"),
    ]
    assert "oracle:   sptes, guest page 7\nexpected: 0 sptes\nseen:     16 sptes" in others[0][2]


def test_more_than_github_keeps_are_counted() -> None:
    _, *others = commands(SAMPLES["unbuilt"])
    assert len(others) == 9
    assert others[-1][2].startswith("208 more tests")


def test_a_percent_sign_comes_back_as_it_was(record: RunRecord) -> None:
    hostile = next(text for _, title, text in commands(SAMPLES["failed"]) if "hammering" in title)
    assert "{% raw %}" in hostile
    assert "\n::error title=guest::I am a command\n" in hostile


@pytest.mark.parametrize("name", SAMPLES)
def test_a_summary_has_no_markup_but_ours(name: str) -> None:
    text = as_markdown(SAMPLES[name])
    tags = {"details", "summary", "pre"}
    found = re.findall(r"</?([A-Za-z!]+)", text)
    assert set(found) <= tags
    outside = re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
    outside = re.sub(r"</?(details|summary)>", "", outside)
    # Links, code, emphasis and HTML begin with one of these.
    assert not set("`*_[]<>~\\!@") & set(outside)
    assert len(text.encode()) < 1 << 20


def test_a_summary_shows_what_was_printed() -> None:
    text = html.unescape(as_markdown(SAMPLES["failed"]))
    assert "<script>alert('guest')</script>" in HOSTILE
    assert "<script>alert('guest')</script>" in text
    assert "repeat:   mmu-harness check" in text


def test_a_summary_is_a_table_of_scenarios_and_modes(record: RunRecord) -> None:
    lines = html.unescape(as_markdown(record)).splitlines()
    assert "## ❌ mmu-harness: FAIL (exit code 1)" in lines
    assert "| scenario | tdp | shadow |" in lines
    assert "| munmap: gone [anon] | ✅ pass 1.5 s | ❌ fail 2.5 s |" in lines
    assert "| t: error | 💥 error 0.1 s | - |" in lines
    assert "| t: lost | - | ❔ missing |" in lines


def test_a_control_is_named(record: RunRecord) -> None:
    assert "The guarantee leak was broken on purpose." in as_markdown(record)
