# SPDX-License-Identifier: GPL-2.0-only
"""Makes the files that a patch was made for out of nothing but the patch itself."""

from __future__ import annotations

from pathlib import Path

from harness.kernel.diff import FileDiff
from harness.kernel.series import Patch


def preimage(file: FileDiff, *, shift: int = 0) -> bytes:
    """A file to which all hunks apply, ``shift`` lines further down than they say."""
    lines: list[bytes] = [b"inserted %d" % number for number in range(shift)]
    for hunk in file.hunks:
        while len(lines) < hunk.line - 1 + shift:
            lines.append(b"filler %d" % len(lines))
        lines += hunk.before()
    # With fewer than three lines of context behind it, a hunk is for the end of the file.
    if all(line.startswith(b" ") for line in file.hunks[-1].text.splitlines()[-3:]):
        lines += [b"after %d" % number for number in range(5)]
    return b"".join(line + b"\n" for line in lines)


def postimage(file: FileDiff) -> bytes:
    """The contents of a file that a patch creates."""
    (hunk,) = file.hunks
    return b"".join(line[1:] + b"\n" for line in hunk.text.splitlines()[1:])


def source_for(patch: Patch, root: Path, *, shift: int = 0) -> Path:
    """A directory with all files to which a patch applies, and a Makefile."""
    for file in patch.files:
        if not file.creates:
            path = root / file.path(patch.strip)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(preimage(file, shift=shift))
    (root / "Makefile").write_text("VERSION = 2\nPATCHLEVEL = 6\nSUBLEVEL = 26\n")
    return root
