# SPDX-License-Identifier: GPL-2.0-only
"""The doors of the command line.

What only some commands need and takes long to load (pytest, drgn, the suite) they import
themselves, so that a kernel that is in the store is found without a wait for it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click
from click.core import ParameterSource

from harness import __version__, display, housekeeping, kill_matrix
from harness.bisect.drive import bisect_code, find_first_bad
from harness.comparison import as_text as comparison_text
from harness.errors import ExitCode, HarnessError, Interrupted
from harness.guest.probe import probe_guest
from harness.guest.session import session
from harness.janitor import Janitor
from harness.kernel import git, reference
from harness.kernel.architecture import ARCHITECTURES, named
from harness.kernel.claims import Claims
from harness.kernel.claims import table as claims_table
from harness.kernel.hunks import Status
from harness.kernel.landmarks import release_of
from harness.kernel.origin import source_of
from harness.kernel.patches import described, try_out
from harness.kernel.portability import Portability
from harness.kernel.portability import table as portability_table
from harness.kernel.series import STDIN, read_series, with_stdin
from harness.machine import mmu
from harness.machine.boot import boot as boot_host
from harness.machine.shell import interact
from harness.options import (
    ACCEL,
    CONTROL,
    JOBS,
    KERNEL,
    PATCH,
    RESULTS,
    SOURCE,
    as_arguments,
    bisect_options,
    kernel_options,
    soak_options,
    suite_options,
)
from harness.progress import Progress
from harness.result.text import printable
from harness.result.verdict import exit_code
from harness.soak.timeline import as_text as soak_text
from harness.store import Store
from harness.workbench import Wish, host_spec, make_kernel, make_parts


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def command() -> None:
    """Ask a kernel whether KVM guests can be swapped, forked, remapped and killed safely.

    Exit codes: 0 pass; 1 the kernel fails; 125 this kernel cannot be tested; 130, 143
    interrupted; 200 infrastructure; 201 usage; 202 this machine cannot run it; 203 a bug here.
    """


@command.command()
@suite_options
def check(expression: str | None, tests: Sequence[str], **options: Any) -> int:
    """Build the kernel, boot it, drive guests on it, and give the verdict.

    TESTS are files or test ids; by default the whole suite. Under `git bisect run` the kernel is
    the tree that is bisected, unless another is named.
    """
    from harness import suite

    _follow_bisection(options)
    if str(STDIN) in options["patches"]:
        options["patches"] = tuple(map(str, _patches(options["patches"], Store())))
    return suite.check(expression, tests, as_arguments(options))


@command.command()
@suite_options
def coverage(expression: str | None, tests: Sequence[str], **options: Any) -> int:
    """Check, and tell which notifier sites of the kernel the tests reach, by kprobes.

    The table has the hooks of 2008, with what does their work today, and every place in this
    kernel that calls a notifier. coverage.json in the results directory has all cells.
    """
    from harness import suite

    return suite.check(expression, tests, [*as_arguments(options), "--coverage"])


@command.command()
@bisect_options
def bisect(**options: Any) -> int:
    """Find the first commit with a failure, by checks of the commits in between.

    It goes on where it was when the same command is given again. TESTS are files or test ids; by
    default the whole suite until the failure is seen, and then the tests that show it.
    """
    with _opened() as (_, store, progress):
        answer, directory = find_first_bad(store, progress, **options)
    click.echo((directory / "summary.txt").read_text("utf-8"))
    click.echo(f"Results: {directory}")
    return bisect_code(answer)


@command.command()
@kernel_options
@CONTROL
def build(
    kernel: str,
    patches: Sequence[str],
    fragments: Sequence[str],
    vmlinux: str | None,
    jobs: int | None,
    control: str | None,
) -> int:
    """Build a kernel, or find it in the store, and print where it is."""
    with _opened() as (_, store, progress):
        wish = Wish(
            kernel,
            _patches(patches, store),
            _paths(fragments),
            control=control,
            jobs=jobs,
            vmlinux=_path(vmlinux),
        )
        built, _ = make_kernel(wish, store, progress)
    click.echo(built.entry or built.image)
    return ExitCode.PASS


@command.command()
@kernel_options
@click.option("--mmu", "mode", metavar="MODE", default="tdp", show_default=True)
@ACCEL
@CONTROL
@click.option("--guest", is_flag=True, help="With a probe guest of 64 MiB running in it.")
def boot(
    kernel: str,
    patches: Sequence[str],
    fragments: Sequence[str],
    vmlinux: str | None,
    jobs: int | None,
    mode: str,
    accel: str,
    control: str | None,
    guest: bool,
) -> int:
    """Boot a kernel and give a shell on the host that runs it."""
    modes = (mmu.parse(mode),)
    with contextlib.ExitStack() as stack:
        janitor, store, progress = stack.enter_context(_opened())
        given = _patches(patches, store)
        debug = _path(vmlinux)
        wish = Wish(kernel, given, _paths(fragments), modes, accel, control, jobs, vmlinux=debug)
        parts = make_parts(wish, store, progress)
        spec = host_spec(parts, modes[0])
        host = stack.enter_context(boot_host(spec, janitor.directory, parts.kernel, progress))
        if guest:
            agent = stack.enter_context(session(host, parts.probe))
            probe = stack.enter_context(probe_guest(agent))
            probe.fill(seed=1)
            progress.note(
                f"Probe guest: VMM process {probe.pid}, {probe.pages} pages at "
                f"{probe.hva:#x}, cgroup {probe.cgroup}"
            )
        progress.note("The host is gone when this shell ends.")
        return interact(host)


@command.command()
@KERNEL
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
def patch(kernel: str, files: Sequence[str]) -> int:
    """Try patches on kernel source, and say of every hunk what becomes of it.

    FILE is a diff, a mailbox, a quilt directory, or - for standard input. Source is only read.
    """
    with _opened() as (janitor, store, progress):
        series = read_series(_patches(files, store))
        source = source_of(reference.parse(kernel), store, progress)
        with source.peek(janitor.directory / "source") as read:
            reports = try_out(series, read, janitor.directory / "patched")
            release = release_of(read("Makefile")[1].decode(errors="replace"))
    for report in reports:
        click.echo("\n".join(map(printable, described(report, release))))
    left = len(series) - len(reports)
    if left:
        click.echo(f"{left} more not tried, because they go on top of that.")
    failed = reports[-1].status is Status.REJECTED
    return ExitCode.UNTESTABLE if failed else ExitCode.PASS


@command.command()
@KERNEL
@PATCH
@JOBS
@click.option("--no-build", is_flag=True, help="Only configure, which takes seconds.")
def kconfig(kernel: str, patches: Sequence[str], jobs: int | None, no_build: bool) -> int:
    """Check that MMU_NOTIFIER is there for KVM and for nobody else, by building small kernels."""
    with _opened() as (_, store, progress):
        series = read_series(_patches(patches, store))
        source = source_of(reference.parse(kernel), store, progress)
        claims = Claims(source, series, store, progress, jobs or os.cpu_count() or 1)
        selection, findings = claims.check(build=not no_build)
    click.echo(f"{' selects '.join(selection.chain)}, as do {len(selection.selectors)} in all.")
    display.show_rows(claims_table(findings), display.console(sys.stdout))
    wrong = any(finding.problems for finding in findings)
    click.echo("The claims do not hold." if wrong else "The claims hold.")
    return ExitCode.FAIL if wrong else ExitCode.PASS


@command.command()
@KERNEL
@PATCH
@click.option("--arch", "names", metavar="NAME", multiple=True,
              help=f"{', '.join(one.name for one in ARCHITECTURES)}; may be repeated. "
              "Default: all.")  # fmt: skip
@JOBS
def cross(kernel: str, patches: Sequence[str], names: Sequence[str], jobs: int | None) -> int:
    """Compile what MMU notifiers touch for other architectures: mm/, fork and KVM.

    With KVM and with no user of notifiers. Compilers that are missing are fetched, without root.
    """
    wanted = tuple(dict.fromkeys(map(named, names))) or ARCHITECTURES
    with _opened() as (_, store, progress):
        series = read_series(_patches(patches, store))
        source = source_of(reference.parse(kernel), store, progress)
        portability = Portability(source, series, store, progress, jobs or os.cpu_count() or 1)
        found = portability.check(wanted)
    display.show_rows(portability_table(found), display.console(sys.stdout))
    wrong = any(one.problems for one in found)
    click.echo("It does not compile everywhere." if wrong else "It compiles everywhere.")
    return ExitCode.FAIL if wrong else ExitCode.PASS


@command.command()
@SOURCE
@click.option(
    "--mmu",
    "modes",
    metavar="MODE",
    multiple=True,
    help="Instead of the modes that each control is for; may be repeated.",
)
@click.option("--jobs", type=click.IntRange(1), help="For make; default: number of CPUs.")
@click.option(
    "--at-once",
    metavar="N",
    type=click.IntRange(1),
    help="Controls that are checked at a time; default: as CPUs and memory allow.",
)
@click.option(
    "--every-scenario",
    "asked",
    flag_value="every",
    help="Have each scenario prove on some control that it can fail.",
)
@click.option(
    "--linux-guests",
    "asked",
    flag_value="linux",
    help="The same for scenarios with Linux guests, and for them alone: half a minute each.",
)
@ACCEL
@RESULTS
@click.argument("names", metavar="[NAME]...", nargs=-1)
def controls(
    kernel: str,
    modes: Sequence[str],
    jobs: int | None,
    at_once: int | None,
    asked: str | None,
    accel: str,
    results: str,
    names: Sequence[str],
) -> int:
    """Prove that the suite can fail: run kernels with one guarantee broken each.

    Prints and stores the kill matrix. Exit code 1 if a control survives, or is noticed only by a
    scenario that should not care, or if the good kernel fails. NAMES are controls; by default all.
    With --every-scenario or --linux-guests also if one of these scenarios misses one.
    """
    from harness.campaign import Asked, Campaign, Plan

    # What the checks need is loaded once: those of controls are forks of this process.
    for module in ("harness.suite", "drgn"):
        importlib.import_module(module)
    chosen = tuple(str(mmu.parse(mode)) for mode in modes)
    plan = Plan(kernel, tuple(names), chosen, accel, jobs, Asked(asked or Asked.FEW), at_once)
    with _opened() as (_, store, progress):
        campaign = Campaign(plan, store, Path(results), progress, _exit_code)
        matrix = campaign.run()
    display.show_matrix(matrix, display.console(sys.stdout))
    click.echo(f"Results: {campaign.directory}")
    return kill_matrix.exit_code(matrix)


@command.command()
@SOURCE
@click.option("--mmu", "mode", metavar="MODE", default="tdp", show_default=True)
@click.option("--jobs", type=click.IntRange(1), help="For make; default: number of CPUs.")
@ACCEL
@RESULTS
def compare(kernel: str, mode: str, jobs: int | None, accel: str, results: str) -> int:
    """Show what the mmu notifiers are for: the same guest before and after them.

    Before is this kernel with the control pre-notifier. Prints and stores a table and a picture.
    Exit code 1 if this kernel does not let everything be done to all pages.
    """
    from harness.comparing import compared

    wish = Wish(kernel, modes=(mmu.parse(mode),), accelerator=accel, jobs=jobs)
    with _opened() as (janitor, store, progress):
        comparison, path = compared(wish, store, janitor.directory, Path(results), progress)
    click.echo(comparison_text(comparison), nl=False)
    click.echo(f"Results: {path}")
    return ExitCode.PASS if comparison.claim_holds else ExitCode.FAIL


@command.command()
@soak_options
def soak(
    mode: str, guests: int, memory: int, duration: float, seed: int | None, **options: Any
) -> int:
    """Put Linux guests under one scenario after the other, chosen by chance, until one fails.

    Leaves what was seen over time as a picture and as JSON, and with a failure all logs and the
    host's memory.
    """
    from harness.soak.drive import Order, soaked

    given, modes = options, (mmu.parse(mode),)
    changes = _paths(given["patches"]), _paths(given["fragments"])
    how = (given["accel"], given["control"], given["jobs"])
    wish = Wish(given["kernel"], *changes, modes, *how, vmlinux=_path(given["vmlinux"]))
    order = Order(guests, memory, duration, secrets.randbits(32) if seed is None else seed)
    with _opened() as (janitor, store, progress):
        seen, failure, path = soaked(
            wish, order, store, janitor.directory, Path(options["results"]), progress
        )
    click.echo(soak_text(seen), nl=False)
    click.echo(f"Results: {path}")
    return exit_code(failure) if failure else ExitCode.PASS


for _door in (housekeeping.kernels, housekeeping.doctor, housekeeping.template):
    command.add_command(_door)


def main() -> None:
    """Run the command line and exit with the code that says what happened."""
    sys.exit(int(_exit_code()))


def _exit_code(words: Sequence[str] | None = None) -> int:
    """Run these words, or those that this process was started with; raises nothing."""
    try:
        given = None if words is None else list(words)
        return int(command.main(given, "mmu-harness", standalone_mode=False) or 0)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _complain(Interrupted(signal.SIGINT))
    except HarnessError as error:
        return _complain(error)
    except Exception as error:  # the last door: whatever it is, it gets an exit code
        if exit_code(error) is ExitCode.BUG:
            traceback.print_exc()
            click.echo("This is a bug in the harness; please report the lines above.", err=True)
            return ExitCode.BUG
        return _complain(error)


def _complain(error: BaseException) -> int:
    click.echo(f"mmu-harness: {error}", err=True)
    return exit_code(error)


@contextlib.contextmanager
def _opened() -> Iterator[tuple[Janitor, Store, Progress]]:
    """What a command that does real work needs; SIGTERM and SIGHUP end it in good order."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, stop)
    with Janitor() as janitor:
        progress = display.progress(sys.stderr)
        store = Store(adopt=janitor.adopt, release=janitor.release, warn=progress.note)
        yield janitor, store, progress


def _follow_bisection(options: dict[str, Any]) -> None:
    """Check the tree that git bisects here, rather than call every commit good for Debian's sake.

    Results go where the kernel's .gitignore keeps them out of its source.
    """
    source = click.get_current_context().get_parameter_source
    named = {name for name in ("kernel", "results") if source(name) is not ParameterSource.DEFAULT}
    top = None if "kernel" in named else git.bisected(Path.cwd())
    if top is None:
        return
    options["kernel"] = str(top)
    if "results" not in named:
        options["results"] = str(top / ".mmu-harness" / "results")
    click.echo(f"git bisects {top}, so that is the kernel; --kernel names another.", err=True)


def _paths(names: Sequence[str]) -> tuple[Path, ...]:
    return tuple(map(Path, names))


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _patches(names: Sequence[str], store: Store) -> tuple[Path, ...]:
    """The paths of patches, of which one may be standard input."""
    return with_stdin(_paths(names), sys.stdin.buffer.read, store)
