# SPDX-License-Identifier: GPL-2.0-only
"""What was dropped is named, with the dependency that dropped it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import ExitCode, KconfigError
from harness.kernel.fragments import read_fragments
from harness.kernel.kconfig import check
from harness.kernel.kconfig_expression import conjuncts, evaluate, symbols
from harness.kernel.kconfig_reader import KconfigTree

_KCONFIG = """
mainmenu "Linux"
source "macros"
source "arch/$(SRCARCH)/Kconfig"
config NET
\tbool "Networking"   # a comment
\thelp
\t  config HIDDEN
\t  depends on NOTHING

\t    indented more
\t  if this were read, all would be broken

if NET && \\
   !ODD

menu "Swap"
\tdepends on MMU

config SWAP
\tbool "Swap"
\tdepends on BLOCK || COMPILE_TEST

config QUEUE
\ttristate "Queue" if EXPERT
\tselect NOTIFIER if SWAP

endmenu

choice
\tprompt "Preemption"

config PREEMPT
\tbool "Full"

config VOLUNTARY
\tbool "Some"

endchoice

endif # NET

config NOTIFIER
\tbool
\tdepends on MMU

config MACRO
\tbool "Needs a compiler"
\tdepends on $(cc-option,-mfoo(bar)) && MMU

config PLAIN
\tdef_bool y
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "arch/x86").mkdir(parents=True)
    (tmp_path / "Kconfig").write_text(_KCONFIG)
    (tmp_path / "macros").write_text(
        'if-success = $(shell,{ $(1); } >/dev/null && echo "$(2)")\nname := value\n'
    )
    (tmp_path / "arch/x86/Kconfig").write_text(
        'config KVM\n\ttristate "KVM"\n\tselect MMU_NOTIFIER\n\tdepends on X86_64 && VIRT\n'
        "config MMU_NOTIFIER\n\tbool\n"
    )
    return tmp_path


class _Heard:
    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield

    def update(self, text: str) -> None:
        """Not of interest."""

    def ended(self, name: str, seconds: float, *, well: bool) -> None:
        """Not of interest."""

    def note(self, text: str) -> None:
        self.notes.append(text)


_KVM = "CONFIG_KVM=m\nCONFIG_MMU_NOTIFIER=y\n"


def _check(tree: Path, fragment: str, config: str) -> list[str]:
    path = tree / "wanted.config"
    path.write_text(fragment)
    (tree / ".config").write_text(_KVM + config)
    heard = _Heard()
    check(tree, read_fragments([path]), heard)
    return heard.notes


def _told(tree: Path, fragment: str, config: str) -> str:
    with pytest.raises(KconfigError) as caught:
        _check(tree, fragment, config)
    assert caught.value.exit_code is ExitCode.UNTESTABLE
    return str(caught.value)


def test_all_kept(tree: Path) -> None:
    assert _check(tree, "CONFIG_NET=y\n# CONFIG_SWAP is not set\n", "CONFIG_NET=y\n") == []


def test_unknown_symbol_names_fragment_and_line(tree: Path) -> None:
    told = _told(tree, "CONFIG_NET=y\nCONFIG_HIDDEN=y\n", "CONFIG_NET=y\n")
    assert f"CONFIG_HIDDEN ({tree / 'wanted.config'}:2) does not exist in this kernel" in told


def test_unsatisfied_dependency_is_named(tree: Path) -> None:
    told = _told(tree, "CONFIG_SWAP=y\n", "CONFIG_NET=y\nCONFIG_MMU=y\n")
    assert "it depends on BLOCK || COMPILE_TEST (here BLOCK=n, COMPILE_TEST=n)." in told


def test_dependencies_of_if_and_menu_are_named(tree: Path) -> None:
    told = _told(tree, "CONFIG_SWAP=y\n", "CONFIG_BLOCK=y\nCONFIG_ODD=y\n")
    assert "NET (here NET=n) and on !ODD (here ODD=y) and on MMU (here MMU=n)" in told


def test_prompt_condition_is_named(tree: Path) -> None:
    told = _told(tree, "CONFIG_QUEUE=m\n", "CONFIG_NET=y\nCONFIG_MMU=y\n")
    assert "it depends on EXPERT (here EXPERT=n)" in told


def test_y_under_m_is_named(tree: Path) -> None:
    config = "CONFIG_NET=y\nCONFIG_MMU=y\nCONFIG_EXPERT=m\nCONFIG_QUEUE=m\n"
    told = _told(tree, "CONFIG_QUEUE=y\n", config)
    assert "became m: it depends on EXPERT (here EXPERT=m)" in told


def test_symbol_without_prompt_names_its_selector(tree: Path) -> None:
    told = _told(tree, "CONFIG_NOTIFIER=y\n", "CONFIG_MMU=y\n")
    assert "it cannot be set by hand, only be selected, as by CONFIG_QUEUE" in told
    told = _told(tree, "# CONFIG_PLAIN is not set\n", "CONFIG_PLAIN=y\n")
    assert "its Kconfig default decides" in told


def test_symbol_that_another_selects(tree: Path) -> None:
    told = _told(
        tree, "# CONFIG_NOTIFIER is not set\n", "CONFIG_QUEUE=m\nCONFIG_SWAP=y\nCONFIG_NOTIFIER=y\n"
    )
    assert "CONFIG_NOTIFIER=n" in told
    assert "became y: it is selected by CONFIG_QUEUE" in told


def test_choice_names_who_was_taken(tree: Path) -> None:
    told = _told(tree, "CONFIG_VOLUNTARY=y\n", "CONFIG_NET=y\nCONFIG_PREEMPT=y\n")
    assert "took CONFIG_PREEMPT" in told


def test_macro_is_not_judged_but_named(tree: Path) -> None:
    told = _told(tree, "CONFIG_MACRO=y\n", "CONFIG_MMU=y\n")
    assert "$(cc-option,-mfoo(bar)), which the compiler or a tool decides" in told


def test_optional_symbols_are_noted_only(tree: Path) -> None:
    notes = _check(
        tree,
        "CONFIG_NET=y\n\n# [optional] From 6.6.\nCONFIG_FUTURE=y\nCONFIG_SWAP=y\n",
        "CONFIG_NET=y\nCONFIG_MMU=y\n",
    )
    assert len(notes) == 2
    assert "CONFIG_FUTURE" in notes[0]
    assert "does not exist" in notes[0]
    assert "BLOCK" in notes[1]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("", "has no CONFIG_KVM"),
        ("# CONFIG_KVM is not set\n", "has no CONFIG_KVM"),
        ("CONFIG_KVM=y\n", "did not select CONFIG_MMU_NOTIFIER"),
    ],
)
def test_kernel_without_kvm_or_notifiers(tree: Path, config: str, says: str) -> None:
    (tree / ".config").write_text(config)
    with pytest.raises(KconfigError, match=says):
        check(tree, [], _Heard())


def test_reader_knows_blocks_and_places(tree: Path) -> None:
    kconfig = KconfigTree(tree)
    (swap,) = kconfig.definitions["SWAP"]
    assert swap.place == f"Kconfig:{_KCONFIG.splitlines().index('config SWAP') + 1}"
    assert swap.depends == ["NET &&     !ODD", "MMU", "BLOCK || COMPILE_TEST"]
    assert kconfig.definitions["PLAIN"][0].depends == []
    assert kconfig.selectors["MMU_NOTIFIER"] == [("KVM", "y")]
    assert "HIDDEN" not in kconfig.definitions


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A", 2),
        ("M", 1),
        ("N", 0),
        ("!M", 1),
        ("A && M", 1),
        ("N || M", 1),
        ("A && (N || !N)", 2),
        ("$(x) && N", 0),
        ("$(x) && A", None),
        ("$(x) || A", 2),
        ("!$(x)", None),
        ('"$(x)" != ""', None),
        ("NUMBER >= 100", 2),
        ("NUMBER<100", 0),
        ('TEXT = "a b"', 2),
        ("M = m", 2),
        ("M != y", 2),
        ("A &&", None),
        ("A ~ B", None),
        ("(A", None),
        ("y", 2),
    ],
)
def test_expressions(text: str, value: int | None) -> None:
    config = {"A": "y", "M": "m", "NUMBER": "120", "TEXT": "a b"}
    assert evaluate(text, config) == value


def test_expressions_are_split_where_all_parts_must_hold() -> None:
    assert conjuncts("A && (B || C) && !D") == ["A", "(B || C)", "!D"]
    assert conjuncts("A && B || C") == ["A && B || C"]
    assert symbols('KVM && !X86_64 || VERSION >= 100 && "text" = y') == ["KVM", "X86_64", "VERSION"]
