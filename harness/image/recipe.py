# SPDX-License-Identifier: GPL-2.0-only
"""Reads the recipes in guest-images/: lists with reasons, and templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jinja2

from harness.errors import HarnessError

RECIPES = Path(__file__).resolve().parents[2] / "guest-images"
"""The recipes of the checkout that this package was installed from."""


def entries(path: Path) -> tuple[str, ...]:
    """The entries of a list file: one a line; blank lines and lines that start with # are not."""
    lines = (line.strip() for line in read(path).splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def render(path: Path, variables: Mapping[str, object]) -> str:
    """The template at ``path`` filled in; a variable it asks for in vain is a bug of ours."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - shell scripts from constants of ours, not HTML
    )
    try:
        return environment.from_string(read(path)).render(variables)
    except jinja2.TemplateError as error:
        raise HarnessError(f"The template {path} cannot be filled in: {error}.") from error


def read(path: Path) -> str:
    """The text of a recipe file; raises HarnessError if the checkout is incomplete."""
    try:
        return path.read_text()
    except OSError as error:
        raise HarnessError(
            f"The recipe {path} cannot be read: {error.strerror}. The harness runs from its "
            "checkout; restore the file there."
        ) from error
