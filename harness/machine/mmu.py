# SPDX-License-Identifier: GPL-2.0-only
"""The MMU modes of KVM that a host can be booted in."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from harness.errors import BootError, UsageError


class Mmu(enum.StrEnum):
    """How KVM maps guest memory.

    Two-dimensional paging, its older form, shadow paging, or the shadow of a guest's own nested
    page tables, for a guest inside the guest. The last has sptes in both of KVM's MMUs at once.
    """

    TDP = "tdp"
    TDP_LEGACY = "tdp-legacy"
    SHADOW = "shadow"
    NESTED = "nested"

    @property
    def parameters(self) -> tuple[str, ...]:
        """The kernel parameters that choose this mode on AMD and on Intel.

        The kernel ignores a parameter that its KVM does not know (tdp_mmu, before 5.10).
        """
        if self is Mmu.SHADOW:
            return ("kvm_amd.npt=0", "kvm_intel.ept=0")
        legacy = "0" if self is Mmu.TDP_LEGACY else "1"
        nested = ("kvm_amd.nested=1", "kvm_intel.nested=1") if self is Mmu.NESTED else ()
        return ("kvm_amd.npt=1", "kvm_intel.ept=1", f"kvm.tdp_mmu={legacy}", *nested)

    def check(self, seen: Mapping[str, str]) -> None:
        """Raise BootError unless the parameters read back from the host say this mode.

        ``seen`` maps names as in ``kvm_amd.npt`` to the text of their file in /sys/module.
        """
        expected = {name: value == "1" for name, value in map(_split, self.parameters)}
        paging = [name for name in ("kvm_amd.npt", "kvm_intel.ept") if name in seen]
        if not paging:
            raise BootError(
                "The host does not say which MMU mode its KVM uses: neither kvm_amd.npt nor "
                "kvm_intel.ept is in /sys/module."
            )
        for name, value in expected.items():
            if name in seen and truth(seen[name]) != value:
                raise BootError(
                    f"The host did not take the MMU mode {self}: {name} was asked to be "
                    f"{'on' if value else 'off'}, but /sys/module says {seen[name]!r}."
                )


def parse(name: str) -> Mmu:
    """The mode of this name; raises UsageError that lists the modes."""
    try:
        return Mmu(name)
    except ValueError:
        raise UsageError(
            f"There is no MMU mode {name!r}; choose one of {', '.join(Mmu)}."
        ) from None


def truth(text: str) -> bool:
    """What a boolean module parameter says: Y and N, or 1 and 0 where it is an int."""
    return text.strip() in ("Y", "y", "1")


def _split(parameter: str) -> tuple[str, str]:
    name, _, value = parameter.partition("=")
    return name, value
