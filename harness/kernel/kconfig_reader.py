# SPDX-License-Identifier: GPL-2.0-only
"""Read the Kconfig files of a kernel tree, to say why a symbol was dropped.

This is no configuration tool: ``make`` decides what a configuration is, and this only explains
it. Macros, ``$(...)``, are not expanded and count as unknown, except $(SRCARCH). The language is
described in Documentation/kbuild/kconfig-language.rst of the kernel.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterator
from pathlib import Path

_TYPES = ("bool", "tristate", "string", "int", "hex", "def_bool", "def_tristate")
# "if-success := ..." in scripts/Kconfig.include defines a macro and opens no block.
_KEYWORD = re.compile(r"\s*([a-z_]+)(?![\w-])\s*(.*)")
_SOURCES = ("source", "rsource", "osource", "orsource")
_BLOCK_ENDS = ("endif", "endmenu", "endchoice")
_OPENERS = ("config", "menuconfig", "menu", "choice", "if", "comment", "mainmenu", *_BLOCK_ENDS)


class Block(enum.Enum):
    """What a definition can be inside of."""

    MENU = "menu"
    CHOICE = "choice"
    IF = "if"


@dataclasses.dataclass
class Definition:
    """One ``config NAME`` with everything that limits it, as the text of expressions.

    ``place`` is file:line below the top of the tree. ``prompt`` tells whether a user may set it,
    and ``prompt_if`` when. ``choice`` holds the place of the choice it belongs to, if any.
    """

    name: str
    place: str
    depends: list[str]
    prompt: bool = False
    prompt_if: list[str] = dataclasses.field(default_factory=list)
    tristate: bool = False
    choice: str | None = None
    selects: list[tuple[str, str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Frame:
    kind: Block
    place: str
    depends: list[str]
    visible: list[str]


class KconfigTree:
    """All definitions of a tree: ``definitions`` by symbol, ``selectors`` by the one selected.

    ``architecture`` is a directory below arch/.
    """

    def __init__(self, top: Path, architecture: str = "x86") -> None:
        self._top = top
        self._architecture = architecture
        self.definitions: dict[str, list[Definition]] = {}
        self.selectors: dict[str, list[tuple[str, str]]] = {}
        self._frames: list[_Frame] = []
        self._read("Kconfig", set())
        for versions in self.definitions.values():
            for definition in versions:
                for target, condition in definition.selects:
                    self.selectors.setdefault(target, []).append((definition.name, condition))

    def choice_members(self, place: str) -> list[str]:
        """The symbols of the choice that begins at ``place``."""
        return [
            name
            for name, versions in self.definitions.items()
            if any(definition.choice == place for definition in versions)
        ]

    def _read(self, name: str, seen: set[str]) -> None:
        path = self._top / name
        if name in seen or not path.is_file():
            return
        entry: Definition | _Frame | None = None
        for number, line in _without_help(_logical_lines(path)):
            match = _KEYWORD.match(line)
            if match is None:
                continue
            word, rest = match[1], match[2]
            if word in _SOURCES:
                self._source(word, rest, path, seen | {name})
            elif word in _OPENERS:
                entry = self._begin(word, rest, f"{name}:{number}")
            else:
                _attribute(entry, word, rest)

    def _source(self, word: str, rest: str, path: Path, seen: set[str]) -> None:
        target = re.sub(r"\$(\(SRCARCH\)|SRCARCH\b)", self._architecture, _text(rest))
        if "$" in target:
            return
        base = path.parent if word.endswith("rsource") else self._top
        for found in sorted(base.glob(target)) if "*" in target else [base / target]:
            self._read(str(found.relative_to(self._top)), seen)

    def _begin(self, word: str, rest: str, place: str) -> Definition | _Frame | None:
        if word in ("config", "menuconfig"):
            return self._define(rest.split()[0] if rest.split() else "", place)
        if word in ("menu", "choice"):
            self._frames.append(_Frame(Block(word), place, [], []))
            return self._frames[-1]
        if word == "if":
            self._frames.append(_Frame(Block.IF, place, [rest], []))
        elif word in _BLOCK_ENDS and self._frames:
            self._frames.pop()
        return None

    def _define(self, name: str, place: str) -> Definition:
        depends = [text for frame in self._frames for text in frame.depends]
        definition = Definition(name, place, depends)
        definition.prompt_if = [text for frame in self._frames for text in frame.visible]
        if self._frames and self._frames[-1].kind is Block.CHOICE:
            definition.choice = self._frames[-1].place
        self.definitions.setdefault(name, []).append(definition)
        return definition


def _attribute(entry: Definition | _Frame | None, word: str, rest: str) -> None:
    """Add one attribute line to the entry it belongs to; comments have no entry."""
    if entry is None:
        return
    if word == "depends":
        entry.depends.append(rest.removeprefix("on").strip())
    elif isinstance(entry, _Frame):
        if word == "visible":
            entry.visible.append(rest.removeprefix("if").strip())
    elif word in _TYPES or word == "prompt":
        entry.tristate = entry.tristate or word.endswith("tristate")
        if not word.startswith("def_") and rest.startswith(('"', "'")):
            entry.prompt = True
            entry.prompt_if += _condition(rest[len(_quoted(rest)) :])
    elif word == "select":
        condition = _condition(rest)
        entry.selects.append((rest.split()[0], condition[0] if condition else "y"))


def _condition(rest: str) -> list[str]:
    match = re.search(r"(?:^|\s)if\s+(.*)", rest)
    return [match[1].strip()] if match else []


def _quoted(rest: str) -> str:
    match = re.match(r"\"(?:\\.|[^\"])*\"|'(?:\\.|[^'])*'", rest)
    return match[0] if match else rest


def _text(rest: str) -> str:
    return rest.split("#")[0].strip().strip("\"'")


def _logical_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file without comments and empty ones, continued lines put together."""
    held, first = "", 0
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not held:
            first = number
        if line.endswith("\\"):
            held += line[:-1] + " "
            continue
        whole, held = held + line, ""
        if whole.strip() and not whole.lstrip().startswith("#"):
            yield first, _without_comment(whole)


def _without_help(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Drop help texts, which end at the first line indented less than their first one."""
    in_help = False
    required: int | None = None
    for number, line in lines:
        expanded = line.expandtabs()
        indent = len(expanded) - len(expanded.lstrip())
        if in_help and required is None and indent:
            required = indent
        if in_help and required is not None and indent >= required:
            continue
        in_help, required = expanded.split()[0] in ("help", "---help---"), None
        if not in_help:
            yield number, line


def _without_comment(line: str) -> str:
    quote = ""
    for index, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter == "#" and index and line[index - 1].isspace():
            return line[:index].rstrip()
    return line
