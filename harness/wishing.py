# SPDX-License-Identifier: GPL-2.0-only
"""The options of pytest's plugin, and the wish that they make."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from harness.control import split
from harness.errors import HarnessError, UsageError
from harness.kernel import reference
from harness.kernel.fragments import merged, project_fragments, read_fragments
from harness.machine import accelerator, mmu
from harness.result.text import one_line
from harness.workbench import DEFAULT_KERNEL, DEFAULT_MODES, FAILED_ENOUGH, Wish


def add_options(parser: pytest.Parser) -> None:
    """Add the options of the suite."""
    group = parser.getgroup("mmu-harness", "which kernel to test, and on what")
    group.addoption(
        "--kernel",
        metavar="REF",
        default=DEFAULT_KERNEL,
        help="bzImage, source tree, TREE@REV, tarball, https, deb: or running (%(default)s)",
    )
    group.addoption("--patch", metavar="FILE", action="append", default=[], help="apply on top")
    group.addoption("--vmlinux", metavar="FILE", type=Path, help="with its debug information")
    group.addoption("--config", metavar="FILE", action="append", default=[], help="add a fragment")
    group.addoption("--mmu", metavar="MODE", action="append", default=[], help=", ".join(mmu.Mmu))
    group.addoption("--accel", metavar="NAME", default="auto", help=", ".join(accelerator.REQUESTS))
    group.addoption("--control", metavar="NAME", help="break one guarantee, to see tests fail")
    group.addoption("--results", metavar="DIR", default="results", help="where results go")
    # pytest has an option --strict of its own.
    group.addoption("--no-skips", action="store_true", help="a skipped test makes a run end in 125")
    group.addoption("--ci", action="store_true", help="for CI jobs: plain lines, annotations")
    group.addoption("--hosts", metavar="N", type=int, help="how many run at once (by CPUs, memory)")
    group.addoption("--jobs", metavar="N", type=int, help="for make; default: number of CPUs")
    group.addoption("--coverage", action="store_true", help="which notifier sites are reached")
    group.addoption("--repeat", metavar="N", type=int, default=1, help="run all tests N times")
    group.addoption(
        "--max-failures",
        metavar="N",
        type=int,
        default=FAILED_ENOUGH,
        help="end a run when so many tests failed (%(default)s; 0: never)",
    )
    group.addoption("--until-fail", action="store_true", help="repeat until one does not pass")
    group.addoption("--quick", action="store_true", help="only the first cell of each scenario")
    group.addoption("--same-hosts", action="store_true", help="repeat on hosts that are up already")


def wish_of(config: pytest.Config) -> Wish:
    """What the options ask for; raises UsageError that names the valid values."""
    given = config.getoption
    modes = tuple(mmu.parse(name) for name in given("--mmu")) or DEFAULT_MODES
    if given("--accel") not in accelerator.REQUESTS:
        valid = ", ".join(accelerator.REQUESTS)
        raise UsageError(f"There is no accelerator {given('--accel')!r}; choose one of {valid}.")
    for option in ("--hosts", "--jobs", "--repeat"):
        if given(option) is not None and given(option) < 1:
            raise UsageError(f"{option} takes a number from 1 on.")
    if given("--max-failures") < 0:
        raise UsageError("--max-failures takes a number from 0 on; with 0 no number ends the run.")
    for option in ("--until-fail", "--same-hosts"):
        if given(option) and given("--repeat") == 1:
            raise UsageError(f"{option} goes with --repeat N, which says how often at most.")
    if "-" in given("--patch"):
        raise UsageError("Standard input is pytest's own; use mmu-harness check --patch -.")
    for option in ("--patch", "--config", "--vmlinux"):
        _check_files(option, given(option))
    _check_kernel(given("--kernel"), given("--control"))
    return Wish(
        kernel=given("--kernel"),
        patches=tuple(map(Path, given("--patch"))),
        fragments=tuple(map(Path, given("--config"))),
        modes=tuple(dict.fromkeys(modes)),
        accelerator=given("--accel"),
        control=given("--control"),
        jobs=given("--jobs"),
        strict=given("--no-skips"),
        vmlinux=given("--vmlinux"),
        hosts=given("--hosts"),
        repeat=given("--repeat"),
        until_fail=given("--until-fail"),
        same_hosts=given("--same-hosts"),
        quick=given("--quick"),
        max_failures=given("--max-failures"),
    )


def header(wish: Wish) -> list[str]:
    """What a run is about, for the top of pytest's output: known before anything is built.

    The configuration is the requested one, because the whole of it is known after the build only.
    """
    kernel = [wish.kernel, *(f"patch {path.name}" for path in wish.patches)]
    if wish.control:
        kernel.append(f"with {wish.control} broken on purpose")
    modes = ", ".join(wish.modes)
    repeated = f", {wish.repeat} times" if wish.repeat > 1 else ""
    return [
        one_line(f"kernel: {', '.join(kernel)}; requested configuration {_requested(wish)}"),
        one_line(f"hosts: accelerator {_accelerator(wish)}; MMU modes {modes}{repeated}"),
    ]


def _requested(wish: Wish) -> str:
    """The beginning of the sha256 of what is asked of the kernel's configuration."""
    try:
        text = merged(read_fragments((*project_fragments(), *wish.fragments)))
    except HarnessError as error:
        return f"cannot be read: {error}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _accelerator(wish: Wish) -> str:
    try:
        return accelerator.choose(wish.accelerator).name
    except HarnessError:
        return f"{wish.accelerator}, which this machine does not have"


def _check_files(option: str, given: Any) -> None:
    for name in given if isinstance(given, list) else [given] if given else []:
        if not Path(name).exists():
            raise UsageError(f"{option}: {name} cannot be read: there is no such file.")


def _check_kernel(text: str, control: str | None) -> None:
    """Raise UsageError for what can be no kernel, and for a control that there is not.

    A kernel that is not there, or is none, is untestable: that is a verdict, and is not said here.
    """
    try:
        reference.parse(text)
        if control:
            split(control)
    except UsageError:
        raise
    except HarnessError:
        return
