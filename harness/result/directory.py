# SPDX-License-Identifier: GPL-2.0-only
"""The results directory of a run: where its files are, each written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from harness.errors import InfrastructureError
from harness.result.github import as_annotations, as_markdown
from harness.result.html import as_html
from harness.result.junit import as_junit
from harness.result.kcidb import as_kcidb
from harness.result.ktap import as_ktap
from harness.result.record import RunRecord, as_json

FORMATS: Mapping[str, Callable[[RunRecord], str]] = MappingProxyType(
    {
        "junit.xml": as_junit,
        "results.ktap": as_ktap,
        "kcidb.json": as_kcidb,
        "summary.md": as_markdown,
        "annotations.txt": as_annotations,
        "report.html": as_html,
        "results.json": as_json,
    }
)
"""File name -> pure function of the record. A new format is one more line here.

results.json is written last: a directory that has it has everything.
"""

_LATEST = "latest"
_LOG_LIMIT = 16 * 1024 * 1024
"""Bytes of one log file; the console of a looping kernel has no end."""


@dataclasses.dataclass(frozen=True)
class ResultsDirectory:
    """One run's directory, ``PARENT/20260102T030405Z-1a2b3c``; logs are below ``logs/``."""

    path: Path

    @classmethod
    def create(cls, parent: Path, now: datetime.datetime) -> ResultsDirectory:
        """Make the directory of a run that starts ``now``, and point ``PARENT/latest`` at it.

        Raises InfrastructureError when that cannot be done.
        """
        stamp = now.astimezone(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        path = parent / f"{stamp}-{secrets.token_hex(3)}"
        with _writing(path):
            parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            _point(parent / _LATEST, path.name)
        return cls(path)

    def log(self, name: str) -> Path:
        """The path for a log file called ``name``, whatever characters that has."""
        safe = re.sub(r"[^A-Za-z0-9._+=-]+", "_", name).lstrip(".-")[:100]
        directory = self.path / "logs"
        with _writing(directory):
            directory.mkdir(exist_ok=True)
        return directory / (safe or "log")

    def keep(self, name: str, data: bytes) -> Path:
        """Write a log of which at most the first and the last 8 MiB are kept."""
        half = _LOG_LIMIT // 2
        if len(data) > _LOG_LIMIT:
            left_out = f"\n[{len(data) - _LOG_LIMIT} bytes left out]\n".encode()
            data = data[:half] + left_out + data[-half:]
        return write_atomically(self.log(name), data)

    def write(self, record: RunRecord) -> None:
        """Write every format; raises InfrastructureError when a file cannot be written."""
        for name, format_ in FORMATS.items():
            write_atomically(self.path / name, format_(record).encode("utf-8", "backslashreplace"))


def write_atomically(path: Path, data: bytes) -> Path:
    """Write a file so that a reader, or a crash, sees the whole of it or nothing."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with _writing(path):
        try:
            with scratch.open("xb") as sink:
                sink.write(data)
                sink.flush()
                os.fsync(sink.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    return path


def _point(link: Path, target: str) -> None:
    if link.exists() and not link.is_symlink():
        return  # somebody's own file of that name is none of ours to replace
    scratch = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    scratch.symlink_to(target)
    try:
        scratch.replace(link)
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InfrastructureError(
            f"The results cannot be written to {path}: {error.strerror}. "
            "Give another directory, or make room there."
        ) from error
