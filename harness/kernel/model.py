# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel is to the rooms above."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from harness.errors import ImageError, KconfigError

_ASSIGNED = re.compile(r"(CONFIG_[A-Za-z0-9_]+)=(.*)")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel that is ready to be booted.

    ``image`` is its bzImage and ``digest`` the sha256 of that in hex; ``release`` is what the
    image's header says, as in 6.12.117. ``origin`` is the reference as the user wrote it and
    ``patches`` are the names of what was applied on top. The rest is None where this kernel has
    it not: ``config`` the final .config; ``vmlinux`` with DWARF; ``modules`` a directory to be
    used as /lib/modules, complete with modules.dep; ``debug_modules`` a directory with unstripped
    KVM modules; ``headers`` a directory in which ``make M=`` builds modules for it, of a kernel
    that was not built here; ``log`` of the build; ``entry`` its directory in the store.
    """

    image: Path
    release: str
    digest: str
    origin: str
    patches: tuple[str, ...] = ()
    config: Path | None = None
    vmlinux: Path | None = None
    modules: Path | None = None
    debug_modules: Path | None = None
    headers: Path | None = None
    log: Path | None = None
    entry: Path | None = None

    @property
    def identity(self) -> str:
        """What tells this kernel from all others, in hex.

        Not the image's digest where there is more: kernels that differ only in their modules,
        as KVM is one, have the same image.
        """
        return self.digest if self.entry is None else self.entry.name

    def symbol(self, name: str) -> str | None:
        """The value of a symbol of the configuration, with or without ``CONFIG_``.

        "y", "m", a number or a string without quotes; None when it is not set, or when the
        configuration of this kernel is not known (``config`` is None).
        """
        if self.config is None:
            return None
        value = read_config(self.config).get(name.removeprefix("CONFIG_"))
        return None if value == "n" else value

    def builtin_or_unknown(self, *names: str) -> bool:
        """Whether the kernel has all of these built in, as far as its configuration is known."""
        return self.config is None or all(self.symbol(name) == "y" for name in names)


def read_config(path: Path) -> dict[str, str]:
    """The symbols that a .config sets, without ``CONFIG_`` and without quotes around strings."""
    values = {}
    for line in path.read_text(errors="replace").splitlines():
        if match := _ASSIGNED.fullmatch(line.strip()):
            values[match[1].removeprefix("CONFIG_")] = unquoted(match[2])
    return values


def unquoted(value: str) -> str:
    """The text of a value of a .config, without its quotes and escapes."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value


def image_digest(image: Path) -> str:
    """The sha256 of a kernel image; raises ImageError when it cannot be read."""
    try:
        with image.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"The kernel image {image} cannot be read: {error.strerror}.") from error


def require_kvm(config: Mapping[str, str], whose: str) -> None:
    """Raise KconfigError unless the configuration has KVM with MMU notifiers.

    ``whose`` begins the sentence. KVM selects MMU_NOTIFIER; without it there is nothing to test.
    """
    if config.get("KVM") not in ("y", "m"):
        raise KconfigError(
            f"{whose} has no CONFIG_KVM, so there is nothing to test on it; "
            "enable KVM, KVM_AMD and KVM_INTEL."
        )
    if config.get("MMU_NOTIFIER") != "y":
        raise KconfigError(
            f"{whose} has CONFIG_KVM, but that did not select CONFIG_MMU_NOTIFIER, "
            "so KVM cannot follow the primary MMU; use a kernel whose KVM has MMU notifiers."
        )
