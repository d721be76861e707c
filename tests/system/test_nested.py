# SPDX-License-Identifier: GPL-2.0-only
"""The KVM path: a host with emulated SVM is a KVM-capable machine to a harness that runs in it.

Three levels: the inner harness boots the kernel under test with ``-accel kvm`` and drives a probe
guest there, so that the notifiers act on nested shadow tables.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sysconfig
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import ExitCode
from harness.image.ext4 import make_ext4
from harness.janitor import Janitor
from harness.machine.boot import boot
from harness.machine.host import Host
from harness.machine.mmu import Mmu
from harness.progress import Silent
from harness.store import Store
from harness.workbench import Parts, Wish, host_spec, make_parts

ROOT = Path(__file__).parents[2]
PROJECT = (
    *("harness", "tests/kvm", "tests/notifier", "guest-images", "kernel-config", "patches"),
    "pyproject.toml",
)
# Not needed to run a check, and large.
LEFT_OUT = shutil.ignore_patterns("__pycache__", "mypy", "ruff", "pip", "hypothesis")
MOUNTED = "/mnt"
SECONDS = 900.0


def test_the_harness_runs_on_a_machine_with_kvm(tmp_path: Path) -> None:
    with Janitor() as janitor:
        parts = make_parts(Wish(), Store(adopt=janitor.adopt, release=janitor.release), Silent())
        disk = tmp_path / "data.ext4"
        make_ext4(_contents(parts, tmp_path / "data"), disk, free_mib=512)
        spec = dataclasses.replace(host_spec(parts, Mmu.TDP), data=disk, memory_mib=6144)
        with boot(spec, janitor.directory, parts.kernel, Silent()) as host:
            code, said = _check_inside(host)
            print(said)
            read = host.run(["cat", f"{MOUNTED}/results/latest/results.json"], _deadline())
    results = json.loads(read.stdout)
    assert code == 0, results["verdict"]
    assert results["verdict"]["word"] == "PASS"
    assert results["host"]["accelerator"] == "kvm"
    assert len(results["tests"]) >= 4
    assert {test["outcome"] for test in results["tests"]} == {"pass"}
    oracles = {report["name"] for test in results["tests"] for report in test["oracles"]}
    assert {"references", "translations", "notifier", "access"} <= oracles


def _check_inside(host: Host) -> tuple[int, str]:
    host.run(["sh", "-c", _MOUNT], _deadline())
    environment = [
        f"PYTHONPATH={MOUNTED}/project:{MOUNTED}/site",
        f"XDG_CACHE_HOME={MOUNTED}/cache",
        f"TMPDIR={MOUNTED}/tmp",
        "CI=true",
    ]
    words = ["python3", "-m", "harness", "check", "--kernel", f"{MOUNTED}/kernel/bzImage"]
    words += ["--accel", "kvm", "--mmu", "tdp", "-k", "anon-middle"]
    words += ["--results", f"{MOUNTED}/results"]
    said = ""
    for _ in range(2):  # an infrastructure error is no verdict; see verdict() in checking.py
        done = host.run(["env", *environment, *words], _deadline(), check=False)
        said += done.stdout + done.stderr
        if done.status != ExitCode.INFRASTRUCTURE:
            break
    return done.status, said


_MOUNT = (
    "for disk in /sys/block/*; do "
    'if [ "$(cat $disk/serial 2>/dev/null)" = data ]; then '
    f"busybox mount -t ext4 /dev/${{disk##*/}} {MOUNTED}; exit; fi; done; exit 1"
)


def _deadline() -> Deadline:
    return Deadline.after(SECONDS, "The check inside the host")


def _contents(parts: Parts, data: Path) -> Path:
    """The directory that the inner machine finds: the project, its libraries, kernel and store."""
    for name in PROJECT:
        _copy(ROOT / name, data / "project" / name)
    _copy(Path(sysconfig.get_paths()["purelib"]), data / "site")
    _copy_kernel(parts, data / "kernel")
    made = [parts.image.root, parts.probe, *([parts.modules] if parts.modules else [])]
    for path in made:
        entry = path.parent
        _copy(entry, data / "cache" / "mmu-harness" / entry.parent.name / entry.name)
    (data / "tmp").mkdir()
    return data


def _copy_kernel(parts: Parts, target: Path) -> None:
    """The kernel as a build tree has it, where the inner harness finds what belongs to it."""
    kernel = parts.kernel
    assert kernel.vmlinux
    assert kernel.modules
    assert kernel.debug_modules
    target.mkdir()
    shutil.copy(kernel.image, target / "bzImage")
    shutil.copy(kernel.vmlinux, target / "vmlinux")
    shutil.copy(kernel.config or "", target / "config")
    _copy(kernel.modules, target / "modules")
    _copy(kernel.debug_modules, target / "arch/x86/kvm")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=LEFT_OUT)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
