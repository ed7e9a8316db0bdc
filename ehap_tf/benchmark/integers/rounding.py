"""Post-training quantization of one network, its kernels rounded each way, at 8 and 4 bits, mixed.

Beside the accuracy on test images stands how far the outputs are from the float network's: the
share of images of the same class, the Kullback-Leibler divergence of the probabilities and the
signal-to-noise ratio, which tell apart what accuracy cannot. The integer file computes the same
numbers up to the rounding of sums (`export_tflite` checks it). With `--train_steps` those rounded
to nearest are trained, too, each for as many steps on the same images.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

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
from ehap_tf.data import ImageDataset, sample_arrays, steps_per_epoch, training_batches
from ehap_tf.models import Readout, ends_in_softmax
from ehap_tf.quantization import (
    FreezeBatchNorm,
    export_tflite,
    plan_quantization,
    quantize,
    round_biases,
)
from ehap_tf.quantization.apply.qat import ROUNDINGS
from ehap_tf.sensitivity import FilterScores, rank_filters

TRACE_PROBES = 16
TRAINING_BATCH = 128
MOMENTUM = 0.9

COLUMNS = {
    "what": "kernels",
    "bytes": "bytes of the file",
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
    add(
        "--shares",
        nargs="*",
        type=float,
        default=[0.7, 0.6],
        help="of the bytes of the 8-bit file, to be met by 4 bits for some kernels, chosen with "
        "their curvature and by the rounding error alone; default 0.7 0.6",
    )
    add("--test_images", type=int, default=0, help="default 0, for all of them")
    add(
        "--train_steps",
        type=int,
        default=0,
        help="of quantization-aware training of the kernels rounded to nearest, on batches of "
        f"{TRAINING_BATCH} images; default 0, for none",
    )
    add("--learning_rate", type=float, default=0.004, help="its highest; default 0.004")
    output.add_output_arguments(parser)
    add_records_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Measures what is not yet measured, prints the table, writes what --output asks for."""
    model, dataset, _ = load_images(options.model, options.dataset, options.data_dir, options.seed)
    x, y = some_arrays(dataset, dataset.test, options.test_images)
    images, labels = sample_arrays(dataset, options.examples, options.seed)
    of_model = digest(trained_source(options.model, options.dataset), options.seed)
    names = ["dataset", "examples", "test_images", "seed"]
    if options.train_steps:
        names += ["train_steps", "learning_rate"]
    settings = {"model": of_model} | {name: getattr(options, name) for name in names}
    records = Records(beside(options.output, options.records), settings)
    judge = _Judge(model, x, y)
    rows = [records.row("float", lambda: judge.row("float", model, 0.0))]
    variants = _variants(model, images, labels, options)
    clock = Clock(len(variants))
    for name, arguments in variants.items():

        def measured(name: str = name, arguments: Any = arguments) -> Row:
            began = time.monotonic()
            settings = {"method": "ptq"} | arguments()
            qat = quantize(model, representative_data=images, **settings)
            if settings["method"] == "qat":
                _train(qat, dataset, Readout.of(model).loss(), options)
            return judge.row(name, qat, time.monotonic() - began)

        rows.append(records.row(name, measured))
        clock.tick(name)
    output.show(f"Post-training quantization, {len(y)} test images", rows, COLUMNS)
    output.save(options, "rounding", rows, table=output.markdown(rows, COLUMNS), model=of_model)


def _variants(
    model: tf_keras.Model, images: np.ndarray, labels: np.ndarray, options: argparse.Namespace
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name -> the arguments of `quantize`, which are made when they are needed."""
    found: dict[str, Callable[[], dict[str, Any]]] = {
        f"{bits} bits, {rounding}": functools.partial(dict, weight_bits=bits, rounding=rounding)
        for bits in options.bits
        for rounding in ROUNDINGS
    }

    @functools.cache
    def scores() -> FilterScores:
        loss = Readout.of(model).loss()
        data = images, labels
        return rank_filters(model, data, loss, estimator="gauss_newton", probes=TRACE_PROBES)

    @functools.cache
    def whole() -> int:
        return _file_bytes(quantize(model, "ptq", representative_data=images))

    def plan(share: float, is_curved: bool) -> dict[str, Any]:
        known = scores()
        if not is_curved:
            # One number for each weight of the network.
            ones = {
                name: np.full(len(trace), model.get_layer(name).kernel.numpy().size / len(trace))
                for name, trace in known.trace.items()
            }
            known = FilterScores(dict(known), known.provenance, trace=ones)
        target = int(share * whole())
        return {"plan": plan_quantization(model, target_bytes=target, scores=known)}

    for share in options.shares:
        found[f"{100 * share:g} % of the bytes"] = functools.partial(plan, share, True)
        found[f"{100 * share:g} %, by the rounding error alone"] = functools.partial(
            plan, share, False
        )
    if options.train_steps:
        trained = [name for name in found if "gptq" not in name and "alone" not in name]
        for name in trained:
            untrained = found[name]
            found[f"{name}, trained"] = functools.partial(_to_train, untrained)
    return found


def _to_train(untrained: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return untrained() | {"method": "qat"}


def _train(
    qat: tf_keras.Model,
    dataset: ImageDataset,
    loss: tf_keras.losses.Loss,
    options: argparse.Namespace,
) -> None:
    """Trains in place along a cosine; the second half sees the affine maps of the file."""
    steps = options.train_steps
    epochs = -(-steps // steps_per_epoch(dataset, TRAINING_BATCH))
    batches = training_batches(dataset, TRAINING_BATCH, options.seed, epochs=epochs).take(steps)
    schedule = tf_keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)
    qat.compile(tf_keras.optimizers.SGD(schedule, MOMENTUM, nesterov=True), loss)
    qat.fit(batches, epochs=1, verbose=0, callbacks=[FreezeBatchNorm(steps // 2)])
    round_biases(qat)


def _file_bytes(qat: tf_keras.Model) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return export_tflite(qat, pathlib.Path(folder) / "model.tflite").bytes


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
            "bytes": _file_bytes(model) if seconds else None,
            "accuracy": float((found.argmax(-1) == self._labels).mean()),
            "agreement": float((found.argmax(-1) == wanted.argmax(-1)).mean()),
            "divergence": divergence(wanted, found),
            "ratio_db": 10 * float(np.log10(np.square(centered).sum() / noise)) if noise else None,
            "seconds": seconds,
        }

    def _log_probabilities(self, model: tf_keras.Model) -> np.ndarray:
        return log_probabilities(model, self._inputs, self._are_probabilities)
