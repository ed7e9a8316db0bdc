"""Fine-tuning on somebody's own data, in memory, with the weights of the best epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.data import (
    DEFAULT_BATCH_SIZE,
    as_arrays,
    as_dataset,
    count_batches,
    example_weights,
    fitting_batch,
    has_weights,
)
from ehap_tf.models import copy_model, output_names, require_functional, require_inputs
from ehap_tf.models.keras3 import either_keras
from ehap_tf.quantization import FreezeBatchNorm
from ehap_tf.sensitivity.network.labels import require_labels
from ehap_tf.sensitivity.network.losses import compiled_weights, require_loss, weights_by_output
from ehap_tf.sensitivity.supervised import losses_by_output


@either_keras()
def finetune(
    model: tf_keras.Model,
    train_data: Any,
    validation_data: Any = None,
    epochs: int = 10,
    *,
    loss: Any = None,
    loss_weights: Any = None,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    batch_size: int | None = None,
    verbose: int = 0,
) -> tf_keras.Model:
    """A trained copy of `model`: SGD with Nesterov momentum along a cosine.

    With `validation_data`, the copy has the weights of its best validation epoch; those that it
    began with where no epoch is better.

    Args:
        model: a Functional or Sequential model, usually from `prune`; it stays as it is.
        train_data: `(x, y)` or `(x, y, sample_weight)` arrays, or lists of numbers, or a finite
            batched `tf.data.Dataset` of such tuples. The loss counts with the weights.
        validation_data: the same kind, or None.
        epochs: 0 returns an untrained copy.
        loss: a Keras loss or its name, of several outputs by name or in order; None takes the
            model's compiled loss.
        loss_weights: factors of the outputs' losses, by name or in order, as in `compile`; None
            takes the compiled ones where the loss is the compiled one, else 1 for each.
        learning_rate: the highest.
        momentum: of SGD.
        batch_size: of arrays; None takes 128, or less where an epoch would have under 20 steps. A
            dataset keeps its own batches.
        verbose: Keras' own progress output: 0, 1 or 2.

    Raises:
        TypeError: the model is subclassed, or data is of another type.
        ValueError: an argument is out of range, data is empty, infinite or does not fit the model
            or the loss, or no loss is known.
        FloatingPointError: the loss became NaN or infinite.
    """
    require_functional(model)
    loss, weights = known_loss(model, loss, loss_weights)
    train_data, validation_data = (
        without_missing_labels(model, data) for data in (train_data, validation_data)
    )
    batch_size = known_batch_size(train_data, batch_size)
    steps = require_fit(model, train_data, loss, "train_data", batch_size)
    if validation_data is not None:
        require_fit(model, validation_data, loss, "validation_data", batch_size)
    copy = copy_model(model)
    fit_best(
        copy, train_data, validation_data, epochs, learning_rate, loss=loss,
        loss_weights=weights or None, momentum=momentum, batch_size=batch_size, steps=steps,
        verbose=verbose,
    )  # fmt: skip
    return copy


def fit_best(
    model: tf_keras.Model,
    train_data: Any,
    validation_data: Any,
    epochs: int,
    learning_rate: float,
    *,
    loss: Any,
    loss_weights: Any = None,
    momentum: float = 0.9,
    batch_size: int,
    steps: int | None = None,
    threshold: float | None = None,
    verbose: int,
    quantized: bool = False,
) -> None:
    """Trains in place and leaves the best validation weights, those before the training included.

    The best are those of the lowest loss. Of a `quantized` model, whose accuracy is that of its
    file, they are those of the highest accuracy, and the second half of its training sees the
    affine maps of the file. `steps` are those of an epoch; None counts them. `threshold` is that
    of accuracy where outputs are each for itself, as in `evaluate_tflite`.
    """
    if epochs < 0:
        raise ValueError(f"epochs must be at least 0. Received: {epochs}")
    if epochs == 0:
        return
    batches = shuffled_batches(train_data, batch_size)
    if steps is None:
        steps = count_batches(batches_of(train_data, batch_size))
    schedule = tf_keras.optimizers.schedules.CosineDecay(learning_rate, max(1, epochs * steps))
    optimizer = tf_keras.optimizers.SGD(schedule, momentum=momentum, nesterov=True)
    _compile(model, optimizer, loss, loss_weights, has_weights(train_data), threshold)
    callbacks: list[Any] = [tf_keras.callbacks.TerminateOnNaN()]
    best = validation = None
    if validation_data is not None:
        validation = batches_of(validation_data, batch_size)
        best = BestWeights(by_accuracy=quantized)
        best.set_model(model)
        best.offer(model.evaluate(validation, verbose=0, return_dict=True))
        callbacks.append(best)
    if quantized:
        callbacks.append(FreezeBatchNorm(epochs * steps // 2))
    history = model.fit(
        batches, validation_data=validation, epochs=epochs, callbacks=callbacks, verbose=verbose
    )
    # A ReLU may turn NaN into 0: weights can be lost while the loss stays finite.
    weights_finite = all(np.isfinite(weight).all() for weight in model.get_weights())
    if not np.isfinite(history.history["loss"]).all() or not weights_finite:
        raise FloatingPointError(
            f"The loss or the weights became NaN or infinite (learning rate {learning_rate:g}); "
            "give a lower learning_rate, and look for NaN in the data"
        )
    if best and best.weights is not None:
        model.set_weights(best.weights)


def _compile(
    model: tf_keras.Model,
    optimizer: Any,
    loss: Any,
    loss_weights: Any,
    weighted: bool,
    threshold: float | None,
) -> None:
    """With accuracies, of examples with weights weighted like the loss."""
    metrics: Any = ["accuracy"]
    if threshold is not None:
        metrics = [tf_keras.metrics.BinaryAccuracy("accuracy", threshold=threshold)]
    if tf.nest.is_nested(loss):
        # Keras looks for labels of every output that a metric stands for.
        metrics = {name: ["accuracy"] for name in losses_by_output(model, loss)}
    by_name = {"weighted_metrics" if weighted else "metrics": metrics}
    model.compile(optimizer, loss, **by_name, loss_weights=loss_weights)


class BestWeights(tf_keras.callbacks.Callback):
    """Remembers the weights of the best validation figures.

    Args:
        by_accuracy: the highest accuracy is best, among equal ones the lowest loss; otherwise the
            lowest loss.
    """

    def __init__(self, by_accuracy: bool) -> None:
        super().__init__()
        self.weights: list[np.ndarray] | None = None
        self._by_accuracy = by_accuracy
        self._lowest: tuple[float, ...] = (float("inf"),)

    def offer(self, figures: Mapping[str, float], prefix: str = "") -> None:
        """Compares the weights of the moment with the best so far."""
        key: tuple[float, ...] = (figures[f"{prefix}loss"],)
        if self._by_accuracy:
            key = (-figures[f"{prefix}accuracy"], *key)
        if key < self._lowest:
            self._lowest, self.weights = key, self.model.get_weights()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Takes the epoch's validation figures."""
        if logs and "val_loss" in logs:
            self.offer(logs, "val_")


def known_batch_size(train_data: Any, batch_size: int | None) -> int:
    """The batch size, where None one with which arrays have steps enough in an epoch."""
    if batch_size is not None:
        return batch_size
    if isinstance(train_data, tf.data.Dataset):
        return DEFAULT_BATCH_SIZE
    # What is wrong with the data, `require_fit` says.
    examples = count_examples(train_data) if isinstance(train_data, (tuple, list)) else 0
    return fitting_batch(examples, DEFAULT_BATCH_SIZE) if examples else DEFAULT_BATCH_SIZE


def batches_of(data: Any, batch_size: int, name: str = "data") -> tf.data.Dataset:
    """Arrays in batches of that size, a dataset in its own; with weights where there are any."""
    own = isinstance(data, tf.data.Dataset)
    return as_dataset(data, None if own else batch_size, name=name, weighted=True)


def shuffled_batches(data: Any, batch_size: int) -> tf.data.Dataset:
    """Arrays in another order in every epoch; a dataset in its own."""
    batches = batches_of(data, batch_size)
    if isinstance(data, tf.data.Dataset):
        return batches
    return batches.unbatch().shuffle(count_examples(data), seed=0).batch(batch_size)


def without_missing_labels(model: tf_keras.Model, data: Any) -> Any:
    """Arrays with the labels by output, where the list of them holds None for an output."""
    if not isinstance(data, tuple) or len(data) < 2 or not isinstance(data[1], list | tuple):
        return data
    x, labels, *weights = data
    if not any(one is None for one in labels) or len(labels) != len(model.outputs):
        return data
    named = zip(output_names(model), labels, strict=True)
    return x, {name: one for name, one in named if one is not None}, *weights


def count_examples(arrays: Any) -> int:
    """How many examples `(x, y)` arrays hold."""
    return len(tf.nest.flatten(as_arrays(arrays[0]))[0])


def known_loss(
    model: tf_keras.Model, loss: Any, loss_weights: Any = None
) -> tuple[Any, dict[str, float]]:
    """The loss, where None the compiled one, and the factors of the outputs in it by name."""
    if loss is None:
        loss = getattr(model, "loss", None)
        loss_weights = compiled_weights(model) if loss_weights is None else loss_weights
    require_loss(loss)
    return loss, weights_by_output(loss_weights, model)


def require_fit(model: tf_keras.Model, data: Any, loss: Any, name: str, batch_size: int) -> int:
    """Checks that the model takes the first batch's inputs, and the loss its labels.

    Returns:
        The number of batches.
    """
    batches = batches_of(data, batch_size, name)
    x, y, *weights = next(iter(batches.take(1)))
    for each in weights:
        example_weights(each)
    require_inputs(model, x, name)
    require_labels(model, y, loss, name)
    return count_batches(batches, name)
