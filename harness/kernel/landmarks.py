# SPDX-License-Identifier: GPL-2.0-only
"""Say which kernels a patch was made for, from what it expects to find in them.

A patch names files that must be there, files that must not be there yet, and lines that must be
there. Of some of these it is known when they came and went; what is known together bounds the
kernels. It is a hint for people: whether the patch applies, only applying it tells.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from harness.kernel.series import Patch

_RELEASE = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:-rc(\d+))?")
_VERSION_LINE = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(\S*)", re.M)
_FINAL = 1 << 16
"""Sorts a release behind its candidates."""


@dataclasses.dataclass(frozen=True)
class Landmark:
    """A file, or an identifier in code, that kernels have from ``since`` on, before ``until``."""

    since: str | None = None
    until: str | None = None
    path: str | None = None
    word: str | None = None


@dataclasses.dataclass(frozen=True)
class Target:
    """The kernels that a patch was made for: from ``since`` on, before ``until``.

    None where nothing is known on that side. ``because`` names the landmarks.
    """

    since: str | None
    until: str | None
    because: tuple[str, ...]

    def __str__(self) -> str:
        if self.since and self.until:
            return f"{self.since} to {self.until}"
        return f"{self.since} or later" if self.since else f"before {self.until}"

    def excludes(self, release: str) -> bool:
        """Whether a release is known to be outside."""
        number = _number(release)
        return number is not None and (
            (self.since is not None and number < _at(self.since))
            or (self.until is not None and number >= _at(self.until))
        )


LANDMARKS = (
    # commit cddb8a5c14aa ("mmu-notifiers: core") (in v2.6.27), merged before its first candidate.
    Landmark(since="2.6.27-rc1", path="mm/mmu_notifier.c"),
    Landmark(since="2.6.27-rc1", path="include/linux/mmu_notifier.h"),
    # commit edf884172e98 ("KVM: Move arch dependent files to new directory arch/x86/kvm/")
    # (in v2.6.25).
    Landmark(since="2.6.25", path="arch/x86/kvm/Kconfig"),
    # commit 925d1c401fa6 ("procfs task exe symlink") (in v2.6.26), until commit e9714acf8c43
    # ("mm: kill vma flag VM_EXECUTABLE and mm->num_exe_file_vmas") (in v3.7).
    Landmark(since="2.6.26", until="3.7", word="num_exe_file_vmas"),
    # commit ac46d4f3c432 ("mm/mmu_notifier: use structure for invalidate_range_start/end calls
    # v2") (in v5.0).
    Landmark(since="5.0", word="mmu_notifier_range"),
    # commit da1c55f1b272 ("mmap locking API: rename mmap_sem to mmap_lock") (in v5.8).
    Landmark(until="5.8", word="mmap_sem"),
    # commit f128cf8cfbec ("KVM: Convert KVM_ARCH_WANT_MMU_NOTIFIER to
    # CONFIG_KVM_GENERIC_MMU_NOTIFIER") (in v6.8).
    Landmark(since="6.8", word="KVM_GENERIC_MMU_NOTIFIER"),
    Landmark(until="6.8", word="KVM_ARCH_WANT_MMU_NOTIFIER"),
)


def target(patch: Patch, landmarks: Iterable[Landmark] = LANDMARKS) -> Target | None:
    """The kernels that a patch was made for; None where it touches no landmark."""
    created = {file.path(patch.strip) for file in patch.files if file.creates}
    present = {file.path(patch.strip) for file in patch.files} - created
    lines = b"\n".join(line for f in patch.files for h in f.hunks for line in h.before())
    words = set(re.findall(r"\w+", lines.decode(errors="replace")))
    since: dict[str, str] = {}
    until: dict[str, str] = {}
    for mark in landmarks:
        if mark.path in created and mark.since:
            # What comes with the landmark was not there before it.
            until.setdefault(mark.since, f"it creates {mark.path}")
        elif mark.path in present or mark.word in words:
            told = f"it expects {mark.path or mark.word}"
            if mark.since:
                since.setdefault(mark.since, told)
            if mark.until:
                until.setdefault(mark.until, told)
    if not since and not until:
        return None
    first = max(since, key=_at, default=None)
    last = min(until, key=_at, default=None)
    if first and last and _at(first) >= _at(last):
        # It contradicts itself, as one does that brings something back.
        return None
    because = [since[first]] if first else []
    because += [until[last]] if last else []
    return Target(first, last, tuple(because))


def release_of(makefile: str) -> str:
    """The release that the Makefile at the top of a tree names, as 6.12.1 or 2.6.27-rc1."""
    said: dict[str, str] = dict(_VERSION_LINE.findall(makefile))
    numbers = (said.get(name, "") for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))
    return ".".join(filter(None, numbers)) + said.get("EXTRAVERSION", "")


def release_of_tree(root: Path) -> str:
    """The release of the tree at ``root``; empty where it does not say."""
    try:
        return release_of((root / "Makefile").read_text(errors="replace"))
    except OSError:
        return ""


def _at(release: str) -> tuple[int, int, int, int]:
    number = _number(release)
    assert number is not None, release
    return number


def _number(release: str) -> tuple[int, int, int, int] | None:
    match = _RELEASE.match(release)
    if match is None:
        return None
    major, minor, sub, candidate = match.groups()
    return int(major), int(minor), int(sub or 0), int(candidate or _FINAL)
