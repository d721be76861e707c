# SPDX-License-Identifier: GPL-2.0-only
"""Recipes: lists with reasons, and templates in which nothing may be left out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.image import layout, recipe

HOST = recipe.RECIPES / "host" / "init.sh.j2"
FIRST = recipe.RECIPES / "initramfs" / "init.sh.j2"


def test_list_without_comments_and_blanks(tmp_path: Path) -> None:
    path = tmp_path / "packages"
    path.write_text("# why\none\n\n  two  \n#three\n")
    assert recipe.entries(path) == ("one", "two")


def test_every_package_has_its_reason() -> None:
    lines = (recipe.RECIPES / "host" / "packages").read_text().split("\n\n")
    for block in lines:
        assert block.lstrip().startswith("#"), block
    assert "busybox-static" in recipe.entries(recipe.RECIPES / "host" / "packages")


def test_missing_recipe_names_the_checkout(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="checkout"):
        recipe.read(tmp_path / "nothing")


def test_variable_that_is_not_given_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "template"
    path.write_text("a {{ known }} b {{ unknown }}")
    with pytest.raises(HarnessError, match="unknown"):
        recipe.render(path, {"known": 1})


def test_broken_template_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "template"
    path.write_text("{% if %}")
    with pytest.raises(HarnessError, match="cannot be filled in"):
        recipe.render(path, {})


@pytest.mark.parametrize(
    ("template", "extra"), [(HOST, {}), (FIRST, {"modules": ["virtio_blk.ko", "ext4.ko"]})]
)
def test_init_is_a_shell_script_from_end_to_end(template: Path, extra: dict[str, object]) -> None:
    script = recipe.render(template, {**layout.TEMPLATE_VARIABLES, **extra})
    assert script.startswith("#!/bin/busybox sh\n")
    assert "{{" not in script
    assert "{%" not in script
    checked = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True)
    assert checked.stderr == ""
    assert checked.returncode == 0


def test_modules_are_loaded_in_their_order() -> None:
    names = ["virtio.ko", "virtio_ring.ko", "virtio_blk.ko"]
    script = recipe.render(FIRST, {**layout.TEMPLATE_VARIABLES, "modules": names})
    loaded = [line.split()[1] for line in script.splitlines() if line.startswith("insmod")]
    assert loaded == [f"/modules/{name}" for name in names]


def test_every_variable_of_the_layout_is_used_somewhere() -> None:
    texts = HOST.read_text() + FIRST.read_text()
    for name in layout.TEMPLATE_VARIABLES:
        assert f"{{{{ {name} }}}}" in texts, name
