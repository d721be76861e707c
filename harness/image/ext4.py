# SPDX-License-Identifier: GPL-2.0-only
"""Makes an ext4 image of a directory, without root and without mounting anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from harness.command import require, run
from harness.deadline import Deadline
from harness.errors import StoreError

_FEATURES = (
    "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize"
)
"""Listed one by one, because the defaults of new versions of mke2fs (orphan_file, say) make file
systems that older kernels under test cannot mount. No journal: an image is either read only or
thrown away after the run."""

_SECONDS = 300.0


def make_ext4(
    directory: Path, image: Path, *, free_mib: int = 16, wrapper: Sequence[str] = ()
) -> None:
    """Make ``image``, a raw ext4 file system with the contents of ``directory``.

    The file is sparse and has ``free_mib`` MiB to spare. ``wrapper`` goes before the command
    (fakeroot, for an owner other than us). Raises CommandError, and StoreError when the disk
    is full.
    """
    blocks = _blocks(directory) + free_mib * 256
    mke2fs = require("mke2fs", "e2fsprogs")
    # A directory's name may start with a dash or hold a comma; as the value of an option of its
    # own it is taken as it is.
    argv = [*wrapper, mke2fs, "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"]
    argv += ["-O", _FEATURES, "-d", str(directory), str(image), str(blocks)]
    try:
        run(argv, Deadline.after(_SECONDS, f"Making the disk image {image.name}"))
    except OSError as error:
        raise StoreError(f"The disk image {image} cannot be made: {error.strerror}.") from error


def _blocks(directory: Path) -> int:
    """4 KiB blocks that the contents take, with what ext4 itself needs for them."""
    blocks = files = 0
    for parent, directories, names in os.walk(directory):
        for name in directories + names:
            files += 1
            blocks += -(-os.lstat(Path(parent) / name).st_size // 4096)
    # 256 bytes of inode a file, with room for as many again; bitmaps and tables below 5 %.
    return int((blocks + files) * 1.05) + 1024
