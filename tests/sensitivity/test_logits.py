"""Probabilities are followed back to their logits: ranked as the model that ends in logits is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap

layers = tf_keras.layers
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(10, 5, 5, 2)).astype(np.float32)
ONE = np.arange(10) % 4
EACH = RANDOM.integers(0, 4, (10, 3))


def net(end: Any, units: int = 4) -> tf_keras.Model:
    """A convolution, and what `end` makes of its features."""

    def draw(seed: int) -> Any:
        return tf_keras.initializers.RandomNormal(stddev=0.4, seed=seed)

    inputs = layers.Input((5, 5, 2))
    x = layers.Conv2D(3, 3, activation="relu", kernel_initializer=draw(1), name="c")(inputs)
    x = layers.Flatten()(x)

    def dense(number: int = 0, **options: Any) -> Any:
        own = {"kernel_initializer": draw(2 + number), "name": f"d{number}", **options}
        return layers.Dense(units, **own)(x)

    return tf_keras.Model(inputs, end(dense))


def heads(last: Any) -> Any:
    return lambda dense: layers.Concatenate(axis=1)(
        [layers.Reshape((1, 4))(last(dense(number))) for number in range(3)]
    )


def beside(last: Any) -> Any:
    def end(dense: Any) -> Any:
        x = [layers.Reshape((4, 1))(last(dense(number))) for number in range(3)]
        return layers.Permute((2, 1))(layers.Concatenate()(x))

    return end


def on_map(axis: int, permuted: bool) -> Any:
    def end(dense: Any) -> Any:
        x = layers.Softmax(axis=axis)(layers.Reshape((4, 3) if permuted else (3, 4))(dense()))
        return layers.Permute((2, 1))(x) if permuted else x

    return end


SOFTMAX = layers.Softmax
FORMS = {
    "axis 1 of rank 2": (lambda d: SOFTMAX(axis=1)(d()), lambda d: d(), 4, ONE),
    "axis given twice": (lambda d: SOFTMAX(axis=[1])(d()), lambda d: d(), 4, ONE),
    "reshaped": (
        lambda d: layers.Reshape((1, 4))(d(activation="softmax")),
        lambda d: layers.Reshape((1, 4))(d()),
        4,
        ONE[:, None],
    ),
    "flattened": (
        lambda d: layers.Flatten()(layers.Reshape((1, 4))(SOFTMAX()(d()))),
        lambda d: d(),
        4,
        ONE,
    ),
    "an operator": (lambda d: tf.nn.softmax(d()), lambda d: d(), 4, ONE),
    "operators": (
        lambda d: tf.squeeze(tf.expand_dims(tf.nn.softmax(d()), 1), 1),
        lambda d: d(),
        4,
        ONE,
    ),
    "heads": (heads(lambda x: SOFTMAX(axis=1)(x)), heads(lambda x: x), 4, EACH),
    "heads put beside each other": (beside(lambda x: SOFTMAX()(x)), beside(lambda x: x), 4, EACH),
    "another axis, permuted": (
        on_map(1, True),
        lambda d: layers.Permute((2, 1))(layers.Reshape((4, 3))(d())),
        12,
        EACH,
    ),
    "last axis of rank 3": (on_map(2, False), lambda d: layers.Reshape((3, 4))(d()), 12, EACH),
}


def ranked(model: tf_keras.Model, labels: Any, loss: Any) -> np.ndarray:
    options = {"estimator": "gauss_newton", "probes": 3}
    scores = ehap.rank_filters(model, (X, labels), loss, **options)
    return np.concatenate(list(scores.values()))


@pytest.mark.parametrize("name", FORMS)
def test_moved_probabilities_rank_as_logits(name: str) -> None:
    probabilities, logits, units, labels = FORMS[name]
    loss = tf_keras.losses.SparseCategoricalCrossentropy
    got = ranked(net(probabilities, units), labels, loss())
    expected = ranked(net(logits, units), labels, loss(from_logits=True))
    np.testing.assert_allclose(got, expected, rtol=1e-4)


SIGMOID_MOVES = {
    "reshaped": (layers.Reshape((2, 2)), (10, 2, 2)),
    "sliced": (lambda x: x[:, 1:], (10, 3)),
    "one unit, picked": (lambda x: x[:, 0], (10,)),
}


@pytest.mark.parametrize("name", SIGMOID_MOVES)
def test_moved_sigmoids_rank_as_logits(name: str) -> None:
    move, shape = SIGMOID_MOVES[name]
    labels = RANDOM.integers(0, 2, shape).astype(np.float32)
    got = ranked(net(lambda d: move(d(activation="sigmoid"))), labels, "binary_crossentropy")
    loss = tf_keras.losses.BinaryCrossentropy(from_logits=True)
    expected = ranked(net(lambda d: move(d())), labels, loss)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize("permuted", [False, True])
def test_probabilities_over_another_axis_are_refused(permuted: bool) -> None:
    """Rows that sum to one over an axis that the loss does not sum over."""
    model = net(on_map(2 if permuted else 1, permuted), 12)
    # Each of the numbers is far from a distribution over the last axis.
    with pytest.raises(ValueError, match="probabilities"):
        ranked(model, EACH, "sparse_categorical_crossentropy")


def test_a_part_of_a_softmax_is_refused() -> None:
    model = net(lambda d: d(activation="softmax")[:, 1:])
    with pytest.raises(ValueError, match="probabilities"):
        ranked(model, ONE % 3, "sparse_categorical_crossentropy")


def test_an_output_of_one_number_an_example() -> None:
    """Of shape (batch,): as the same output of shape (batch, 1), alone and beside another."""
    y = RANDOM.normal(size=10).astype(np.float32)
    flat, column = net(lambda d: layers.Reshape(())(d()), 1), net(lambda d: d(), 1)
    np.testing.assert_allclose(ranked(flat, y, "mse"), ranked(column, y, "mse"), rtol=1e-5)
    two = [
        net(lambda d, end=end: [end(d()), d(1)], 1)
        for end in (layers.Reshape(()), layers.Reshape((1,)))
    ]
    pairs = [ranked(model, (y, y), ["mse", "mse"]) for model in two]
    np.testing.assert_allclose(*pairs, rtol=1e-5)


def test_several_outputs_whose_size_the_model_leaves_open() -> None:
    def maps(size: int | None) -> tf_keras.Model:
        tf_keras.utils.set_random_seed(0)
        inputs = layers.Input((size, size, 2))
        x = layers.Conv2D(3, 3, activation="relu", name="c")(inputs)
        ends = [layers.Conv2D(n, 1, name=f"end{n}", activation="softmax")(x) for n in (2, 4)]
        return tf_keras.Model(inputs, ends)

    labels = tuple(RANDOM.integers(0, n, (10, 3, 3)) for n in (2, 4))
    loss = ["sparse_categorical_crossentropy"] * 2
    opened, fixed = (ranked(maps(size), labels, loss) for size in (None, 5))
    np.testing.assert_allclose(opened, fixed, rtol=1e-5)
