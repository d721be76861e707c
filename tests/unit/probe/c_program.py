# SPDX-License-Identifier: GPL-2.0-only
"""Asks the C compiler what C headers say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_COMPILE_SECONDS = 60


def printed(source: str, directory: Path, *, stdin: str = "", include: Path | None = None) -> str:
    """What a C program prints; skips where there is no compiler."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("There is no gcc here.")
    program = directory / "program"
    (directory / "program.c").write_text(source)
    search = [f"-I{include}"] if include else []
    argv = [gcc, "-Wall", "-Werror", *search, "-o", str(program), str(directory / "program.c")]
    subprocess.run(argv, check=True, timeout=_COMPILE_SECONDS)
    answer = subprocess.run(
        [program], input=stdin, capture_output=True, text=True, check=True, timeout=_COMPILE_SECONDS
    )
    return answer.stdout


def numbers(expressions: list[str], headers: list[str], directory: Path) -> dict[str, int]:
    """The values of integer expressions, as the headers have them; those unknown are left out.

    A name of a macro that this machine's headers do not have yet is unknown.
    """
    lines = [f"#include {header}" for header in headers]
    lines += ["#include <stddef.h>", "#include <stdio.h>", "int main(void) {"]
    for expression in expressions:
        show = f'printf("%s\\t%llu\\n", "{expression}", (unsigned long long)({expression}));'
        macro = expression.isidentifier()
        lines += [f"#ifdef {expression}", show, "#endif"] if macro else [show]
    text = printed("\n".join([*lines, "return 0; }", ""]), directory)
    pairs = (line.split("\t") for line in text.splitlines())
    return {name: int(value) for name, value in pairs}
