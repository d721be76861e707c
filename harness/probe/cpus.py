# SPDX-License-Identifier: GPL-2.0-only
"""Keeping to the CPUs that processes have, where there is one that is for nobody.

Why there is such a CPU is told by docs/emulation.md.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_WORKERS = Path("/sys/devices/virtual/workqueue/cpumask")
"""Where the kernel's unbound workers may run, as a mask in hexadecimal digits."""


def enter(cgroup: str) -> None:
    """Move this process into a cgroup, and have all of its threads keep the CPUs of this one.

    A cpuset gives who enters it all of its CPUs, and up to v6.1 forgets for which of them the
    process had asked (user_cpus_ptr, read in 6.1 and 6.12).
    """
    cpus = os.sched_getaffinity(0)
    (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cpus)


def gather(processes: Path = Path("/proc"), workers: Path = _WORKERS) -> None:
    """Have the kernel's threads run where this process may, but those that are bound to a CPU.

    One more emulated CPU that works wants the machine's own CPUs from those that guests are on,
    and each time that it waits for these it takes long.
    """
    cpus = os.sched_getaffinity(0)
    if len(cpus) == os.cpu_count():
        return
    with contextlib.suppress(OSError):
        workers.write_text(f"{sum(1 << cpu for cpu in cpus):x}")
    for process in processes.iterdir():
        if not process.name.isdigit():
            continue
        # Some have gone meanwhile, and some must stay where they are.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(process.name), os.sched_getaffinity(int(process.name)) & cpus)
