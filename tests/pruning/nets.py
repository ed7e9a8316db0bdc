"""Models for the pruning tests, with BatchNorm statistics that are not the initial ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import trace_channels
from ehap_tf.pruning import PruningPlan, plan_pruning

layers = tf_keras.layers

ROUNDING = 1e-5
"""The largest `relative_error` of two ways to compute the same in float32.

Kernels of other widths add in another order, and where large terms cancel in a small output, as
random weights may have it, what is left of them is their rounding: 2e-6 was met, while a channel in
the wrong place gives more than 1e-3.
"""


def shake(model: tf_keras.Model, seed: int = 0) -> tf_keras.Model:
    """Gives every weight a random value, so that a zero channel is no longer a zero anywhere."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers(include_self=False, recursive=True):
        if isinstance(layer, layers.BatchNormalization):
            for weight in layer.weights:
                low, high = (0.5, 1.5) if "variance" in weight.name else (-0.5, 0.9)
                weight.assign(rng.uniform(low, high, weight.shape))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
    return model


def random_scores(model: tf_keras.Model, seed: int = 0) -> dict[str, np.ndarray]:
    """A score for every filter of the model."""
    rng = np.random.default_rng(seed)
    atoms = trace_channels(model).ids.atoms
    return {layer: rng.random(len(ids)) for layer, ids in atoms.items()}


def without(model: tf_keras.Model, **removed: list[int]) -> PruningPlan:
    """The plan that removes these filters."""
    scores = {layer: np.ones_like(values) for layer, values in random_scores(model).items()}
    for layer, filters in removed.items():
        scores[layer][filters] = 0
    number = sum(map(len, removed.values()))
    total = sum(map(len, scores.values()))
    return plan_pruning(model, scores, prune_ratio=(number - 0.5) / total)


def batch(model: tf_keras.Model, examples: int = 2, seed: int = 0) -> list[np.ndarray] | np.ndarray:
    """Random inputs of the model."""
    rng = np.random.default_rng(seed)
    inputs = [rng.normal(size=(examples, *t.shape[1:])).astype(np.float32) for t in model.inputs]
    return inputs if len(inputs) > 1 else inputs[0]


def computed(model: tf_keras.Model, x: Any) -> Any:
    """What the model computes at inference, without the function that `predict` would compile."""
    return tf.nest.map_structure(np.asarray, model(x, training=False))


def relative_error(a: object, b: object) -> float:
    """Largest difference of two outputs (or lists of them) relative to the largest value."""
    pairs = zip(a, b, strict=True) if isinstance(a, list | tuple) else [(a, b)]
    worst = 0.0
    for left, right in pairs:
        left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
        worst = max(worst, float(np.abs(left - right).max() / (np.abs(right).max() + 1e-12)))
    return worst


def small_residual_net() -> tf_keras.Model:
    """Conv-BN-ReLU, one residual sum, pooling and a classifier."""
    x = inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(x)
    x = shortcut = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    x = layers.Conv2D(5, 3, padding="same", use_bias=False, name="a")(x)
    x = layers.ReLU(name="a_relu")(layers.BatchNormalization(name="a_bn")(x))
    x = layers.Conv2D(6, 3, padding="same", name="b")(x)
    x = layers.BatchNormalization(name="b_bn")(x)
    x = layers.ReLU(name="out")(layers.Add(name="sum")([x, shortcut]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return shake(tf_keras.Model(inputs, layers.Dense(4, name="logits")(x)))


def wrapped(model: tf_keras.Model, name: str) -> tf_keras.Model:
    """A model that does nothing but call another one."""
    inputs = layers.Input(model.input_shape[1:])
    return tf_keras.Model(inputs, model(inputs), name=name)


class Pair(layers.Layer):
    """Two dense layers of one shape, and a BatchNorm."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = layers.Dense(4), layers.Dense(4)
        self.norm = layers.BatchNormalization()

    def call(self, x):
        return self.norm(self.second(tf.nn.relu(self.first(x))))
