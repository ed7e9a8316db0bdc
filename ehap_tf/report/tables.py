"""How the figures of a run are written in its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import rich.box
import rich.table

_FORMS = {
    "accuracy": ("{:.2f} %", 100.0),
    "count": ("{:,}", 1),
    "macs": ("{:,.2f} M", 1e-6),
    "latency": ("{:.3f} ms", 1.0),
}


def cell(value: float | None, kind: str) -> str:
    """A figure as text; a dash where nothing was measured.

    Args:
        value: a share of 1 for "accuracy", milliseconds for "latency".
        kind: "accuracy", "count", "macs" or "latency".
    """
    form, scale = _FORMS[kind]
    return "-" if value is None else form.format(scale * value)


def terminal_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str | None = None,
) -> rich.table.Table:
    """A table for the terminal: names on the left, figures to the right."""
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, caption=caption)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right")
    for row in rows:
        table.add_row(*row)
    return table
