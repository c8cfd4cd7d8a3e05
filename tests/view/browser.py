"""Opens pages in headless Chromium, where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from iwp_export.view.draw import FONT_SIZE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = "needs Chromium"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=NEEDS_CHROMIUM)
HEIGHT = 4000
PROBE = """<!DOCTYPE html><meta charset="utf-8"><body style="margin: 0">
<iframe id="page" style="border: 0" width="{width}" height="{height}" srcdoc="{page}"></iframe>
<pre id="found"></pre>
<script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const inner = frame.contentDocument, root = inner.documentElement;
  inner.querySelectorAll("details").forEach((each) => each.open = true);
  const scrolls = (each) => each.closest(".scroll") !== null;
  const wide = [...inner.body.querySelectorAll("*")].filter(
    (each) => !scrolls(each) && each.getBoundingClientRect().right > {width} + 0.5);
  const shown = [...inner.querySelectorAll(".chart img")].filter((each) => each.getBoundingClientRect().width > 0);
  document.getElementById("found").textContent = JSON.stringify({{
    width: root.clientWidth,
    scroll: root.scrollWidth,
    wide: wide.map((each) => each.outerHTML.slice(0, 120)),
    letters: Math.min(...shown.map((each) => {font} * each.getBoundingClientRect().width / each.getAttribute("width"))),
    charts: shown.map((each) => each.className),
    ink: getComputedStyle(inner.body).color,
    paper: getComputedStyle(root).backgroundColor,
  }});
}};
</script>
"""


def open_page(page: str, folder: Path, width: int, *switches: str) -> tuple[dict[str, Any], list[str]]:
    """What a page of some width looks like to the browser, and what its console said.

    The page is in a frame of exactly that width: windows have a least width of their own. `letters` are pixels of the
    smallest letters in a chart, `charts` are the colour schemes of those that show.
    """
    file = folder / "probe.html"
    file.write_text(PROBE.format(width=width, height=HEIGHT, font=FONT_SIZE, page=html.escape(page)), encoding="utf-8")
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", *switches, "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None and found[1], done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console
