# SPDX-License-Identifier: GPL-2.0-only
"""report.html in a real browser: it fits a phone, and hostile text does nothing there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from sample_record import samples

from harness.result.html import as_html

SAMPLES = samples()
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")

# A page around the report, which measures it; the report itself may run nothing.
FRAME = """<!doctype html><title>waiting</title>
<body><iframe src="report.html" style="width: {width}px; height: 800px; border: 0"></iframe>
<script>
document.querySelector("iframe").onload = (event) => {{
  const page = event.target.contentDocument, root = page.documentElement;
  document.title = [root.scrollWidth, page.images.length, page.scripts.length,
                    page.querySelectorAll(".matrix .cell").length, page.defaultView.touched,
                    getComputedStyle(page.querySelector("h1")).fontSize].join(" ");
}};
</script>"""


def measured(directory: Path, name: str, width: int) -> list[str]:
    """Scroll width, images, scripts, cells, what a guest touched, and the size of the verdict."""
    report = as_html(SAMPLES[name]).encode("utf-8", "backslashreplace")
    (directory / "report.html").write_bytes(report)
    (directory / "frame.html").write_text(FRAME.format(width=width))
    assert CHROMIUM is not None
    told = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"),
            *("--allow-file-access-from-files", "--virtual-time-budget=10000", "--dump-dom"),
            f"--user-data-dir={directory / 'profile'}",
            f"file://{directory / 'frame.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search("<title>(.*?)</title>", told.stdout)
    assert found
    return found[1].split(" ")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", SAMPLES)
def test_it_fits_the_screen_and_runs_nothing(tmp_path: Path, name: str, width: int) -> None:
    scroll, images, scripts, cells, touched, size = measured(tmp_path, name, width)
    assert int(scroll) <= width, "nobody has to scroll sideways"
    assert (images, scripts, touched) == ("0", "0", "")
    assert int(cells) == len(SAMPLES[name].outcomes)
    # The style is there, and the one for phones where it is narrow.
    assert size == ("32px" if width == 360 else "40px")
