# SPDX-License-Identifier: GPL-2.0-only
"""Where kernel source comes from: a package of Debian, or a tree of the user.

A source knows its digest without being unpacked, and can show its files when a build tree wants
them. It is never written to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from harness.command import require, run
from harness.deadline import Deadline
from harness.errors import SourceError
from harness.kernel import git
from harness.kernel.debian import Apt, Package
from harness.kernel.fingerprint import FingerprintCache, digest, look
from harness.kernel.reference import SourceTree
from harness.progress import Progress
from harness.store import Store

_UNPACK_SECONDS = 1200.0


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a source: fingerprints by path below ``root``; ``ours`` if they may be moved."""

    root: Path
    fingerprints: Mapping[str, str]
    ours: bool

    def read(self, name: str) -> tuple[str, bytes]:
        """The fingerprint and the contents of one file; raises OSError if it cannot be read."""
        return look(self.root / name)


Reader = Callable[[str], tuple[str, bytes]]
"""Reads one file as Files.read() does; raises FileNotFoundError for what is not in the source."""


class Source(Protocol):
    """Kernel source; ``lineage`` names the build tree that successive versions of it share."""

    @property
    def lineage(self) -> str:
        """A file name, the same for all versions of this source."""

    @property
    def title(self) -> str:
        """The source in a few words for people."""

    @property
    def digest(self) -> str:
        """Changes whenever a file of the source does."""

    def open(self, scratch: Path) -> contextlib.AbstractContextManager[Files]:
        """Its files; ``scratch`` does not exist and may be made, and is removed at the end."""

    def peek(self, scratch: Path) -> contextlib.AbstractContextManager[Reader]:
        """A reader of single files, without looking at all of them where that can be saved."""


class DebianSource:
    """The tarball in an unpacked package linux-source-V; its digest comes from apt."""

    def __init__(self, package: Package, apt: Apt, progress: Progress) -> None:
        self._package = package
        self._apt = apt
        self._progress = progress

    @property
    def lineage(self) -> str:
        """The package's name."""
        return self._package.name

    @property
    def title(self) -> str:
        """The package's name and version."""
        return self._package.title

    @property
    def digest(self) -> str:
        """The checksum of the package, which apt has verified."""
        return self._package.sha256

    @contextlib.contextmanager
    def open(self, scratch: Path) -> Iterator[Files]:
        """Its files, unpacked to ``scratch``; raises SourceError for a package without them."""
        unpacked = self._apt.unpacked(self._package, self._progress)
        tarballs = sorted(unpacked.glob("usr/src/linux-source-*.tar.xz"))
        if len(tarballs) != 1:
            raise SourceError(f"The package {self.title} holds no tarball of kernel source.")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            with self._progress.phase(f"Unpack {self.title}"):
                _extract(tarballs[0], scratch)
                cache = FingerprintCache(scratch, scratch)
                yield Files(
                    scratch, {name: cache.get(name) for name in everything(scratch)}, ours=True
                )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @contextlib.contextmanager
    def peek(self, scratch: Path) -> Iterator[Reader]:
        """Reads from all files unpacked."""
        with self.open(scratch) as files:
            yield files.read


class UserTree:
    """A directory of the user; what git tracks or might track, or all but build products."""

    def __init__(self, reference: SourceTree, store: Store) -> None:
        self._root = reference.path.resolve()
        self._lineage = lineage(self._root)
        self._store = store

    @property
    def lineage(self) -> str:
        """The directory's name, and a digest of its path."""
        return self._lineage

    @property
    def title(self) -> str:
        """The directory."""
        return str(self._root)

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the contents; raises SourceError if they cannot be read."""
        return digest(self._fingerprints)

    @contextlib.contextmanager
    def open(self, scratch: Path) -> Iterator[Files]:
        """The files where they are."""
        yield Files(self._root, self._fingerprints, ours=False)

    @contextlib.contextmanager
    def peek(self, scratch: Path) -> Iterator[Reader]:
        """Reads the files where they are."""
        yield lambda name: look(self._root / name)

    @functools.cached_property
    def _fingerprints(self) -> dict[str, str]:
        """As the tree is at the first question: all that is built comes from the same moment."""
        cache = FingerprintCache(
            self._root, self._store.directory("fingerprints") / f"{self._lineage}.txt"
        )
        try:
            found = {name: cache.get(name) for name in _source_files(self._root)}
        except OSError as error:
            raise SourceError(
                f"The source tree {self._root} cannot be read: {error.filename}: {error.strerror}."
            ) from error
        cache.save()
        # What git still tracks may have been deleted in the work tree.
        return {name: mark for name, mark in found.items() if mark != "-"}


def lineage(root: Path) -> str:
    """The name of the build tree that all versions of the source at a path share."""
    name = re.sub(r"[^A-Za-z0-9._+-]", "-", root.name).lstrip(".-") or "tree"
    return f"{name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}"


def everything(root: Path) -> list[str]:
    """All files and symbolic links below ``root``, without the insides of version control."""
    names = []
    for directory, directories, files in os.walk(root):
        directories[:] = [name for name in directories if name not in (".git", ".hg", ".svn")]
        links = [name for name in directories if (Path(directory) / name).is_symlink()]
        prefix = os.path.relpath(directory, root)
        prefix = "" if prefix == "." else prefix + "/"
        names += [prefix + name for name in (*files, *links)]
    return names


def _extract(tarball: Path, directory: Path) -> None:
    run(
        [
            require("tar", "tar"),
            "--extract",
            "--use-compress-program=xz -T0",
            "--strip-components=1",
            "--no-same-owner",
            f"--file={tarball}",
            f"--directory={directory}",
        ],
        Deadline.after(_UNPACK_SECONDS, f"Unpacking {tarball.name}"),
        hint=f"Remove {tarball.parents[2]} if the archive is damaged, to have it fetched again.",
    )


def _source_files(root: Path) -> list[str]:
    if (root / ".git").exists():
        told = git.in_checkout(root, "ls-files", "-z", "-co", "--exclude-standard")
        if told.status != 0:
            raise SourceError(
                f"git cannot list the files of the checkout {root}: {told.stderr.strip()}"
            )
        # Once each, although a path in a merge conflict is told three times.
        return [name for name in dict.fromkeys(told.stdout.split("\0")) if name]
    names = everything(root)
    present = frozenset(names)
    return [name for name in names if not _is_product(name, present)]


_PRODUCT_DIRECTORIES = re.compile(
    r"^(arch/[^/]+/)?include/(config|generated)/|(^|/)\.tmp_[^/]*/|^tools/objtool/libsubcmd/"
)
_PRODUCT_NAMES = re.compile(
    "|".join(
        f"(?:{fnmatch.translate(pattern)})"
        for pattern in (
            *("*.o", "*.a", "*.ko", "*.mod", "*.mod.c", "*.so", "*.so.dbg", "*.dtb", "*.dwo"),
            *("*.cmd", ".*.d", ".tmp_*", "*.lex.c", "*.tab.[ch]", "*.order", "*.symvers", "*.gcno"),
            *("modules.builtin*", "System.map", ".config", ".config.old", ".version", "vmlinux"),
            *("*.pyc", "..*"),
        )
    )
)
# Made by rules that leave no .cmd file beside their target.
_PRODUCT_PATHS = re.compile(
    r"scripts/mod/(devicetable-offsets|elfconfig)\.h|arch/x86/boot/(cpustr|voffset|zoffset)\.h"
    r"|arch/x86/kernel/cpu/capflags\.c|arch/x86/kvm/kvm-asm-offsets\.h|arch/x86_64/boot/bzImage"
    r"|(arch/x86|tools/.*)/lib/inat-tables\.c|tools/objtool/(objtool|fixdep)|lib/crc32table\.h"
    r"|init/utsversion-tmp\.h|vmlinux-gdb\.py|kernel/kheaders_data\.tar\.xz"
    r"|\.(vmlinux\.export\.c|missing-syscalls\.d|checked-.*\.h)"
)


def _is_product(name: str, present: frozenset[str]) -> bool:
    """Whether a build has made this file in the tree of a user who builds in place.

    Outside a checkout nothing lists the sources: the .gitignore of Debian's source ignores all
    of it. kbuild leaves a .NAME.cmd beside nearly everything it makes; the rest has known names.
    """
    directory, _, base = name.rpartition("/")
    sibling = f"{directory}/.{base}.cmd" if directory else f".{base}.cmd"
    return (
        sibling in present
        or _PRODUCT_NAMES.fullmatch(base) is not None
        or _PRODUCT_DIRECTORIES.search(name) is not None
        or _PRODUCT_PATHS.fullmatch(name) is not None
    )
