# SPDX-License-Identifier: GPL-2.0-only
"""What ``--patch`` may be: a diff, with prose around it or not, a mailbox, or a quilt directory.

All of them become patches in the order in which they apply. What they say besides the diff is
kept for people only: it does not count for what the patched kernel is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness.errors import PatchError, UsageError
from harness.kernel import git
from harness.kernel.diff import DiffError, FileDiff, read_diffs
from harness.store import Store

STDIN = Path("-")
"""How standard input is written as a patch."""

_MBOX = re.compile(rb"From \S+ .*\d\d:\d\d")
_MAIL_HEADER = re.compile(rb"(?:[A-Za-z][A-Za-z-]*:[ \t]|[ \t])")
_MAIL_FIELDS = re.compile(rb"^(?:from|subject|date|message-id):", re.I | re.M)
_SERIES_LINE = re.compile(r"(?P<name>\S+)(?P<options>(?:\s+-\S+)*)\s*(?:#.*)?")


@dataclasses.dataclass(frozen=True)
class Patch:
    """One patch: what it is called, where it was read, its subject, and what it changes.

    ``strip`` is how many directories go from the front of its file names, as in patch -p.
    """

    name: str
    origin: Path
    subject: str
    files: tuple[FileDiff, ...]
    strip: int = 1

    @property
    def text(self) -> bytes:
        """The diffs alone, as git reads them."""
        return b"".join(file.text for file in self.files)

    @property
    def digest(self) -> str:
        """The sha256 of what it changes, in hex."""
        return hashlib.sha256(b"%d\n" % self.strip + self.text).hexdigest()

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that it changes, in its order."""
        return tuple(dict.fromkeys(file.path(self.strip) for file in self.files))


def read_series(paths: Sequence[Path]) -> tuple[Patch, ...]:
    """All patches that are meant, in order.

    Raises UsageError for what cannot be read, and PatchError for what holds no patch or a
    damaged one.
    """
    return tuple(patch for path in paths for patch in _patches(path))


def with_stdin(paths: Sequence[Path], read: Callable[[], bytes], store: Store) -> tuple[Path, ...]:
    """The paths, with a file in the store in place of standard input.

    The file stays, because the command that repeats a run must find it again. Raises UsageError
    where standard input is to be read twice, and PatchError if nothing comes from it.
    """
    if STDIN not in paths:
        return tuple(paths)
    if paths.count(STDIN) > 1:
        raise UsageError("Standard input (-) can be read only once; give it once as a patch.")
    kept = _kept(read(), store)
    return tuple(kept if path == STDIN else path for path in paths)


def _kept(text: bytes, store: Store) -> Path:
    if not text.strip():
        raise PatchError("Standard input is empty; pipe a patch into the command, or name a file.")
    path = store.directory("patches") / f"stdin-{hashlib.sha256(text).hexdigest()[:12]}.patch"
    if not path.exists():
        fresh = path.with_suffix(".new")
        fresh.write_bytes(text)
        fresh.replace(path)
    return path


def _patches(path: Path) -> Iterator[Patch]:
    if path.is_dir():
        yield from _quilt(path)
        return
    text = _read(path, "The patch")
    if not text.strip():
        raise PatchError(f"The patch {path} is empty.")
    if _MBOX.match(text) or _is_mail(text):
        yield from _mailbox(path, text)
    else:
        yield _document(path, text)


def _read(path: Path, what: str) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{what} {path} cannot be read: it is no regular file.")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}.") from error


def _document(path: Path, text: bytes, strip: int | None = None) -> Patch:
    """A diff with anything around it, whose first line of prose is its subject."""
    prose, files = _diffs(path, _unix(text))
    if not files:
        raise PatchError(f"{path} is not a patch: there is no diff in it.")
    lines = (line.strip() for line in prose.decode(errors="replace").splitlines())
    subject = next((line for line in lines if line), "")
    return Patch(path.name, path, subject, files, _prefixes(files) if strip is None else strip)


def _prefixes(files: Sequence[FileDiff]) -> int:
    """How many directories are in front of the names: none where diff.noprefix left a/ and b/ out.

    Only then are the old and the new name of a file the same.
    """
    pairs = [(file.old, file.new) for file in files if not file.renames]
    both = [(old, new) for old, new in pairs if old is not None and new is not None]
    return 0 if both and all(old == new for old, new in both) else 1


def _diffs(path: Path, text: bytes) -> tuple[bytes, tuple[FileDiff, ...]]:
    try:
        return read_diffs(text)
    except DiffError as error:
        raise PatchError(f"{path} is a damaged patch: {error}.") from error


def _unix(text: bytes) -> bytes:
    """Take carriage returns away where every line has one: a mailer or an editor put them in.

    Kernel source has none. Where only some lines have one, they are meant.
    """
    lines = text.split(b"\n")
    if all(line.endswith(b"\r") for line in lines[:-1] if line) and len(lines) > 1:
        return b"\n".join(line.removesuffix(b"\r") for line in lines)
    return text


def _is_mail(text: bytes) -> bool:
    """Whether a text begins with the header of a mail, as one that was saved by itself does."""
    header = re.split(rb"\r?\n\r?\n", text, maxsplit=1)[0]
    lines = header.splitlines()
    fields = {match[0].lower() for match in _MAIL_FIELDS.finditer(header)}
    return len(fields) >= 2 and all(_MAIL_HEADER.match(line) for line in lines)


def _mailbox(path: Path, text: bytes) -> Iterator[Patch]:
    """The patches of a mailbox in its order; mails without a diff, as cover letters, are none.

    git takes the mails apart, as it does for git am: encodings, attachments, scissors.
    """
    with tempfile.TemporaryDirectory(prefix="mmu-harness-mail-") as name:
        directory = Path(name)
        (directory / "mails").mkdir()
        (directory / "mailbox").write_bytes(text)
        split = git.outside_checkout(directory, "mailsplit", "-b", "-omails", "mailbox")
        if split.status != 0:
            raise PatchError(f"git cannot read the mailbox {path}: {split.stderr.strip()}")
        count = 0
        for mail in sorted((directory / "mails").iterdir()):
            told = git.outside_checkout(
                directory, "mailinfo", "message", "patch", stdin=mail.read_bytes()
            )
            if told.status != 0:
                raise PatchError(
                    f"git cannot read mail {mail.name} of {path}: {told.stderr.strip()}"
                )
            _, files = _diffs(path, (directory / "patch").read_bytes())
            if not files:
                continue
            count += 1
            subject = re.search(r"^Subject: (.*)", told.stdout, re.M)
            title = subject[1].strip() if subject else ""
            name = f"{path.name} [{count}] {title}".rstrip()
            yield Patch(name, path, title, files, _prefixes(files))
        if not count:
            raise PatchError(f"{path} is a mailbox without a patch: no mail has a diff in it.")


def _quilt(directory: Path) -> Iterator[Patch]:
    """The patches of a directory that a file "series" lists, as quilt and Debian have it."""
    series = next(
        (path for path in (directory / "series", directory / "patches/series") if path.exists()),
        None,
    )
    if series is None:
        raise UsageError(
            f"The directory {directory} has no file named series, so the order of its patches is "
            "not known; name the patches one by one, or list them in a series."
        )
    listed = 0
    lines = _read(series, "The series").decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _SERIES_LINE.fullmatch(line.strip())
        if match is None:
            raise PatchError(f'{series}:{number}: "{line.strip()}" is not a line of a series.')
        strip = _strip_of(match["options"].split(), f"{series}:{number}")
        path = series.parent / match["name"]
        listed += 1
        text = _read(path, f"The patch of {series}:{number},")
        patch = _document(path, text, strip)
        yield dataclasses.replace(patch, name=match["name"])
    if not listed:
        raise PatchError(f"The series {series} lists no patch.")


def _strip_of(options: list[str], where: str) -> int:
    strip = 1
    for option in options:
        # quilt writes -pab for a/ and b/.
        if option == "-pab":
            continue
        if match := re.fullmatch(r"-p([0-9])", option):
            strip = int(match[1])
        else:
            raise PatchError(f"{where}: the option {option} is not supported; only -p0 to -p9 are.")
    return strip
