# SPDX-License-Identifier: GPL-2.0-only
"""What ``--kernel`` may be, and which kind a text means.

Only what can be told at once is checked here: that a file or a tree is there and is what it
seems. A revision, a package or an address is looked up when the kernel is made.
"""

from __future__ import annotations

import dataclasses
import platform
import re
import urllib.parse
from collections.abc import Set
from pathlib import Path

from harness.errors import ImageError, SourceError, UsageError
from harness.kernel.header import read_header

DEFAULT = "deb:linux-source-6.12"
"""The reference that is used when the user gives none."""

FORMS = (
    "a bzImage, a kernel source tree, TREE@REV (a revision of a git checkout), "
    "a tarball (.tar.xz, .tar.gz, .tar.zst, .tar.bz2), https://...#sha256=..., "
    "deb:linux-source-V or deb:linux-image-V (as in deb:linux-source-6.12, with /SUITE for one "
    "suite), or running (this machine's kernel)"
)
"""The kinds of references, for help texts and errors."""

_RUNNING = "running"
_ROOT = Path("/")
_TARBALL = re.compile(r".+\.(?:tar(?:\.(?:xz|gz|zst|bz2))?|txz|tgz|tzst|tbz2?)", re.I)
_SUITE = r"(?:/(?P<suite>[a-z0-9][a-z0-9-]*))?"


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
class Revision(KernelReference):
    """A revision of a git repository, which is never written to; ``path`` is absolute.

    ``revision`` is what git rev-parse understands: a tag, a branch, a commit, HEAD~3.
    """

    path: Path
    revision: str


@dataclasses.dataclass(frozen=True)
class Tarball(KernelReference):
    """An archive of kernel source; ``path`` is absolute."""

    path: Path


@dataclasses.dataclass(frozen=True)
class Download(KernelReference):
    """A bzImage or a tarball at an https address; ``sha256`` is its digest in hex."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """The file name at the end of the address, without strange characters."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.url).path)
        return re.sub(r"[^A-Za-z0-9._+-]", "-", path.rpartition("/")[2]).lstrip(".-") or "kernel"


@dataclasses.dataclass(frozen=True)
class DebianSource(KernelReference):
    """A package linux-source-``version``, of one suite or of any that the machine uses."""

    version: str
    suite: str | None = None


@dataclasses.dataclass(frozen=True)
class DebianImage(KernelReference):
    """A prebuilt kernel of Debian, of one suite or of any that the machine uses.

    ``version`` is what follows ``linux-image-``: a whole name (6.1.0-53-amd64), a metapackage
    (amd64, cloud-amd64) or a series (6.12), of which the newest is meant.
    """

    version: str
    suite: str | None = None


def parse(text: str) -> KernelReference:
    """The reference that ``text`` means.

    Raises UsageError for text that cannot be a reference, ImageError for a file that is no
    complete bzImage, SourceError for a directory that is no kernel source tree.
    """
    if not text or "\0" in text:
        raise UsageError(f"The kernel reference is empty or malformed; give {FORMS}.")
    if text == _RUNNING:
        return _running(text)
    if text.startswith("deb:"):
        return _debian(text)
    if re.match(r"(?i)https?://", text):
        return _download(text)
    # Absolute from here on: such a path cannot be taken for an option or a flag by any program.
    path = Path(text).expanduser().absolute()
    if not path.exists():
        if "@" in text and (revision := _revision(text)):
            return revision
        if re.match(r"([a-z][a-z0-9+]*):", text):
            raise UsageError(f'"{text}" is not a kernel reference; give {FORMS}.')
    if path.is_dir():
        _check_tree(path)
        return SourceTree(text, path)
    return file_reference(text, path)


def file_reference(text: str, path: Path) -> ImageFile | Tarball:
    """The reference to a file, a tarball if it has such a name; raises as parse() does."""
    if _TARBALL.fullmatch(path.name):
        if not path.is_file():
            what = "is no regular file" if path.exists() else "does not exist; check the path"
            raise SourceError(f"The tarball {path} {what}.")
        return Tarball(text, path)
    read_header(path)
    return ImageFile(text, path)


def _running(text: str) -> ImageFile:
    """The image of the kernel that runs this machine, where distributions keep it."""
    release = platform.release()
    candidates = [
        _ROOT / f"boot/vmlinuz-{release}",
        _ROOT / f"usr/lib/modules/{release}/vmlinuz",
        _ROOT / f"lib/modules/{release}/vmlinuz",
    ]
    path = next((candidate for candidate in candidates if candidate.exists()), None)
    if path is None:
        raise ImageError(
            f"This machine runs {release}, but its image is in neither of "
            f"{', '.join(map(str, candidates))}, as in a container; give the path of the image."
        )
    read_header(path)
    return ImageFile(text, path)


def _revision(text: str) -> Revision | None:
    """TREE@REV, where TREE is there; the last @ parts them, unless it belongs to REV (@{...})."""
    tree, _, revision = re.sub(r"@(?=\{)", "\0", text).rpartition("@")
    tree, revision = (part.replace("\0", "@") for part in (tree, revision))
    path = Path(tree).expanduser().absolute()
    if not tree or not path.is_dir():
        return None
    if not revision or revision.startswith("-"):
        raise UsageError(f'"{text}" names no revision after the @; give one, as in {tree}@v6.12.')
    return Revision(text, path, revision)


def _download(text: str) -> Download:
    url, _, fragment = text.partition("#")
    digest = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if not url.lower().startswith("https://"):
        raise UsageError(f"{url} is not fetched, because it is not https; give an https address.")
    if not digest:
        raise UsageError(
            f"{url} is not fetched without a digest to check it against; add #sha256= and the 64 "
            "digits that sha256sum prints, from somebody whom you trust."
        )
    try:
        parts = urllib.parse.urlsplit(url)
        valid = bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise UsageError(f'"{url}" is not an address; give https://HOST/PATH#sha256=...')
    return Download(text, url, digest[1].lower())


def _debian(text: str) -> KernelReference:
    if match := re.fullmatch(rf"deb:linux-source-([0-9]+\.[0-9]+){_SUITE}", text):
        return DebianSource(text, match[1], match["suite"])
    if match := re.fullmatch(rf"deb:linux-image-([a-z0-9][a-z0-9.+~-]*){_SUITE}", text):
        return DebianImage(text, match[1], match["suite"])
    raise UsageError(
        f'"{text}" is not a Debian kernel package; give deb:linux-source-V with a series '
        "(as 6.12), or deb:linux-image-V with a package name's end (as 6.1.0-53-amd64), "
        "a metapackage's (as amd64) or a series (as 6.12); /SUITE behind it (as /bookworm) takes "
        "it from that suite only."
    )


def _check_tree(path: Path) -> None:
    """Raise SourceError, with a hint, if ``path`` is not the top of a kernel source tree."""
    try:
        makefile = (path / "Makefile").read_text(errors="replace")
    except FileNotFoundError:
        makefile = ""
    except OSError as error:
        raise SourceError(f"The source tree {path} cannot be read: {error.strerror}.") from error
    present = {name for name in TREE_FILES if (path / name).is_file()}
    if is_tree(makefile, present):
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


TREE_FILES = frozenset({"Kconfig", "arch/x86/Kconfig"})
"""What is in the source of every kernel that can be built, besides its Makefile."""


def is_tree(makefile: str, names: Set[str]) -> bool:
    """Whether this Makefile and these files are those of a kernel source tree."""
    version = all(re.search(rf"^{name}\s*=", makefile, re.M) for name in ("VERSION", "PATCHLEVEL"))
    return version and names >= TREE_FILES
