# SPDX-License-Identifier: GPL-2.0-only
"""The example of docs/writing-tests.md, run with pytest in a file anywhere, as its readers do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "writing-tests.md"
PYTEST = Path(sys.executable).with_name("pytest")


def example() -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    assert len(code.splitlines()) <= 10
    return str(code)


def test_the_plugin_is_there_where_the_harness_is_installed() -> None:
    found = {point.name: point.value for point in metadata.entry_points(group="pytest11")}
    assert found["mmu_harness"] == "harness.plugin"


@pytest.mark.parametrize("words", [[], ["-n2", "--repeat=2"]], ids=["alone", "two workers"])
def test_the_example_passes_on_the_default_kernel(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "test_mine.py").write_text(example())
    temporary = tmp_path / "t"
    temporary.mkdir()
    done = subprocess.run(
        [str(PYTEST), "--mmu=tdp", "test_mine.py", *words],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    print(done.stdout + done.stderr)
    assert done.returncode == 0
    assert "kernel: deb:linux-source-6.12; requested configuration" in done.stdout
    results = json.loads((tmp_path / "results/latest/results.json").read_text())
    times = 2 if words else 1
    assert results["counts"] == {"pass": times, "fail": 0, "error": 0, "missing": 0, "skip": 0}
    told = {one["name"] for test in results["tests"] for one in test["oracles"]}
    assert told >= {"references", "translations", "notifier", "content", "kernel log"}
    assert not list(temporary.glob("mmu-*"))
