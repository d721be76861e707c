# SPDX-License-Identifier: GPL-2.0-only
"""Runs pytest on the suite for the command line, which needs exit codes of its own."""

from __future__ import annotations

import signal
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from harness.errors import ExitCode, Interrupted
from harness.plugin import PLUGIN, SuitePlugin

DEFAULT = ("tests/kvm", "tests/notifier")
"""Where the tests are that run when none are named, relative to the project."""

_ROOT = Path(__file__).resolve().parent.parent
_CODES = {
    pytest.ExitCode.TESTS_FAILED: ExitCode.BUG,
    pytest.ExitCode.INTERRUPTED: ExitCode.BUG,
    pytest.ExitCode.INTERNAL_ERROR: ExitCode.BUG,
    pytest.ExitCode.USAGE_ERROR: ExitCode.USAGE,
    pytest.ExitCode.NO_TESTS_COLLECTED: ExitCode.USAGE,
}


def check(expression: str | None, tests: Sequence[str], options: Sequence[str]) -> int:
    """Run the suite, or the named tests of it, and return the exit code of the verdict.

    Raises Interrupted when that happened before there was anything to give a verdict on.
    ``options`` are the plugin's own; ``tests`` are relative to here or to the project.
    """
    named = [name if Path(name.split("::")[0]).exists() else str(_ROOT / name) for name in tests]
    arguments = [
        f"--rootdir={_ROOT}",
        f"--config-file={_ROOT / 'pyproject.toml'}",
        "-pno:terminal",
        "-pno:cacheprovider",
        # Phases are shown while a test runs, which pytest would keep to itself.
        "--capture=no",
        *options,
        *([f"-k={expression}"] if expression else []),
        *(named or [str(_ROOT / name) for name in DEFAULT]),
    ]
    ending = _Ending()
    ended = pytest.main(arguments, [ending])
    if ending.verdict is not None:
        return int(ending.verdict)
    if ending.interrupted:
        raise Interrupted(signal.SIGINT)
    # What is left are runs that never got as far as a verdict.
    return int(_CODES.get(pytest.ExitCode(ended), ExitCode.BUG))


class _Ending:
    """Keeps the verdict's exit code, since pytest's own codes mean other things."""

    verdict: ExitCode | None = None
    interrupted = False

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Tell an interrupt, which may come before the first test, from errors of collection."""
        self.interrupted = not isinstance(excinfo.value, pytest.Session.Interrupted)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Take the code from the plugin, if it came to a verdict."""
        result = yield
        suite = session.config.pluginmanager.get_plugin(PLUGIN)
        if isinstance(suite, SuitePlugin):
            self.verdict = suite.exit_code
        return result
