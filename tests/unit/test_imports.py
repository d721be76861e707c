# SPDX-License-Identifier: GPL-2.0-only
"""The rooms of docs/architecture.md, kept apart by reading every import."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "harness").rglob("*.py"))

VOCABULARY = {"errors", "deadline", "command", "janitor", "progress", "store"}
DOORS = {"__main__", "cli", "housekeeping", "options", "suite"} | {
    "plugin",
    "wishing",
    "items",
    "distributed",
}

ROOMS = {"kernel", "image", "machine", "guest", "linux_guest", "oracle", "result"}

# What each room may import besides itself. A door may import everything.
MAY_IMPORT = {
    **dict.fromkeys(VOCABULARY, VOCABULARY),
    "kernel": VOCABULARY,
    "image": VOCABULARY | {"kernel"},
    "machine": VOCABULARY | {"kernel", "image"},
    # L0 shares the layout of a guest's memory and the words of the protocol with the probe.
    "guest": VOCABULARY | {"kernel", "image", "machine", "probe"},
    # A Linux guest is seen from L0 as a probe guest is: through the agent, in the same words.
    "linux_guest": VOCABULARY | {"kernel", "image", "machine", "guest"},
    # An oracle reports in the words of the result room.
    "oracle": VOCABULARY | {"kernel", "image", "machine", "guest", "probe", "result"},
    "result": {"errors"},
    "bisect": VOCABULARY | {"kernel", "machine", "result"},
    "control": VOCABULARY | {"kernel"},
    "doctor": VOCABULARY | {"machine"},
    "catalogue": set[str](),
    "kill_matrix": {"catalogue", "errors", "result"},
    "comparison": set[str](),
    "display": {"errors", "progress", "result", "kill_matrix"},
    "ci": {"errors", "result"},
    # What both doors share: one run, put together from all rooms.
    "workbench": VOCABULARY | ROOMS | {"control"},
    "coverage": VOCABULARY | ROOMS,
    "secondary": VOCABULARY | ROOMS | {"workbench", "secondary_mmu"},
    "run": VOCABULARY | ROOMS | {"control", "workbench", "coverage", "secondary"},
    "crew": set[str](),
    "forked": {"crew", "deadline"},
    "spread": {"errors", "result", "run", "crew"},
    # What runs the product itself, again and again, and what measures with it.
    "campaign": VOCABULARY
    | {"kernel", "machine", "result"}
    | {"control", "workbench", "catalogue", "kill_matrix", "crew", "forked"},
    "comparing": VOCABULARY | {"kernel", "result", "control", "workbench", "comparison", "measure"},
    "soak": VOCABULARY | ROOMS | {"workbench"},
    "measure": {"errors", "guest", "oracle", "result", "comparison"},
    "probe": set[str](),
    # C, but for a word on what it is.
    "secondary_mmu": set[str](),
    "__init__": set[str](),
}

# Who may know a library or a module that is dangerous or easily spreads.
OWNERS = {
    "click": {"cli", "housekeeping", "options"},
    "drgn": {"machine", "oracle"},
    "fabric": {"machine"},
    "jinja2": {"image", "result"},
    "paramiko": {"machine"},
    "pytest": {"plugin", "suite", "wishing", "items", "distributed"},
    "_pytest": {"plugin"},
    "qemu": {"machine"},
    "rich": {"display", "cli"},
}

# Ways to start programs; others may know the types of subprocess, to wait for what command.py
# started.
STARTERS = {"command", "janitor"}
STARTING_CALLS = {
    *(("os", name) for name in ("system", "popen", "posix_spawn", "posix_spawnp", "fork")),
    *(("subprocess", name) for name in ("Popen", "run", "call", "check_call", "check_output")),
    *(("subprocess", name) for name in ("getoutput", "getstatusoutput")),
    *(("asyncio", name) for name in ("create_subprocess_exec", "create_subprocess_shell")),
    ("pty", "spawn"),
}

LONGEST_MODULE = 450
SOURCES = {".py", ".c", ".h", ".S", ".lds", ".ini", ".j2", ".config", ".sh"}


def room(path: Path) -> str:
    """The first name below ``harness``: a room's, or that of a module without one."""
    return path.relative_to(ROOT / "harness").with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere in it, with absolute names."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join((*base, *([node.module] if node.module else [])))
            # "from harness import command" imports a room by its name.
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _starting(node: ast.AST) -> Iterator[str]:
    """The calls in a node that start a program, or hand one a shell string."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        name = owner.id if isinstance(owner, ast.Name) else ""
        if (name, node.func.attr) in STARTING_CALLS:
            yield f"{name}.{node.func.attr} in line {node.lineno}"
    if isinstance(node, ast.keyword) and node.arg == "shell":
        yield f"a shell string in line {node.value.lineno}"


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    own = room(path)
    if own in DOORS:
        return
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("harness.")}
    rooms = ours & (MAY_IMPORT.keys() | DOORS)
    assert own in MAY_IMPORT, f"say in docs/architecture.md and here what room {own} may import"
    assert rooms - {own} <= MAY_IMPORT[own]


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_library_is_known_only_to_its_owner(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imports(path)}
    strangers = {name for name in libraries & OWNERS.keys() if room(path) not in OWNERS[name]}
    assert not strangers


@pytest.mark.parametrize(
    "path", [path for path in MODULES if room(path) in ("probe", "result")], ids=named
)
def test_what_must_run_anywhere_needs_the_standard_library_only(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imports(path)} - {"harness"}
    # Its reports are templates, and a template language escapes better than we would.
    allowed = {"jinja2"} if room(path) == "result" else set()
    assert libraries <= sys.stdlib_module_names | allowed


@pytest.mark.parametrize(
    "path", [path for path in MODULES if room(path) not in {*STARTERS, "probe"}], ids=named
)
def test_no_program_is_run_past_command(path: Path) -> None:
    tree = ast.parse(path.read_bytes())
    names = {name for node in ast.walk(tree) for name in _starting(node)}
    assert not names
    # An imported name would hide what is called.
    assert not {f"{module}.{name}" for module, name in STARTING_CALLS} & set(imports(path))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_is_short_enough_to_be_read(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LONGEST_MODULE


def sources() -> list[Path]:
    found = [ROOT / "run", ROOT / ".ci" / "run", ROOT / "tox.ini", ROOT / "constraints.txt"]
    found += (ROOT / "ci-templates").iterdir()
    for name in ("harness", "tests", "kernel-config", "guest-images"):
        found += [path for path in (ROOT / name).rglob("*") if path.suffix in SOURCES]
    return sorted(found)


@pytest.mark.parametrize("path", sources(), ids=named)
def test_every_source_file_says_its_licence_on_top(path: Path) -> None:
    top = path.read_text("utf-8").splitlines()[:2]
    assert any("SPDX-License-Identifier: GPL-2.0-only" in line for line in top)


def test_this_reader_of_calls_does_see_them() -> None:
    tree = ast.parse("import os, subprocess\nos.system('x')\nsubprocess.Popen(['x'])\nf(shell=1)")
    found = [name for node in ast.walk(tree) for name in _starting(node)]
    assert len(found) == 3


def test_this_reader_of_imports_does_see_them(tmp_path: Path) -> None:
    path = ROOT / "harness" / "machine" / "imagined.py"

    class Imagined(type(path)):  # type: ignore[misc]
        def read_bytes(self) -> bytes:
            return (
                b"import os.path, click\nfrom harness import kernel\n"
                b"def f():\n    from harness.cli import main\n    from . import qmp\n"
                b"    from ..image import disk\n"
            )

    assert set(imports(Imagined(path))) == {
        "os.path",
        "click",
        "harness.kernel",
        "harness.cli.main",
        "harness.machine.qmp",
        "harness.image.disk",
    }
