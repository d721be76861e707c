# SPDX-License-Identifier: GPL-2.0-only
"""A bisection as users run it: 64 commits over a real 6.12, real builds and real hosts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from checking import COMMAND
from synthetic_history import make

from harness.kernel.debian import Apt
from harness.progress import Silent
from harness.store import Store

SECONDS = 4 * 3600.0


@pytest.fixture(scope="module")
def tarball() -> Path:
    """Debian's 6.12 source."""
    store = Store()
    apt = Apt(store)
    package = apt.source("6.12")
    (found,) = apt.unpacked(package, Silent()).glob("usr/src/linux-source-*.tar.xz")
    return found


@pytest.mark.parametrize(("percent", "shorter"), [(100, True), (30, False)])
def test_the_commit_that_leaks_is_found(
    tarball: Path, tmp_path: Path, percent: int, *, shorter: bool
) -> None:
    history = tmp_path / "linux"
    make(tarball, history, percent)
    done = subprocess.run(
        [
            *(str(COMMAND), "bisect", "--good", "good", "--bad", "bad", "--source", str(history)),
            *("--select", "an_idle_guest", "--mmu", "tdp", "--results", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    culprit = subprocess.run(
        ["git", "-C", str(history), "rev-parse", "culprit"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (state,) = tmp_path.glob("bisect-*/bisect.json")
    document = json.loads(state.read_text())
    assert document["answer"]["culprit"] == culprit
    assert {kind["oracle"] for kind in document["looked_for"]} & {"references", "reclaim"}
    assert culprit in done.stdout
    assert (document["rate"]["failures"] == document["rate"]["runs"]) == shorter
