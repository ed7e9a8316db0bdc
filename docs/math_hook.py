"""Turns the equations of the pages into MathML when the site is built.

Browsers draw MathML themselves, so that the pages load no script from the network.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(
    r'<(span|div) class="arithmatex">(?:\\\(|\\\[)(.*?)(?:\\\)|\\\])</\1>', re.DOTALL
)


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with the HTML of each page."""

    def replaced(match: re.Match[str]) -> str:
        display = "block" if match.group(1) == "div" else "inline"
        return convert(html.unescape(match.group(2)).strip(), display=display)

    return _EQUATION.sub(replaced, content)
