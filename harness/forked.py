# SPDX-License-Identifier: GPL-2.0-only
"""Runs a function in a fork of this process, as a program of its own whose output goes to a log.

A program that is started anew loads the same libraries again, which takes a second of a CPU.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

from harness.crew import die_with
from harness.deadline import Deadline

_GRACE_SECONDS = 60.0
"""How long the function may take to tidy up after SIGTERM before its process is killed."""


def run_forked(action: Callable[[], int], deadline: Deadline, log: Path) -> tuple[int, float]:
    """Run a function to its end: the exit status that it returned, and the seconds it took.

    What ended it by a signal is a negative status. Raises DeadlineError when the deadline passes;
    the process is ended then, as it is when anything else is raised here.
    """
    started = time.monotonic()
    # What is still to be written would be written twice.
    sys.stdout.flush()
    sys.stderr.flush()
    process = multiprocessing.get_context("fork").Process(
        target=_run, args=(action, log, os.getpid())
    )
    try:
        process.start()
        process.join(deadline.remaining)
        if process.is_alive():
            raise deadline.error(f"It was ended; its output is in {log}.")
    finally:
        _end(process)
    assert process.exitcode is not None, "it has ended"
    return process.exitcode, time.monotonic() - started


def _run(action: Callable[[], int], log: Path, parent: int) -> None:
    die_with(parent)
    # A group of its own: what the terminal sends is for whoever started all of this.
    os.setsid()
    with log.open("ab") as output, open(os.devnull, "rb") as nothing:  # noqa: PTH123
        for stream, number in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(stream.fileno(), number)
    # Whatever these were made of before.
    sys.stdout, sys.stderr = _text(1), _text(2)
    sys.exit(action())


def _text(number: int) -> TextIO:
    return os.fdopen(number, "w", 1, "utf-8", "backslashreplace", closefd=False)


def _end(process: BaseProcess) -> None:
    if process.is_alive():
        process.terminate()
        process.join(_GRACE_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
