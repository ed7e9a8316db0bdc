"""The HTML page of a run: self-contained, light and dark, no network and no script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from ehap_tf.report import plots
from ehap_tf.report.compare import comparison
from ehap_tf.report.content import LayerReport, ReportContent
from ehap_tf.report.device import HEADINGS as DEVICE_HEADINGS
from ehap_tf.report.device import DeviceRow, device_notes, device_rows
from ehap_tf.report.quantization import quantization_section
from ehap_tf.report.summary import HEADINGS, summary_rows


def render_page(runs: Sequence[ReportContent]) -> str:
    """The page of one run, or of several with a comparison.

    Raises:
        ValueError: no run is given.
    """
    if not runs:
        raise ValueError("A report needs at least one run")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ehap_tf.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    title = runs[0].title if len(runs) == 1 else f"Comparison of {len(runs)} runs"
    return environment.get_template("page.html.j2").render(
        title=title,
        headings=HEADINGS,
        device_headings=DEVICE_HEADINGS,
        runs=[_run(run) for run in runs],
        comparison=comparison(runs) if len(runs) > 1 else None,
        colors={"kept": plots.KEPT, "removed": plots.REMOVED, "implanted": plots.IMPLANTED},
    )


def _run(run: ReportContent) -> dict[str, Any]:
    figures = run.figures
    pruned = [layer for layer in run.layers if layer.kept is not None]
    float_operators = figures.get("tflite_float_ops")
    seconds = figures.get("stage_seconds", {})
    return {
        "title": run.title,
        "highlights": _highlights(run),
        "rows": [row.cells() for row in summary_rows(run)],
        "device_rows": [row.cells() for row in device_rows(run)],
        "device_notes": device_notes(run),
        "latencies": _latencies(device_rows(run)),
        "notes": [f"{stage}: {note}" for stage, note in run.notes.items()],
        "bars": [_bar(layer) for layer in pruned],
        "any_implanted": any(layer.implanted for layer in pruned),
        "sensitivity": [plots.sensitivity(layer, run.threshold) for layer in run.layers],
        "criterion": figures.get("criterion", ""),
        "threshold": "" if run.threshold is None else f"{run.threshold:.4g}",
        "curves": [
            plots.training_curves(stage, epochs)
            for stage, epochs in run.histories.items()
            if epochs
        ],
        "operators": sorted(run.operators.items(), key=lambda item: (-item[1], item[0])),
        "operators_note": ""
        if float_operators is None
        else f"{float_operators} of them compute in floating point.",
        "quantization": quantization_section(run),
        "stage_seconds": [(stage, f"{spent:,.1f}") for stage, spent in seconds.items()],
        "command": run.command,
        "seeds": _seeds(run),
        "environment": list(run.environment.items()),
        "settings": [(name, _text(value)) for name, value in run.settings.items()],
    }


def _highlights(run: ReportContent) -> list[tuple[str, str]]:
    """The numbers that a reader looks for first."""
    figures = run.figures
    highlights = []
    if "tflite_accuracy" in figures:
        highlights.append(("INT8 accuracy", f"{100 * figures['tflite_accuracy']:.2f} %"))
    if "tflite_accuracy" in figures and "baseline_accuracy" in figures:
        change = 100 * (figures["tflite_accuracy"] - figures["baseline_accuracy"])
        highlights.append(("against the baseline", f"{change:+.2f} points"))
    for quantity, label in (("params", "parameters kept"), ("macs", "MACs kept")):
        if f"{quantity}_after" in figures:
            share = figures[f"{quantity}_after"] / figures[f"{quantity}_before"]
            highlights.append((label, f"{100 * share:.1f} %"))
    if "tflite_bytes" in figures:
        highlights.append(("file", f"{figures['tflite_bytes'] / 1024:,.1f} KiB"))
    if "tflite_latency_ms" in figures:
        highlights.append(("latency", f"{figures['tflite_latency_ms']:.3f} ms"))
    return highlights


def _latencies(rows: Sequence[DeviceRow]) -> list[dict[str, str]]:
    """A bar for each file."""
    longest = max((row.latency_ms or 0.0 for row in rows), default=0.0)
    return [
        {
            "name": row.name,
            "text": f"{row.latency_ms:.3f} ms",
            "width": f"{100 * (row.latency_ms or 0.0) / longest:.2f}",
        }
        for row in rows
    ]


def _seeds(run: ReportContent) -> list[tuple[str, str]]:
    """What was drawn at random, and from which seed."""
    figures = run.figures
    if "seed" not in figures:
        return []
    seeds = [("seed of weights, order, augmentation, probes", str(figures["seed"]))]
    if figures.get("probes"):
        seeds.append(("random probes of the ranking", str(figures["probes"])))
    return seeds


def _bar(layer: LayerReport) -> dict[str, Any]:
    kept, implanted = len(layer.kept or ()), len(layer.implanted)
    removed = layer.filters - kept - implanted
    text = f"{kept} of {layer.filters}"
    if implanted:
        text += f" + {implanted} as 1x1"
    return {
        "name": layer.name,
        "text": text,
        "kept": f"{100 * kept / layer.filters:.2f}",
        "implanted": f"{100 * implanted / layer.filters:.2f}",
        "removed": f"{100 * removed / layer.filters:.2f}",
    }


def _text(value: object) -> str:
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
