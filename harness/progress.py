# SPDX-License-Identifier: GPL-2.0-only
"""How long work tells a person what it is doing, without knowing who listens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Progress(Protocol):
    """What a door gives to the rooms so that they can speak."""

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Show that a phase of the work runs while the context is open."""

    def update(self, text: str) -> None:
        """Say how far the present phase is; the newest text replaces the one before."""

    def ended(self, name: str, seconds: float, *, well: bool) -> None:
        """Say that a phase has ended whose beginning was not shown, as one beside others."""

    def note(self, text: str) -> None:
        """Say something that stays: a fact, a choice with its reason, a warning."""


class Silent:
    """A Progress that nobody hears."""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Do nothing around the work."""
        yield

    def update(self, text: str) -> None:
        """Drop the text."""

    def ended(self, name: str, seconds: float, *, well: bool) -> None:
        """Drop it."""

    def note(self, text: str) -> None:
        """Drop the text."""
