# SPDX-License-Identifier: GPL-2.0-only
"""The patch that brought MMU notifiers, as the document has it: a commit message, then the diff.

The document lies beside the checkout of whoever has it. A document of the same form that is made
here stands in for it everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from preimages import postimage, source_for

from harness.kernel.hunks import Status, apply
from harness.kernel.landmarks import target
from harness.kernel.series import Patch, read_series

_DOCUMENT = "shared/mission/mmu-notifiers-core.txt"

_PROSE = """\
notifiers: the gist
Words that explain it, with a piece of code that is not part of the patch:
 struct kvm *create(void)
 {
+       int err;
        return kvm;
 }
Signed-off-by: Somebody <somebody@example.org>
"""


def _made() -> bytes:
    """Fifteen files, two of them new, and the last line without its end."""
    parts = [_PROSE]
    for number in range(13):
        word = "\tunsigned long num_exe_file_vmas;" if number == 1 else f"\tint x{number};"
        parts.append(
            f"diff --git a/mm/f{number}.c b/mm/f{number}.c\nindex 8d45fab..ce3251c 100644\n"
            f"--- a/mm/f{number}.c\n+++ b/mm/f{number}.c\n"
            f"@@ -{number + 3},4 +{number + 3},5 @@\n {word}\n+\tcall{number}();\n \n"
            " \tgo();\n }\n"
            f"@@ -{number + 60},3 +{number + 61},3 @@\n before{number}\n-old\n+new\n after\n"
        )
    for name in ("include/linux/mmu_notifier.h", "mm/mmu_notifier.c"):
        parts.append(
            f"diff --git a/{name} b/{name}\nnew file mode 100644\nindex 0000000..b77486d\n"
            f"--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,3 @@\n+/* {name} */\n+\n+int x;\n"
        )
    return "".join(parts).encode().rstrip(b"\n")


@pytest.fixture(params=["made here", "the document"])
def patch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Patch]:
    if request.param == "made here":
        path = tmp_path / "document.txt"
        path.write_bytes(_made())
    else:
        beside = [directory / _DOCUMENT for directory in Path(__file__).resolve().parents]
        found = next((candidate for candidate in beside if candidate.is_file()), None)
        if found is None:
            pytest.skip(f"there is no {_DOCUMENT} beside this checkout")
        path = found
    before = path.read_bytes()
    (patch,) = read_series([path])
    yield patch
    assert path.read_bytes() == before


def test_fifteen_files_are_named(patch: Patch) -> None:
    assert len(patch.paths) == 15
    created = {file.path() for file in patch.files if file.creates}
    assert created == {"mm/mmu_notifier.c", "include/linux/mmu_notifier.h"}
    assert "notifiers: " in patch.subject


def test_the_kernels_that_it_was_made_for_are_known(patch: Patch) -> None:
    found = target(patch)
    assert str(found) == "2.6.26 to 2.6.27-rc1"
    assert found is not None
    assert not found.excludes("2.6.26.8")
    assert found.excludes("6.12.1")


def test_it_applies_cleanly_to_what_it_was_made_for(patch: Patch, tmp_path: Path) -> None:
    root = source_for(patch, tmp_path / "source")
    report = apply(patch, root)
    assert report.status is Status.APPLIED
    assert [file.status for file in report.files] == [Status.APPLIED] * 15
    assert all(hunk.offset == 0 for file in report.files for hunk in file.hunks)
    for file in patch.files:
        made = (root / file.path()).read_bytes()
        if file.creates:
            assert made == postimage(file)
        added = [line[1:] for hunk in file.hunks for line in hunk.text.split(b"\n")[1:]
                 if line.startswith(b"+")]  # fmt: skip
        assert added
        assert set(added) <= set(made.split(b"\n"))
    assert apply(patch, root).status is Status.ALREADY


def test_it_applies_with_offset_to_a_neighbour(patch: Patch, tmp_path: Path) -> None:
    report = apply(patch, source_for(patch, tmp_path / "source", shift=3))
    assert report.status is Status.OFFSET
    assert {file.status for file in report.files} == {Status.OFFSET, Status.APPLIED}
    moved = {
        hunk.offset
        for file, diff in zip(report.files, patch.files, strict=True)
        for hunk in file.hunks
        if not diff.creates
    }
    assert moved == {3}


def test_it_is_not_applicable_where_notifiers_are(patch: Patch, tmp_path: Path) -> None:
    root = tmp_path / "modern"
    (root / "mm").mkdir(parents=True)
    (root / "mm/mmu_notifier.c").write_text("/* as of today */\n")
    report = apply(patch, root)
    assert report.status is Status.REJECTED
    assert report.verdict == "not applicable: this tree already has mm/mmu_notifier.c"
    assert len(report.files) == 15
