"""The job in one call, on somebody's own model and data, in memory."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.data import as_arrays, as_dataset, only_array
from ehap_tf.files import require_writable
from ehap_tf.models import (
    ends_in_sigmoid,
    ends_in_softmax,
    require_finite_weights,
    require_functional,
)
from ehap_tf.models.keras3 import either_keras, to_keras3
from ehap_tf.pipeline.training.adaptation import adapted
from ehap_tf.pipeline.training.conventions import is_chance
from ehap_tf.pipeline.training.evaluation import Evaluator
from ehap_tf.pipeline.training.finetuning import (
    batches_of,
    count_examples,
    fit_best,
    known_batch_size,
    known_loss,
    require_fit,
)
from ehap_tf.pruning import PruningPlan, count_macs, count_parameters, plan_pruning, prune
from ehap_tf.quantization import (
    TFLiteFile,
    evaluate_tflite,
    export_tflite,
    quantize,
    require_quantizable,
    round_biases,
)
from ehap_tf.sensitivity import FilterScores, rank_filters
from ehap_tf.sensitivity.network.losses import SIGMOID, resolve_loss

DRAWN = 4096
"""Training examples that BatchNorm is estimated anew on, and others are taken from."""


@dataclasses.dataclass(frozen=True)
class Compressed:
    """What `compress` made.

    Attributes:
        model: the slim, fine-tuned float model.
        qat: its quantization-aware twin.
        tflite: what was verified about the integer file; `tflite.path` is where it lies.
        scores: what each filter was worth.
        plan: which filters stayed.
        report: figures by name, those of the command's report.json as far as they apply.
    """

    model: tf_keras.Model
    qat: tf_keras.Model
    tflite: TFLiteFile
    scores: FilterScores
    plan: PruningPlan
    report: dict[str, Any]

    def __repr__(self) -> str:
        parameters = "{params_before:,} -> {params_after:,}".format_map(self.report)
        accuracy = "{baseline_accuracy:.4f} -> {tflite_accuracy:.4f}".format_map(self.report)
        return (
            f"Compressed({str(self.tflite.path)!r}, {self.tflite.bytes:,} bytes; parameters "
            f"{parameters}, accuracy {accuracy})"
        )


@either_keras(lambda made: dataclasses.replace(made, model=to_keras3(made.model)))
def compress(
    model: tf_keras.Model,
    train_data: Any,
    validation_data: Any,
    *,
    path: str | os.PathLike[str] = "model_int8.tflite",
    loss: Any = None,
    prune_ratio: float | None = None,
    target_params: float | None = None,
    target_macs: float | None = None,
    prune_ratio_limit: float = 0.95,
    residual: str = "union",
    implant_ratio: float = 0.0,
    round_to: int = 1,
    keep_layers: Sequence[str] = (),
    cost_aware: str | None = None,
    criterion: str = "obd",
    estimator: str = "gauss_newton",
    precision: str = "fp32",
    probes: int = 32,
    rank_examples: int = 512,
    repair_images: int = 512,
    finetune_epochs: int = 10,
    qat_epochs: int = 2,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    weight_bits: int = 8,
    activation_bits: int = 8,
    allow_float: bool = False,
    force: bool = False,
    seed: int = 0,
    verbose: int = 0,
) -> Compressed:
    """Ranks, prunes, fine-tunes, quantizes and exports a trained classifier.

    `model` and its compile state stay as they are. With neither `prune_ratio` nor a target, half
    of the multiply-accumulates go.

    Args:
        model: a trained Functional or Sequential model with one input and one output, a number
            for each class; of a segmentation, at each position. With a binary cross-entropy as
            loss a single number, for the second of two classes, or one for each of several labels
            that do not exclude each other, whose accuracy is the share of labels that are right.
        train_data: `(x, y)` arrays, or lists of numbers, or a finite batched `tf.data.Dataset`,
            with integer labels or one-hot ones, as the loss takes them.
        validation_data: the same kind; epochs are chosen by it, and accuracies measured on it.
        path: of the integer file.
        loss: a Keras loss or its name; None takes the model's compiled loss, with its weight.
        prune_ratio: share of all filters to remove.
        target_params: share of the parameters to keep.
        target_macs: share of the multiply-accumulates to keep.
        prune_ratio_limit: as in `plan_pruning`.
        residual: as in `plan_pruning`.
        implant_ratio: as in `plan_pruning`.
        round_to: as in `plan_pruning`.
        keep_layers: as in `plan_pruning`.
        cost_aware: as in `plan_pruning`.
        criterion: as in `rank_filters`.
        estimator: as in `rank_filters`.
        precision: of the ranking, as in `rank_filters`.
        probes: as in `rank_filters`.
        rank_examples: training examples that the ranking looks at: a sample of arrays, the first
            ones of a dataset.
        repair_images: training examples that `repair` looks at, a sample of arrays, the first ones
            of a dataset; 0 repairs nothing, and biases and BatchNorm's statistics are adapted.
        finetune_epochs: epochs after pruning; 0 leaves the slim model as it is.
        qat_epochs: epochs of quantization-aware training; 0 leaves it calibrated only.
        learning_rate: highest of fine-tuning; None takes that of a compiled SGD with a constant
            learning rate, else 0.01.
        batch_size: of arrays; None takes 128, or less where an epoch would have under 20 steps. A
            dataset keeps its own batches.
        weight_bits: as in `quantize`.
        activation_bits: as in `quantize`.
        allow_float: as in `quantize`; the file then has float operators.
        force: go on where the model does no better than chance on `validation_data`.
        seed: of the sample and of the ranking's random vectors.
        verbose: Keras' own progress output: 0, 1 or 2.

    Raises:
        TypeError: the model is subclassed, or data is of another type.
        ValueError: an argument is out of range, data is empty, infinite or does not fit the model
            or the loss, or no loss is known; the model is at chance on the data; a layer has no
            integer kernel (noticed before anything is ranked or trained).
        OSError: `path` cannot be written (noticed before anything else).
    """
    _require_possible(model, path, repair_images)
    threshold = _threshold(model, known_loss(model, loss)[0])
    batch_size = known_batch_size(train_data, batch_size)
    train = _training(model, train_data, validation_data, loss, batch_size, threshold, verbose)
    bits: dict[str, Any] = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    require_quantizable(model, **bits, allow_float=allow_float)
    measure = functools.partial(accuracy_on, data=validation_data, threshold=threshold)
    baseline_accuracy = measure(model)
    _require_better_than_chance(model, baseline_accuracy, validation_data, force)
    if (prune_ratio, target_params, target_macs) == (None, None, None):
        target_macs = 0.5
    seconds: dict[str, float] = {}
    drawn = _drawn(train_data, max(rank_examples, DRAWN), seed)
    with _timed(seconds, "rank"):
        sample = first_examples(drawn, rank_examples)
        scores = rank_filters(
            model, sample, loss, criterion=criterion, estimator=estimator, precision=precision,
            probes=probes, batch_size=min(batch_size, len(sample[0])), seed=seed,
            residual=residual,
        )  # fmt: skip
    with _timed(seconds, "prune"):
        plan = plan_pruning(
            model, scores, prune_ratio, target_params=target_params, target_macs=target_macs,
            prune_ratio_limit=prune_ratio_limit, residual=residual, implant_ratio=implant_ratio,
            round_to=round_to, keep_layers=keep_layers, cost_aware=cost_aware,
        )  # fmt: skip
        slim = prune(model, plan)
        slim = adapted(slim, model, plan, drawn, repair_images=repair_images, seed=seed)
    report: dict[str, Any] = _figures(model, slim, scores) | {
        "seed": seed,
        "baseline_accuracy": baseline_accuracy,
        "pruned_accuracy": measure(slim),
    }
    rate = _learning_rate(model, learning_rate)
    with _timed(seconds, "finetune"):
        train(slim, epochs=finetune_epochs, learning_rate=rate)
    report["finetuned_accuracy"] = measure(slim)
    calibration = first_examples(drawn, 1280)[:2]
    with _timed(seconds, "quantize"):
        qat = quantize(slim, representative_data=calibration, allow_float=allow_float, **bits)
        train(qat, epochs=qat_epochs, learning_rate=rate / 10, quantized=True)
        round_biases(qat)
    report["qat_accuracy"] = measure(qat)
    with _timed(seconds, "export"):
        file = export_tflite(qat, path, allow_float=allow_float, data=calibration)
        report |= _file_figures(file, validation_data, threshold)
    return Compressed(slim, qat, file, scores, plan, report | {"stage_seconds": seconds})


def _file_figures(file: TFLiteFile, data: Any, threshold: float | None) -> dict[str, Any]:
    return {
        "tflite_accuracy": evaluate_tflite(file.path, data, threshold=threshold),
        "tflite_bytes": file.bytes,
        "tflite_float_ops": file.float_ops,
    }


def _require_possible(
    model: tf_keras.Model, path: str | os.PathLike[str], repair_images: int
) -> None:
    require_writable(path)
    if repair_images < 0:
        raise ValueError(f"repair_images must be at least 0. Received: {repair_images}")
    require_functional(model)
    require_finite_weights(model)
    instead = "call rank_filters, plan_pruning, prune, finetune, quantize and export_tflite instead"
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "compress takes a classifier with one input and one output. Received: "
            f"{len(model.inputs)} and {len(model.outputs)}; {instead}"
        )


def _threshold(model: tf_keras.Model, loss: Any) -> float | None:
    """Above which an output means 1; None where the largest of several counts.

    Raises:
        ValueError: a single output whose loss is no binary cross-entropy.
    """
    (only,) = tf.nest.flatten(loss) if tf.nest.is_nested(loss) else (loss,)
    if resolve_loss(only, model).kind == SIGMOID and not ends_in_softmax(model):
        return 0.5 if ends_in_sigmoid(model) else 0.0
    if model.outputs[0].shape[-1] == 1:
        raise ValueError(
            "compress takes a classifier: a number for each class, or a single one with a binary "
            f"cross-entropy. Received: outputs of shape {tuple(model.outputs[0].shape)} and the "
            f"loss {only!r}; call rank_filters, plan_pruning, prune, finetune, quantize and "
            "export_tflite instead"
        )
    return None


def _require_better_than_chance(
    model: tf_keras.Model, share: float, validation_data: Any, force: bool
) -> None:
    """Hours of work on a model that sees its inputs in another form would be lost."""
    if force:
        return
    outputs = model.outputs[0].shape[-1]
    labels = []
    for _, y, *_weights in batches_of(validation_data, 256):
        y = only_array(y, "labels")
        one_hot = y.ndim == len(model.outputs[0].shape) and y.shape[-1] == outputs > 1
        labels.append((y.argmax(-1) if one_hot else y).reshape(-1))
    if is_chance(share, np.concatenate(labels).astype(np.int64)):
        raise ValueError(
            "the model does no better than chance on validation_data. Received: an accuracy of "
            f"{share:.4f}. Are the inputs preprocessed as for its training (pixels of 0 to 255, 0 "
            "to 1 or -1 to 1, less a mean), and the labels numbered so? force=True goes on all the "
            "same"
        )


def _training(
    model: tf_keras.Model,
    train_data: Any,
    validation_data: Any,
    loss: Any,
    batch_size: int,
    threshold: float | None,
    verbose: int,
) -> Callable[..., None]:
    """`fit_best` for a model, epochs and a learning rate; data and loss fit the model."""
    training_loss, weights = known_loss(model, loss)
    resolve_loss(training_loss, model)  # refuses several
    steps = require_fit(model, train_data, training_loss, "train_data", batch_size)
    require_fit(model, validation_data, training_loss, "validation_data", batch_size)
    # Of the only output, whatever it is called: behind an average quantization has another name.
    (output_loss,) = tf.nest.flatten(training_loss)
    return functools.partial(
        fit_best, train_data=train_data, validation_data=validation_data, loss=output_loss,
        loss_weights=next(iter(weights.values()), None), batch_size=batch_size, steps=steps,
        threshold=threshold, verbose=verbose,
    )  # fmt: skip


def accuracy_on(model: tf_keras.Model, data: Any, threshold: float | None = None) -> float:
    """Share of the examples (or positions) whose largest output is their label.

    With a `threshold` the share of outputs that are above it where their label is 1.
    """
    return Evaluator(model, threshold)(batches_of(data, 256))


def first_examples(data: Any, count: int) -> tuple[np.ndarray, ...]:
    """The first `count` examples, with weights or without, of one input and one output."""
    if count < 1:
        raise ValueError(f"the number of examples must be at least 1. Received: {count}")
    batches, seen = [], 0
    for x, y, *weights in as_dataset(data, weighted=True):
        batches.append(
            (only_array(x, "inputs"), only_array(y, "labels"), *map(np.asarray, weights))
        )
        seen += len(batches[-1][0])
        if seen >= count:
            break
    return tuple(np.concatenate(arrays)[:count] for arrays in zip(*batches, strict=True))


def _drawn(data: Any, count: int, seed: int) -> Any:
    """Some examples of arrays in random order, as those may be sorted by class; a dataset as it is.

    Everything that looks at a part of the training data looks at these.
    """
    if isinstance(data, tf.data.Dataset):
        return data
    order = np.random.default_rng(seed).permutation(count_examples(data))[:count]
    return tuple(
        tf.nest.map_structure(lambda array: np.asarray(array)[order], as_arrays(part))
        for part in data
        if part is not None
    )


def _figures(model: tf_keras.Model, slim: tf_keras.Model, scores: FilterScores) -> dict[str, Any]:
    return {
        "params_before": count_parameters(model),
        "params_after": count_parameters(slim),
        "macs_before": count_macs(model),
        "macs_after": count_macs(slim),
        **scores.provenance.figures(),
    }


def _learning_rate(model: tf_keras.Model, learning_rate: float | None) -> float:
    if learning_rate is not None:
        return learning_rate
    optimizer = getattr(model, "optimizer", None)
    if not isinstance(optimizer, tf_keras.optimizers.SGD):
        return 0.01
    rate = optimizer.get_config()["learning_rate"]
    return float(rate) if isinstance(rate, (int, float, np.number)) else 0.01


class _timed:  # noqa: N801 - reads as a verb where it is used
    """Adds the seconds of a block to a mapping."""

    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._stage] = round(time.monotonic() - self._start, 3)
