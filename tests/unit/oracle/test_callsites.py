# SPDX-License-Identifier: GPL-2.0-only
"""Notifier sites, found in kernels of a few functions that a real compiler made."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.errors import OracleUnavailable
from harness.kernel.model import Kernel
from harness.oracle.callsites import CallSites, branches, call_sites
from harness.result.coverage import MODULES, Site

BASE = 0xFFFF_FFFF_8100_0000
START = "__mmu_notifier_invalidate_range_start"
YOUNG = "__mmu_notifier_clear_young"

HEADER = """\
extern int notifiers;
void __mmu_notifier_invalidate_range_start(void);
int __mmu_notifier_clear_young(long);
static inline __attribute__((always_inline)) void mmu_notifier_invalidate_range_start(void)
{
	if (notifiers)
		__mmu_notifier_invalidate_range_start();
}
"""

MM = """\
#include <linux/mmu_notifier.h>
int notifiers;
struct mmu_notifier_range { void *mm; long start, end; } range;
extern volatile int work;
volatile int work;

__attribute__((noipa)) void __mmu_notifier_invalidate_range_start(void) { work = 1; }
__attribute__((noipa)) int __mmu_notifier_clear_young(long at) { work = at; return work; }
__attribute__((noipa)) void __mmu_notifier_nobody_calls(void) { work = 3; }
__attribute__((noipa)) void mmu_notifier_register(void) { work = 4; }
void *__ksymtab_mmu_notifier_register = mmu_notifier_register;

static inline __attribute__((always_inline)) void wp_page_copy(void)
{
	work = 5;
	mmu_notifier_invalidate_range_start();
	work = 6;
}

void do_wp_page(void)
{
	work = 7;
	wp_page_copy();
}

/* As far from what it calls as a file of its own would be. */
__attribute__((aligned(512))) int ends_with_a_jump(long at)
{
	return __mmu_notifier_clear_young(at + 1);
}

void asks_nobody(void) { work = 8; }
void _start(void) { work = 9; }
"""

Build = Callable[..., Kernel]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compiles and links a kernel where kernels are linked."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("There is no gcc here.")

    def build(text: str = MM, *options: str) -> Kernel:
        directory = tmp_path_factory.mktemp("kernel")
        header = directory / "include" / "linux" / "mmu_notifier.h"
        header.parent.mkdir(parents=True)
        header.write_text(HEADER)
        (directory / "mm").mkdir()
        (directory / "mm" / "memory.c").write_text(text)
        argv = [
            *(gcc, "-O2", "-g", "-Iinclude", "-ffreestanding", "-fno-pic", "-no-pie"),
            *("-mcmodel=kernel", "-nostdlib", "-static", "-fno-asynchronous-unwind-tables"),
            *(f"-Wl,-Ttext={BASE:#x}", "-Wl,-z,max-page-size=4096"),
            *(f"-Wl,--defsym=_text={BASE:#x},--build-id=none", *options),
            *("-o", "vmlinux", "mm/memory.c"),
        ]
        subprocess.run(argv, cwd=directory, check=True, timeout=60)
        vmlinux = directory / "vmlinux"
        return Kernel(vmlinux, "6.12.0", "0" * 64, "test", vmlinux=vmlinux)

    return build


@pytest.fixture(scope="module")
def kernel(build: Build) -> Kernel:
    return build()


@pytest.fixture(scope="module")
def found(kernel: Kernel) -> CallSites:
    return call_sites(kernel)


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(MM.splitlines(), 1) if text in line)


def test_an_inlined_site_is_where_its_source_is(found: CallSites) -> None:
    (site,) = [site for site in found.sites if site.notifier == START]
    assert site.function == "wp_page_copy", "not the wrapper of the header"
    assert site.callers == ("do_wp_page",)
    assert site.file == "mm/memory.c"
    assert site.line == line_of("	mmu_notifier_invalidate_range_start();")


def test_a_call_at_the_end_that_became_a_jump_is_found(found: CallSites) -> None:
    (site,) = [site for site in found.sites if site.notifier == YOUNG]
    assert site.function == "ends_with_a_jump"
    assert site.callers == ()


def test_offsets_lead_to_the_branches_themselves(kernel: Kernel, found: CallSites) -> None:
    assert kernel.vmlinux is not None
    assert found.entries.keys() == {START, YOUNG, "mmu_notifier_register"}
    objdump = shutil.which("objdump")
    assert objdump is not None, "it comes with gcc's linker"
    said = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", kernel.vmlinux],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    lines = {
        int(line.split(":")[0], 16): line
        for line in said.splitlines()
        if line.startswith("ffffffff") and ":\t" in line
    }
    seen = 0
    for site in found.sites:
        for offset in site.offsets:
            assert f"<{site.notifier}>" in lines[BASE + offset]
            seen += 1
    assert seen == 2


def test_a_notifier_that_begins_anew_is_no_site(build: Build) -> None:
    far = '__asm__ volatile (".skip 300, 0x90");'
    again = MM.replace("{ work = at; return work; }", f"{{ for (;;) {{ work = at; {far} }} }}")
    sites = call_sites(build(again)).sites
    assert [site.function for site in sites if site.notifier == YOUNG] == ["ends_with_a_jump"]


def test_it_is_known_where_the_kernel_is_and_where_a_range_ends(found: CallSites) -> None:
    assert (found.text, found.range_end) == (BASE, 16)


def test_what_modules_call_is_a_site_of_theirs(found: CallSites) -> None:
    assert [site for site in found.sites if site.function == MODULES] == [
        Site("mmu_notifier_register", MODULES)
    ]


def test_the_same_source_that_was_compiled_twice_is_one_site(build: Build) -> None:
    twice = MM + "\nvoid again(void) { work = 10; wp_page_copy(); }\n"
    sites = [site for site in call_sites(build(twice)).sites if site.notifier == START]
    # Its callers differ, and they tell who can get there.
    assert sorted(site.callers for site in sites) == [("again",), ("do_wp_page",)]
    copies = "	if (work) { wp_page_copy(); work = 11; } else { wp_page_copy(); work = 12; }"
    unrolled = MM.replace("	wp_page_copy();", copies)
    (site,) = [site for site in call_sites(build(unrolled)).sites if site.notifier == START]
    assert len(site.offsets) == 2


def test_a_kernel_without_debug_information_cannot_be_asked(build: Build) -> None:
    with pytest.raises(OracleUnavailable, match="no debug information"):
        call_sites(build(MM, "-s"))
    nothing = Kernel(Path("bzImage"), "6.1.0", "0" * 64, "test")
    with pytest.raises(OracleUnavailable, match=r"6\.1\.0 has no vmlinux"):
        call_sites(nothing)


def test_a_kernel_without_notifiers_cannot_be_asked(build: Build) -> None:
    with pytest.raises(OracleUnavailable, match="no mmu notifiers"):
        call_sites(build("struct mmu_notifier_range { long end; } r; void _start(void) {}"))


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(90), bytes(4096)])
def test_a_file_that_is_no_kernel_cannot_be_asked(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(data)
    with pytest.raises(OracleUnavailable, match="vmlinux"):
        call_sites(Kernel(path, "6.12.0", "0" * 64, "test", vmlinux=path))


# The search by itself.


def code(*instructions: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(instructions), np.uint8)


def near(opcode: bytes, at: int, target: int) -> bytes:
    """A branch at offset ``at`` to offset ``target``."""
    distance = target - (at + len(opcode) + 4)
    return opcode + distance.to_bytes(4, "little", signed=True)


@pytest.mark.parametrize("shift", range(5))
@pytest.mark.parametrize("opcode", [b"\xe8", b"\xe9", b"\x0f\x84", b"\x0f\x8f"])
@pytest.mark.parametrize("target", [0, 0x40, 0x1000, -0x2000])
def test_direct_branches_are_found_at_any_alignment(shift: int, opcode: bytes, target: int) -> None:
    text = code(b"\x90" * shift, near(opcode, shift, target), b"\x90" * 7)
    assert list(branches(text, BASE, [BASE + target])) == [(BASE + shift, BASE + target)]
    assert list(branches(text, BASE, [BASE + target + 1])) == []


@pytest.mark.parametrize("opcode", [b"\x48\x8d\x3d", b"\xff\x25", b"\x00\x84", b"\x0f\x94"])
def test_what_only_mentions_a_notifier_is_no_branch(opcode: bytes) -> None:
    text = code(near(opcode, 0, 0x40), b"\x90" * 8)
    assert list(branches(text, BASE, [BASE + 0x40])) == []


def test_padding_before_a_notifier_is_no_branch() -> None:
    # Its last four bytes are zero, as a displacement to the next instruction.
    padding = bytes.fromhex("662e0f1f840000000000")
    assert list(branches(code(padding, b"\xc3"), BASE, [BASE + len(padding)])) == []


def test_text_too_short_for_a_branch_has_none() -> None:
    for length in range(5):
        assert list(branches(code(b"\xe8" * length), BASE, [BASE])) == []
