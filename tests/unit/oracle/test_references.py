# SPDX-License-Identifier: GPL-2.0-only
"""The model of how many references a page may have."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.oracle.references import Difference, differences, expected_references
from harness.oracle.structpage import PageStates


@dataclasses.dataclass(frozen=True)
class Page:
    """One frame, as the table below writes it down; ``head`` is an index into that table."""

    refcount: int = 1
    mapcount: int = 1
    pages: int = 1
    head: int | None = None
    anon: bool = True
    swap_cache: bool = False
    page_cache: bool = False
    private: bool = False
    device: bool = False
    reserved: bool = False


def states(*pages: Page) -> PageStates:
    def flags(name: str) -> Any:
        return np.array([getattr(page, name) for page in pages], np.bool_)

    def counts(name: str) -> Any:
        return np.array([getattr(page, name) for page in pages], np.int64)

    heads = [index if page.head is None else page.head for index, page in enumerate(pages)]
    return PageStates(
        pfn=np.arange(0x1000, 0x1000 + len(pages), dtype=np.uint64),
        head=np.array(heads, np.uint64) + np.uint64(0x1000),
        if_cached=counts("pages"),
        refcount=counts("refcount"),
        mapcount=counts("mapcount"),
        anon=flags("anon"),
        swap_cache=flags("swap_cache"),
        page_cache=flags("page_cache"),
        private=flags("private"),
        device=flags("device"),
        reserved=flags("reserved"),
    )


def found(*pages: Page) -> tuple[Difference, ...]:
    return differences(np.arange(len(pages), dtype=np.int64), states(*pages))


FILE = Page(anon=False, page_cache=True)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        pytest.param(Page(), 1, id="anonymous, mapped once"),
        pytest.param(Page(mapcount=2), 2, id="anonymous, mapped by a child too"),
        pytest.param(Page(swap_cache=True), 2, id="in the swap cache"),
        pytest.param(Page(mapcount=0, swap_cache=True), 1, id="only in the swap cache"),
        pytest.param(FILE, 2, id="in the page cache"),
        pytest.param(dataclasses.replace(FILE, private=True), 3, id="with buffer heads"),
        pytest.param(dataclasses.replace(FILE, mapcount=0), 1, id="not mapped"),
        pytest.param(Page(mapcount=0), 0, id="free"),
        pytest.param(Page(pages=512), 1, id="a large page, mapped as a whole"),
        pytest.param(Page(pages=512, mapcount=512), 512, id="a large page, mapped page by page"),
        pytest.param(Page(pages=512, mapcount=3), 3, id="a large page, mapped in part"),
        pytest.param(Page(pages=512, swap_cache=True), 513, id="a large page in the swap cache"),
        pytest.param(
            dataclasses.replace(FILE, pages=512, mapcount=0), 512, id="a large page of a file"
        ),
        pytest.param(
            # Buffer heads are the folio's, however large it is.
            dataclasses.replace(FILE, pages=16, mapcount=2, private=True),
            19,
            id="a large page of a file with buffer heads",
        ),
        pytest.param(
            dataclasses.replace(FILE, mapcount=0, device=True), 1, id="of a device, not counted"
        ),
        pytest.param(
            dataclasses.replace(FILE, mapcount=2, device=True), 2, id="of a device, counted"
        ),
    ],
)
def test_a_page_has_a_reference_for_each_reason(page: Page, expected: int) -> None:
    assert expected_references(states(page)).tolist() == [expected]
    right = dataclasses.replace(page, refcount=expected)
    assert found(right) == ()
    one_more = dataclasses.replace(page, refcount=expected + 1)
    assert [each.found - each.expected for each in found(one_more)] == [1]
    one_less = dataclasses.replace(page, refcount=expected - 1)
    assert [each.found - each.expected for each in found(one_less)] == [-1]


def test_a_difference_names_page_frame_and_counts() -> None:
    pages = np.array([17, 40, 41], np.int64)
    (difference,) = differences(pages, states(Page(), Page(refcount=2), Page()))
    assert difference == Difference(page=40, pfn=0x1001, expected=1, found=2, mapcount=1)
    said = str(difference)
    for part in ("page 40", "0x1001", "2 references instead of 1", "mapcount 1"):
        assert part in said


def test_references_of_reserved_frames_are_nobodys_business() -> None:
    zero_page = Page(refcount=1, mapcount=0, anon=False, reserved=True)
    assert [each.page for each in found(zero_page, Page(refcount=3))] == [1]


def test_a_large_folio_is_named_once_by_its_first_page_here() -> None:
    def folio(head: int, refcount: int) -> Page:
        return Page(pages=4, mapcount=4, refcount=refcount, head=head)

    # Two folios, the second in a guest that maps it from its third page on.
    pages = [folio(0, 5)] * 4 + [Page()] + [folio(7, 6)] * 2
    found_here = differences(np.arange(30, 37, dtype=np.int64), states(*pages))
    assert [(each.page, each.found, each.expected) for each in found_here] == [
        (30, 5, 4),
        (35, 6, 4),
    ]
    assert found(*[folio(0, 4)] * 4) == ()


def test_nothing_is_wrong_with_no_page() -> None:
    assert found() == ()


def test_many_differences_stand_in_the_order_of_the_guest() -> None:
    pages = [Page(refcount=2 if index % 64 == 0 else 1) for index in range(16384)]
    wrong = found(*pages)
    assert [each.page for each in wrong] == list(range(0, 16384, 64))


some_pages = st.lists(
    st.builds(
        Page,
        refcount=st.just(0),
        mapcount=st.integers(0, 5),
        pages=st.sampled_from([1, 2, 512]),
        anon=st.booleans(),
        swap_cache=st.booleans(),
        page_cache=st.booleans(),
        private=st.booleans(),
        reserved=st.booleans(),
    ),
    min_size=1,
    max_size=30,
)


@given(pages=some_pages, data=st.data())
def test_references_that_are_added_to_a_page_are_that_difference_and_no_other(
    pages: list[Page], data: st.DataObject
) -> None:
    expected = expected_references(states(*pages)).tolist()
    right = [
        dataclasses.replace(page, refcount=count)
        for page, count in zip(pages, expected, strict=True)
    ]
    assert found(*right) == ()
    victim = data.draw(st.integers(0, len(pages) - 1))
    more = data.draw(st.integers(-5, 5).filter(bool))
    right[victim] = dataclasses.replace(right[victim], refcount=expected[victim] + more)
    mapcount = pages[victim].mapcount
    difference = Difference(
        victim, 0x1000 + victim, expected[victim], expected[victim] + more, mapcount
    )
    assert found(*right) == (() if pages[victim].reserved else (difference,))
