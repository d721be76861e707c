# SPDX-License-Identifier: GPL-2.0-only
"""Kernel source that is a revision of a git repository of the user, read without a checkout.

Nothing is written to the repository, not even a worktree's registration. Files come out of git's
object store when a build tree wants them, so of a neighbouring revision only what differs is
read. All revisions share the build tree of the repository, and so the object files in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import SourceError
from harness.kernel import git
from harness.kernel.fingerprint import digest, marked, write_atomically
from harness.kernel.reference import Revision, is_tree
from harness.kernel.source import Files, Reader, lineage
from harness.progress import Progress
from harness.store import Store

_READ_SECONDS = 1200.0
_AHEAD = 500
"""How many blobs git is asked for at once: their names fit into a pipe that nobody reads yet."""

_KINDS = {"100644": "f", "100664": "f", "100755": "x", "120000": "l"}


class RevisionTree:
    """The files of one commit."""

    def __init__(self, reference: Revision, store: Store, progress: Progress) -> None:
        self._path = reference.path.resolve()
        self._revision = reference.revision
        self._store = store
        self._progress = progress
        top = self._git("rev-parse", "--path-format=absolute", "--git-common-dir")
        if top is None:
            raise SourceError(
                f"{reference.path} is not a git checkout, so it has no revision "
                f"{reference.revision}; give the tree alone, or a checkout."
            )
        if self._git("rev-parse", "--show-prefix"):
            raise SourceError(f"{reference.path} is not the top of its git checkout; give the top.")
        self._lineage = lineage(Path(top).parent if Path(top).name == ".git" else Path(top))
        told = self._git("rev-parse", "--verify", "--quiet", "--end-of-options",
                         f"{self._revision}^{{commit}}")  # fmt: skip
        if told is None:
            raise SourceError(
                f"The repository {reference.path} has no revision {self._revision}; "
                "see git log or git tag, or fetch it first."
            )
        self._commit = told
        self._tree = self._git("rev-parse", f"{told}^{{tree}}") or told

    @property
    def lineage(self) -> str:
        """That of the checkout, which has most of its files in common with its revisions."""
        return self._lineage

    @property
    def title(self) -> str:
        """The directory and the revision."""
        return f"{self._path}@{self._revision} ({self._commit[:12]})"

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the contents, the same as that of a checkout of them.

        It is kept by the tree's name in git, so that no file is looked at a second time.
        """
        known = self._known(self._store.directory("fingerprints") / "trees.json")
        if self._tree not in known:
            made = digest(self._fingerprints)
            with self._store.lock("revisions"):
                path = self._store.directory("fingerprints") / "trees.json"
                write_atomically(path, json.dumps({**self._known(path), self._tree: made}))
            return made
        return known[self._tree]

    @contextlib.contextmanager
    def open(self, scratch: Path) -> Iterator[Files]:
        """The files, each read from git when it is asked for."""
        with _Objects(self._path) as objects:
            yield _GitFiles(self._path, self._fingerprints, False, self._entries, objects)

    @contextlib.contextmanager
    def peek(self, scratch: Path) -> Iterator[Reader]:
        """Reads the wanted files from git."""
        with _Objects(self._path) as objects:
            yield _GitFiles(self._path, {}, False, self._entries, objects).read

    @functools.cached_property
    def _entries(self) -> dict[str, tuple[str, str]]:
        """The kind and the blob of each file."""
        told = git.in_checkout(self._path, "ls-tree", "-r", "-z", "--full-tree", self._tree)
        if told.status != 0:
            raise SourceError(f"git cannot list {self.title}: {told.stderr.strip()}")
        entries = {}
        for record in filter(None, told.stdout.split("\0")):
            description, _, name = record.partition("\t")
            mode, _, blob = description.split(" ")
            # What is left out are submodules, of which the kernel has none.
            if mode in _KINDS:
                entries[name] = (_KINDS[mode], blob)
        return entries

    @functools.cached_property
    def _fingerprints(self) -> dict[str, str]:
        """Fingerprints by name; each blob is read once in its life."""
        names = self._entries.keys()
        makefile = self._git("show", f"{self._tree}:Makefile") or ""
        if not is_tree(makefile, names):
            raise SourceError(f"{self.title} holds no kernel source tree.")
        path = self._store.directory("fingerprints") / f"{self._lineage}.blobs"
        known = _read_blobs(path)
        missing = sorted({blob for _, blob in self._entries.values()} - known.keys())
        if missing:
            with self._progress.phase(f"Read {self.title}"), _Objects(self._path) as objects:
                for count, (blob, data) in enumerate(objects.read_all(missing)):
                    known[blob] = hashlib.sha256(data).hexdigest()
                    if count % 5000 == 0:
                        self._progress.update(f"{count} of {len(missing)} files")
            _write_blobs(path, known)
        return {name: kind + known[blob] for name, (kind, blob) in self._entries.items()}

    def _git(self, *arguments: str) -> str | None:
        done = git.in_checkout(self._path, *arguments)
        return done.stdout.strip() if done.status == 0 else None

    def _known(self, path: Path) -> dict[str, str]:
        with contextlib.suppress(OSError, ValueError):
            loaded = json.loads(path.read_text())
            return loaded if isinstance(loaded, dict) else {}
        return {}


def _read_blobs(path: Path) -> dict[str, str]:
    """The digests of contents by the names of their blobs, as far as they are known."""
    with contextlib.suppress(OSError, ValueError):
        words = path.read_text().split()
        return dict(zip(words[::2], words[1::2], strict=True))
    return {}


def _write_blobs(path: Path, known: Mapping[str, str]) -> None:
    """Keep them; JSON took four times as long to read."""
    write_atomically(path, "".join(f"{blob} {digest}\n" for blob, digest in known.items()))


@dataclasses.dataclass(frozen=True)
class _GitFiles(Files):
    """Files that lie in git; ``root`` is only their name for people."""

    entries: Mapping[str, tuple[str, str]]
    objects: _Objects

    def read(self, name: str) -> tuple[str, bytes]:
        """The fingerprint and the contents of one file."""
        if name not in self.entries:
            raise FileNotFoundError(f"{name} is not in this revision")
        kind, blob = self.entries[name]
        data = self.objects.read(blob)
        return marked(kind, data), data


class _Objects:
    """Blobs of a repository, from one git that answers for as long as the context is open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Objects:
        self._deadline = Deadline.after(_READ_SECONDS, "Reading from git")
        self._process = self._stack.enter_context(git.answering(self._path, "cat-file", "--batch"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, blob: str) -> bytes:
        """The contents of one blob; raises SourceError if the repository has it not."""
        ((_, data),) = self.read_all([blob])
        return data

    def read_all(self, blobs: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Blobs and their contents, in order; git works ahead of whoever takes them."""
        for first in range(0, len(blobs), _AHEAD):
            asked = blobs[first : first + _AHEAD]
            assert self._process.stdin is not None
            self._process.stdin.write("".join(f"{blob}\n" for blob in asked).encode())
            self._process.stdin.flush()
            for blob in asked:
                yield blob, self._next(blob)

    def _next(self, blob: str) -> bytes:
        answers = self._process.stdout
        assert answers is not None
        self._deadline.check()
        header = answers.readline().split()
        if len(header) != 3 or header[1] != b"blob":
            raise SourceError(
                f"The repository {self._path} lacks the object {blob}; is it a partial or a "
                "damaged clone? git fsck says more."
            )
        data = answers.read(int(header[2]))
        answers.read(1)
        return data
