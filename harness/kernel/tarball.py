# SPDX-License-Identifier: GPL-2.0-only
"""Kernel source in a tarball, as kernel.org and git archive make them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness.command import require, run
from harness.deadline import Deadline
from harness.errors import SourceError, StoreError
from harness.kernel.fingerprint import FingerprintCache, write_atomically
from harness.kernel.reference import TREE_FILES, Tarball, is_tree
from harness.kernel.source import Files, Reader, everything
from harness.progress import Progress
from harness.store import Store

_UNPACK_SECONDS = 1200.0
_NO_SPACE = "No space left on device"

# The beginning of each compression, the program for it and its Debian package.
_COMPRESSIONS = (
    (b"\xfd7zXZ\0", "xz -T0", "xz", "xz-utils"),
    (b"\x1f\x8b", "gzip", "gzip", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd", "zstd"),
    (b"BZh", "bzip2", "bzip2", "bzip2"),
)
_TAR_MAGIC = slice(257, 262)


class TarballSource:
    """The files in a tarball; its digest is that of the archive."""

    def __init__(self, reference: Tarball, store: Store, progress: Progress) -> None:
        self._path = reference.path
        self._store = store
        self._progress = progress
        # What the name says of the patch level does not count: neighbours share a build tree.
        stem = re.sub(r"\.(tar(\.\w+)?|t\w+)$", "", self._path.name)
        series = re.match(r"(.*?\d+\.\d+)(?:\.\d+)*$", stem)
        name = re.sub(r"[^A-Za-z0-9._+-]", "-", series[1] if series else stem)
        self._lineage = f"tarball-{name}"

    @property
    def lineage(self) -> str:
        """The archive's name, without the last numbers of a release."""
        return self._lineage

    @property
    def title(self) -> str:
        """The archive."""
        return str(self._path)

    @property
    def digest(self) -> str:
        """The sha256 of the archive, which is read only if its size or times are new."""
        try:
            status = self._path.stat()
            known = self._store.directory("fingerprints") / "tarballs.json"
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            table = _table(known)
            if table.get(str(self._path), [""])[1:] == stamp:
                return str(table[str(self._path)][0])
            with self._path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise SourceError(
                f"The tarball {self._path} cannot be read: {error.strerror}."
            ) from error
        with self._store.lock("tarballs"):
            write_atomically(known, json.dumps({**_table(known), str(self._path): [found, *stamp]}))
        return found

    @contextlib.contextmanager
    def open(self, scratch: Path) -> Iterator[Files]:
        """Its files, unpacked below ``scratch``; raises SourceError for no kernel source."""
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            with self._progress.phase(f"Unpack {self.title}"):
                self._extract(scratch)
                root = self._top(scratch)
                cache = FingerprintCache(root, scratch)
                marks = {name: cache.get(name) for name in everything(root)}
            yield Files(root, marks, ours=True)
        except OSError as error:
            if error.filename is None or scratch not in Path(str(error.filename)).parents:
                raise
            raise SourceError(
                f"{self._path} holds something else than files and links: {error.filename}."
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @contextlib.contextmanager
    def peek(self, scratch: Path) -> Iterator[Reader]:
        """Reads from all files unpacked."""
        with self.open(scratch) as files:
            yield files.read

    def _extract(self, directory: Path) -> None:
        """Unpack with GNU tar, which keeps members with .. and absolute names inside."""
        done = run(
            [
                require("tar", "tar"),
                "--extract",
                *self._decompression(),
                "--no-same-owner",
                "--no-same-permissions",
                "--delay-directory-restore",
                f"--file={self._path}",
                # A colon in a name means another machine otherwise.
                "--force-local",
                f"--directory={directory}",
            ],
            Deadline.after(_UNPACK_SECONDS, f"Unpacking {self._path.name}"),
            env={"LC_ALL": "C"},
            check=False,
        )
        if done.status == 0:
            return
        if _NO_SPACE in done.stderr:
            raise StoreError(
                f"No space is left for unpacking {self._path}; free some, or point "
                "XDG_CACHE_HOME to a larger disk."
            )
        lines = done.stderr.strip().splitlines() or [f"tar exited with {done.status}"]
        raise SourceError(
            f"The tarball {self._path} is damaged or truncated: {lines[0]}. Fetch or make it again."
        )

    def _decompression(self) -> list[str]:
        """The option of tar for the compression that the contents show, whatever the name says."""
        try:
            with self._path.open("rb") as file:
                start = file.read(512)
        except OSError as error:
            raise SourceError(
                f"The tarball {self._path} cannot be read: {error.strerror}."
            ) from error
        for magic, command, program, package in _COMPRESSIONS:
            if start.startswith(magic):
                require(program, package)
                return [f"--use-compress-program={command}"]
        if start[_TAR_MAGIC] == b"ustar":
            return []
        what = "is empty" if not start else "is not a tarball (xz, gzip, zstd, bzip2 or plain)"
        raise SourceError(f"{self._path} {what}; fetch or make it again.")

    def _top(self, scratch: Path) -> Path:
        """The directory with the source: what was unpacked, or the only directory in it."""
        inside = list(scratch.iterdir())
        candidates = [scratch, *(inside if len(inside) == 1 and inside[0].is_dir() else [])]
        for root in candidates:
            makefile = root / "Makefile"
            text = makefile.read_text(errors="replace") if makefile.is_file() else ""
            if is_tree(text, {name for name in TREE_FILES if (root / name).is_file()}):
                return root
        raise SourceError(
            f"The tarball {self._path} holds no kernel source tree (a Makefile with VERSION, "
            "Kconfig, arch/x86)."
        )


def _table(path: Path) -> dict[str, list[object]]:
    with contextlib.suppress(OSError, ValueError):
        loaded = json.loads(path.read_text())
        return loaded if isinstance(loaded, dict) else {}
    return {}
