# SPDX-License-Identifier: GPL-2.0-only
"""Fragments say what is wanted, where, and how much."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.kernel.fragments import Request, merged, project_fragments, read_fragments


def _fragment(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_reads_values_places_and_blocks(tmp_path: Path) -> None:
    path = _fragment(
        tmp_path,
        "a.config",
        "# Why.\nCONFIG_KVM=m\nCONFIG_NR_CPUS=16\n\n"
        "# [optional] New in 6.6.\nCONFIG_NEW=y\n# CONFIG_OLD is not set\n\n"
        '# CONFIG_OFF is not set\nCONFIG_TEXT="a b"\n',
    )
    assert read_fragments([path]) == (
        Request("KVM", "m", False, path, 2),
        Request("NR_CPUS", "16", False, path, 3),
        Request("NEW", "y", True, path, 6),
        Request("OLD", "n", True, path, 7),
        Request("OFF", "n", False, path, 9),
        Request("TEXT", '"a b"', False, path, 10),
    )


def test_the_last_request_wins_and_is_merged_once(tmp_path: Path) -> None:
    first = _fragment(tmp_path, "a.config", "CONFIG_A=y\nCONFIG_B=y\n")
    second = _fragment(tmp_path, "b.config", "# CONFIG_A is not set\n")
    requests = read_fragments([first, second])
    assert merged(requests) == "CONFIG_B=y\n# CONFIG_A is not set\n"
    assert requests[1].where == f"{second}:1"


@pytest.mark.parametrize(
    ("value", "config", "satisfied"),
    [
        ("y", {"A": "y"}, True),
        ("y", {"A": "m"}, False),
        ("m", {"A": "y"}, False),
        ("y", {}, False),
        ("n", {}, True),
        ("n", {"A": "y"}, False),
        ('"a b"', {"A": "a b"}, True),
        ("16", {"A": "17"}, False),
    ],
)
def test_satisfaction_is_exact(value: str, config: dict[str, str], satisfied: bool) -> None:
    assert Request("A", value, False, Path("f"), 1).satisfied_by(config) is satisfied


@pytest.mark.parametrize("line", ["KVM=y", "CONFIG_KVM", "CONFIG_KVM=maybe", "CONFIG_KVM = y"])
def test_a_line_that_means_nothing(tmp_path: Path, line: str) -> None:
    path = _fragment(tmp_path, "a.config", f"CONFIG_A=y\n{line}\n")
    with pytest.raises(UsageError, match=r"a\.config:2: .*not a line of a kernel config"):
        read_fragments([path])


def test_unreadable_fragments(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_fragments([tmp_path / "none"])
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_fragments([tmp_path])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UsageError, match="not a text file"):
        read_fragments([tmp_path / "binary"])


def test_the_projects_fragments_ask_for_kvm_and_explain_every_block() -> None:
    paths = project_fragments()
    asked = {request.symbol: request for request in read_fragments(paths)}
    assert asked["KVM"].value == "m"
    assert not asked["KVM"].optional
    for path in paths:
        for block in path.read_text().strip().split("\n\n"):
            assert block.startswith("# "), f"{path}: no reason above {block.splitlines()[0]}"


def test_no_symbol_is_asked_for_twice_by_the_project() -> None:
    paths = project_fragments()
    together = read_fragments(paths)
    assert len(together) == sum(len(read_fragments([path])) for path in paths)
