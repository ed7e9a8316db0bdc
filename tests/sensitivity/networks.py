"""Small float64 networks, and a Hessian computed in the most naive way there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

import ehap_tf as ehap

layers = tf_keras.layers
CLASSES = 4


def initializer(kind: str, seed: int) -> Any:
    if kind == "positive":
        return tf_keras.initializers.RandomUniform(0.5, 1.5, seed=seed)
    return tf_keras.initializers.RandomNormal(stddev=0.2, seed=seed)


def batch_norm(x: Any, seed: int, dtype: str = "float64", **arguments: Any) -> Any:
    return layers.BatchNormalization(
        gamma_initializer=initializer("positive", seed),
        beta_initializer=initializer("normal", seed + 1),
        moving_mean_initializer=initializer("normal", seed + 2),
        moving_variance_initializer=initializer("positive", seed + 3),
        dtype=dtype,
        **arguments,
    )(x)


def residual_net(
    activation: str = "relu",
    final: str | None = None,
    dtype: str = "float64",
    units: int = CLASSES,
    operators: bool = False,
) -> tf_keras.Model:
    """Conv-BatchNorm-activation, a residual block, max-pooling, Dense: 10 filters, 213 weights.

    With `operators` the activations and the sum are operators in place of layers.
    """

    def activated(x: Any) -> Any:
        if operators:
            return getattr(tf.nn, activation)(x)
        return layers.Activation(activation, dtype=dtype)(x)

    def conv(filters: int, seed: int, **arguments: Any) -> Any:
        return layers.Conv2D(
            filters,
            3,
            padding="same",
            kernel_initializer=initializer("normal", seed),
            dtype=dtype,
            **arguments,
        )

    inputs = layers.Input((6, 6, 2), dtype=dtype)
    x = conv(3, 1, use_bias=False, name="first")(inputs)
    x = activated(batch_norm(x, 2, dtype))
    y = batch_norm(conv(3, 6, name="second")(x), 7, dtype)
    x = activated(x + y if operators else layers.Add(dtype=dtype)([x, y]))
    x = layers.MaxPooling2D(3, dtype=dtype)(x)
    x = layers.Flatten(dtype=dtype)(x)
    x = layers.Dense(
        units,
        kernel_initializer=initializer("normal", 11),
        bias_initializer=initializer("normal", 12),
        activation=final,
        dtype=dtype,
        name="classifier",
    )(x)
    return tf_keras.Model(inputs, x)


def examples(count: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 6, 6, 2)), rng.integers(0, CLASSES, count)


def cross_entropy() -> tf_keras.losses.Loss:
    return tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def full_hessian(
    model: tf_keras.Model, x: Any, y: Any, loss: Any, weights: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """The Hessian over all kernels, by calling the Keras model itself, entry after entry.

    Returns:
        The matrix, and for each of its rows the number of the filter that the weight belongs to.
    """
    kernels = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]

    @tf.function(autograph=False)
    def differentiate() -> list[tf.Tensor]:
        with tf.GradientTape(persistent=True) as outer:
            with tf.GradientTape() as inner:
                value = loss(y, model(x, training=False), sample_weight=weights)
            gradients = inner.gradient(value, kernels)
            gradient = tf.concat([tf.reshape(g, [-1]) for g in gradients], 0)
        return outer.jacobian(gradient, kernels, experimental_use_pfor=False)

    columns = [column.numpy() for column in differentiate()]
    hessian = np.concatenate([c.reshape(len(c), -1) for c in columns], axis=1)
    owner, first = [], 0
    for kernel in kernels:
        filters = kernel.shape[-1]
        owner.append(np.tile(np.arange(filters), np.prod(kernel.shape[:-1])) + first)
        first += filters
    return hessian, np.concatenate(owner)


def trace_by_filter(model: tf_keras.Model, x: Any, y: Any, loss: Any) -> np.ndarray:
    hessian, owner = full_hessian(model, x, y, loss)
    return np.bincount(owner, weights=np.diag(hessian))


def joined(values: Any) -> np.ndarray:
    return np.concatenate(list(values.values()))


def linear_model(units: int, activation: str | None = None) -> tf_keras.Model:
    return tf_keras.Sequential(
        [
            tf_keras.layers.Input((5,), dtype="float64"),
            tf_keras.layers.Dense(units, activation=activation, dtype="float64", name="dense"),
        ]
    )


def rank(model: tf_keras.Model, loss: Any = None, **arguments: Any) -> ehap.FilterScores:
    data = arguments.pop("data", None) or examples()
    return ehap.rank_filters(model, data, loss or cross_entropy(), **arguments)


def largest_deviation(scores: ehap.FilterScores, truth: np.ndarray) -> float:
    """In standard errors."""
    return float(np.abs((joined(scores.trace) - truth) / joined(scores.trace_standard_error)).max())
