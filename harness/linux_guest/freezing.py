# SPDX-License-Identifier: GPL-2.0-only
"""Has Linux guests stand still, so that QEMU may stop the CPUs of an emulated host.

QEMU's emulation of SVM keeps the vector of an interrupt that VMRUN injects as if it were an
exception still to come (helper_vmrun() in target/i386/tcg, up to the newest version that we read).
Until the vcpu's next exit or exception, a CPU that is stopped from outside takes that for a reason
to go on: it does not stop, and the guest gets the same interrupt once more, at whatever instruction
it is. A vcpu that is not in its guest has no such vector. See docs/emulation.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from harness.deadline import Deadline
from harness.guest.session import Session, undone

_SECONDS = 10.0


@contextlib.contextmanager
def frozen(session: Session, cgroup: str) -> Iterator[None]:
    """No process of the cgroup runs while the context is open, and so no vcpu of theirs.

    But for one that does not stop in time, as it is in the kernel: whether it may be is for those
    to judge that look at it. And but for kernels before commit 76f969e8948d ("cgroup: cgroup v2
    freezer") (in v5.2), on which all run on.
    """
    try:
        session.ask("write", path=f"{cgroup}/cgroup.freeze", text="1")
    except FileNotFoundError:
        yield
        return
    deadline = Deadline.after(_SECONDS * session.host.facts.pace, "Freezing the guests")
    for _ in deadline.ticks():
        if "frozen 1" in session.read(f"{cgroup}/cgroup.events"):
            break
    with undone(lambda: session.ask("write", path=f"{cgroup}/cgroup.freeze", text="0")):
        yield
