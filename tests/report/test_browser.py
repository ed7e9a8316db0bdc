"""The page in a real browser: no message in the console, everything shown, at any width."""

from __future__ import annotations

import html
import json
import pathlib
import re
import shutil
import subprocess

import pytest

from ehap_tf.report import render_page
from tests.report.test_page import content

SECTIONS = (
    "summary", "latency", "layers", "sensitivity", "curves", "quantization", "operators", "time",
    "provenance",
)  # fmt: skip

# Shows the page in frames as wide as a phone and a desktop, and writes down what is to be seen.
PROBE = """<!doctype html><html><body style="margin:0">
<iframe id="phone" style="width:390px;height:800px;border:0" srcdoc="PAGE"></iframe>
<iframe id="desktop" style="width:1200px;height:800px;border:0" srcdoc="PAGE"></iframe>
<pre id="found"></pre>
<script>
addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.scrollingElement;
    const height = e => e.getBoundingClientRect().height;
    found[frame.id] = {
      overflow: root.scrollWidth - root.clientWidth,
      heights: Object.fromEntries([...page.querySelectorAll("section")]
        .map(e => [e.className, height(e)])),
      figures: [...page.querySelectorAll("svg")].map(height),
      bars: [...page.querySelectorAll(".bar .kept")].map(e => e.getBoundingClientRect().width),
      paper: page.defaultView.getComputedStyle(page.body).backgroundColor,
      ink: page.defaultView.getComputedStyle(page.body).color,
      drawn: page.defaultView.getComputedStyle(page.querySelector("svg text, svg path")).color,
      requests: performance.getEntriesByType("resource").map(e => e.name),
    };
  }
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script></body></html>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium on this machine: the page is not tested in a browser")


def seen(browser: str, page: str, folder: pathlib.Path, dark: bool) -> tuple[dict, str]:
    """What the probe found in both frames, and what the browser said in its console."""
    probe = folder / "probe.html"
    probe.write_text(PROBE.replace("PAGE", html.escape(page)), encoding="utf-8")
    done = subprocess.run(
        [
            browser,
            *"--headless --no-sandbox --disable-gpu --no-first-run --disable-sync".split(),
            *"--disable-background-networking --disable-component-update".split(),
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--user-data-dir={folder / f'profile{dark}'}",
            "--window-size=1300,1700",
            *"--enable-logging=stderr --virtual-time-budget=2000 --dump-dom".split(),
            probe.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-500:]
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(found.group(1))), console


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_is_seen_on_a_phone_and_on_a_desktop(
    browser: str, tmp_path: pathlib.Path, dark: bool
):
    frames, console = seen(browser, render_page([content()]), tmp_path, dark)
    assert console == ""
    for frame in frames.values():
        assert tuple(frame["heights"]) == SECTIONS
        assert min(frame["heights"].values()) > 40 and min(frame["figures"]) > 100
        assert frame["overflow"] <= 0, "the page is wider than the screen"
        assert max(frame["bars"]) > 50
        assert brightness(frame["paper"]) < 60 if dark else brightness(frame["paper"]) > 240
        assert abs(brightness(frame["paper"]) - brightness(frame["ink"])) > 150
        assert frame["drawn"] == frame["ink"]
        assert frame["requests"] == []


def test_the_console_is_heard(browser: str, tmp_path: pathlib.Path):
    """A page that logs an error and is too wide: the test above could fail."""
    wide = "<div style='width:500px'>wide</div><script>console.error('broken')</script></body>"
    page = render_page([content()]).replace("</body>", wide)
    frames, console = seen(browser, page, tmp_path, dark=False)
    assert "broken" in console
    assert frames["phone"]["overflow"] > 0 >= frames["desktop"]["overflow"]


def brightness(color: str) -> float:
    red, green, blue = (float(part) for part in re.findall(r"\d+", color)[:3])
    return 0.299 * red + 0.587 * green + 0.114 * blue
