# SPDX-License-Identifier: GPL-2.0-only
"""The names on which L0 and the init of a host agree.

The templates in guest-images/ receive them as variables, harness.machine imports them: there is
one place to change.
"""

from __future__ import annotations

from typing import Final

MARK: Final = "mmu-harness"
"""The word that opens each line the init of a host prints for L0."""

RUN_DIRECTORY: Final = "/run/mmu-harness"
"""Where the init of a host unpacks the seed and leaves its facts."""

ROOT_SERIAL: Final = "root"
MODULES_SERIAL: Final = "modules"
SEED_SERIAL: Final = "seed"
SWAP_SERIAL: Final = "swap"
DATA_SERIAL: Final = "data"
"""The serials of the host's disks: a disk is known by its serial, never by its position."""

HOST_INIT: Final = "/sbin/mmu-harness-init"
SSHD_CONFIG: Final = "/etc/ssh/mmu-harness.conf"

ADDRESS: Final = "10.0.2.15"
"""The host's address in the network that QEMU emulates (QEMU's own default for its user net)."""

GATEWAY: Final = "10.0.2.2"
"""Where QEMU itself answers in that network."""

TEMPLATE_VARIABLES: Final = {
    "mark": MARK,
    "run": RUN_DIRECTORY,
    "root": ROOT_SERIAL,
    "modules": MODULES_SERIAL,
    "seed": SEED_SERIAL,
    "swap": SWAP_SERIAL,
    "init": HOST_INIT,
    "sshd_config": SSHD_CONFIG,
    "address": ADDRESS,
    "gateway": GATEWAY,
}

LINUX_MARK: Final = "mmu-guest"
"""The word that opens each line that the init and the workload of a Linux guest print."""

LINUX_SEED: Final = f"/etc/{LINUX_MARK}"
"""Where a Linux guest finds its nonce and its key, which come with each run."""

LINUX_ORDER: Final = "/run/order"
LINUX_ANSWER: Final = "/run/answer"
"""The fifos of the workload in a Linux guest."""

LINUX_VARIABLES: Final = {
    "mark": LINUX_MARK,
    "order": LINUX_ORDER,
    "answer": LINUX_ANSWER,
}
