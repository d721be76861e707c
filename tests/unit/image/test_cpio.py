# SPDX-License-Identifier: GPL-2.0-only
"""The archive is what newc says, read back by a reader that knows nothing of the writer."""

from __future__ import annotations

import stat

from harness.image.cpio import Archive


def read(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Name -> mode, contents, device; checks magic, padding and the trailer."""
    found: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    position = 0
    while True:
        assert position % 4 == 0
        header = data[position : position + 110]
        assert header[:6] == b"070701"
        fields = [int(header[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
        size, name_size = fields[6], fields[11]
        name = data[position + 110 : position + 110 + name_size]
        assert name.endswith(b"\0")
        position += 110 + name_size
        position += -position % 4
        content = data[position : position + size]
        assert len(content) == size
        position += size + -size % 4
        if name == b"TRAILER!!!\0":
            assert position == len(data)
            return found
        found[name[:-1].decode()] = (fields[1], content, (fields[9], fields[10]))


def test_files_directories_and_devices() -> None:
    archive = Archive()
    archive.directory("proc")
    archive.file("init", b"#!/bin/sh\n", 0o755)
    archive.file("a/b/c.ko", b"12345")
    archive.character_device("dev/console", 5, 1)
    entries = read(archive.finished())
    assert list(entries) == ["proc", "init", "a", "a/b", "a/b/c.ko", "dev", "dev/console"]
    assert entries["init"] == (stat.S_IFREG | 0o755, b"#!/bin/sh\n", (0, 0))
    assert entries["a/b/c.ko"][1] == b"12345"
    assert stat.S_ISDIR(entries["a/b"][0])
    assert entries["dev/console"][0] == stat.S_IFCHR | 0o600
    assert entries["dev/console"][2] == (5, 1)


def test_a_link_holds_its_target() -> None:
    archive = Archive()
    archive.symlink("bin/sh", "busybox")
    mode, target, _ = read(archive.finished())["bin/sh"]
    assert stat.S_ISLNK(mode)
    assert target == b"busybox"


def test_lengths_of_all_remainders() -> None:
    archive = Archive()
    for length in range(9):
        archive.file("n" * (length + 1), b"x" * length)
    entries = read(archive.finished())
    assert [len(content) for _, content, _ in entries.values()] == list(range(9))


def test_inodes_differ() -> None:
    archive = Archive()
    archive.file("a", b"")
    archive.file("b", b"")
    data = archive.finished()
    second = data.index(b"070701", 6)
    assert data[6:14] != data[second + 6 : second + 14]


def test_same_input_same_bytes() -> None:
    def made() -> bytes:
        archive = Archive()
        archive.file("x/y", b"z")
        return archive.finished()

    assert made() == made()


def test_empty_archive_has_a_trailer() -> None:
    assert read(Archive().finished()) == {}
