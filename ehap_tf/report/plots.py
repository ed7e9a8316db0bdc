"""The plots of the page, as SVG that follows the page's colours."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ehap_tf.report.content import LayerReport

# Drawn in this colour, replaced by `currentColor` in the SVG: axes and text take the page's
# colour, light or dark.
_INK = "#010203"
KEPT, REMOVED, IMPLANTED = "#2f7ed8", "#d9603b", "#8a5cc2"


def training_curves(stage: str, epochs: Sequence[Mapping[str, float]]) -> str:
    """Loss and accuracy of one stage by epoch."""
    figure = Figure(figsize=(4.2, 5), layout="constrained")
    for row, quantity in enumerate(("loss", "accuracy")):
        axes = figure.add_subplot(2, 1, row + 1)
        for name, color in ((quantity, REMOVED), (f"validation_{quantity}", KEPT)):
            points = [(i + 1, e[name]) for i, e in enumerate(epochs) if name in e]
            if points:
                label = "validation" if name.startswith("validation_") else "training"
                axes.plot(*zip(*points, strict=True), color=color, label=label, marker=".")
        axes.set_ylabel(quantity)
        if row == 0:
            axes.set_title(stage)
        else:
            axes.legend(frameon=False, labelcolor=_INK)
            axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _ink(axes)
    return _svg(figure, f"Training curves of {stage}")


def sensitivity(layer: LayerReport, threshold: float | None) -> str:
    """Sorted scores of one layer's filters, with their standard errors and the threshold."""
    figure = Figure(figsize=(3.6, 2.3), layout="constrained")
    axes = figure.add_subplot()
    order = np.argsort(layer.scores)[::-1]
    scores = np.asarray(layer.scores, np.float64)[order]
    kept = np.ones(len(scores), bool)
    if layer.kept is not None:
        kept = np.isin(order, layer.kept)
    place = np.arange(len(scores))
    if layer.standard_error is not None:
        error = np.asarray(layer.standard_error, np.float64)[order]
        axes.vlines(place, scores - error, scores + error, color="#888888", linewidth=1.1)
    implanted = np.isin(order, layer.implanted)
    for chosen, color in (
        (kept, KEPT),
        (~kept & ~implanted, REMOVED),
        (implanted, IMPLANTED),
    ):
        axes.scatter(place[chosen], scores[chosen], s=9, color=color, linewidths=0)
    if threshold is not None:
        axes.axhline(threshold, color=_INK, linewidth=0.7, linestyle="--")
    if np.any(scores > 0):
        smallest = float(np.min(scores[scores > 0]))
        if np.all(scores > 0):
            axes.set_yscale("log")
            axes.set_ylim(bottom=smallest / 2)
        else:
            axes.set_yscale("symlog", linthresh=smallest)
        _few_decades(axes, scores, smallest)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_title(layer.name, fontsize=9)
    _ink(axes)
    return _svg(figure, f"Sensitivity of the filters of {layer.name}")


def accuracy_against_macs(points: Sequence[tuple[str, float, float, float]]) -> str:
    """Several runs: (name, MACs, accuracy, accuracy of the baseline)."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, macs, accuracy, _ in points:
        axes.scatter([macs / 1e6], [100 * accuracy], s=40, label=name)
        axes.annotate(
            name, (macs / 1e6, 100 * accuracy), xytext=(6, 4), textcoords="offset points",
            fontsize=8, color=_INK,
        )  # fmt: skip
    axes.set_xlabel("million multiply-accumulates an image")
    axes.set_ylabel("test accuracy of the smallest network, %")
    axes.margins(x=0.25, y=0.2)
    _ink(axes)
    return _svg(figure, "Accuracy against multiply-accumulates")


def _few_decades(axes: Axes, scores: np.ndarray, smallest: float) -> None:
    largest = float(np.max(scores))
    low = math.floor(math.log10(smallest))
    high = math.ceil(math.log10(largest))
    step = max(1, (high - low) // 3)
    axes.set_yticks([10.0**power for power in range(low, high + 1, step)])
    axes.minorticks_off()


def _ink(axes: Axes) -> None:
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=7)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(_INK)


def _svg(figure: Figure, description: str) -> str:
    """The figure as an inline SVG element that scales to the page's width."""
    figure.patch.set_alpha(0.0)
    FigureCanvasSVG(figure)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Title": description})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    label = html.escape(description, quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
