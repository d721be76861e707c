# SPDX-License-Identifier: GPL-2.0-only
"""The content-addressed store of what is expensive to make: kernels, sources, images.

An entry is a directory whose name is the digest of its key, that is of everything that went into
it. It appears by a rename, so it is either complete or not there, and nobody changes it later: one
that is not as it was made, because a disk lost bits or somebody wrote to it, is made again.
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
import zlib
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


_BLOCK = 1 << 20
_NOTHING = bytes(_BLOCK)


def _nothing(_: Path) -> None:
    """Stand in for a janitor where none is needed."""


def _unheard(_: str) -> None:
    """Stand in for whoever listens."""


class Store:
    """A cache directory, by default ``$XDG_CACHE_HOME/mmu-harness`` or ``~/.cache/mmu-harness``.

    ``adopt`` and ``release`` are those of the janitor: a half-made entry is adopted, so that not
    even SIGKILL leaves it behind. ``warn`` is told of an entry that is damaged. Every method raises
    StoreError when the directory cannot be used, with a sentence that names the path and what to
    do.
    """

    def __init__(
        self,
        root: Path | None = None,
        adopt: Callable[[Path], None] = _nothing,
        release: Callable[[Path], None] = _nothing,
        warn: Callable[[str], None] = _unheard,
    ) -> None:
        self.root = (root or platformdirs.user_cache_path("mmu-harness")).absolute()
        self._adopt = adopt
        self._release = release
        self._warn = warn
        self._held: dict[Path, int] = {}
        self._checked: set[Path] = set()
        self._damaged: set[Path] = set()

    @staticmethod
    def digest(key: Mapping[str, object]) -> str:
        """The sha256 of the key as canonical JSON, in hex."""
        text = json.dumps(key, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def find(self, kind: str, key: Mapping[str, object]) -> Path | None:
        """The entry of this key if it has been made."""
        with self._explained():
            path = self.root / kind / self.digest(key)
            return path if self._hold(path) and self._intact(path) else None

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
            if not (self._hold(final) and self._intact(final)):
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

    def _intact(self, entry: Path) -> bool:
        """Whether an entry is as it was made; one that is not is no longer held.

        Entries that were made before there were checksums are taken as they are.
        """
        if entry in self._checked:
            return True
        try:
            recorded = json.loads((entry / _KEY).read_text()).get("files", {})
            wrong = [name for name, sum_ in recorded.items() if _checksum(entry / name) != sum_]
        except (OSError, ValueError, AttributeError):
            wrong = [_KEY]
        if wrong:
            if entry not in self._damaged:
                self._damaged.add(entry)
                self._warn(
                    f"The store's entry {entry} is damaged: {wrong[0]} is not as it was made. It "
                    "is made again; if this happens often, look after the disk."
                )
            os.close(self._held.pop(entry))
            return False
        self._checked.add(entry)
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
            files = {name: _checksum(scratch / name) for name in _files(scratch)}
            about = {"kind": final.parent.name, "key": key, "files": files}
            text = json.dumps(about, indent=1, sort_keys=True)
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


def _files(entry: Path) -> list[str]:
    """The regular files below a directory."""
    found = []
    for directory, _, names in os.walk(entry):
        paths = (Path(directory) / name for name in names)
        found += [str(path.relative_to(entry)) for path in paths if not path.is_symlink()]
    return sorted(found)


def _checksum(path: Path) -> str:
    """Length and CRC-32 of a file: against damage, not against malice.

    Only blocks with something in them count, and holes are not even read, since an image of a
    file system is mostly holes; where a file system has them may change with time.
    """
    crc = at = 0
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while (at := _next_data(file.fileno(), at, size)) < size:
            at -= at % _BLOCK
            block = os.pread(file.fileno(), _BLOCK, at)
            if not block:
                break  # it shrinks while we look, which the length will tell
            # To compare ends at the first byte that is none; to count them all takes longest.
            if block != (_NOTHING if len(block) == _BLOCK else bytes(len(block))):
                crc = zlib.crc32(block, zlib.crc32(at.to_bytes(8, "little"), crc))
            at += len(block)
    return f"{size} {crc:08x}"


def _next_data(descriptor: int, at: int, size: int) -> int:
    """Where data follow that are no hole, or the size."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "-", name)
