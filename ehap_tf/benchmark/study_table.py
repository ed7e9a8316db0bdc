"""The records of a study as a table, a plot and a JSON file."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ehap_tf.benchmark.records import Records, Row
from ehap_tf.files import atomic_path, write_text

ONE_SHOT, ITERATIVE = "one_shot", "iterative"
WHOLE = "whole_network"
ACCURACIES = ("pruned", "recalibrated", "finetuned", "test")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One network of the study.

    Attributes:
        criterion: by which filters go.
        mode: `ONE_SHOT` or `ITERATIVE`.
        removed: share of the multiply-accumulates.
        seed: of the ranking's images and vectors, and of fine-tuning.
    """

    criterion: str
    mode: str
    removed: float
    seed: int

    @property
    def name(self) -> str:
        """Of its record."""
        return f"{self.criterion}_{self.mode}_{self.removed:g}_seed{self.seed}"


def collect(records: Records, cells: Sequence[Cell]) -> list[Row]:
    """The whole network and the cells that are done."""

    def there(name: str) -> list[Row]:
        def missing() -> Row:
            raise KeyError(name)

        try:
            return [records.row(name, missing)] if records.has(name) else []
        except KeyError:  # damaged; it was set aside
            return []

    whole = [row | {"criterion": WHOLE} for row in there(WHOLE)]
    return whole + [row for cell in cells for row in there(cell.name)]


def best_criteria(rows: Sequence[Row], count: int) -> list[str]:
    """The criteria of the highest validation accuracy after one-shot fine-tuning, mean of all.

    Judged on the amounts and seeds that every criterion has.
    """
    rows = [row for row in rows if row.get("mode") == ONE_SHOT]
    names = list(dict.fromkeys(row["criterion"] for row in rows))
    places = [{(r["removed"], r["seed"]) for r in rows if r["criterion"] == n} for n in names]
    common = set.intersection(*places) if places else set()
    means = {
        name: np.mean(
            [
                row["finetuned"]
                for row in rows
                if row["criterion"] == name and (row["removed"], row["seed"]) in common
            ]
            or [0.0]
        )
        for name in names
    }
    return sorted(names, key=lambda name: -means[name])[:count]


def markdown(rows: Sequence[Row]) -> str:
    """One line a criterion and mode; validation accuracies in per cent, means of the seeds.

    A cell reads `right after / BatchNorm re-estimated / fine-tuned (test)`; behind ± stands half
    the range of the seeds' fine-tuned accuracies, where there are several.
    """
    whole = [row for row in rows if row["criterion"] == WHOLE]
    cells = [row for row in rows if row["criterion"] != WHOLE]
    amounts = sorted({row["removed"] for row in cells})
    lines = [
        "| criterion | mode | "
        + " | ".join(f"{amount:.0%} of the MACs removed" for amount in amounts)
        + " |",
        "|---|---|" + "---|" * len(amounts),
    ]
    for mode in (ONE_SHOT, ITERATIVE):
        for name in dict.fromkeys(row["criterion"] for row in cells if row["mode"] == mode):
            mine = [row for row in cells if (row["criterion"], row["mode"]) == (name, mode)]
            texts = [_text([row for row in mine if row["removed"] == a]) for a in amounts]
            lines.append(f"| {name} | {mode.replace('_', ' ')} | " + " | ".join(texts) + " |")
    for row in whole:
        lines += [
            "",
            f"The whole network: {row['validation']:.2%} of the validation images, "
            f"{row['test']:.2%} of the test images.",
        ]
    return "\n".join(lines) + "\n"


def _text(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    means = {key: 100 * float(np.mean([row[key] for row in rows])) for key in ACCURACIES}
    finetuned = [100 * row["finetuned"] for row in rows]
    spread = f" ± {(max(finetuned) - min(finetuned)) / 2:.1f}" if len(rows) > 1 else ""
    return (
        f"{means['pruned']:.1f} / {means['recalibrated']:.1f} / {means['finetuned']:.1f}{spread} "
        f"({means['test']:.1f})"
    )


def plot(rows: Sequence[Row]) -> Figure:
    """Accuracy against MACs left: right after, recalibrated, fine-tuned; means of the seeds."""
    titles = {
        "pruned": "right after",
        "recalibrated": "BatchNorm re-estimated",
        "finetuned": "fine-tuned",
    }
    whole = [row for row in rows if row["criterion"] == WHOLE]
    cells = [row for row in rows if row["criterion"] != WHOLE]
    names = list(dict.fromkeys(row["criterion"] for row in cells))
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for number, name in enumerate(names):
            for mode, style in ((ONE_SHOT, "-"), (ITERATIVE, "--")):
                mine = [row for row in cells if (row["criterion"], row["mode"]) == (name, mode)]
                if not mine:
                    continue
                points = [(1.0, row["validation"]) for row in whole]
                for amount in sorted({row["removed"] for row in mine}):
                    those = [row for row in mine if row["removed"] == amount]
                    mean = [float(np.mean([r[k] for r in those])) for k in ("macs_left", key)]
                    points.append((mean[0], mean[1]))
                axes.plot(
                    *zip(*points, strict=True),
                    linestyle=style,
                    marker=".",
                    color=f"C{number}" if number < 10 else "black",
                    label=name if mode == ONE_SHOT else f"{name}, iterative",
                )
        axes.set_title(title)
        axes.set_xlabel("share of the multiply-accumulates left")
        axes.set_ylabel("accuracy on validation images")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def write(
    directory: pathlib.Path,
    rows: Sequence[Row],
    settings: Mapping[str, Any],
    hardware: Mapping[str, str],
) -> None:
    """Writes `study.md`, `study.json` and `study.png`, and prints the table."""
    text = markdown(rows)
    print(text)
    write_text(directory / "study.md", text)
    content = {"settings": settings, "hardware": hardware, "rows": list(rows)}
    write_text(directory / "study.json", json.dumps(content, indent=1))
    with atomic_path(directory / "study.png") as temporary:
        FigureCanvasAgg(plot(rows)).print_png(temporary)
    for name in ("study.md", "study.json", "study.png"):
        print(directory / name)
