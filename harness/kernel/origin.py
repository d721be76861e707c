# SPDX-License-Identifier: GPL-2.0-only
"""From a reference to the source that it means."""

from __future__ import annotations

from pathlib import Path

from harness.errors import SourceError, UsageError
from harness.kernel.download import fetch
from harness.kernel.landmarks import release_of
from harness.kernel.reference import (
    DebianSource,
    Download,
    KernelReference,
    Revision,
    SourceTree,
    Tarball,
    file_reference,
)
from harness.kernel.revision import RevisionTree
from harness.kernel.source import DebianSource as PackagedSource
from harness.kernel.source import Source, UserTree
from harness.kernel.suite import apt_of
from harness.kernel.tarball import TarballSource
from harness.progress import Progress
from harness.store import Store

_RECIPE = 1
"""Part of the keys of remembered releases; increase it when what is remembered changes."""


def resolve(reference: KernelReference, store: Store, progress: Progress) -> KernelReference:
    """The reference itself, or in place of an address the file that was fetched from it."""
    if isinstance(reference, Download):
        return file_reference(reference.text, fetch(reference, store, progress))
    return reference


def source_of(reference: KernelReference, store: Store, progress: Progress) -> Source:
    """The source of a kernel, whose files are not looked at yet.

    Raises UsageError for a kernel that is built already, SourceError where there is no source.
    """
    reference = resolve(reference, store, progress)
    if isinstance(reference, DebianSource):
        apt = apt_of(store, reference.suite)
        return PackagedSource(apt.source(reference.version), apt, progress)
    if isinstance(reference, SourceTree):
        return UserTree(reference, store)
    if isinstance(reference, Revision):
        return RevisionTree(reference, store, progress)
    if isinstance(reference, Tarball):
        return TarballSource(reference, store, progress)
    raise UsageError(
        f"This needs kernel source, but {reference.text} is built already; "
        "give a source tree, TREE@REV, a tarball or deb:linux-source-V."
    )


def release_of_source(reference: KernelReference, store: Store, progress: Progress) -> str:
    """The release that the Makefile of a kernel's source names, as 6.12.1; empty if it does not.

    It is remembered by the source's digest, because a tarball must be unpacked for it. Raises as
    source_of() does.
    """
    source = source_of(reference, store, progress)

    def make(directory: Path) -> None:
        try:
            with source.peek(directory / "source") as read:
                release = release_of(read("Makefile")[1].decode(errors="replace"))
        except FileNotFoundError as error:
            raise SourceError(f"{source.title} is no kernel source; it has no Makefile.") from error
        (directory / "release").write_text(release)

    key = {"recipe": _RECIPE, "source": source.digest}
    return (store.entry("release", key, make) / "release").read_text()
