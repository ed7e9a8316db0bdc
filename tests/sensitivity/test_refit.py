"""What is left of a removal once its readers are solved again, against np.linalg.lstsq."""

from __future__ import annotations

import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.graph import Sums, kernel_of
from ehap_tf.sensitivity.criteria import refit
from ehap_tf.sensitivity.criteria.refit import System, find_readers, removal_order
from ehap_tf.sensitivity.network.filters import find_prunable
from tests.sensitivity.networks import cross_entropy, examples

layers = tf_keras.layers


def left_by_lstsq(x: np.ndarray, matrix: np.ndarray, gone: np.ndarray) -> tuple[float, float]:
    """Squared errors without some rows of the matrix: of the others as they are, and solved."""
    stay = np.setdiff1d(np.arange(x.shape[1]), gone)
    lost = x[:, gone] @ matrix[gone]
    solution = np.linalg.lstsq(x[:, stay], lost, rcond=None)[0]
    return float(np.square(lost).sum()), float(np.square(lost - x[:, stay] @ solution).sum())


@pytest.mark.parametrize("readers", [1, 2])
def test_order_and_rest_are_those_of_lstsq(readers: int) -> None:
    rng = np.random.default_rng(readers)
    filters, of_one = 5, 2
    data, systems = [], []
    for _ in range(readers):
        x = rng.normal(size=(60, filters * of_one)) @ rng.normal(size=(filters * of_one,) * 2)
        matrix = rng.normal(size=(filters * of_one, 3))
        rows = rng.permutation(filters * of_one).reshape(filters, of_one)
        systems.append(System(x.T @ x / len(x), matrix, rows))
        # The ridge is that of as many more rows.
        ridge = refit._RIDGE * np.square(x).sum() / x.shape[1]
        data.append((np.concatenate([x, np.sqrt(ridge) * np.eye(x.shape[1])]), matrix, rows))
    found = removal_order(systems)

    def errors(gone: list[int]) -> np.ndarray:
        total = np.zeros(2)
        for x, matrix, rows in data:
            plain, left = left_by_lstsq(x, matrix, rows[gone].ravel())
            total += np.array([plain, left]) / np.square(x @ matrix).sum()
        return total

    gone: list[int] = []
    for one, left in zip(found.order.tolist(), found.left, strict=True):
        waiting = set(range(filters)) - set(gone)
        assert one == min(waiting, key=lambda other: errors([*gone, other])[1])
        gone.append(one)
        plain, best = errors(gone)
        assert left == pytest.approx(best / plain, rel=1e-6)
    assert found.left[-1] == pytest.approx(1)


def test_filters_of_wide_layers_go_several_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=(90, 12)), rng.normal(size=(12, 4))
    gram = x.T @ x / len(x)
    one_by_one = removal_order([System(gram, matrix, np.arange(12)[:, None])])
    monkeypatch.setattr(refit, "_STEPS", 4)
    in_threes = removal_order([System(gram, matrix, np.arange(12)[:, None])])
    assert set(in_threes.order[:3]) == set(
        np.argsort(System(gram, matrix, np.arange(12)[:, None]).left_by(np.arange(12)))[:3]
    )
    assert np.sort(in_threes.order).tolist() == list(range(12))
    assert in_threes.left[-1] == pytest.approx(one_by_one.left[-1])


def test_a_dead_input_costs_nothing() -> None:
    gram = np.diag([1.0, 0.0, 2.0])
    found = removal_order([System(gram, np.ones((3, 2)), np.arange(3)[:, None])])
    assert found.order[0] == 1 and np.isfinite(found.left).all()
    nothing = removal_order([System(np.zeros((2, 2)), np.ones((2, 2)), np.arange(2)[:, None])])
    assert np.isfinite(nothing.left).all()


def test_readers_are_kernels_alone() -> None:
    x = inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="first")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    one = layers.Conv2D(5, 1, name="one")(x)
    two = layers.Conv2D(2, 3, padding="same", name="two")(x)
    x = layers.Concatenate()([one, two])
    x = layers.Conv2D(6, 3, padding="same", name="joined")(x)
    y = layers.Conv2D(6, 1, name="other")(x)
    x = layers.Add()([x, y])
    x = layers.Flatten()(layers.MaxPooling2D(4)(x))
    x = layers.Dense(7, name="dense")(x)
    model = tf_keras.Model(inputs, layers.Dense(2, name="logits")(x))
    found = find_readers(model)
    # "joined" and "other" go into a sum, "logits" out of the model.
    assert set(found) == {"first", "one", "two", "dense"}
    assert {reader.path for reader in found["first"]} == {"one", "two"}
    (of_two,) = (reader for reader in found["first"] if reader.path == "two")
    assert of_two.rows[1].tolist() == list(range(1, 36, 4))
    ((of_one,), (of_other,)) = found["one"], found["two"]
    assert of_one.path == of_other.path == "joined"
    assert of_one.rows[0].tolist() == list(range(0, 63, 7))
    assert of_other.rows[1].tolist() == list(range(6, 63, 7))
    assert found["dense"][0].rows.tolist() == [[unit] for unit in range(7)]


def test_every_position_that_reads_a_flattened_channel_goes() -> None:
    inputs = layers.Input((4, 4, 2))
    x = layers.Flatten()(layers.Conv2D(3, 3, name="conv")(inputs))
    model = tf_keras.Model(inputs, layers.Dense(2, name="logits")(x))
    (reader,) = find_readers(model)["conv"]
    assert reader.rows.tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_the_steps_of_a_time_distributed_count_as_examples() -> None:
    outputs = layers.Conv2D(3, 3, name="conv")(layers.Input((5, 4, 2)))
    node = outputs.node
    network = types.SimpleNamespace(
        layers=find_prunable(tf_keras.Model(node.keras_inputs, outputs))
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4, 2)).astype(np.float32)
    grams = []
    for images in (x, x.reshape(6, 5, 4, 2)):
        sums = {"conv": Sums(1, 18, 0)}
        kernels = {"conv": kernel_of(node.layer)}
        refit._Onlooker(network, kernels, sums, len(images)).look(node, tf.constant(images))
        assert sums["conv"].count == 6 * 3 * 2
        grams.append(sums["conv"].gram)
    np.testing.assert_array_equal(*grams)


def test_readers_of_too_many_rows_are_not_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = layers.Input((4, 4, 2))
    x = layers.Flatten()(layers.Conv2D(3, 3, name="conv")(inputs))
    model = tf_keras.Model(inputs, layers.Dense(2, name="logits")(x))
    network = types.SimpleNamespace(model=model, layers=find_prunable(model))
    monkeypatch.setattr(refit, "_LARGEST", 11)  # the reader has 12
    assert refit.refits(network, None) == {}


def test_what_others_make_up_for_costs_little() -> None:
    tf_keras.utils.set_random_seed(1)
    inputs = layers.Input(examples()[0].shape[1:])
    x = layers.Conv2D(5, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    classes = int(examples()[1].max()) + 1
    model = tf_keras.Model(inputs, layers.Dense(classes, name="logits")(x))
    first = model.get_layer("first")
    kernel, bias = first.get_weights()
    kernel[..., 3], bias[3] = 2 * kernel[..., 0], 2 * bias[0]
    first.set_weights([kernel, bias])
    alone, again = (
        ehap.rank_filters(model, examples(), cross_entropy(), criterion, estimator="exact")
        for criterion in ("obd_joint_centered", "obs_joint")
    )
    twins, others = again["first"][[0, 3]], again["first"][[1, 2, 4]]
    assert twins.min() < 0.1 * others.min()
    assert alone["first"][[0, 3]].min() > 3 * twins.min()
    np.testing.assert_allclose(again["logits"], alone["logits"])


@pytest.mark.parametrize("residual", ["union", "tied"])
def test_in_a_sum_the_scores_are_the_centered_ones(residual: str) -> None:
    tf_keras.utils.set_random_seed(2)
    inputs = layers.Input(examples()[0].shape[1:])
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="stem")(inputs)
    y = layers.Conv2D(5, 3, padding="same", activation="relu", name="inner")(x)
    y = layers.Conv2D(4, 3, padding="same", name="branch")(y)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Add()([x, y])))
    classes = int(examples()[1].max()) + 1
    model = tf_keras.Model(inputs, layers.Dense(classes, name="logits")(x))
    centered, again = (
        ehap.rank_filters(
            model, examples(), cross_entropy(), criterion, estimator="exact", residual=residual
        )
        for criterion in ("obd_joint_centered", "obs_joint")
    )
    inside = set(find_readers(model))
    assert inside == {"inner"}
    for name in again:
        same = np.allclose(again[name], centered[name], rtol=1e-6)
        assert same is (name not in inside)
    assert ehap.plan_pruning(model, again, 0.3, residual=residual).macs_after > 0
