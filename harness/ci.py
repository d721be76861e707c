# SPDX-License-Identifier: GPL-2.0-only
"""What a run does for the CI system that it runs in, besides its exit code and its files.

GitHub reads commands from the output of a job, and would take them from a kernel's log as well.
While a run prints, it is therefore told to read none, until a word that no guest can know.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TextIO

from harness.errors import HarnessError
from harness.result.github import as_annotations, as_markdown
from harness.result.record import RunRecord

_TEMPLATES = Path(__file__).resolve().parents[1] / "ci-templates"

TEMPLATES = {
    "container": "Containerfile",
    "github": "github.yml",
    "gitlab": "gitlab.yml",
    "jenkins": "Jenkinsfile",
}
"""What a template is for -> its file in ci-templates/."""


def template(name: str) -> str:
    """The text of a template; raises HarnessError if the checkout is incomplete."""
    path = _TEMPLATES / TEMPLATES[name]
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise HarnessError(
            f"The template {path} cannot be read: {error.strerror}. The harness runs from its "
            "checkout; restore the file there."
        ) from error


class Job(Protocol):
    """The job of a CI system around a run."""

    def begin(self) -> None:
        """Be told before the run prints anything that comes from a machine under test."""

    def publish(self, record: RunRecord) -> None:
        """Show the record where the system shows such things."""

    def end(self) -> None:
        """Be told that nothing else will come; may be called twice."""


def job(stream: TextIO, environment: Mapping[str, str]) -> Job:
    """The job that this process runs in, if the environment names a system that we know."""
    if environment.get("GITHUB_ACTIONS") == "true":
        summary = environment.get("GITHUB_STEP_SUMMARY")
        return GitHub(stream, Path(summary) if summary else None)
    return Unknown()


class Unknown:
    """A job of a system that takes what it wants from the results directory."""

    def begin(self) -> None:
        """Nobody has to be told."""

    def publish(self, record: RunRecord) -> None:
        """The files say all there is."""

    def end(self) -> None:
        """Nobody has to be told."""


class GitHub:
    """A job of GitHub Actions; ``summary`` is the file that it shows as the job's summary."""

    def __init__(self, stream: TextIO, summary: Path | None) -> None:
        self._stream = stream
        self._summary = summary
        self._token = ""

    def begin(self) -> None:
        """Have GitHub read no commands from here on."""
        self._token = secrets.token_hex(16)
        self._say(f"::stop-commands::{self._token}")

    def publish(self, record: RunRecord) -> None:
        """Annotate the job, and add to its summary."""
        self.end()
        self._say(as_annotations(record).rstrip("\n"))
        if self._summary is None:
            return
        try:
            with self._summary.open("ab") as sink:
                sink.write(as_markdown(record).encode("utf-8", "backslashreplace"))
        except OSError as error:
            # The verdict is made, and a page that cannot be shown does not change it.
            self._say(f"The job's summary {self._summary} cannot be written: {error.strerror}.")

    def end(self) -> None:
        """Have GitHub read commands again."""
        if self._token:
            self._say(f"::{self._token}::")
            self._token = ""

    def _say(self, text: str) -> None:
        # Any encoding that a stream may have holds ASCII.
        self._stream.write(text.encode("ascii", "backslashreplace").decode("ascii") + "\n")
        self._stream.flush()
