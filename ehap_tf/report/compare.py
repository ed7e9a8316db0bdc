"""Several runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ehap_tf.report import plots
from ehap_tf.report.content import ReportContent

HEADINGS = (
    "run",
    "criterion",
    "baseline",
    "final accuracy",
    "change",
    "parameters kept",
    "MACs kept",
    "file bytes",
)

_FINAL = ("tflite_accuracy", "qat_accuracy", "finetuned_accuracy", "pruned_accuracy")


def comparison(runs: Sequence[ReportContent]) -> dict[str, Any]:
    """Table and plot: the accuracy of each run's last network against its cost."""
    rows, points = [], []
    for run in runs:
        figures = run.figures
        baseline, final = figures.get("baseline_accuracy"), final_accuracy(run)
        change = None if baseline is None or final is None else 100 * (final - baseline)
        rows.append(
            (
                run.title,
                str(figures.get("criterion", "-")),
                _percent(baseline),
                _percent(final),
                "-" if change is None else f"{change:+.2f}",
                _percent(_share(run, "params")),
                _percent(_share(run, "macs")),
                f"{figures['tflite_bytes']:,}" if "tflite_bytes" in figures else "-",
            )
        )
        if final is not None and "macs_after" in figures:
            points.append((run.title, figures["macs_after"], final, baseline or final))
    plot = plots.accuracy_against_macs(points) if points else ""
    return {"headings": HEADINGS, "rows": rows, "plot": plot}


def final_accuracy(run: ReportContent) -> float | None:
    """Test accuracy of the last network that the run measured after pruning."""
    return next((run.figures[name] for name in _FINAL if name in run.figures), None)


def _share(run: ReportContent, quantity: str) -> float | None:
    before, after = (run.figures.get(f"{quantity}_{side}") for side in ("before", "after"))
    return None if not before or after is None else after / before


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
