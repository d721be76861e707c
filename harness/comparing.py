# SPDX-License-Identifier: GPL-2.0-only
"""Boots a kernel without and with the notifiers, measures on both, and leaves the comparison."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from pathlib import Path

from harness import comparison
from harness.comparison import Comparison, Measurement
from harness.control import all_controls
from harness.kernel import reference
from harness.measure import measure
from harness.progress import Progress
from harness.result.directory import ResultsDirectory, write_atomically
from harness.store import Store
from harness.workbench import Wish, Workbench, make_kernel, make_parts

BEFORE = "pre-notifier"
PAGES = 4096
"""Of the guest: 16 MiB, which a kernel that cannot swap it gives up on in reasonable time."""


def compared(
    wish: Wish, store: Store, directory: Path, parent: Path, progress: Progress
) -> tuple[Comparison, Path]:
    """Measure in the first of the wish's modes, and write comparison.txt, .json and .svg.

    They are written to a new results directory below ``parent``, which is returned as well;
    ``directory`` is private to the run. Raises as make_parts does, and BootError when the control
    does not come on.
    """
    series = all_controls(reference.parse(wish.kernel), store, progress)
    # The same build twice: the patches are in both, and the control is one word more at boot.
    good = dataclasses.replace(wish, patches=(*series.patches, *wish.patches))
    broken = dataclasses.replace(wish, control=BEFORE)
    make_kernel(broken, store, progress)
    now = datetime.datetime.now(datetime.UTC)
    results = ResultsDirectory.create(parent.absolute(), now)
    before, _ = _measured(broken, store, directory / "before", results, progress)
    after, release = _measured(good, store, directory / "after", results, progress)
    found = Comparison(wish.kernel, release, before, after)
    for name, format_ in (
        ("comparison.txt", comparison.as_text),
        ("comparison.json", comparison.as_json),
        ("comparison.svg", comparison.as_svg),
    ):
        write_atomically(results.path / name, format_(found).encode())
    return found, results.path


def _measured(
    wish: Wish, store: Store, directory: Path, results: ResultsDirectory, progress: Progress
) -> tuple[Measurement, str]:
    directory.mkdir(mode=0o700)
    parts = make_parts(wish, store, progress)
    name = directory.name
    bench = Workbench(
        parts, directory, progress, lambda log, data: results.keep(f"{name}-{log}", data)
    )
    with contextlib.ExitStack() as stack:
        stack.callback(bench.discard)
        session = bench.session(wish.modes[0])
        with progress.phase(f"Measure {name} ({wish.control or 'no control'})"):
            return measure(session, PAGES), parts.kernel.release
