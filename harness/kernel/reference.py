# SPDX-License-Identifier: GPL-2.0-only
"""What ``--kernel`` may be: a bzImage, a source tree, or a package of Debian."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from harness.errors import SourceError, UsageError
from harness.kernel.header import read_header

DEFAULT = "deb:linux-source-6.12"
"""The reference that is used when the user gives none."""

FORMS = (
    "a path to a bzImage, a path to a kernel source tree, "
    "deb:linux-source-V or deb:linux-image-V (as in deb:linux-source-6.12)"
)
"""The kinds of references, for help texts and errors."""


@dataclasses.dataclass(frozen=True)
class KernelReference:
    """Which kernel the user means; ``text`` is how it was written."""

    text: str


@dataclasses.dataclass(frozen=True)
class ImageFile(KernelReference):
    """A bzImage; ``path`` is absolute."""

    path: Path


@dataclasses.dataclass(frozen=True)
class SourceTree(KernelReference):
    """A directory with kernel source, which is never written to; ``path`` is absolute."""

    path: Path


@dataclasses.dataclass(frozen=True)
class DebianSource(KernelReference):
    """A package linux-source-``version``."""

    version: str


@dataclasses.dataclass(frozen=True)
class DebianImage(KernelReference):
    """A prebuilt kernel of Debian.

    ``version`` is what follows ``linux-image-``: a whole name (6.1.0-53-amd64), a metapackage
    (amd64, cloud-amd64) or a series (6.12), of which the newest is meant.
    """

    version: str


def parse(text: str) -> KernelReference:
    """The reference that ``text`` means.

    Raises UsageError for text that cannot be a reference, ImageError for a file that is no
    complete bzImage, SourceError for a directory that is no kernel source tree.
    """
    if not text or "\0" in text:
        raise UsageError(f"The kernel reference is empty or malformed; give {FORMS}.")
    if text.startswith("deb:"):
        return _debian(text)
    # Absolute from here on: such a path cannot be taken for an option or a flag by any program.
    path = Path(text).expanduser().absolute()
    scheme = re.match(r"([a-z][a-z0-9+]*):", text)
    if scheme and not path.exists():
        raise UsageError(f'"{text}" is not a kernel reference; give {FORMS}.')
    if path.is_dir():
        _check_tree(path)
        return SourceTree(text, path)
    read_header(path)
    return ImageFile(text, path)


def _debian(text: str) -> KernelReference:
    if match := re.fullmatch(r"deb:linux-source-([0-9]+\.[0-9]+)", text):
        return DebianSource(text, match[1])
    if match := re.fullmatch(r"deb:linux-image-([a-z0-9][a-z0-9.+~-]*)", text):
        return DebianImage(text, match[1])
    raise UsageError(
        f'"{text}" is not a Debian kernel package; give deb:linux-source-V with a series '
        "(as 6.12), or deb:linux-image-V with a package name's end (as 6.1.0-53-amd64), "
        "a metapackage's (as amd64) or a series (as 6.12)."
    )


def _check_tree(path: Path) -> None:
    """Raise SourceError, with a hint, if ``path`` is not the top of a kernel source tree."""
    try:
        makefile = (path / "Makefile").read_text(errors="replace")
    except FileNotFoundError:
        makefile = ""
    except OSError as error:
        raise SourceError(f"The source tree {path} cannot be read: {error.strerror}.") from error
    version = all(re.search(rf"^{name}\s*=", makefile, re.M) for name in ("VERSION", "PATCHLEVEL"))
    if version and (path / "Kconfig").is_file() and (path / "arch/x86/Kconfig").is_file():
        return
    image = path / "arch/x86/boot/bzImage"
    hint = (
        f"it seems to be a build directory, so give {image} instead."
        if image.is_file()
        else "give the top directory of a Linux source tree, or a bzImage."
    )
    raise SourceError(
        f"{path} is a directory without a kernel source tree in it (a Makefile with VERSION, "
        f"Kconfig, arch/x86); {hint}"
    )
