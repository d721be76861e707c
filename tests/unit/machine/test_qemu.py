# SPDX-License-Identifier: GPL-2.0-only
"""The life and death of QEMU, played by small programs."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from harness.deadline import Deadline
from harness.errors import MachineUnfitError, QemuError
from harness.machine.qemu import running


def soon(seconds: float = 10.0) -> Deadline:
    return Deadline.after(seconds, "the test")


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


SLEEP = "import time; print('up', flush=True); time.sleep(60)"


def test_standard_output_is_the_console() -> None:
    with running(python("print('Linux version'); print('Kernel panic - not syncing: x')")) as qemu:
        assert list(qemu.console.follow(soon())) == [
            "Linux version",
            "Kernel panic - not syncing: x",
        ]
        assert qemu.wait(soon())
        assert qemu.switched_off
        assert [splat.kind for splat in qemu.console.splats()] == ["panic"]


def test_last_words_are_in_the_error() -> None:
    code = "import sys; sys.stderr.write('no\\x1b[2J such machine\\n'); sys.exit(1)"
    with running(python(code)) as qemu:
        assert qemu.wait(soon())
        assert not qemu.switched_off
        with pytest.raises(QemuError, match="ended with status 1") as caught:
            qemu.require_alive()
    assert "such machine" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_only_the_end_of_many_last_words_is_kept() -> None:
    with running(python("import sys; sys.stderr.write('x' * 10**6 + 'end')")) as qemu:
        assert qemu.wait(soon())
        assert qemu.last_words().endswith("xend")
        assert len(qemu.last_words()) <= 16384


def test_killed_from_outside() -> None:
    with running(python(SLEEP)) as qemu:
        assert next(qemu.console.follow(soon())) == "up"
        os.kill(qemu.pid, signal.SIGKILL)
        assert qemu.wait(soon())
        with pytest.raises(QemuError, match="killed by signal 9"):
            qemu.require_alive()


def test_ended_in_order_by_a_signal_is_not_switched_off() -> None:
    code = "import sys; sys.stderr.write('qemu: terminating on signal 15 from pid 1 (sh)\\n')"
    with running(python(code)) as qemu:
        assert qemu.wait(soon())
        assert not qemu.switched_off


def test_leaving_ends_it() -> None:
    with running(python(SLEEP)) as qemu:
        assert not qemu.ended
        qemu.require_alive()
    assert qemu.ended
    with pytest.raises(ProcessLookupError):
        os.kill(qemu.pid, 0)


def test_wait_gives_up() -> None:
    with running(python(SLEEP)) as qemu:
        assert not qemu.wait(soon(0.05))


def test_missing_program_is_said() -> None:
    with (
        pytest.raises(MachineUnfitError, match="/nonexistent/qemu"),
        running(["/nonexistent/qemu"]),
    ):
        pytest.fail("it cannot run")
