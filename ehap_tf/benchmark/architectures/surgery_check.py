"""One surgery on one family of `tf_keras.applications`, with everything that can be checked of it.

A network with random weights is easily deaf: its statistics do not fit, signals die from layer to
layer, and the outputs say nothing of the channels before. So BatchNorm is given the statistics of
the network that the plan leaves, and a surgery after which two images give the same is no
evidence.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.benchmark.architectures.families import FAMILIES
from ehap_tf.channels import trace_channels
from ehap_tf.graph import is_batch_norm
from ehap_tf.pruning import (
    PruningPlan,
    count_macs,
    count_parameters,
    mask,
    plan_pruning,
    prune,
    recalibrate,
)

LARGEST_ERROR = 1e-4
LARGEST_ERROR_IN_FLOAT64 = 1e-9
LEAST_SPREAD = 0.01
EXAMPLES = 16


@dataclasses.dataclass(frozen=True)
class SurgeryRow:
    """One surgery on one family, checked.

    Attributes:
        family, residual, prune_ratio: what was done.
        model: the constructor's name.
        filters: filters of the model; `prunable` is the share of them that may go.
        params_before, params_after, macs_before, macs_after: counted on the models themselves.
        error: largest difference of the logits of the slim and the masked model, relative.
        error_in_float64: the same for copies in double precision. Measured where `error` is large:
            random networks can multiply the rounding of float32 from layer to layer.
        spread: largest difference between the logits of two images, relative: what a mistake in
            any layer would change.
        plan_seconds, target_seconds, surgery_seconds: a plan at a ratio, a plan to half of the
            MACs, and building the slim model; seconds of the processor, not of the clock, so that
            they do not depend on what else the machine does.
        saved_and_loaded, trained: the slim model came back from a .keras file with the same
            outputs, and took a step of SGD that left finite weights.
        frozen: layer -> how many of its filters cannot go, and why.
    """

    family: str
    model: str
    residual: str
    prune_ratio: float
    filters: int
    prunable: float
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    error: float
    error_in_float64: float | None
    spread: float
    plan_seconds: float
    target_seconds: float
    surgery_seconds: float
    saved_and_loaded: bool
    trained: bool
    frozen: dict[str, tuple[int, str]]


def operate(family: str, model: tf_keras.Model, residual: str, prune_ratio: float) -> SurgeryRow:
    """One surgery, with everything that a row says about it.

    BatchNorm's moving statistics in `model` become those of the masked network.
    """
    rng = np.random.default_rng(1)
    graph = trace_channels(model, residual)
    scores = {layer: rng.random(len(ids)) for layer, ids in graph.ids.atoms.items()}
    filters = sum(len(ids) for ids in graph.ids.atoms.values())
    frozen = graph.frozen_filters()
    plan, plan_seconds = _timed(
        lambda: plan_pruning(model, scores, prune_ratio=prune_ratio, residual=residual)
    )
    _, target_seconds = _timed(
        lambda: plan_pruning(model, scores, target_macs=0.5, residual=residual)
    )
    side = int(model.inputs[0].shape[1])
    x = rng.normal(0, 1, (EXAMPLES, side, side, 3)).astype(np.float32)
    masked = _with_fitting_statistics(model, plan, x)
    slim, surgery_seconds = _timed(lambda: prune(model, plan))
    expected, actual = np.asarray(masked(x)), np.asarray(slim(x))
    error, exact = _relative_error(actual, expected), None
    if error >= LARGEST_ERROR:
        double = _in_float64(model)
        exact = _relative_error(*(np.asarray(f(double, plan)(x)) for f in (prune, mask)))
    return SurgeryRow(
        family=family,
        model=FAMILIES[family][0],
        residual=residual,
        prune_ratio=prune_ratio,
        filters=filters,
        prunable=1 - sum(number for number, _ in frozen.values()) / filters,
        params_before=count_parameters(model),
        params_after=count_parameters(slim),
        macs_before=count_macs(model),
        macs_after=count_macs(slim),
        error=error,
        error_in_float64=exact,
        spread=float(np.ptp(expected, axis=0).max() / np.abs(expected).max()),
        plan_seconds=plan_seconds,
        target_seconds=target_seconds,
        surgery_seconds=surgery_seconds,
        saved_and_loaded=_survives_saving(slim, x, actual, _layer_classes(model)),
        trained=_trains(slim, x),
        frozen=frozen,
    )


def checked(family: str, model: tf_keras.Model, residual: str, prune_ratio: float) -> SurgeryRow:
    """The row of a surgery that went well.

    Raises:
        ValueError: it did not, or the network is deaf.
    """
    row = operate(family, model, residual, prune_ratio)
    exact = row.error < LARGEST_ERROR
    if row.error_in_float64 is not None:
        exact = row.error_in_float64 < LARGEST_ERROR_IN_FLOAT64
    if not (exact and row.saved_and_loaded and row.trained):
        raise ValueError(f"the surgery went wrong: {row}")
    if row.spread < LEAST_SPREAD:
        raise ValueError(f"images differ by {row.spread:.1g} only, which proves nothing: {row}")
    return row


def enliven(model: tf_keras.Model, seed: int = 0) -> tf_keras.Model:
    """Random values for what Keras starts at zero, one or 1e-6, and kernels that let signals pass.

    Without BatchNorm a signal has to survive the loss of most filters by the kernels alone.
    """
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers(include_self=False):
        for name, low in (("gamma", 0.5), ("beta", -0.5)):
            weight = getattr(layer, name, None)
            if isinstance(weight, tf.Variable):
                weight.assign(rng.uniform(low, low + 1.0, weight.shape))
        if isinstance(getattr(layer, "bias", None), tf.Variable):
            layer.bias.assign(rng.normal(0, 0.02, layer.bias.shape))
            kernel: Any = getattr(layer, "kernel", getattr(layer, "depthwise_kernel", None))
            kernel.assign(1.7 * kernel)
    return model


def _with_fitting_statistics(
    model: tf_keras.Model, plan: PruningPlan, x: np.ndarray
) -> tf_keras.Model:
    """The masked network, after BatchNorm's statistics in it, and in `model`, became those of x."""
    masked = recalibrate(mask(model, plan), (x, np.zeros(len(x))), batches=1)
    for layer in model.layers:
        if is_batch_norm(layer):
            layer.set_weights(masked.get_layer(layer.name).get_weights())
    return masked


def _timed(function: Any) -> tuple[Any, float]:
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def _relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def _in_float64(model: tf_keras.Model) -> tf_keras.Model:
    def double(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        return type(layer).from_config(layer.get_config() | {"dtype": "float64"})

    copy = tf_keras.models.clone_model(model, clone_function=double)
    copy.set_weights(model.get_weights())
    return copy


def _layer_classes(model: tf_keras.Model) -> dict[str, type]:
    """Layer classes of `model` by name: Keras cannot load some of `applications`' own by itself."""
    return {type(layer).__name__: type(layer) for layer in model._flatten_layers()}


def _survives_saving(
    model: tf_keras.Model, x: np.ndarray, expected: np.ndarray, known: dict[str, type]
) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/slim.keras"
        model.save(path)
        loaded = tf_keras.models.load_model(path, custom_objects=known, compile=False)
    return bool(np.array_equal(np.asarray(loaded(x)), expected))


def _trains(model: tf_keras.Model, x: np.ndarray) -> bool:
    labels = tf.range(EXAMPLES) % 10
    loss_of = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with tf.GradientTape() as tape:
        loss = loss_of(labels, model(x, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    steps = list(zip(gradients, model.trainable_variables, strict=True))
    tf_keras.optimizers.SGD(0.01).apply_gradients(steps)
    return all(np.isfinite(weight.numpy()).all() for weight in model.trainable_variables)
