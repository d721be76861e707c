# SPDX-License-Identifier: GPL-2.0-only
"""The doors to this machine itself: what is kept on it, what it lacks, how to make a job of it."""

from __future__ import annotations

import sys
import time

import click

from harness import ci, display
from harness.doctor import examine
from harness.errors import ExitCode
from harness.kernel.inventory import inventory, remove, size_text, table, to_remove
from harness.result.text import printable
from harness.store import Store


@click.command()
@click.option(
    "--older-than",
    metavar="DAYS",
    type=click.FloatRange(0),
    help="Remove what was not used for so many days.",
)
@click.option("--at-most", metavar="GIB", type=click.FloatRange(0),
              help="Remove what was not used for longest, down to this size.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def kernels(older_than: float | None, at_most: float | None, dry_run: bool) -> int:
    """List the kernels in the store and what else is kept there, and clean up.

    What is removed can be made again. What a process uses stays.
    """
    store = Store()
    items = inventory(store)
    now = time.time()
    age = None if older_than is None else older_than * 86400
    size = None if at_most is None else int(at_most * (1 << 30))
    gone = to_remove(items, now, age, size)
    if age is None and size is None:
        display.show_rows(table(items, now), display.console(sys.stdout))
        total = sum(item.size for item in items)
        click.echo(f"{len(items)} in {printable(str(store.root))}, {size_text(total)} together.")
        return ExitCode.PASS
    for item in gone:
        removed = dry_run or remove(item, store)
        word = "Would remove" if dry_run else "Removed" if removed else "In use, kept"
        click.echo(f"{word}: {item.kind} {printable(item.title)}, {size_text(item.size)}")
    if not gone:
        click.echo("There is nothing to remove.")
    return ExitCode.PASS


@click.command()
def doctor() -> int:
    """Say what this machine can run, and what is missing."""
    findings = examine(Store())
    for finding in findings:
        mark = "ok" if finding.good else "MISSING" if finding.fatal else "note"
        click.echo(f"{mark:8}{finding.what:20}{finding.text}")
    if any(finding.fatal and not finding.good for finding in findings):
        click.echo("This machine cannot run the harness as it is.")
        return ExitCode.UNFIT
    click.echo("This machine can run the harness.")
    return ExitCode.PASS


@click.command()
@click.argument("name", type=click.Choice(list(ci.TEMPLATES)))
def template(name: str) -> int:
    """Print a ready job for a CI system, or the recipe of a container to run it in."""
    click.echo(ci.template(name), nl=False)
    return ExitCode.PASS
