# SPDX-License-Identifier: GPL-2.0-only
"""Configuration fragments: which symbols a kernel must have, and where that was asked.

A fragment holds lines as in a .config. A comment that begins with ``# [optional]`` opens a block,
up to the next empty line, whose symbols are wanted where a tree knows them and can have them:
fragments must fit kernels of many versions. The last request for a symbol wins, so a fragment of
the user can take back what the fragments of the project ask.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from harness.errors import HarnessError, UsageError
from harness.kernel.model import unquoted

_SET = re.compile(r"CONFIG_([A-Za-z0-9_]+)=(y|m|n|-?[0-9]+|0[xX][0-9a-fA-F]+|\".*\")")
_UNSET = re.compile(r"#\s*CONFIG_([A-Za-z0-9_]+) is not set")
_OPTIONAL = re.compile(r"#\s*\[optional\]")


@dataclasses.dataclass(frozen=True)
class Request:
    """One wanted value: "y", "m", "n", a number, or a string in quotes as a .config has it."""

    symbol: str
    value: str
    optional: bool
    fragment: Path
    line: int

    @property
    def where(self) -> str:
        """The place of the request, for messages."""
        return f"{self.fragment}:{self.line}"

    @property
    def text(self) -> str:
        """The request as a line of a .config."""
        if self.value == "n":
            return f"# CONFIG_{self.symbol} is not set"
        return f"CONFIG_{self.symbol}={self.value}"

    def satisfied_by(self, config: Mapping[str, str]) -> bool:
        """Whether a configuration, as read_config() returns it, has the value."""
        return config.get(self.symbol, "n") == unquoted(self.value)


def project_fragments() -> tuple[Path, ...]:
    """The fragments in kernel-config/, in the order of their names."""
    directory = Path(__file__).resolve().parents[2] / "kernel-config"
    found = tuple(sorted(directory.glob("*.config")))
    if not found:
        raise HarnessError(
            f"There are no configuration fragments in {directory}; the harness must be installed "
            "from its checkout (pip install --editable)."
        )
    return found


def read_fragments(paths: Iterable[Path]) -> tuple[Request, ...]:
    """The requests of all fragments in order, one for each symbol.

    Raises UsageError for a fragment that cannot be read, or a line that means nothing.
    """
    requests: dict[str, Request] = {}
    for path in paths:
        for request in _read(path):
            requests.pop(request.symbol, None)
            requests[request.symbol] = request
    return tuple(requests.values())


def merged(requests: Sequence[Request]) -> str:
    """One file for KCONFIG_ALLCONFIG with all requests."""
    return "".join(f"{request.text}\n" for request in requests)


def _read(path: Path) -> list[Request]:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UsageError(
            f"The configuration fragment {path} cannot be read: {error.strerror}."
        ) from error
    except UnicodeDecodeError:
        raise UsageError(f"The configuration fragment {path} is not a text file.") from None
    requests = []
    optional = False
    for number, line in enumerate((line.strip() for line in lines), 1):
        if not line:
            optional = False
        elif _OPTIONAL.match(line):
            optional = True
        elif match := _SET.fullmatch(line):
            requests.append(Request(match[1], match[2], optional, path, number))
        elif match := _UNSET.fullmatch(line):
            requests.append(Request(match[1], "n", optional, path, number))
        elif not line.startswith("#"):
            raise UsageError(
                f'{path}:{number}: "{line}" is not a line of a kernel configuration; '
                "write CONFIG_NAME=value or # CONFIG_NAME is not set."
            )
    return requests
