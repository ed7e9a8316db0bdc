"""How fast the files are here: float32 and INT8, dense and slim, in the LiteRT interpreter.

Latency depends on shapes and not on what a network has learnt, so that weights are random and
filters are chosen by magnitude. Every file is timed in a process of its own, alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras
from matplotlib.figure import Figure

from ehap_tf.benchmark.measuring.contenders import Clock
from ehap_tf.benchmark.measuring.isolation import MeasurementError, measure
from ehap_tf.benchmark.measuring.output import add_output_arguments, markdown, save, show
from ehap_tf.channels import RESIDUAL_MODES
from ehap_tf.models import MODEL_NAMES, build_model, load_model
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.pruning import count_macs, plan_pruning, prune
from ehap_tf.quantization import TFLiteFile, export_float_tflite, export_tflite, quantize
from ehap_tf.sensitivity import rank_filters

CALIBRATION_EXAMPLES = 40
PROCESS_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class LatencyRow:
    """One file at one number of threads.

    Attributes:
        name: "float32 dense", "int8 slim union", ...
        threads: of the interpreter.
        milliseconds: median of one inference, in the fastest round.
        speedup: times as fast as the dense float32 file at the same number of threads.
        macs: multiply-accumulates of one example.
        bytes: of the file.
        operators: in the file.
    """

    name: str
    threads: int
    milliseconds: float
    speedup: float
    macs: int
    bytes: int
    operators: int


def latency_table(
    model: tf_keras.Model,
    *,
    target_macs: float = 0.5,
    residuals: Sequence[str] = ("tied", "union"),
    threads: Sequence[int] = (1, 2),
    runs: int = 200,
    rounds: int = 3,
    progress: ProgressCallback = no_progress,
) -> list[LatencyRow]:
    """Times `model` and its slim twins as float32 and as INT8 files.

    Args:
        model: a Functional or Sequential image classifier.
        target_macs: fraction of the multiply-accumulates that the slim twins keep, in (0, 1].
        residuals: how residual sums are pruned, see `plan_pruning`.
        threads: numbers of interpreter threads.
        runs: inferences to take the median of, after a warm-up.
        rounds: how often every file has its turn; the fastest median counts, because whatever else
            the machine does can only slow one down.
        progress: called after every file and every timing; the figure is the file's kilobytes or
            milliseconds, under its name.

    Returns:
        One row for each file and number of threads, the dense float32 file first.

    Raises:
        ValueError: an argument is out of range (noticed before anything is converted).
        MeasurementError: a file could not be timed.
    """
    _check(target_macs, residuals, threads, runs, rounds)
    variants = {"dense": model}
    scores = rank_filters(model, None, criterion="magnitude")
    for residual in residuals:
        plan = plan_pruning(model, scores, target_macs=target_macs, residual=residual)
        variants[f"slim {residual}"] = prune(model, plan)
    total, done = _steps(residuals, threads, rounds), 0
    rows: list[LatencyRow] = []
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, TFLiteFile] = {}
        for name, variant in variants.items():
            for kind, export in (("float32", export_float_tflite), ("int8", _export_int8)):
                path = pathlib.Path(folder) / f"{kind}_{name.replace(' ', '_')}.tflite"
                file = files[f"{kind} {name}"] = export(variant, path)
                done += 1
                progress(done, total, {f"{kind} {name}, kilobytes": file.bytes / 1000})
        for count in threads:
            fastest = dict.fromkeys(files, math.inf)
            for _ in range(rounds):
                for name, file in files.items():
                    timed = f"{name}, {_threads(count)}"
                    milliseconds = _milliseconds(timed, file, count, runs)
                    fastest[name] = min(fastest[name], milliseconds)
                    done += 1
                    progress(done, total, {f"{timed}, milliseconds": milliseconds})
            baseline = next(iter(fastest.values()))
            rows += [
                LatencyRow(
                    name=name,
                    threads=count,
                    milliseconds=fastest[name],
                    speedup=baseline / fastest[name],
                    macs=count_macs(variants[name.split(" ", 1)[1]]),
                    bytes=file.bytes,
                    operators=sum(file.operators.values()),
                )
                for name, file in files.items()
            ]
    return rows


def bars(rows: Sequence[LatencyRow]) -> Figure:
    """Milliseconds by file, one bar for each number of threads."""
    names = list(dict.fromkeys(row.name for row in rows))
    counts = sorted({row.threads for row in rows})
    figure = Figure(figsize=(7, 0.5 * len(names) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(counts)
    for index, count in enumerate(counts):
        values = {row.name: row.milliseconds for row in rows if row.threads == count}
        positions = np.arange(len(names)) + index * height
        drawn = axes.barh(
            positions, [values[name] for name in names], height, label=_threads(count)
        )
        axes.bar_label(drawn, fmt="%.2f", padding=2)
    axes.set_yticks(np.arange(len(names)) + 0.4 - height / 2, names)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds, one example")
    axes.legend()
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `python -m ehap_tf.benchmark latency`."""
    parser.add_argument(
        "--model", default="resnet32", help="a built-in name or the path of a saved model"
    )
    parser.add_argument(
        "--width", type=int, default=1, help="multiplies a built-in model's channels; default 1"
    )
    parser.add_argument(
        "--target_macs",
        type=float,
        default=0.5,
        help="share of the MACs that slim models keep; default 0.5",
    )
    parser.add_argument(
        "--residual",
        nargs="+",
        default=["tied", "union"],
        help=f"one or more of {', '.join(RESIDUAL_MODES)}; default tied union",
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="default 1 2")
    parser.add_argument(
        "--runs", type=int, default=200, help="inferences to take the median of; default 200"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns of every file, the fastest counts; default 3"
    )
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Measures, prints the table, writes what --output asks for."""
    if options.model in MODEL_NAMES:
        model: Any = build_model(options.model, width=options.width)
    elif options.width == 1:
        model = load_model(options.model)
    else:
        raise ValueError(
            "--width multiplies the channels of a built-in model, one of "
            f"{', '.join(MODEL_NAMES)}. Received: --width={options.width} --model={options.model}"
        )
    clock = Clock(_steps(options.residual, options.threads, options.rounds))

    def say(done: int, total: int, figures: Mapping[str, float]) -> None:
        clock.tick(", ".join(f"{name}: {value:.3f}" for name, value in figures.items()))

    rows = latency_table(
        model,
        target_macs=options.target_macs,
        residuals=options.residual,
        threads=options.threads,
        runs=options.runs,
        rounds=options.rounds,
        progress=say,
    )
    columns = {
        "name": "file",
        "threads": "threads",
        "milliseconds": "ms",
        "speedup": "times as fast",
        "macs": "MACs",
        "bytes": "bytes",
        "operators": "operators",
    }
    values = [dataclasses.asdict(row) for row in rows]
    title = f"Latency of {options.model}, median of {options.runs} inferences, best of "
    show(f"{title}{options.rounds} rounds", values, columns)
    save(options, "latency", values, bars(rows), markdown(values, columns))


def _check(
    target_macs: float, residuals: Sequence[str], threads: Sequence[int], runs: int, rounds: int
) -> None:
    if not 0 < target_macs <= 1:
        raise ValueError(f"target_macs must be in (0, 1]. Received: {target_macs}")
    for residual in residuals:
        if residual not in RESIDUAL_MODES:
            raise ValueError(
                f"residual must be one of {', '.join(RESIDUAL_MODES)}. Received: {residual!r}"
            )
    counts = [("runs", runs), ("rounds", rounds), *(("threads", count) for count in threads)]
    for name, value in counts:
        if value < 1:
            raise ValueError(f"{name} must be at least 1. Received: {value}")


def _milliseconds(name: str, file: TFLiteFile, threads: int, runs: int) -> float:
    arguments = {"path": str(file.path), "threads": threads, "runs": runs}
    try:
        return float(
            measure(
                "ehap_tf.quantization.tflite.evaluate:measure_latency_ms",
                arguments,
                PROCESS_SECONDS,
            )
        )
    except MeasurementError as error:
        raise MeasurementError(f"{name}: {error}") from None


def _steps(residuals: Sequence[str], threads: Sequence[int], rounds: int) -> int:
    """How many files are made and timings taken."""
    return 2 * (1 + len(set(residuals))) * (1 + len(threads) * rounds)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _export_int8(model: tf_keras.Model, path: pathlib.Path) -> TFLiteFile:
    shape = (CALIBRATION_EXAMPLES, *model.input_shape[1:])
    examples = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return export_tflite(quantize(model, method="ptq", representative_data=(examples,)), path)
