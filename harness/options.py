# SPDX-License-Identifier: GPL-2.0-only
"""What the commands take: options that several share, and what pytest's plugin calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from harness.kernel.reference import FORMS
from harness.machine import mmu
from harness.workbench import DEFAULT_KERNEL, FAILED_ENOUGH

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


KERNEL = click.option(
    "--kernel", metavar="REF", default=DEFAULT_KERNEL, show_default=True, help=f"{FORMS}."
)

PATCH = click.option(
    "--patch",
    "patches",
    metavar="FILE",
    multiple=True,
    help="Apply on top: a diff, a mailbox, a quilt directory, or - for standard input; may be "
    "repeated.",
)
JOBS = click.option("--jobs", type=click.IntRange(1), help="For make; default: number of CPUs.")


def kernel_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which kernel."""
    options: tuple[Decorator, ...] = (
        KERNEL,
        PATCH,
        click.option("--vmlinux", metavar="FILE", help="Debug information of a prebuilt kernel."),
        click.option("--config", "fragments", metavar="FILE", multiple=True,
                     help="Add a configuration fragment; may be repeated."),
        JOBS,
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


SOURCE = click.option(
    "--kernel",
    metavar="REF",
    default=DEFAULT_KERNEL,
    show_default=True,
    help="Source tree or deb:linux-source-V.",
)
ACCEL = click.option(
    "--accel", metavar="NAME", default="auto", show_default=True, help="kvm, tcg or auto."
)
RESULTS = click.option("--results", metavar="DIR", default="results", show_default=True)
CONTROL = click.option("--control", metavar="NAME", help="Break one guarantee on purpose.")


def suite_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a run of the suite takes: the options of pytest's plugin, and which tests."""
    options: tuple[Decorator, ...] = (
        kernel_options,
        click.option("--mmu", "modes", metavar="MODE", multiple=True,
                     help=f"{', '.join(mmu.Mmu)}; may be repeated. Default: tdp and shadow."),
        ACCEL,
        CONTROL,
        RESULTS,
        click.option("--hosts", type=click.IntRange(1),
                     help="How many run at once; default: as CPUs and memory allow, at most 4."),
        click.option("--strict", is_flag=True,
                     help="A test that this kernel cannot run makes the run end in 125."),
        click.option("--max-failures", metavar="N", type=click.IntRange(0), default=FAILED_ENOUGH,
                     show_default=True,
                     help="End the run when so many tests failed; 0: ask all of them."),
        click.option("--repeat", metavar="N", type=click.IntRange(1),
                     help="Run all tests N times, each time on new hosts."),
        click.option("--until-fail", is_flag=True,
                     help="With --repeat: end it at the first test that does not pass."),
        click.option("--same-hosts", is_flag=True,
                     help="With --repeat: go on on the hosts that are up."),
        click.option("--quick", is_flag=True,
                     help="Only the first cell of each scenario: a look, and no substitute."),
        click.option("--ci", is_flag=True,
                     help="For CI jobs: no colour, one line a phase; GitHub's annotations there."),
        click.option("-k", "expression", metavar="EXPR",
                     help="Only tests whose names match, as pytest's."),
        click.argument("tests", nargs=-1),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def soak_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a soak takes."""
    options: tuple[Decorator, ...] = (
        kernel_options,
        click.option("--mmu", "mode", metavar="MODE", default="tdp", show_default=True,
                     help=", ".join(mmu.Mmu)),
        click.option("--guests", type=click.IntRange(1, 16), default=3, show_default=True),
        click.option("--guest-memory", "memory", metavar="MIB", type=click.IntRange(128, 1024),
                     default=128, show_default=True, help="Of each guest."),
        click.option("--duration", metavar="SECONDS", type=click.FloatRange(1), default=1800.0,
                     show_default=True, help="No scenario begins later."),
        click.option("--seed", type=int, help="Of a soak to be repeated; default: by chance."),
        CONTROL,
        ACCEL,
        RESULTS,
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def bisect_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a bisection is asked."""
    options: tuple[Decorator, ...] = (
        click.option("--good", metavar="REV", required=True, help="A commit without the failure."),
        click.option("--bad", metavar="REV", required=True, help="A commit with it."),
        click.option("--source", metavar="TREE", required=True,
                     help="A checkout of git; its history is read, and it is not touched."),
        click.option("--select", metavar="EXPR",
                     help="Only tests whose names match, as check's -k."),
        click.option("--mmu", "modes", metavar="MODE", multiple=True,
                     help=f"{', '.join(mmu.Mmu)}; may be repeated. Default: tdp and shadow."),
        click.option("--patch", "patches", metavar="FILE", multiple=True,
                     help="Apply on top of each revision that lacks it; may be repeated."),
        click.option("--config", "fragments", metavar="FILE", multiple=True,
                     help="Add a configuration fragment; may be repeated."),
        ACCEL,
        JOBS,
        click.option("--error", type=float, default=0.01, show_default=True,
                     help="The probability of a wrong answer that is put up with."),
        RESULTS,
        click.argument("tests", nargs=-1),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def as_arguments(options: dict[str, Any]) -> list[str]:
    """The options of ``check`` as pytest's plugin knows them."""
    names = {"patches": "patch", "fragments": "config", "modes": "mmu", "strict": "no-skips"}
    arguments = []
    for key, value in options.items():
        name = names.get(key, key.replace("_", "-"))
        if isinstance(value, bool):
            arguments += [f"--{name}"] if value else []
            continue
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None:
                # One word, because a value may begin with a dash.
                arguments.append(f"--{name}={one}")
    return arguments
