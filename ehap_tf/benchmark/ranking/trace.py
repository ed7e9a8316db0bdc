"""Seconds a probe and peak memory of curvature estimates, by estimator and precision.

In 16 bits the scores are compared with those of float32, from the same probes. With several models
the growth of the time with the MACs is printed, with several numbers of examples that of the memory
with the Hessian batch.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from ehap_tf.benchmark.measuring import output
from ehap_tf.benchmark.measuring.isolation import MeasurementError, measure
from ehap_tf.benchmark.measuring.subject import (
    add_subject_arguments,
    load_subject,
    subject_settings,
)
from ehap_tf.benchmark.ranking.torch_loop import measure_torch_loop
from ehap_tf.models.precision import resolve_precision

PEER = "torch_loop"

COLUMNS = {
    "case": "estimator, precision",
    "model": "model",
    "macs": "MACs of an example",
    "examples": "examples",
    "seconds_per_probe": "s / probe",
    "cpu_seconds_per_probe": "CPU s / probe",
    "first_seconds": "first probes, s",
    "total_seconds_per_probe": "all in, s / probe",
    "peak_megabytes": "peak MB",
    "added_megabytes": "above loaded MB",
    "speedup": "times as fast",
    "spearman": "Spearman with fp32",
    "error": "failed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this benchmark."""
    add_subject_arguments(parser, several=True, noise=True)
    parser.add_argument("--batch_size", type=int, default=128, help="micro-batch; default 128")
    parser.add_argument(
        "--estimators",
        default="hutchinson,gauss_newton",
        help="default hutchinson,gauss_newton; torch_loop is Hutchinson by a plain PyTorch loop in "
        "float32, where PyTorch is installed",
    )
    parser.add_argument(
        "--precisions",
        default=None,
        help="default fp32 and what is fastest here; 16 bits are slow where they are emulated",
    )
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
    for model, examples, (estimator, precision) in itertools.product(
        options.model, options.examples, _cases(options)
    ):
        subject = {"model": model, "examples": examples}
        arguments = {
            "estimator": estimator,
            "precision": precision,
            "batch_size": options.batch_size,
            "probes": options.probes,
        }
        row: dict[str, Any] = {
            "case": f"{estimator} {precision}",
            "estimator": estimator,
            "precision": precision,
        } | subject
        try:
            row |= measure(
                f"{__name__}:measure_trace",
                subject_settings(options) | subject | arguments,
                options.timeout,
            )
        except MeasurementError as error:
            row |= {"error": str(error)}
        rows.append(row)
    if all("error" in row for row in rows):
        raise ValueError(f"nothing could be measured: {rows[0]['error']}")
    add_speedups(rows)
    add_rank_correlations(rows)
    output.show("Curvature estimates: time and memory", rows, COLUMNS)
    for line in (*time_growth(rows), *memory_growth(rows)):
        print(line)
    output.save(options, "trace", rows, plot(rows))


def _cases(options: argparse.Namespace) -> list[tuple[str, str]]:
    """(estimator, precision) of all measurements; the peer has one precision."""
    precisions = options.precisions or ",".join(dict.fromkeys(["fp32", resolve_precision("auto")]))
    return [
        (estimator, precision)
        for estimator in options.estimators.split(",")
        for precision in ("fp32" if estimator == PEER else precisions).split(",")
    ]


def measure_trace(
    estimator: str, precision: str, batch_size: int, probes: int, **subject: Any
) -> dict[str, Any]:
    """One measurement; runs in a fresh process.

    The first 8 probes build and compile the graph and are timed apart; `seconds_per_probe` is the
    median of the other groups of 8. `scores` are those of all filters.
    """
    from ehap_tf.pruning import count_macs
    from ehap_tf.sensitivity import rank_filters
    from ehap_tf.sensitivity.running.memory import PeakMemory

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
    macs: dict[str, float] = {}
    with contextlib.suppress(ValueError):  # an input of any size has no number
        macs = {"macs": count_macs(model)}
    return macs | {
        "seconds_per_probe": float(np.median(wall[1:])) / 8,
        "cpu_seconds_per_probe": float(np.median(cpu[1:])) / 8,
        "first_seconds": float(wall[0]),
        "total_seconds_per_probe": scores.seconds / probes,
        "peak_megabytes": scores.peak_bytes / 1e6,
        "added_megabytes": (scores.peak_bytes - loaded) / 1e6,
        "scores": np.concatenate([*scores.values()]).tolist(),
    }


def add_speedups(rows: list[dict[str, Any]]) -> None:
    """Relative to the first case of the same model and number of examples."""
    for _, alike in _grouped(rows, "model", "examples"):
        for row in alike:
            row["speedup"] = alike[0]["seconds_per_probe"] / row["seconds_per_probe"]


def add_rank_correlations(rows: list[dict[str, Any]]) -> None:
    """Spearman's, of the scores with float32's by the same estimator; takes the scores away."""
    for _, alike in _grouped(rows, "model", "examples", "estimator"):
        scores = {row["precision"]: row["scores"] for row in alike if "scores" in row}
        for row in alike if "fp32" in scores else ():
            if row["precision"] != "fp32":
                correlation = stats.spearmanr(row["scores"], scores["fp32"])
                row["spearman"] = float(correlation.statistic)
    for row in rows:
        row.pop("scores", None)


def time_growth(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the time grows with the size of the model.

    Returns:
        One line for each case that was measured on several models: the exponent p of
        seconds ~ MACs^p by least squares (1 is linear), and the time per MAC of the largest model
        relative to the smallest.
    """
    lines = []
    for (case, examples), alike in _grouped(rows, "case", "examples"):
        sized = sorted((row for row in alike if "macs" in row), key=lambda row: row["macs"])
        if len({row["macs"] for row in sized}) < 2:
            continue
        macs, seconds = (np.array([row[k] for row in sized]) for k in ("macs", "seconds_per_probe"))
        exponent = np.polyfit(np.log(macs), np.log(seconds), 1)[0]
        per_mac = seconds / macs
        lines.append(
            f"{case}, {examples} examples, {sized[0]['model']} to {sized[-1]['model']}: seconds "
            f"per probe ~ MACs^{exponent:.3f}; {per_mac[-1] / per_mac[0]:.3f} times as long per MAC"
        )
    return lines


def memory_growth(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each case that was measured with several Hessian batches: their peaks."""
    lines = []
    for (case, model), alike in _grouped(rows, "case", "model"):
        if len({row["examples"] for row in alike}) < 2:
            continue
        peaks = ", ".join(
            f"{row['peak_megabytes']:.0f} MB with {row['examples']}"
            for row in sorted(alike, key=lambda row: row["examples"])
        )
        lines.append(f"{case}, {model}, by examples in the Hessian batch: peak {peaks}")
    return lines


def _grouped(
    rows: Sequence[Mapping[str, Any]], *keys: str
) -> Iterator[tuple[tuple[Any, ...], list[Any]]]:
    """The rows that were measured, grouped by what they have in common, in their order."""
    done = [row for row in rows if "seconds_per_probe" in row]
    for values in dict.fromkeys(tuple(row[key] for key in keys) for row in done):
        yield values, [row for row in done if tuple(row[key] for key in keys) == values]


def plot(rows: list[dict[str, Any]]) -> Figure:
    """Two bar charts: seconds per probe and memory above the loaded process."""
    done: list[Mapping[str, Any]] = [row for row in rows if "seconds_per_probe" in row]
    figure = Figure(figsize=(9, 1.2 + 0.4 * max(1, len(done))), layout="constrained")
    labels = [f"{row['model']}, {row['examples']} examples\n{row['case']}" for row in done]
    for axes, key, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("seconds_per_probe", "added_megabytes"),
        ("seconds per probe", "peak memory above the loaded process, MB"),
        strict=True,
    ):
        bars = axes.barh(labels, [row[key] for row in done])
        axes.bar_label(bars, fmt="%.3g", padding=2)
        axes.margins(x=0.2)
        axes.set_xlabel(title)
        axes.invert_yaxis()
    return figure
