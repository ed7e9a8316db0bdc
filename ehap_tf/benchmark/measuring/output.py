"""What a benchmark leaves behind: a table in the terminal, a JSON file and a plot."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ehap_tf.files import atomic_path, write_text
from ehap_tf.report.environment import environment

# Where things lie on this machine says nothing about the measurement.
LEFT_OUT = ("output", "command", "data_dir", "records", "rankings")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --output."""
    parser.add_argument(
        "--output",
        default=None,
        help="write FILE.json, and plot and table, where there are any, beside it as FILE.png and "
        "FILE.md",
    )


def hardware() -> dict[str, str]:
    """What the measurement ran on, versions and the instructions that matter included."""
    values = environment()
    try:
        found = re.findall(
            r"\b(amx_bf16|amx_int8|avx512_bf16|avx512_fp16|avx512_vnni|avx512f|avx2)\b",
            pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"),
        )
    except OSError:
        return values
    return values | {"instructions": ", ".join(sorted(set(found)))}


def show(title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Prints a table and the hardware.

    Args:
        title: above the table.
        rows: one mapping a row.
        columns: key -> heading; a heading's unit stands in it.
    """
    table = rich.table.Table(title=title, title_justify="left")
    for number, heading in enumerate(columns.values()):
        table.add_column(heading, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_text(row.get(key)) for key in columns))
    console = rich.console.Console()
    if not console.is_terminal:
        # A file has no width; 80 columns would break every number in two.
        console = rich.console.Console(width=160)
    console.print(table)
    for name, value in hardware().items():
        console.print(f"{name}: {value}", style="dim", markup=False, highlight=False)


def save(
    options: argparse.Namespace,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    figure: Figure | None = None,
    table: str | None = None,
    model: str | None = None,
) -> None:
    """Writes the JSON file, and figure and Markdown table beside it, when --output is given.

    Args:
        options: of the benchmark.
        name: of the benchmark.
        rows: what was measured.
        figure: the plot.
        table: in Markdown.
        model: the `digest` of the network, where the rows are about one.
    """
    if options.output is None:
        return
    path = pathlib.Path(options.output)
    content = {
        "benchmark": name,
        **({"model_digest": model} if model else {}),
        "hardware": hardware(),
        "settings": {k: v for k, v in vars(options).items() if k not in LEFT_OUT},
        "rows": list(rows),
    }
    write_text(path, json.dumps(content, indent=2))
    print(path)
    if figure is not None:
        with atomic_path(path.with_suffix(".png")) as temporary:
            FigureCanvasAgg(figure).print_png(temporary)
        print(path.with_suffix(".png"))
    if table is not None:
        write_text(path.with_suffix(".md"), table)
        print(path.with_suffix(".md"))


def markdown(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A Markdown table; the arguments are those of `show`."""
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[_text(row.get(key)) for key in columns] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
