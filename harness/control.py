# SPDX-License-Identifier: GPL-2.0-only
"""Controls: kernels with exactly one guarantee broken, on which the suite must fail.

A patch series below patches/controls/ adds a boot parameter, ``mmu_control=NAME[,NUMBER]``, so that
one build serves all controls and only one bit differs from the good run.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import harness
from harness.errors import PatchError, UsageError
from harness.kernel.reference import DebianSource, KernelReference, SourceTree

_CONTROLS = Path(harness.__file__).resolve().parent.parent / "patches" / "controls"
_NAME = re.compile(r'^\+\s*\[MMU_CONTROL_\w+\] = "([a-z0-9-]+)",$', re.MULTILINE)
_GIVEN = re.compile(r"([^,]+)(?:,([0-9]+))?")
_RANGE = re.compile(r"^# kernels: \[(\d+)\.(\d+), (\d+)\.(\d+)\)$", re.MULTILINE)
_MAKEFILE = re.compile(r"^(VERSION|PATCHLEVEL)\s*=\s*(\d+)\s*$", re.MULTILINE)

Version = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Control:
    """One broken guarantee for one kernel: the patches that add it and how to switch it on.

    ``number`` is what some controls count with; None leaves that to the kernel.
    """

    name: str
    patches: tuple[Path, ...]
    number: int | None = None

    @property
    def parameter(self) -> str:
        """The kernel parameter that breaks the guarantee."""
        number = "" if self.number is None else f",{self.number}"
        return f"mmu_control={self.name}{number}"

    @property
    def confirmation(self) -> str:
        """What the kernel prints when the guarantee is broken."""
        return f"mmu_control: {self.name} is on"


@dataclasses.dataclass(frozen=True)
class _Series:
    """A directory of patches for the kernels in the half-open range [first, until)."""

    patches: tuple[Path, ...]
    first: Version
    until: Version
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ControlSeries:
    """All controls for one kernel: the patches, and the names in the order of the series."""

    patches: tuple[Path, ...]
    names: tuple[str, ...]


def find_control(text: str, reference: KernelReference) -> Control:
    """The control that ``text`` means, ``NAME`` or ``NAME,NUMBER``, for a kernel.

    Raises UsageError for a name that no series has, or for a kernel that is built already, and
    PatchError when there is no series for kernels of this version.
    """
    known = sorted({known for series in _all_series() for known in series.names})
    given = _GIVEN.fullmatch(text)
    if given is None or given[1] not in known:
        raise UsageError(f"There is no control {text!r}; choose one of {', '.join(known)}.")
    name, number = given.groups()
    series = _series_for(reference)
    if series is None or name not in series.names:
        raise _absent(f"There is no control {name}", reference)
    return Control(name, series.patches, None if number is None else int(number))


def all_controls(reference: KernelReference) -> ControlSeries:
    """Every control for a kernel; raises as find_control does."""
    series = _series_for(reference)
    if series is None:
        raise _absent("There are no controls", reference)
    return ControlSeries(series.patches, series.names)


def _series_for(reference: KernelReference) -> _Series | None:
    version = _version(reference)
    return next(
        (series for series in _all_series() if series.first <= version < series.until), None
    )


def _absent(what: str, reference: KernelReference) -> PatchError:
    version = ".".join(map(str, _version(reference)))
    return PatchError(f"{what} for kernels of version {version}; add a series below {_CONTROLS}.")


def _all_series() -> list[_Series]:
    return [_read(path) for path in sorted(_CONTROLS.glob("*/series"))]


def _read(series: Path) -> _Series:
    text = series.read_text()
    found = _RANGE.search(text)
    if found is None:
        raise UsageError(f"{series} does not say for which kernels it is: '# kernels: [A.B, C.D)'.")
    a, b, c, d = map(int, found.groups())
    lines = [line.strip() for line in text.splitlines()]
    patches = tuple(series.parent / line for line in lines if line and not line.startswith("#"))
    names = tuple(name for patch in patches for name in _NAME.findall(patch.read_text()))
    return _Series(patches, (a, b), (c, d), names)


def _version(reference: KernelReference) -> Version:
    if isinstance(reference, DebianSource):
        major, minor = (int(part) for part in reference.version.split(".")[:2])
        return major, minor
    if isinstance(reference, SourceTree):
        numbers = dict(_MAKEFILE.findall((reference.path / "Makefile").read_text()))
        return int(numbers["VERSION"]), int(numbers["PATCHLEVEL"])
    raise UsageError(
        f"A control needs kernel source to be built from, but {reference.text} is built already; "
        "give a source tree or deb:linux-source-V."
    )
