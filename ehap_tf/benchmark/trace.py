"""Seconds a probe and peak memory of curvature estimates, by estimator and precision."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ehap_tf.benchmark import output
from ehap_tf.benchmark.isolation import MeasurementError, measure
from ehap_tf.benchmark.subject import add_subject_arguments, load_subject, subject_settings
from ehap_tf.benchmark.torch_loop import measure_torch_loop

PEER = "torch_loop"

COLUMNS = {
    "case": "estimator, precision",
    "model": "model",
    "examples": "examples",
    "seconds_per_probe": "s / probe",
    "cpu_seconds_per_probe": "CPU s / probe",
    "first_seconds": "first probes, s",
    "total_seconds_per_probe": "all in, s / probe",
    "peak_megabytes": "peak MB",
    "added_megabytes": "above loaded MB",
    "speedup": "times as fast",
    "error": "failed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this benchmark."""
    add_subject_arguments(parser)
    parser.add_argument("--batch_size", type=int, default=128, help="micro-batch; default 128")
    parser.add_argument(
        "--estimators",
        default="hutchinson,gauss_newton",
        help="default hutchinson,gauss_newton; torch_loop is Hutchinson by a plain PyTorch loop in "
        "float32, where PyTorch is installed",
    )
    parser.add_argument("--precisions", default="fp32,bf16", help="default fp32,bf16")
    parser.add_argument(
        "--probes", type=int, default=24, help="a multiple of 8, at least 16; default 24"
    )
    parser.add_argument("--timeout", type=float, default=None, help="seconds for one measurement")
    output.add_output_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Measures every estimator under every precision, each in a process of its own."""
    if options.probes < 16 or options.probes % 8:
        raise ValueError(
            f"--probes must be a multiple of 8, at least 16. Received: {options.probes}"
        )
    rows: list[dict[str, Any]] = []
    for model in options.model.split(","):
        for estimator in options.estimators.split(","):
            # The peer has one precision.
            precisions = "fp32" if estimator == PEER else options.precisions
            for precision in precisions.split(","):
                arguments = subject_settings(options) | {
                    "model": model,
                    "estimator": estimator,
                    "precision": precision,
                    "batch_size": options.batch_size,
                    "probes": options.probes,
                }
                row = {"case": f"{estimator} {precision}", "model": model}
                row |= {"examples": options.examples}
                try:
                    row |= measure(f"{__name__}:measure_trace", arguments, options.timeout)
                except MeasurementError as error:
                    row |= {"error": str(error)}
                rows.append(row)
    add_speedups(rows)
    output.show("Curvature estimates: time and memory", rows, COLUMNS)
    output.save(options, "trace", rows, plot(rows))


def measure_trace(
    estimator: str, precision: str, batch_size: int, probes: int, **subject: Any
) -> dict[str, float]:
    """One measurement; runs in a fresh process.

    The first 8 probes build and compile the graph and are timed apart; `seconds_per_probe` is the
    median of the other groups of 8.
    """
    from ehap_tf.sensitivity import rank_filters
    from ehap_tf.sensitivity.memory import PeakMemory

    if estimator == PEER:
        return measure_torch_loop(subject["model"], subject["examples"], probes, subject["seed"])
    model, data, loss = load_subject(**subject)
    model(data[0][:1], training=False)  # the runtime and its thread pools are loaded, too
    loaded = PeakMemory().bytes()
    ticks = [(time.perf_counter(), time.process_time())]
    scores = rank_filters(
        model,
        data,
        loss,
        estimator=estimator,
        precision=precision,
        probes=probes,
        batch_size=batch_size,
        seed=subject["seed"],
        progress=lambda *_: ticks.append((time.perf_counter(), time.process_time())),
    )
    wall, cpu = np.diff(np.array(ticks), axis=0).T
    return {
        "seconds_per_probe": float(np.median(wall[1:])) / 8,
        "cpu_seconds_per_probe": float(np.median(cpu[1:])) / 8,
        "first_seconds": float(wall[0]),
        "total_seconds_per_probe": scores.seconds / probes,
        "peak_megabytes": scores.peak_bytes / 1e6,
        "added_megabytes": (scores.peak_bytes - loaded) / 1e6,
    }


def add_speedups(rows: list[dict[str, Any]]) -> None:
    """Relative to the first case of the same model."""
    first: dict[str, float] = {}
    for row in rows:
        if "seconds_per_probe" in row:
            base = first.setdefault(row["model"], row["seconds_per_probe"])
            row["speedup"] = base / row["seconds_per_probe"]


def plot(rows: list[dict[str, Any]]) -> Figure:
    """Two bar charts: seconds a probe and memory above the loaded process."""
    done: list[Mapping[str, Any]] = [row for row in rows if "seconds_per_probe" in row]
    figure = Figure(figsize=(9, 1.2 + 0.4 * max(1, len(done))), layout="constrained")
    labels = [f"{row['model']}\n{row['case']}" for row in done]
    for axes, key, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("seconds_per_probe", "added_megabytes"),
        ("seconds a probe", "peak memory above the loaded process, MB"),
        strict=True,
    ):
        bars = axes.barh(labels, [row[key] for row in done])
        axes.bar_label(bars, fmt="%.3g", padding=2)
        axes.margins(x=0.2)
        axes.set_xlabel(title)
        axes.invert_yaxis()
    return figure
