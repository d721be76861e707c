# SPDX-License-Identifier: GPL-2.0-only
"""payload.h and layout.py say the same: compiled C against Python."""

from __future__ import annotations

import ctypes
import itertools
import random
import re
from pathlib import Path

import pytest
from c_program import numbers, printed

from harness import probe
from harness.probe import layout

PAYLOAD = Path(probe.__file__).parent / "payload"
HEADER = (PAYLOAD / "payload.h").read_text()
HEADERS = [f'"{PAYLOAD / "payload.h"}"']

CONSTANTS = re.findall(r"^#define (\w+) \S", HEADER, re.MULTILINE)
OPERATIONS = re.findall(r"^\t(OP_\w+) =", HEADER, re.MULTILINE)
FIELDS = re.findall(r"^\t(?:volatile )?u64 (\w+);", HEADER, re.MULTILINE)


def test_the_header_is_understood() -> None:
    assert len(CONSTANTS) >= 10
    assert len(OPERATIONS) >= 6
    assert len(FIELDS) >= 16


def test_every_constant_of_the_header_is_in_python_with_its_value(tmp_path: Path) -> None:
    said = numbers(CONSTANTS, HEADERS, tmp_path)
    assert said == {name: getattr(layout, name) for name in CONSTANTS}


def test_the_operations_are_the_same(tmp_path: Path) -> None:
    # An enumerator is no macro; the parentheses make it an expression.
    said = numbers([f"({name})" for name in OPERATIONS], HEADERS, tmp_path)
    ours = {f"({name})": getattr(layout, name) for name in vars(layout) if name.startswith("OP_")}
    assert said == {"(OP_NONE)": 0, **ours}
    assert len(set(said.values())) == len(said)


def test_the_mailbox_has_the_same_fields_at_the_same_offsets(tmp_path: Path) -> None:
    assert [name for name, *_ in layout.Mailbox._fields_] == FIELDS
    where = {f"offsetof(struct mailbox, {name})": name for name in FIELDS}
    said = numbers([*where, "sizeof(struct mailbox)"], HEADERS, tmp_path)
    assert said.pop("sizeof(struct mailbox)") == ctypes.sizeof(layout.Mailbox)
    assert said == {text: getattr(layout.Mailbox, name).offset for text, name in where.items()}


def test_the_pattern_is_the_same(tmp_path: Path) -> None:
    chance = random.Random(1)
    edges = [0, 1, 2, 511, 512, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
    inputs = [(seed, page, word) for seed in edges for page in edges for word in (0, 2, 511)]
    inputs += [
        (chance.getrandbits(64), chance.randrange(layout.MOST_PAGES), chance.randrange(512))
        for _ in range(2000)
    ]
    source = (
        '#include <stdio.h>\n#include "payload.h"\n'
        "int main(void) { u64 s, p, w;\n"
        'while (scanf("%lu %lu %lu", &s, &p, &w) == 3) printf("%lu\\n", pattern(s, p, w));\n'
        "return 0; }\n"
    )
    stdin = "".join(f"{seed} {page} {word}\n" for seed, page, word in inputs)
    text = printed(source, tmp_path, stdin=stdin, include=PAYLOAD)
    assert [int(line) for line in text.split()] == [layout.pattern(*each) for each in inputs]


def test_neighbours_have_different_patterns() -> None:
    # A page or word that is exchanged for another must not look right.
    seen = {
        layout.pattern(seed, page, word)
        for seed in (0, 1, 0x5EED)
        for page in range(64)
        for word in range(64)
    }
    assert len(seen) == 3 * 64 * 64


def test_nothing_in_the_control_memslot_overlaps() -> None:
    def stretch(start: int, size: int) -> range:
        return range(start, start + size)

    tables = (2 + layout.MAPPED_GIB) * layout.PAGE_BYTES
    again = layout.PAGE_BYTES  # a directory for what is mapped a second time
    vcpus = layout.MOST_VCPUS
    areas = {
        "page tables": stretch(layout.PAGE_TABLES_GPA, tables + again),
        "code": range(layout.CODE_GPA, layout.MAILBOX_GPA),
        "nested page tables": stretch(layout.NESTED_TABLES_GPA, tables),
        "control blocks": stretch(layout.VMCB_GPA, vcpus * layout.PAGE_BYTES),
        "host save areas": stretch(layout.HOST_SAVE_GPA, vcpus * layout.PAGE_BYTES),
        "permissions": stretch(layout.PERMISSIONS_GPA, 6 * layout.PAGE_BYTES),
        "mailboxes": stretch(layout.MAILBOX_GPA, vcpus * layout.PAGE_BYTES),
        "stacks": stretch(layout.STACK_TOP_GPA, (vcpus + 1) * layout.PAGE_BYTES),
        "lists": stretch(layout.LIST_GPA, vcpus * layout.LIST_BYTES),
        "ledgers": stretch(layout.LEDGER_GPA, vcpus * layout.LIST_BYTES),
    }
    in_order = sorted(areas.values(), key=lambda area: area.start)
    for one, next_ in itertools.pairwise(in_order):
        assert one.stop <= next_.start, areas
    assert in_order[-1].stop <= layout.CONTROL_GPA + layout.CONTROL_BYTES <= layout.MEMORY_GPA


@pytest.mark.parametrize("pages", [1, 512, 513, 2048, 16384, layout.MOST_PAGES])
def test_the_payload_touches_no_more_of_it_than_is_allowed_for(pages: int) -> None:
    # What a vcpu reads or writes besides the memory under test; lists and ledgers hold a word a
    # page. The directories of the last GiBs are never walked.
    gib = -(-(layout.MEMORY_GPA + pages * layout.PAGE_BYTES) // (1 << 30))
    each = 1 + 1 + 2 * -(-pages * 8 // layout.PAGE_BYTES)  # mailbox, stack, list, ledger
    touched = 2 + gib + 1 + 1 + layout.MOST_VCPUS * each
    assert touched <= layout.control_pages(pages) <= touched + 16, "a bound, and a close one"


def test_the_guest_can_reach_all_memory_that_it_may_have() -> None:
    assert layout.MEMORY_GPA % (1 << 30) == 0
    end = layout.MEMORY_GPA + layout.MOST_PAGES * layout.PAGE_BYTES
    assert end <= layout.MAPPED_GIB << 30
    assert layout.MAPPED_AGAIN >= layout.MAPPED_GIB << 30, "two mappings do not meet"


def test_each_vcpu_has_a_word_of_its_own_before_the_pattern() -> None:
    assert layout.MOST_VCPUS <= layout.FIRST_PATTERN_WORD


def test_the_linker_puts_the_code_where_the_vcpu_starts() -> None:
    found = re.search(r"^\t\. = (0x[0-9a-f]+);", (PAYLOAD / "payload.lds").read_text(), re.M)
    assert found is not None
    assert int(found[1], 16) == layout.CODE_GPA


def test_a_constant_that_differs_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "LIST_BYTES", layout.LIST_BYTES + 1)
    said = numbers(CONSTANTS, HEADERS, tmp_path)
    assert [name for name in CONSTANTS if said[name] != getattr(layout, name)] == ["LIST_BYTES"]
