"""Every architecture family of `tf_keras.applications` as a full-integer file, dense and pruned.

Random weights and a calibration of a few random batches: what is measured is whether every layer
becomes integer operators that compute what the quantized Keras model computes. Every file is a
record of its own, so that a benchmark that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import pathlib
import tempfile
import time

import numpy as np

from ehap_tf.benchmark.architectures.families import (
    add_family_arguments,
    build_family,
    families_and_ratios,
)
from ehap_tf.benchmark.measuring.isolation import MeasurementError, measure
from ehap_tf.benchmark.measuring.output import add_output_arguments, markdown, save, show
from ehap_tf.benchmark.measuring.records import Records, Row, add_records_argument, beside
from ehap_tf.pruning import count_macs, plan_pruning, prune
from ehap_tf.quantization import TFLiteModel, export_tflite, quantize
from ehap_tf.sensitivity import rank_filters

EXAMPLES = 32
FILE_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class ConversionRow:
    """One network as a file.

    Attributes:
        family, removed: which, and the share of its filters that was pruned.
        macs, bytes, operators: of the file's network, of the file, in the file.
        gathers: how many of the operators are GATHER, which XNNPACK does not accelerate.
        float_operators: in the file, each once; a full-integer file has none.
        steps: mean difference between the file's outputs and the QAT model's, in units of the
            output's scale.
        seconds: of quantizing, converting and checking.
    """

    family: str
    removed: float
    macs: int
    bytes: int
    operators: int
    gathers: int
    float_operators: list[str]
    steps: float
    seconds: float


def convert_family(family: str, removed: float) -> Row:
    """One `ConversionRow`, as `measure` can hand it from process to process."""
    model = build_family(family)
    x = np.random.default_rng(0).uniform(0, 1, (EXAMPLES, *model.input_shape[1:]))
    x = x.astype(np.float32)
    if removed:
        scores = rank_filters(model, None, criterion="magnitude")
        model = prune(model, plan_pruning(model, scores, prune_ratio=removed))
    start = time.perf_counter()
    qat = quantize(model, method="ptq", representative_data=(x,))
    with tempfile.TemporaryDirectory() as folder:
        file = export_tflite(qat, pathlib.Path(folder) / "net.tflite", allow_float=True)
        seconds = time.perf_counter() - start
        difference = TFLiteModel(file.path)(x) - qat.predict(x, verbose=0)
    row = ConversionRow(
        family=family,
        removed=removed,
        macs=count_macs(model),
        bytes=file.bytes,
        operators=sum(file.operators.values()),
        gathers=file.operators.get("GATHER", 0),
        float_operators=sorted(set(file.float_operators)),
        steps=float(np.abs(difference).mean() / file.output.scale),
        seconds=seconds,
    )
    return dataclasses.asdict(row)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --families, --ratios, --output and --records."""
    add_family_arguments(parser, ratios="0,0.3")
    add_output_arguments(parser)
    add_records_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Prints a line for every file as it is made, then the table.

    Raises:
        ValueError: a family is not known, did not convert, or computes in floating point.
    """
    families, ratios = families_and_ratios(options)
    records = Records(beside(options.output, options.records), {"examples": EXAMPLES})
    rows, failed = [], []
    for family, removed in itertools.product(families, ratios):
        arguments = {"family": family, "removed": removed}
        convert = functools.partial(measure, f"{__name__}:convert_family", arguments, FILE_SECONDS)
        name = f"{family} {removed:g}"
        try:
            row = records.row(name, convert)
        except MeasurementError as error:
            failed.append(f"{name}: {error}")
            print(failed[-1], flush=True)
            continue
        floats = ", ".join(row["float_operators"]) or "none"
        print(
            f"{name}: float operators {floats}, mean difference {row['steps']:.2f} steps, "
            f"{row['seconds']:.0f} s",
            flush=True,
        )
        if row["float_operators"]:
            failed.append(f"{name}: {floats} in floating point")
        rows.append(row)
    shown = [row | {"float_operators": len(row["float_operators"])} for row in rows]
    show("full-integer files of the families of tf_keras.applications", shown, _COLUMNS)
    save(options, "convert", rows, table=markdown(shown, _COLUMNS))
    if failed:
        raise ValueError("; ".join(failed))


_COLUMNS = {
    "family": "family",
    "removed": "removed",
    "macs": "MACs",
    "bytes": "bytes",
    "operators": "operators",
    "gathers": "GATHER",
    "float_operators": "float operators",
    "steps": "mean difference, steps",
    "seconds": "seconds",
}
