# SPDX-License-Identifier: GPL-2.0-only
"""From a reference to the source that it means."""

from __future__ import annotations

from harness.errors import UsageError
from harness.kernel.debian import Apt
from harness.kernel.reference import DebianSource, KernelReference, SourceTree
from harness.kernel.source import DebianSource as PackagedSource
from harness.kernel.source import Source, UserTree
from harness.progress import Progress
from harness.store import Store


def source_of(reference: KernelReference, store: Store, progress: Progress) -> Source:
    """The source of a kernel, which is not looked at yet.

    Raises UsageError for a kernel that is built already.
    """
    if isinstance(reference, DebianSource):
        apt = Apt(store)
        return PackagedSource(apt.source(reference.version), apt, progress)
    if isinstance(reference, SourceTree):
        return UserTree(reference, store)
    raise UsageError(
        f"This needs kernel source, but {reference.text} is built already; "
        "give a source tree or deb:linux-source-V."
    )
