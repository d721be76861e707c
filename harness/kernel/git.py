# SPDX-License-Identifier: GPL-2.0-only
"""Run git so that neither its environment nor its configuration changes what it does."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

from harness.command import Completed, require, run, spawned
from harness.deadline import Deadline

# A hook, or git itself during rebase --exec, leaves these behind for its children.
_INHERITED = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
)
_SECONDS = 120.0
_OWN_SECONDS = 1800.0
"""A first checkout of a kernel writes 90,000 files; with a cold cache, that took half a minute."""


_READING = (
    # The checkout may belong to another user than the one who runs the harness (root).
    "-c",
    "safe.directory=*",
    # It may name a program, and a tree under test is not to be trusted with that.
    "-c",
    "core.fsmonitor=false",
)
_READ_ONLY = {
    "GIT_OPTIONAL_LOCKS": "0",
    # A partial clone fetches what it lacks, by a program that its configuration names.
    "GIT_NO_LAZY_FETCH": "1",
    # Replaced objects would make one revision have two contents.
    "GIT_NO_REPLACE_OBJECTS": "1",
}


def in_checkout(directory: Path, *arguments: str) -> Completed:
    """Run git in a checkout of the user, without writing to it; the status is not checked."""
    return _git((*_READING, *arguments), directory, _READ_ONLY)


def bisected(directory: Path) -> Path | None:
    """The top of the checkout around a directory if a git bisect is going on in it."""
    if shutil.which("git") is None:
        return None
    told = in_checkout(
        directory, *("rev-parse", "--path-format=absolute", "--git-path", "BISECT_START"),
        "--show-toplevel",
    )  # fmt: skip
    # Outside of a checkout git fails; a bare repository has no top.
    start, _, top = told.stdout.strip().partition("\n")
    return Path(top) if told.status == 0 and top and Path(start).is_file() else None


def answering(
    directory: Path, *arguments: str
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A git in a checkout of the user that reads questions and writes answers, as cat-file does."""
    argv = [*_command(), *_READING, *arguments]
    return spawned(argv, cwd=directory, env={"LC_ALL": "C.UTF-8", **_READ_ONLY}, stdin=True)


def outside_checkout(directory: Path, *arguments: str, stdin: bytes | None = None) -> Completed:
    """Run git in a directory as if it lay in no repository; the status is not checked.

    Inside of a repository ``git apply`` silently skips files that are not below the current
    directory of that repository.
    """
    environment = {
        "GIT_CEILING_DIRECTORIES": str(directory.parent),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    return _git(arguments, directory, environment, stdin)


def in_own(directory: Path, *arguments: str) -> Completed:
    """Run git in a repository of ours, without anybody's settings; the status is not checked."""
    settings = (
        *("-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", "-c", "advice.detachedHead=false"),
        # A kernel tree has names that differ in case only, and links.
        *("-c", "core.symlinks=true", "-c", "core.autocrlf=false", "-c", "safe.directory=*"),
    )
    environment = {
        "GIT_CEILING_DIRECTORIES": str(directory.parent),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    return _git((*settings, *arguments), directory, environment, seconds=_OWN_SECONDS)


def _git(
    arguments: tuple[str, ...],
    directory: Path,
    environment: dict[str, str],
    stdin: bytes | None = None,
    seconds: float = _SECONDS,
) -> Completed:
    return run(
        [*_command(), *arguments],
        Deadline.after(seconds, f"git {arguments[0]}"),
        cwd=directory,
        env={"LC_ALL": "C.UTF-8", **environment},
        stdin=stdin,
        check=False,
    )


def _command() -> list[str]:
    unset = [word for name in _INHERITED for word in ("-u", name)]
    return ["env", *unset, require("git", "git")]
