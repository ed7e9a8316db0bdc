"""Post-training quantization of one network, its kernels rounded each way, at 8 and 4 bits.

Beside the accuracy on test images stands how far the outputs are from the float network's: the
share of images of the same class, the Kullback-Leibler divergence of the probabilities and the
signal-to-noise ratio, which tell apart what accuracy cannot. The integer file computes the same
numbers up to the rounding of sums (`export_tflite` checks it).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import tf_keras

from ehap_tf.benchmark.measuring import output
from ehap_tf.benchmark.measuring.contenders import Clock
from ehap_tf.benchmark.measuring.records import Records, Row, add_records_argument, beside, digest
from ehap_tf.benchmark.measuring.subject import (
    add_subject_arguments,
    divergence,
    load_images,
    log_probabilities,
    some_arrays,
    trained_source,
)
from ehap_tf.data import sample_arrays
from ehap_tf.models import ends_in_softmax
from ehap_tf.quantization import quantize
from ehap_tf.quantization.apply.qat import ROUNDINGS

COLUMNS = {
    "what": "kernels",
    "accuracy": "accuracy",
    "agreement": "same class as in float",
    "divergence": "divergence, nats",
    "ratio_db": "signal to noise, dB",
    "seconds": "seconds",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this benchmark."""
    add_subject_arguments(parser, examples=512)
    add = parser.add_argument
    add("--bits", nargs="+", type=int, default=[8, 4], help="of the kernels; default 8 4")
    add("--test_images", type=int, default=0, help="default 0, for all of them")
    output.add_output_arguments(parser)
    add_records_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Measures what is not yet measured, prints the table, writes what --output asks for."""
    model, dataset, _ = load_images(options.model, options.dataset, options.data_dir, options.seed)
    x, y = some_arrays(dataset, dataset.test, options.test_images)
    images, _ = sample_arrays(dataset, options.examples, options.seed)
    of_model = digest(trained_source(options.model, options.dataset), options.seed)
    names = ("dataset", "examples", "test_images", "seed")
    settings = {"model": of_model} | {name: getattr(options, name) for name in names}
    records = Records(beside(options.output, options.records), settings)
    judge = _Judge(model, x, y)
    rows = [records.row("float", lambda: judge.row("float", model, 0.0))]
    variants = [(bits, rounding) for bits in options.bits for rounding in ROUNDINGS]
    clock = Clock(len(variants))
    for bits, rounding in variants:
        name = f"{bits} bits, {rounding}"

        def measured(bits: int = bits, rounding: str = rounding, name: str = name) -> Row:
            began = time.monotonic()
            qat = quantize(model, "ptq", bits, representative_data=images, rounding=rounding)
            return judge.row(name, qat, time.monotonic() - began)

        rows.append(records.row(name, measured))
        clock.tick(name)
    output.show(f"Post-training quantization, {len(y)} test images", rows, COLUMNS)
    output.save(options, "rounding", rows, table=output.markdown(rows, COLUMNS), model=of_model)


class _Judge:
    """Holds networks against one in float."""

    def __init__(self, model: tf_keras.Model, inputs: np.ndarray, labels: np.ndarray) -> None:
        self._inputs, self._labels = inputs, labels
        self._are_probabilities = ends_in_softmax(model)
        self._wanted = self._log_probabilities(model)

    def row(self, name: str, model: tf_keras.Model, seconds: float) -> Row:
        """What one network is like."""
        found, wanted = self._log_probabilities(model), self._wanted
        centered = wanted - wanted.mean(-1, keepdims=True)
        error = found - found.mean(-1, keepdims=True) - centered
        noise = float(np.square(error).sum())
        return {
            "what": name,
            "accuracy": float((found.argmax(-1) == self._labels).mean()),
            "agreement": float((found.argmax(-1) == wanted.argmax(-1)).mean()),
            "divergence": divergence(wanted, found),
            "ratio_db": 10 * float(np.log10(np.square(centered).sum() / noise)) if noise else None,
            "seconds": seconds,
        }

    def _log_probabilities(self, model: tf_keras.Model) -> np.ndarray:
        return log_probabilities(model, self._inputs, self._are_probabilities)
