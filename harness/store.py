# SPDX-License-Identifier: GPL-2.0-only
"""The content-addressed store of what is expensive to make: kernels, sources, images.

An entry is a directory whose name is the digest of its key, that is of everything that went into
it. It appears by a rename, so it is either complete or not there, and nobody changes it later.
Whoever was given one holds it until its process ends, and marks the time; only what nobody holds
can be removed. What must be changed in place (build trees, caches of digests) lives in plain
directories, and whoever uses one holds a named lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import filelock
import platformdirs

from harness.errors import StoreError

_ADVICE = {
    errno.ENOSPC: "no space is left; free some, or point XDG_CACHE_HOME to a larger disk",
    errno.EDQUOT: "your disk quota is used up; free some space, or set XDG_CACHE_HOME",
    errno.EACCES: "permission is denied; make it writable, or set XDG_CACHE_HOME",
    errno.EPERM: "permission is denied; make it writable, or set XDG_CACHE_HOME",
    errno.EROFS: "its file system is read-only; set XDG_CACHE_HOME to a writable directory",
    errno.ENOTDIR: "a part of the path is not a directory; remove it, or set XDG_CACHE_HOME",
    errno.EEXIST: "a part of the path is not a directory; remove it, or set XDG_CACHE_HOME",
}
_KEY = "key.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_GIB = 1 << 30


def _nothing(_: Path) -> None:
    """Stand in for a janitor where none is needed."""


class Store:
    """A cache directory, by default ``$XDG_CACHE_HOME/mmu-harness`` or ``~/.cache/mmu-harness``.

    ``adopt`` and ``release`` are those of the janitor: a half-made entry is adopted, so that not
    even SIGKILL leaves it behind. Every method raises StoreError when the directory cannot be
    used, with a sentence that names the path and what to do.
    """

    def __init__(
        self,
        root: Path | None = None,
        adopt: Callable[[Path], None] = _nothing,
        release: Callable[[Path], None] = _nothing,
    ) -> None:
        self.root = (root or platformdirs.user_cache_path("mmu-harness")).absolute()
        self._adopt = adopt
        self._release = release
        self._held: dict[Path, int] = {}

    @staticmethod
    def digest(key: Mapping[str, object]) -> str:
        """The sha256 of the key as canonical JSON, in hex."""
        text = json.dumps(key, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def find(self, kind: str, key: Mapping[str, object]) -> Path | None:
        """The entry of this key if it has been made."""
        with self._explained():
            path = self.root / kind / self.digest(key)
            return path if self._hold(path) else None

    def entry(
        self,
        kind: str,
        key: Mapping[str, object],
        make: Callable[[Path], None],
        *,
        waiting: Callable[[], None] = lambda: None,
    ) -> Path:
        """The directory of this key; ``make`` fills an empty directory if nobody has before.

        Only one process makes an entry. Others call ``waiting`` once, wait, and find it. What
        ``make`` raises passes through, and nothing is left of the attempt.
        """
        if found := self.find(kind, key):
            return found
        digest = self.digest(key)
        with self.lock(f"{kind}-{digest}", waiting=waiting), self._explained(making=True):
            final = self.root / kind / digest
            if not self._hold(final):
                self._make(final, key, make)
                self._hold(final)
            return final

    @contextlib.contextmanager
    def lock(self, name: str, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the named lock among all processes; ``waiting`` is called if another holds it."""
        with self._explained():
            path = self.directory("locks") / f"{_file_name(name)}.lock"
            lock = filelock.FileLock(path)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                waiting()
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def remove(self, entry: Path) -> bool:
        """Remove an entry if no process holds it; whether that was done."""
        with self._lock_if_free(f"{entry.parent.name}-{entry.name}") as free, self._explained():
            if not free:
                return False
            try:
                mark = os.open(entry / _KEY, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._vanish(entry)
            except BlockingIOError:
                return False
            finally:
                os.close(mark)
        return True

    def remove_directory(self, path: Path, lock: str) -> bool:
        """Remove a directory that stays, if nobody holds its named lock; whether that was done."""
        with self._lock_if_free(lock) as free, self._explained():
            if free and path.is_dir():
                self._vanish(path)
                return True
        return False

    def directory(self, name: str) -> Path:
        """A directory that stays, whose contents may be changed by whoever holds its lock."""
        with self._explained():
            path = self.root / name
            path.mkdir(parents=True, exist_ok=True)
            return path

    def require_space(self, needed: int, what: str) -> None:
        """Raise StoreError unless ``needed`` bytes are free for ``what``."""
        with self._explained():
            self.root.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.root).free
        if free < needed:
            raise StoreError(
                f"{what} needs about {needed / _GIB:.1f} GiB in {self.root}, but only "
                f"{free / _GIB:.1f} GiB are free; free some space, or point XDG_CACHE_HOME "
                "to a larger disk."
            )

    def _hold(self, entry: Path) -> bool:
        """Have nobody remove an entry while this process lives; whether it is there.

        The lock belongs to the open file, and goes with it whatever ends the process.
        """
        if entry in self._held:
            return entry.is_dir()
        try:
            mark = os.open(entry / _KEY, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(mark, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            # It is being removed at this moment.
            os.close(mark)
            return False
        if not entry.is_dir():
            os.close(mark)
            return False
        self._held[entry] = mark
        with contextlib.suppress(OSError):
            os.utime(entry / _KEY)
        return True

    def _vanish(self, path: Path) -> None:
        """Remove a directory so that it is never seen half there."""
        going = path.with_name(f".{path.name}.removing")
        shutil.rmtree(going, ignore_errors=True)
        path.rename(going)
        shutil.rmtree(going)

    @contextlib.contextmanager
    def _lock_if_free(self, name: str) -> Iterator[bool]:
        """Hold the named lock if nobody does, without waiting; whether it is held."""
        with contextlib.ExitStack() as held:
            free = True
            with self._explained():
                path = self.directory("locks") / f"{_file_name(name)}.lock"
                try:
                    held.enter_context(filelock.FileLock(path).acquire(timeout=0))
                except filelock.Timeout:
                    free = False
            yield free

    def _make(self, final: Path, key: Mapping[str, object], make: Callable[[Path], None]) -> None:
        scratch = final.with_name(f".{final.name}.making")
        final.parent.mkdir(parents=True, exist_ok=True)
        # The lock is ours, so what is there was left by a process that ended without a janitor.
        shutil.rmtree(scratch, ignore_errors=True)
        self._adopt(scratch)
        try:
            scratch.mkdir()
            make(scratch)
            text = json.dumps({"kind": final.parent.name, "key": key}, indent=1, sort_keys=True)
            (scratch / _KEY).write_text(text + "\n")
            # What cannot be held, although nobody removes it, has lost its key.
            shutil.rmtree(final, ignore_errors=True)
            scratch.rename(final)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        finally:
            self._release(scratch)

    @contextlib.contextmanager
    def _explained(self, *, making: bool = False) -> Iterator[None]:
        """Turn errors of the file system into StoreError; of ``making``, only the well-known."""
        try:
            yield
        except OSError as error:
            path = Path(os.fsdecode(error.filename)) if error.filename else self.root
            ours = path == self.root or self.root in path.parents or path in self.root.parents
            advice = _ADVICE.get(error.errno or 0)
            if advice is None and not making:
                advice = f"{error.strerror or error}; set XDG_CACHE_HOME to a writable directory"
            if advice is None or not (ours or error.errno in _FULL):
                raise
            raise StoreError(f"Cannot write {path}: {advice}.") from error


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "-", name)
