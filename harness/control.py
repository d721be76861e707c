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
from harness.errors import PatchError, SourceError, UsageError
from harness.kernel.origin import release_of_source
from harness.kernel.reference import DebianSource, KernelReference
from harness.progress import Progress
from harness.store import Store

_CONTROLS = Path(harness.__file__).resolve().parent.parent / "patches" / "controls"
_NAME = re.compile(r'^\+\s*\[MMU_CONTROL_\w+\] = "([a-z0-9-]+)",$', re.MULTILINE)
_GIVEN = re.compile(r"([^,]+)(?:,([0-9]+))?")
_RANGE = re.compile(r"^# kernels: \[(\d+)\.(\d+), (\d+)\.(\d+)\)$", re.MULTILINE)
_RELEASE = re.compile(r"(\d+)\.(\d+)(?!\d)")

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
    """All controls for kernels of one version: the patches, and the names in their order."""

    version: Version
    patches: tuple[Path, ...]
    names: tuple[str, ...]

    def control(self, text: str) -> Control:
        """The control that ``text`` means; raises as find_control() does."""
        name, number = split(text)
        if name not in self.names:
            raise _absent(f"There is no control {name}", self.version)
        return Control(name, self.patches, number)


def find_control(
    text: str, reference: KernelReference, store: Store, progress: Progress
) -> Control:
    """The control that ``text`` means, ``NAME`` or ``NAME,NUMBER``, for a kernel.

    Raises UsageError for a name that no series has, or for a kernel that is built already,
    PatchError when there is no series for kernels of this version, and what source_of() raises.
    """
    split(text)  # a wrong name is told before a source is looked at, which may take a while
    return all_controls(reference, store, progress).control(text)


def all_controls(reference: KernelReference, store: Store, progress: Progress) -> ControlSeries:
    """Every control for a kernel; raises as find_control() does."""
    version = _version(reference, store, progress)
    for series in _all_series():
        if series.first <= version < series.until:
            return ControlSeries(version, series.patches, series.names)
    raise _absent("There are no controls", version)


def split(text: str) -> tuple[str, int | None]:
    """The name and the number in ``text``; raises UsageError for a name that no series has."""
    known = sorted({known for series in _all_series() for known in series.names})
    given = _GIVEN.fullmatch(text)
    if given is None or given[1] not in known:
        raise UsageError(f"There is no control {text!r}; choose one of {', '.join(known)}.")
    return given[1], None if given[2] is None else int(given[2])


def _absent(what: str, version: Version) -> PatchError:
    number = ".".join(map(str, version))
    return PatchError(f"{what} for kernels of version {number}; add a series below {_CONTROLS}.")


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


def _version(reference: KernelReference, store: Store, progress: Progress) -> Version:
    if isinstance(reference, DebianSource):
        # The package's name says it, before anything is fetched.
        release = reference.version
    else:
        release = release_of_source(reference, store, progress)
    numbers = _RELEASE.match(release)
    if numbers is None:
        raise SourceError(
            f"The Makefile of {reference.text} names no version (VERSION and PATCHLEVEL), so "
            "nothing tells which controls are for it."
        )
    return int(numbers[1]), int(numbers[2])
