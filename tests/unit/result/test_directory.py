# SPDX-License-Identifier: GPL-2.0-only
"""A results directory is whole or not there, and a hostile name stays inside it."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import pytest

from harness.errors import InfrastructureError
from harness.result.directory import ResultsDirectory, write_atomically
from harness.result.record import RunRecord

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))


def test_its_name_is_the_time_in_utc_and_latest_points_at_it(tmp_path: Path) -> None:
    parent = tmp_path / "results"
    first = ResultsDirectory.create(parent, NOW)
    second = ResultsDirectory.create(parent, NOW)
    assert first.path != second.path
    assert first.path.name.startswith("20260102T020405Z-")
    assert (parent / "latest").resolve() == second.path
    assert (parent / "latest").readlink() == Path(second.path.name)


def test_a_file_of_somebody_else_called_latest_stays(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("mine")
    ResultsDirectory.create(tmp_path, NOW)
    assert (tmp_path / "latest").read_text() == "mine"


def test_all_formats_are_written_and_nothing_else_is_left(
    tmp_path: Path, record: RunRecord
) -> None:
    directory = ResultsDirectory.create(tmp_path, NOW)
    directory.write(record)
    directory.write(record)
    assert sorted(path.name for path in directory.path.iterdir()) == [
        *("annotations.txt", "junit.xml", "kcidb.json", "report.html", "results.json"),
        *("results.ktap", "summary.md"),
    ]
    assert json.loads((directory.path / "results.json").read_text())["verdict"]["exit_code"] == 1


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "", "-rf", "a/b", "\x1b[2J", "x" * 300])
def test_a_log_stays_in_the_directory(tmp_path: Path, name: str) -> None:
    directory = ResultsDirectory.create(tmp_path, NOW)
    kept = directory.keep(name, b"text")
    assert kept.parent == directory.path / "logs"
    assert not kept.name.startswith(("-", "."))
    assert kept.read_bytes() == b"text"


def test_a_log_without_end_keeps_its_ends(tmp_path: Path) -> None:
    data = b"begin" + b"x" * (20 << 20) + b"end"
    kept = ResultsDirectory.create(tmp_path, NOW).keep("console", data).read_bytes()
    assert kept.startswith(b"begin")
    assert kept.endswith(b"end")
    assert b"bytes left out" in kept
    assert len(kept) < 17 << 20


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_atomically(tmp_path / "results.json", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InfrastructureError, match=r"results\.json: No space left on device"):
        write_atomically(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert target.read_bytes() == b"old"


def test_a_parent_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InfrastructureError, match="cannot be written"):
        ResultsDirectory.create(tmp_path / "file", NOW)
