"""The records of a study as a table and a plot, and what is missing in them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ehap_tf.benchmark.measuring.contenders import line_look
from ehap_tf.benchmark.measuring.records import Records, Row
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
    """The whole network and the cells that are measured, without those that failed."""
    rows = records.rows()
    whole = [rows[WHOLE] | {"criterion": WHOLE}] if WHOLE in rows else []
    done = [rows[cell.name] for cell in cells if cell.name in rows]
    return whole + [row for row in done if "failed" not in row]


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


def markdown(
    rows: Sequence[Row],
    cells: Sequence[Cell],
    refused: Mapping[str, str] | None = None,
    failed: Mapping[str, str] | None = None,
) -> str:
    """One line per criterion and mode; validation accuracies in per cent, means of the seeds.

    What a cell of the table says stands under it; what is not measured is said in it.

    Args:
        rows: what `collect` gives.
        cells: all that the study is to have.
        refused: names of cells whose criterion cannot rank a network -> why.
        failed: names of cells whose fine-tuning diverged -> why.
    """
    refused, failed = refused or {}, failed or {}
    whole = [row for row in rows if row["criterion"] == WHOLE]
    rows = [row for row in rows if row["criterion"] != WHOLE]
    amounts = sorted({cell.removed for cell in cells})
    lines = [
        "| criterion | mode | "
        + " | ".join(f"{amount:.0%} of the MACs removed" for amount in amounts)
        + " |",
        "|---|---|" + "---|" * len(amounts),
    ]
    for mode in (ONE_SHOT, ITERATIVE):
        for name in dict.fromkeys(cell.criterion for cell in cells if cell.mode == mode):
            texts = []
            for amount in amounts:
                place = (name, mode, amount)
                wanted = [c for c in cells if (c.criterion, c.mode, c.removed) == place]
                mine = [r for r in rows if (r["criterion"], r["mode"], r["removed"]) == place]
                texts.append(_text(mine, len(wanted)))
            lines.append(f"| {name} | {mode.replace('_', ' ')} | " + " | ".join(texts) + " |")
    lines += [
        "",
        f"A cell reads: right after / {_adaptation(rows)} / fine-tuned (fine-tuned, test images),"
        " mean of the seeds; behind ± stands half of the range of the fine-tuned ones.",
        "",
        f"{len(rows)} of {len(cells)} networks are measured.",
    ]
    reasons = {
        f"`{cell.criterion}` was refused: {refused[cell.name]}"
        for cell in cells
        if cell.name in refused
    } | {f"`{cell.name}` failed: {failed[cell.name]}" for cell in cells if cell.name in failed}
    for reason in sorted(reasons):
        lines += ["", reason]
    for row in whole:
        lines += [
            "",
            f"The whole network: {row['validation']:.2%} of the validation images, "
            f"{row['test']:.2%} of the test images.",
        ]
    return "\n".join(lines) + "\n"


def _text(rows: Sequence[Row], wanted: int) -> str:
    if not rows:
        return "not measured" if wanted else ""
    means = {key: 100 * float(np.mean([row[key] for row in rows])) for key in ACCURACIES}
    finetuned = [100 * row["finetuned"] for row in rows]
    spread = f" ± {(max(finetuned) - min(finetuned)) / 2:.1f}" if len(rows) > 1 else ""
    part = f", {len(rows)} of {wanted} seeds" if len(rows) < wanted else ""
    return (
        f"{means['pruned']:.1f} / {means['recalibrated']:.1f} / {means['finetuned']:.1f}{spread} "
        f"({means['test']:.1f}){part}"
    )


def _adaptation(rows: Sequence[Row]) -> str:
    """What was done to the networks between surgery and fine-tuning."""
    images = {row["repair_images"] for row in rows if "repair_images" in row}
    return f"repaired on {images.pop()} images" if images else "BatchNorm re-estimated"


def plot(rows: Sequence[Row]) -> Figure:
    """Accuracy against MACs left: right after, recalibrated, fine-tuned; means of the seeds."""
    titles = {
        "pruned": "right after",
        "recalibrated": _adaptation(rows),
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
                    **line_look(number),
                    label=name if mode == ONE_SHOT else f"{name}, iterative",
                )
        axes.set_title(title)
        axes.set_xlabel("share of the multiply-accumulates left")
        axes.set_ylabel("accuracy on validation images")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    if names:
        axes.legend(fontsize=7, handlelength=3.5)
    return figure


def write(
    directory: pathlib.Path,
    records: Records,
    cells: Sequence[Cell],
    refused: Mapping[str, str] | None = None,
) -> None:
    """Writes `study.md` and `study.png`, and prints the table.

    Args:
        directory: where to.
        records: what is measured.
        cells: all that the study is to have.
        refused: as for `markdown`.
    """
    rows = collect(records, cells)
    settings = ", ".join(f"{name} {value}" for name, value in records.settings.items())
    failed = {name: row["failed"] for name, row in records.rows().items() if "failed" in row}
    text = markdown(rows, cells, refused, failed) + f"\nSettings: {settings}.\n"
    print(text)
    write_text(directory / "study.md", text)
    with atomic_path(directory / "study.png") as temporary:
        FigureCanvasAgg(plot(rows)).print_png(temporary)
    for name in ("records.json", "study.md", "study.png"):
        print(directory / name)
