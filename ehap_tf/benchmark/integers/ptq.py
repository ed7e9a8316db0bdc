"""Post-training quantization beside the TFLite converter's own, without training.

Small networks of the kinds that run on devices, each quantized both ways with the same calibration
data. The measure is the signal-to-noise ratio of the file's outputs against the float model's on
other data, in decibels; of several outputs the smallest. Every network is a record of its own, so
that a benchmark that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.benchmark.integers.ptq_networks import NETWORKS, signals, trained
from ehap_tf.benchmark.measuring.isolation import measure
from ehap_tf.benchmark.measuring.output import add_output_arguments, markdown, save, show
from ehap_tf.benchmark.measuring.records import Records, Row, add_records_argument, beside
from ehap_tf.quantization import TFLiteModel, export_tflite, inspect_tflite, quantize
from ehap_tf.quantization.tflite.inputs import input_names

TOLERATED_DB = 0.3
"""How far under the converter's a ratio may be; the examples alone make a tenth of it."""
CALIBRATION, COMPARED = 256, 256
NETWORK_SECONDS = 1800


@dataclasses.dataclass(frozen=True)
class QuantizedRow:
    """One network, quantized both ways.

    Attributes:
        network: which.
        ours_db, plain_db: signal-to-noise ratio of the outputs, of the worst output.
        ours_bytes, plain_bytes: of the files.
        ours_operators, plain_operators: in the files.
        ours_float, plain_float: operators that compute in floating point.
        seconds: of our quantizing, without the conversion.
    """

    network: str
    ours_db: float
    plain_db: float
    ours_bytes: int
    plain_bytes: int
    ours_operators: int
    plain_operators: int
    ours_float: int
    plain_float: int
    seconds: float


def quantize_network(network: str, steps: int, seed: int, activation_bits: int = 8) -> Row:
    """One `QuantizedRow`, as `measure` can hand it from process to process."""
    _, shape = NETWORKS[network]
    model = trained(network, steps, seed)
    calibration, _ = signals(shape, CALIBRATION, seed + 1)
    x, _ = signals(shape, COMPARED, seed + 2)
    return dataclasses.asdict(compared(network, model, calibration, x, activation_bits))


def compared(
    network: str,
    model: tf_keras.Model,
    calibration: np.ndarray,
    x: np.ndarray,
    activation_bits: int = 8,
) -> QuantizedRow:
    """Quantizes a model both ways and compares the files' outputs on `x` with its own."""
    start = time.perf_counter()
    qat = quantize(model, "ptq", activation_bits=activation_bits, representative_data=calibration)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        ours = export_tflite(qat, pathlib.Path(folder) / "ours.tflite", data=calibration)
        path = pathlib.Path(folder) / "plain.tflite"
        path.write_bytes(plain_conversion(model, calibration, activation_bits))
        plain = inspect_tflite(path)
        outputs = [y.numpy() for y in tf.nest.flatten(model(x, training=False))]
        (name,) = input_names(qat)
        return QuantizedRow(
            network=network,
            ours_db=_ratio(TFLiteModel(ours.path), {name: x}, outputs),
            plain_db=_ratio(TFLiteModel(path), x, outputs),
            ours_bytes=ours.bytes,
            plain_bytes=plain.bytes,
            ours_operators=sum(ours.operators.values()),
            plain_operators=sum(plain.operators.values()),
            ours_float=ours.float_ops,
            plain_float=plain.float_ops,
            seconds=seconds,
        )


def plain_conversion(
    model: tf_keras.Model, calibration: np.ndarray, activation_bits: int = 8
) -> bytes:
    """A full-integer file as TensorFlow's guides to post-training quantization make it."""
    function = tf.function(lambda x: tf.nest.flatten(model(x, training=False)))
    spec = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)
    concrete = function.get_concrete_function(spec)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x[None]] for x in calibration)
    kernels, io_type = _PLAIN[activation_bits]
    converter.target_spec.supported_ops = [kernels]
    converter.inference_input_type = converter.inference_output_type = io_type
    return bytes(converter.convert())


_PLAIN = {
    8: (tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.int8),
    16: (
        tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
        tf.int16,
    ),
}
"""Bits of activations -> what the converter is told."""


def _ratio(file: TFLiteModel, x: Any, expected: list[np.ndarray]) -> float:
    """The signal-to-noise ratio of the worst output, in decibels."""
    received = tf.nest.flatten(file(x))
    errors = (np.square(one - other).sum() for one, other in zip(received, expected, strict=True))
    signals_ = (np.square(y).sum() for y in expected)
    return min(
        float(10.0 * np.log10(signal / error))
        for signal, error in zip(signals_, errors, strict=True)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --networks, --steps, --seed, --activation_bits, --output and --records."""
    parser.add_argument(
        "--networks",
        default=",".join(NETWORKS),
        help="comma-separated; default: all of " + ", ".join(NETWORKS),
    )
    parser.add_argument("--steps", type=int, default=60, help="of training; default 60")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument(
        "--activation_bits", type=int, default=8, choices=sorted(_PLAIN), help="default 8"
    )
    add_output_arguments(parser)
    add_records_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Prints a line for every network as it is measured, then the table.

    Raises:
        ValueError: a network is not known, or ours is more than `TOLERATED_DB` under plain.
    """
    names = [name.strip() for name in options.networks.split(",")]
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise ValueError(
            f"--networks must be among {', '.join(NETWORKS)}. Received: {', '.join(unknown)}"
        )
    settings = {"steps": options.steps, "seed": options.seed}
    if options.activation_bits != 8:
        settings["activation_bits"] = options.activation_bits
    records = Records(beside(options.output, options.records), settings)
    rows = []
    for name in names:
        arguments = {"network": name, **settings}
        make = functools.partial(
            measure, f"{__name__}:quantize_network", arguments, NETWORK_SECONDS
        )
        row = records.row(name, make)
        print(f"{name}: {row['ours_db']:.2f} dB, plain {row['plain_db']:.2f} dB", flush=True)
        rows.append(row)
    show("post-training quantization: ours and the converter's", rows, _COLUMNS)
    save(options, "ptq", rows, table=markdown(rows, _COLUMNS))
    behind = [
        f"{row['network']} {row['ours_db'] - row['plain_db']:.2f} dB"
        for row in rows
        if row["ours_db"] < row["plain_db"] - TOLERATED_DB
    ]
    if behind:
        raise ValueError(f"under plain conversion: {', '.join(behind)}")


_COLUMNS = {
    "network": "network",
    "ours_db": "ours, dB",
    "plain_db": "plain, dB",
    "ours_bytes": "ours, bytes",
    "plain_bytes": "plain, bytes",
    "ours_operators": "ours, operators",
    "plain_operators": "plain, operators",
    "ours_float": "ours, float",
    "plain_float": "plain, float",
    "seconds": "seconds",
}
