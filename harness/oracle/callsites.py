# SPDX-License-Identifier: GPL-2.0-only
"""Find every place of a kernel that calls an mmu notifier, from its vmlinux alone.

The notifiers are out of line functions behind an inlined test whether anybody registered, so each
place is a direct call or jump with a displacement of 32 bits. Looking for those that lead to a
notifier, at each byte of the text, takes a quarter of a second for 8 MiB; the chance that other
bytes look so is about one in three thousand. (Only mm/mmu_notifier.c itself is near enough for a
jump with 8 bits.) Debug information then says which function of the source each belongs to, also
where that was inlined.
"""

from __future__ import annotations

import dataclasses
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import drgn
import numpy as np
import numpy.typing as npt

from harness.errors import OracleUnavailable
from harness.kernel.model import Kernel
from harness.result.coverage import MODULES, Site

# What the primary MMU calls. Such a function is only called if an mm has notifiers.
_CALLED = re.compile(r"__mmu_notifier_\w+")
# What is called by whoever wants to be notified; modules do, which we do not search.
_REGISTRATION = re.compile(r"(?:__)?mmu_notifier_(?:register|unregister|get|put)\w*")
_HEADER = "include/linux/mmu_notifier.h"

_ELF_X86_64 = b"\x7fELF\x02\x01"
_LOAD = 1
_CALL, _JUMP, _ESCAPE = 0xE8, 0xE9, 0x0F
_WIDTH = 4


@dataclasses.dataclass(frozen=True)
class CallSites:
    """The sites of a kernel.

    ``entries`` are where each notifier begins, in bytes from _text, which is linked at ``text``;
    ``range_end`` is where struct mmu_notifier_range has its end, in bytes.
    """

    sites: tuple[Site, ...]
    entries: Mapping[str, int]
    text: int = 0
    range_end: int = 0


def call_sites(kernel: Kernel) -> CallSites:
    """The notifier sites of a kernel; raises OracleUnavailable where they cannot be found."""
    if kernel.vmlinux is None:
        raise OracleUnavailable(
            f"The kernel {kernel.release} has no vmlinux with debug information, so the places "
            "that call notifiers cannot be found."
        )
    try:
        image = _Image.read(kernel.vmlinux)
        program = _program(kernel.vmlinux, image)
        text = program.symbol("_text").address
        functions = _functions(program)
        range_end = program.type("struct mmu_notifier_range").member("end").offset
    except (OSError, ValueError, LookupError, struct.error) as error:
        raise OracleUnavailable(
            f"The places that call notifiers cannot be found in {kernel.vmlinux}: {error}."
        ) from error
    found: dict[Site, list[int]] = {}
    for section in image.text:
        for address, target in branches(section.data, section.address, list(functions)):
            site = _site(program, functions[target], address)
            if site.function == site.notifier:
                continue  # a loop of its own
            found.setdefault(site, []).append(address - text)
    sites = [dataclasses.replace(site, offsets=tuple(found[site])) for site in found]
    called = {site.notifier for site in sites}
    exported = [name for name in functions.values() if _exported(program, name)]
    sites += [Site(name, MODULES) for name in exported]
    entries = {
        name: address - text
        for address, name in functions.items()
        if name in called or name in exported
    }
    return CallSites(tuple(sites), entries, text, range_end)


def branches(
    code: npt.NDArray[np.uint8], base: int, targets: list[int]
) -> Iterator[tuple[int, int]]:
    """The direct branches in ``code``, which begins at address ``base``, to one of ``targets``.

    Pairs of the instruction's address and its target. Conditional jumps are among them, since a
    compiler may end a function with one.
    """
    wanted = np.array(targets, np.uint64)
    found: list[tuple[int, int]] = []
    for shift in range(_WIDTH):
        words = (len(code) - shift) // _WIDTH
        at = shift + _WIDTH * np.arange(words, dtype=np.int64)
        jump = code[shift : shift + _WIDTH * words].view("<i4").astype(np.int64)
        # Addresses of the kernel are negative as signed numbers; they wrap as the processor's do.
        target = (at + jump + _WIDTH).astype(np.uint64) + np.uint64(base)
        for index in np.flatnonzero(np.isin(target, wanted)):
            found.append((int(at[index]), int(target[index])))
    for position, address in sorted(found):
        if (length := _opcode(code, position)) is not None:
            yield base + position - length, address


def _opcode(code: npt.NDArray[np.uint8], position: int) -> int | None:
    """The length of the branch's opcode before a displacement, or None if it is no branch."""
    if position >= 1 and code[position - 1] in (_CALL, _JUMP):
        return 1
    conditional = position >= 2 and code[position - 2] == _ESCAPE
    return 2 if conditional and code[position - 1] & 0xF0 == 0x80 else None


@dataclasses.dataclass(frozen=True)
class _Section:
    """Code and its address."""

    address: int
    data: npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class _Image:
    """What of a vmlinux matters here: the addresses it occupies, and its text."""

    first: int
    last: int
    text: tuple[_Section, ...]

    @classmethod
    def read(cls, path: Path) -> _Image:
        """Read it; raises ValueError when it is no kernel."""
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if data[: len(_ELF_X86_64)] != _ELF_X86_64:
            raise ValueError("it is no 64-bit ELF file")
        segments, headers = struct.unpack_from("<QQ", data, 32)
        size, number, width, count, names = struct.unpack_from("<HHHHH", data, 54)
        spans = [
            (address, address + length)
            for kind, address, length in (
                struct.unpack_from("<I12xQ16xQ", data, segments + size * index)
                for index in range(number)
            )
            # The per-CPU data has addresses of its own, at zero.
            if kind == _LOAD and address
        ]
        if not spans:
            raise ValueError("it has nothing to be loaded")
        sections = [
            struct.unpack_from("<I12xQQQ", data, headers + width * index) for index in range(count)
        ]
        strings = sections[names][2]
        text = tuple(
            _Section(address, np.frombuffer(data, np.uint8, length, offset))
            for name, address, offset, length in sections
            if re.match(rb"\.text[.\0]", data[strings + name : strings + name + 6])
        )
        return cls(min(first for first, _ in spans), max(last for _, last in spans), text)


def _program(vmlinux: Path, image: _Image) -> drgn.Program:
    """A program without memory that knows the symbols and lines of a vmlinux where it is linked."""
    program = drgn.Program()
    module = program.extra_module(vmlinux.name, create=True)
    # Any other beginning would move all its addresses.
    module.address_range = (image.first, image.last)
    module.try_file(str(vmlinux))
    if module.debug_file_status is not drgn.ModuleFileStatus.HAVE:
        raise ValueError("it has no debug information")
    return program


def _functions(program: drgn.Program) -> dict[int, str]:
    """Address -> name of what a site may call."""
    functions = {
        symbol.address: symbol.name
        for symbol in program.symbols()
        if symbol.kind is drgn.SymbolKind.FUNC
        and (_CALLED.fullmatch(symbol.name) or _REGISTRATION.fullmatch(symbol.name))
    }
    if not functions:
        raise LookupError("it has no mmu notifiers")
    return functions


def _exported(program: drgn.Program, name: str) -> bool:
    if not _REGISTRATION.fullmatch(name):
        return False
    try:
        program.symbol(f"__ksymtab_{name}")
    except LookupError:
        return False
    return True


def _site(program: drgn.Program, notifier: str, address: int) -> Site:
    """Where in the source an instruction comes from; the wrappers of the header are no place."""
    try:
        frames = [
            (frame.name() or "", frame.filename, frame.line)
            for frame in program.source_location(address)
            if not frame.filename.endswith(_HEADER)
        ]
    except LookupError:
        frames = []
    if not frames:
        return Site(notifier, _symbol(program, address))
    function, file, line = frames[0]
    callers = tuple(name for name, _, _ in frames[1:])
    return Site(notifier, function or _symbol(program, address), _short(file), line, callers)


def _symbol(program: drgn.Program, address: int) -> str:
    """The function by the symbol table, without what the compiler appended to its name."""
    try:
        name: str = program.symbol(address).name
    except LookupError:
        return f"{address:#x}"
    return name.partition(".")[0]


def _short(file: str) -> str:
    return file.removeprefix("./")
