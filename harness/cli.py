# SPDX-License-Identifier: GPL-2.0-only
"""The doors of the command line."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click

from harness import __version__, ci, display, plugin
from harness.bisect.drive import bisect_code, find_first_bad
from harness.doctor import examine
from harness.errors import ExitCode, HarnessError, Interrupted
from harness.guest.probe import probe_guest
from harness.guest.session import session
from harness.janitor import Janitor
from harness.machine import mmu
from harness.machine.boot import boot as boot_host
from harness.machine.shell import interact
from harness.progress import Progress
from harness.result.verdict import exit_code
from harness.store import Store
from harness.workbench import DEFAULT_KERNEL, Wish, host_spec, make_kernel, make_parts

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _kernel_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which kernel."""
    options: tuple[Decorator, ...] = (
        click.option("--kernel", metavar="REF", default=DEFAULT_KERNEL, show_default=True,
                     help="bzImage, source tree, deb:linux-source-V or deb:linux-image-V."),
        click.option("--patch", "patches", metavar="FILE", multiple=True,
                     help="Apply a patch on top; may be repeated."),
        click.option("--config", "fragments", metavar="FILE", multiple=True,
                     help="Add a configuration fragment; may be repeated."),
        click.option("--jobs", type=click.IntRange(1), help="For make; default: number of CPUs."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


_accel = click.option(
    "--accel", metavar="NAME", default="auto", show_default=True, help="kvm, tcg or auto."
)
_control = click.option("--control", metavar="NAME", help="Break one guarantee on purpose.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def command() -> None:
    """Ask a kernel whether KVM guests can be swapped, forked, remapped and killed safely.

    Exit codes: 0 pass; 1 the kernel fails; 125 this kernel cannot be tested; 130, 143
    interrupted; 200 infrastructure; 201 usage; 202 this machine cannot run it; 203 a bug here.
    """


def _suite_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a run of the suite takes: the options of pytest's plugin, and which tests."""
    options: tuple[Decorator, ...] = (
        _kernel_options,
        click.option("--mmu", "modes", metavar="MODE", multiple=True,
                     help=f"{', '.join(mmu.Mmu)}; may be repeated. Default: tdp and shadow."),
        _accel,
        _control,
        click.option("--results", metavar="DIR", default="results", show_default=True),
        click.option("--strict", is_flag=True,
                     help="A test that this kernel cannot run makes the run end in 125."),
        click.option("--ci", is_flag=True,
                     help="For CI jobs: no colour, one line a phase; GitHub's annotations there."),
        click.option("-k", "expression", metavar="EXPR",
                     help="Only tests whose names match, as pytest's."),
        click.argument("tests", nargs=-1),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@command.command()
@_suite_options
def check(expression: str | None, tests: Sequence[str], **options: Any) -> int:
    """Build the kernel, boot it, drive guests on it, and give the verdict.

    TESTS are files or test ids; by default the whole suite.
    """
    return plugin.check(expression, tests, _as_arguments(options))


@command.command()
@_suite_options
def coverage(expression: str | None, tests: Sequence[str], **options: Any) -> int:
    """Check, and tell which notifier sites of the kernel the tests reach, by kprobes.

    The table has the hooks of 2008, with what does their work today, and every place in this
    kernel that calls a notifier. coverage.json in the results directory has all cells.
    """
    return plugin.check(expression, tests, [*_as_arguments(options), "--coverage"])


def _bisect_options(function: Callable[..., Any]) -> Callable[..., Any]:
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
        _accel,
        click.option("--jobs", type=click.IntRange(1), help="For make; default: number of CPUs."),
        click.option("--error", type=float, default=0.01, show_default=True,
                     help="The probability of a wrong answer that is put up with."),
        click.option("--results", metavar="DIR", default="results", show_default=True),
        click.argument("tests", nargs=-1),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@command.command()
@_bisect_options
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
@_kernel_options
@_control
def build(
    kernel: str,
    patches: Sequence[str],
    fragments: Sequence[str],
    jobs: int | None,
    control: str | None,
) -> int:
    """Build a kernel, or find it in the store, and print where it is."""
    with _opened() as (_, store, progress):
        wish = Wish(kernel, _paths(patches), _paths(fragments), control=control, jobs=jobs)
        built, _ = make_kernel(wish, store, progress)
    click.echo(built.entry or built.image)
    return ExitCode.PASS


@command.command()
@_kernel_options
@click.option("--mmu", "mode", metavar="MODE", default="tdp", show_default=True)
@_accel
@_control
@click.option("--guest", is_flag=True, help="With a probe guest of 64 MiB running in it.")
def boot(
    kernel: str,
    patches: Sequence[str],
    fragments: Sequence[str],
    jobs: int | None,
    mode: str,
    accel: str,
    control: str | None,
    guest: bool,
) -> int:
    """Boot a kernel and give a shell on the host that runs it."""
    wish = Wish(
        kernel, _paths(patches), _paths(fragments), (mmu.parse(mode),), accel, control, jobs
    )
    with contextlib.ExitStack() as stack:
        janitor, store, progress = stack.enter_context(_opened())
        parts = make_parts(wish, store, progress)
        spec = host_spec(parts, wish.modes[0])
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
def doctor() -> int:
    """Say what this machine can run, and what is missing."""
    findings = examine(Store())
    for finding in findings:
        mark = "ok" if finding.good else "MISSING" if finding.fatal else "absent"
        click.echo(f"{mark:8}{finding.what:20}{finding.text}")
    if any(finding.fatal and not finding.good for finding in findings):
        click.echo("This machine cannot run the harness as it is.")
        return ExitCode.UNFIT
    click.echo("This machine can run the harness.")
    return ExitCode.PASS


@command.command()
@click.argument("name", type=click.Choice(list(ci.TEMPLATES)))
def template(name: str) -> int:
    """Print a ready job for a CI system, or the recipe of a container to run it in."""
    click.echo(ci.template(name), nl=False)
    return ExitCode.PASS


def main() -> None:
    """Run the command line and exit with the code that says what happened."""
    sys.exit(int(_exit_code()))


def _exit_code() -> int:
    try:
        return int(command.main(standalone_mode=False) or 0)
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
        store = Store(adopt=janitor.adopt, release=janitor.release)
        yield janitor, store, display.progress(sys.stderr)


def _paths(names: Sequence[str]) -> tuple[Path, ...]:
    return tuple(map(Path, names))


def _as_arguments(options: dict[str, Any]) -> list[str]:
    """The options of ``check`` as pytest's plugin knows them."""
    names = {"patches": "patch", "fragments": "config", "modes": "mmu", "strict": "no-skips"}
    arguments = []
    for key, value in options.items():
        if isinstance(value, bool):
            arguments += [f"--{names.get(key, key)}"] if value else []
            continue
        for one in value if isinstance(value, tuple) else (value,):
            if one is True:
                arguments.append(f"--{key}")
            elif one is not None and one is not False:
                # One word, because a value may begin with a dash.
                arguments.append(f"--{names.get(key, key)}={one}")
    return arguments
