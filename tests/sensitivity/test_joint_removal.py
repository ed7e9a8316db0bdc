"""Curvature between gates of a layer: greedy order, centered gates, the sketch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tf_keras

import ehap_tf as ehap
from ehap_tf.sensitivity.criteria.joint_removal import joint_removal_losses
from tests.sensitivity.networks import batch_norm, cross_entropy, examples, joined, residual_net

layers = tf_keras.layers


def rank(model: tf_keras.Model, criterion: str, **arguments: Any) -> ehap.FilterScores:
    return ehap.rank_filters(model, examples(), cross_entropy(), criterion, **arguments)


def naive_order(curvature: np.ndarray) -> tuple[list[int], list[float]]:
    """Removes the filter after which the quadratic form over all removed ones is least."""
    removed: list[int] = []
    losses = [0.0]
    while len(removed) < len(curvature):
        options = {}
        for candidate in set(range(len(curvature))) - set(removed):
            chosen = np.isin(np.arange(len(curvature)), [*removed, candidate])
            options[candidate] = chosen @ curvature @ chosen / 2
        best = min(options, key=lambda candidate: options[candidate])
        removed.append(best)
        losses.append(options[best])
    return removed, np.diff(losses).tolist()


def test_scores_are_the_steps_of_the_greedy_removal() -> None:
    rng = np.random.default_rng(0)
    for positive in (True, False):
        root = rng.normal(size=(5, 8)) if not positive else rng.random((5, 8))
        curvature = root @ root.T
        order, steps = naive_order(curvature)
        scores = joint_removal_losses(curvature)
        assert np.argsort(scores).tolist() == order
        assert (np.diff(scores[order]) > 0).all()
        np.testing.assert_allclose(scores[order], np.maximum.accumulate(steps), rtol=1e-9)
        if positive:  # filters that do the same work: no filter is cheaper after another
            assert (np.diff(steps) > 0).all()
    np.testing.assert_allclose(joint_removal_losses(np.diag([3.0, 1.0, 2.0])), [1.5, 0.5, 1.0])


def closing(
    model: tf_keras.Model, name: str, means: np.ndarray
) -> tuple[Callable[[np.ndarray], float], int]:
    """The loss as a function of the gates of one layer, through Keras' own weights."""
    x, y = examples()
    layer = model.get_layer(name)
    scale, shift = (
        (layer.gamma, layer.beta)
        if isinstance(layer, layers.BatchNormalization)
        else (layer.kernel, layer.bias)
    )
    start = scale.numpy(), shift.numpy()

    def loss(alpha: np.ndarray) -> float:
        scale.assign(start[0] * alpha)
        shift.assign(means + (start[1] - means) * alpha)
        value = float(cross_entropy()(y, model(x, training=False)))
        scale.assign(start[0])
        shift.assign(start[1])
        return value

    return loss, len(start[1])


def second_differences(loss: Callable[[np.ndarray], float], size: int) -> np.ndarray:
    step, identity = 1e-3, np.eye(size) * 1e-3
    matrix = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            corners = [
                loss(1 + a * identity[i] + b * identity[j]) * a * b
                for a in (1, -1)
                for b in (1, -1)
            ]
            matrix[i, j] = sum(corners) / (4 * step**2)
    return matrix


@pytest.mark.parametrize("criterion", ["obd_joint", "obd_joint_centered"])
def test_exact_scores_are_those_of_second_differences(criterion: str) -> None:
    model = residual_net()
    found = rank(model, criterion, estimator="exact")
    norm = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)][-1]
    for name, place in (("second", norm), ("classifier", model.get_layer("classifier"))):
        values = tf_keras.Model(model.input, place.output)(examples()[0]).numpy()
        means = values.reshape(-1, values.shape[-1]).mean(axis=0)
        if criterion == "obd_joint":
            means = np.zeros_like(means)
        matrix = second_differences(*closing(model, place.name, means))
        np.testing.assert_allclose(found.trace[name], np.diag(matrix), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found[name], joint_removal_losses(matrix), rtol=1e-3, atol=1e-6)
    if criterion == "obd_joint":
        diagonal = rank(model, "obd", estimator="exact")
        np.testing.assert_allclose(joined(found.trace), joined(diagonal.trace), rtol=1e-9)


def net_with_a_constant_channel() -> tf_keras.Model:
    """Filter 2 of "first" gives 0.8 everywhere."""
    inputs = layers.Input((6, 6, 2), dtype="float64")
    x = layers.Conv2D(4, 3, activation="relu", name="first", dtype="float64")(inputs)
    x = layers.Conv2D(3, 3, use_bias=False, name="second", dtype="float64")(x)
    x = layers.ReLU(dtype="float64")(batch_norm(x, 5))
    x = layers.GlobalAveragePooling2D(dtype="float64")(x)
    model = tf_keras.Model(inputs, layers.Dense(4, name="end", dtype="float64")(x))
    rng = np.random.default_rng(2)
    kernel, next_kernel = rng.normal(size=(3, 3, 2, 4)), rng.normal(size=(3, 3, 4, 3))
    kernel[..., 2] = 0
    model.get_layer("first").set_weights([kernel, np.array([0.1, 0.3, 0.8, 0.2])])
    model.get_layer("second").set_weights([next_kernel])
    model.get_layer("end").set_weights([rng.normal(size=(3, 4)), rng.normal(size=4)])
    return model


def test_a_constant_channel_costs_nothing_where_recalibration_follows() -> None:
    model = net_with_a_constant_channel()
    x, y = examples()
    centered = rank(model, "obd_joint_centered", estimator="exact")
    assert centered["first"][2] < 1e-12 < 1e-6 * centered["first"][[0, 1, 3]].min()
    assert rank(model, "obd_joint", estimator="exact").trace["first"][2] > 1e-4
    plan = ehap.plan_pruning(model, centered, prune_ratio=0.01)
    assert plan.kept["first"].tolist() == [0, 1, 3]
    expected = ehap.recalibrate(model, (x, y), 1)(x).numpy()
    slim = ehap.prune(model, plan)
    assert np.abs(slim(x).numpy() - expected).max() > 1e-3
    np.testing.assert_allclose(ehap.recalibrate(slim, (x, y), 1)(x), expected, rtol=1e-6)


def test_the_sketch_is_unbiased_and_does_not_depend_on_micro_batches() -> None:
    model = residual_net()
    truth = rank(model, "obd_joint_centered", estimator="exact")
    scores = rank(model, "obd_joint_centered", estimator="gauss_newton", probes=150, batch_size=3)
    error = joined(scores.trace_standard_error)
    assert (np.abs(joined(scores.trace) - joined(truth.trace)) < 4 * error).all()
    assert (np.abs(joined(scores.trace) - 1.5 * joined(truth.trace)) > 4 * error).any()
    np.testing.assert_allclose(joined(scores), joined(truth), rtol=0.5)
    whole = rank(model, "obd_joint_centered", estimator="gauss_newton", probes=150)
    np.testing.assert_allclose(joined(whole), joined(scores), rtol=1e-9)
    assert not scores.standard_error and scores.estimator == "gauss_newton"


def test_weights_count_as_repeated_examples() -> None:
    model = residual_net()
    x, y = examples(6)
    weights = np.array([1, 2, 0, 1, 1, 1.0])
    places = [0, 1, 1, 3, 4, 5]
    arguments: dict[str, Any] = {"criterion": "obd_joint_centered", "estimator": "exact"}
    weighted = ehap.rank_filters(model, (x, y, weights), cross_entropy(), **arguments)
    repeated = ehap.rank_filters(model, (x[places], y[places]), cross_entropy(), **arguments)
    np.testing.assert_allclose(joined(weighted), joined(repeated), rtol=1e-9)


def test_dense_networks_and_refusals() -> None:
    inputs = layers.Input((5,))
    x = layers.Dense(6, activation="relu", name="a")(inputs)
    model = tf_keras.Model(inputs, layers.Dense(3, name="b")(x))
    data = np.random.default_rng(0).normal(size=(8, 5)), np.arange(8) % 3
    scores = ehap.rank_filters(
        model, data, cross_entropy(), "obd_joint_centered", estimator="gauss_newton", probes=3
    )
    assert scores["a"].shape == (6,) and (scores["a"] >= 0).all()
    with pytest.raises(ValueError, match="loss must be"):
        ehap.rank_filters(model, (data[0], np.eye(3)[data[1]]), "mae", "obd_joint")
