# SPDX-License-Identifier: GPL-2.0-only
"""A harness that is killed while a host runs leaves neither QEMU nor its directory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from toy_kernel import HANG, toy_kernel

from harness.deadline import Deadline

DRIVER = """
    import sys
    from pathlib import Path
    from harness.janitor import Janitor
    from harness.kernel.model import Kernel
    from harness.machine.accelerator import Accelerator
    from harness.machine.boot import boot
    from harness.machine.spec import HostSpec
    from harness.progress import Silent

    image, root = Path(sys.argv[1]), Path(sys.argv[2])
    spec = HostSpec(image, root, Accelerator("tcg", ""), memory_mib=64, swap_mib=1)
    with Janitor() as janitor:
        run = janitor.directory / "h"
        run.mkdir()
        print(run, flush=True)
        with boot(spec, run, Kernel(image, "toy", "", ""), Silent(), seconds=60):
            pass
"""


def users_of(directory: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(directory) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left(tmp_path: Path, signum: signal.Signals) -> None:
    image = toy_kernel(tmp_path / "k", "hello\n", HANG)
    root = tmp_path / "root"
    root.write_bytes(bytes(1 << 20))
    argv = [sys.executable, "-c", textwrap.dedent(DRIVER), str(image), str(root)]
    deadline = Deadline.after(30, "the test")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as driver:
        assert driver.stdout is not None
        run = driver.stdout.readline().decode().strip()
        deadline.poll(lambda: (Path(run) / "qmp.log").exists())
        assert users_of(run + "/")
        driver.send_signal(signum)
    deadline.poll(lambda: not users_of(run + "/") and not Path(run).parent.exists())
