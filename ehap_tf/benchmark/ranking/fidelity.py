"""Rank correlation of sampled curvature with the exact one, against probes and seconds.

The reference and each case are kept beside the output: what is there is not measured again.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from ehap_tf.benchmark.measuring import output
from ehap_tf.benchmark.measuring.isolation import MeasurementError, measure
from ehap_tf.benchmark.measuring.records import Records, Row, add_records_argument, beside, digest
from ehap_tf.benchmark.measuring.subject import (
    add_subject_arguments,
    load_subject,
    subject_settings,
    trained_source,
)

COLUMNS = {
    "case": "estimator, precision",
    "probes": "probes",
    "seconds": "seconds, without start-up",
    "spearman": "Spearman",
    "negative": "negative scores",
    "error": "failed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this benchmark."""
    add_subject_arguments(parser, noise=True)
    parser.add_argument("--batch_size", type=int, default=128, help="micro-batch; default 128")
    parser.add_argument(
        "--cases",
        default="gauss_newton:fp32,hutchinson:fp32",
        help="estimator:precision, ...; default gauss_newton:fp32,hutchinson:fp32",
    )
    parser.add_argument(
        "--counts",
        default="1,2,4,8,16,32,64,150,300",
        help="numbers of probes; default 1,2,4,8,16,32,64,150,300",
    )
    parser.add_argument(
        "--reference",
        default="exact",
        help="exact (one backward pass per class and example), or a number of float32 sketch "
        "probes with another seed; default exact",
    )
    output.add_output_arguments(parser)
    add_records_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Computes the reference, then every case, each in a process of its own."""
    counts = [int(count) for count in options.counts.split(",")]
    subject = subject_settings(options) | {"batch_size": options.batch_size}
    settings = {name: value for name, value in subject.items() if name != "data_dir"} | {
        "model": digest(trained_source(options.model, options.dataset), options.seed),
        "reference": options.reference,
    }
    records = Records(beside(options.output, options.records), settings)
    try:
        reference = records.row(
            "reference",
            lambda: measure(f"{__name__}:reference_scores", subject | {"kind": options.reference}),
        )
    except MeasurementError as error:
        raise ValueError(f"the reference failed: {error}") from None
    rows: list[dict[str, Any]] = [{"case": f"reference {options.reference}"} | reference["row"]]
    for case in options.cases.split(","):
        estimator, _, precision = case.partition(":")
        arguments = subject | {
            "estimator": estimator,
            "precision": precision or "fp32",
            "counts": counts,
            "reference": reference["scores"],
        }
        try:
            found = records.row(
                f"{case} {options.counts}",
                functools.partial(_case, arguments),
            )["rows"]
        except MeasurementError as error:
            found = [{"error": str(error)}]
        rows += [{"case": case.replace(":", " ")} | row for row in found]
    output.show("Rank correlation with the exact relative Hessian trace", rows, COLUMNS)
    for line in time_to_reach(rows, 0.95):
        print(line)
    output.save(options, "fidelity", rows, plot(rows))


def _case(arguments: dict[str, Any]) -> Row:
    return {"rows": measure(f"{__name__}:measure_fidelity", arguments)}


def reference_scores(kind: str, batch_size: int, **subject: Any) -> dict[str, Any]:
    """The scores that others are held against; runs in a fresh process."""
    from ehap_tf.sensitivity import rank_filters

    model, data, loss = load_subject(**subject)
    exact = kind == "exact"
    scores = rank_filters(
        model,
        data,
        loss,
        estimator="exact" if exact else "gauss_newton",
        probes=1 if exact else int(kind),
        batch_size=batch_size,
        seed=subject["seed"] + 1_000_003,
    )
    values = np.concatenate(list(scores.values())).tolist()
    return {"scores": values, "row": {"probes": scores.probes, "seconds": scores.seconds}}


def measure_fidelity(
    estimator: str,
    precision: str,
    batch_size: int,
    counts: list[int],
    reference: list[float],
    **subject: Any,
) -> list[dict[str, float]]:
    """One case; runs in a fresh process."""
    from ehap_tf.sensitivity import convergence

    model, data, loss = load_subject(**subject)
    snapshots = convergence(
        model, data, loss, counts, estimator, precision, batch_size, subject["seed"]
    )
    return [
        {
            "probes": snapshot.probes,
            "seconds": snapshot.seconds,
            "spearman": float(stats.spearmanr(snapshot.scores, reference).statistic),
            "negative": float(np.mean(snapshot.scores < 0)),
        }
        for snapshot in snapshots
    ]


def time_to_reach(rows: Sequence[dict[str, Any]], correlation: float) -> list[str]:
    """One line a case: the first measured number of probes that reached a correlation, and when.

    The times are compared with the slowest case's. One that never got there counts with all the
    time that it was given.
    """
    ends: dict[str, dict[str, Any]] = {}
    for row in rows:
        end = ends.get(row["case"], {})
        if "spearman" in row and not end.get("spearman", -math.inf) >= correlation:
            ends[row["case"]] = row
    slowest = max(ends.values(), key=lambda row: row["seconds"], default={})
    lines = []
    for case, row in ends.items():
        line = f"{case}: Spearman {row['spearman']:.3f}"
        if row["spearman"] < correlation:
            line += f", short of {correlation},"
        line += f" after {row['probes']} probes, {row['seconds']:.3g} s"
        if row is not slowest:
            at_least = "at least " if slowest["spearman"] < correlation else ""
            times = slowest["seconds"] / row["seconds"]
            line += f", {at_least}{times:.3g} times as fast as {slowest['case']}"
        lines.append(line)
    return lines


def plot(rows: list[dict[str, Any]]) -> Figure:
    """Spearman against probes and against seconds, one line a case."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    cases = dict.fromkeys(row["case"] for row in rows if "spearman" in row)
    for case in cases:
        points = [row for row in rows if row["case"] == case and "spearman" in row]
        spearman = [row["spearman"] for row in points]
        left.plot([row["probes"] for row in points], spearman, marker="o", label=case)
        right.plot([row["seconds"] for row in points], spearman, marker="o", label=case)
    for axes, label in ((left, "probes"), (right, "seconds")):
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.axhline(0.95, color="grey", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
    left.set_ylabel("Spearman correlation with the exact scores")
    left.legend()
    return figure
