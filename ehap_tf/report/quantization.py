"""The section on quantization: what rounding does to each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ehap_tf.report.content import ReportContent

WORST = 5
"""Layers that are marked as the ones that lose most."""


def quantization_section(run: ReportContent) -> dict[str, Any] | None:
    """Sentence and table, or None where the run has not measured it."""
    found = run.details.get("quantization")
    if not found:
        return None
    layers: list[Mapping[str, Any]] = found["layers"]
    measured = [layer["output_db"] for layer in layers if layer["output_db"] is not None]
    if not measured:
        return None
    worst = sorted(measured)[:WORST][-1]
    return {
        "sentence": (
            f"On {found['examples']} validation images the file says the same class as the QAT "
            f"model for {100 * found['qat_agreement']:.1f} % and as the float model for "
            f"{100 * found['float_agreement']:.1f} %; its outputs are at most "
            f"{found['largest_difference']:.2f} of its steps away from the QAT model's."
            f"{_on_test_images(run.details)}"
        ),
        "worst": WORST,
        "rows": [_row(layer, max(measured), worst) for layer in layers],
    }


def _on_test_images(details: Mapping[str, Any]) -> str:
    """What the check after export found, on many more images than the table was measured on."""
    agreement, examples = details.get("tflite_agreement"), details.get("tflite_agreement_examples")
    if agreement is None or examples is None:
        return ""
    return (
        f" On the first {examples:,} test images it says the same class as the QAT model for "
        f"{100 * agreement:.2f} %."
    )


def _row(layer: Mapping[str, Any], best: float, worst: float) -> dict[str, Any]:
    output = layer["output_db"]
    return {
        "name": layer["name"],
        "weights": _decibels(layer["weights_db"]),
        "output": _decibels(output),
        "width": "" if output is None else f"{100 * max(0.0, output) / max(best, 1.0):.1f}",
        "is_worst": output is not None and output <= worst,
        "range": "-" if layer["low"] is None else f"{layer['low']:.3g} to {layer['high']:.3g}",
        "channels": _channels(layer["worst_channels"] or ()),
        "filters": _channels(layer.get("worst_filters", ())),
    }


def _decibels(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}"


def _channels(worst: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"{channel} ({ratio:.0f})" for channel, ratio in worst[:3])
