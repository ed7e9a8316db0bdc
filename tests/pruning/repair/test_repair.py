"""Repair against independent least squares in float64, and what it promises."""

from __future__ import annotations

import itertools
import sys
import types
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.channels import ScatterChannels
from ehap_tf.graph import kernel_of
from ehap_tf.pruning.repair import solver
from ehap_tf.pruning.repair.behind import EVERYTHING, Way, way_behind
from ehap_tf.pruning.repair.images import MicroBatch
from ehap_tf.pruning.repair.walk import unrolled
from tests.pruning.nets import (
    batch,
    random_scores,
    relative_error,
    shake,
    small_residual_net,
    without,
)
from tests.pruning.repair.nets import KINDS, behind_a_dense, images

layers = tf_keras.layers


def least_squares_outputs(
    layer: tf_keras.layers.Layer, x: np.ndarray, wanted: np.ndarray, ridge: float = 0.0
) -> np.ndarray:
    """The layer's best outputs by np.linalg.lstsq, over its kernel and a bias for each filter.

    Every column of the design matrix is what the layer makes of one kernel entry alone: nothing
    that repair itself knows about kernels is used.
    """
    name = kernel_of(layer).attribute
    kernel, bias = getattr(layer, name), layer.bias
    before, start = layer(x).numpy().astype(np.float64), kernel.numpy()
    old_bias = bias.numpy()
    bias.assign(np.zeros_like(old_bias))
    columns = []
    for place in np.ndindex(*start.shape):
        unit = np.zeros_like(start)
        unit[place] = 1
        kernel.assign(unit)
        columns.append(layer(x).numpy().astype(np.float64).ravel())
    kernel.assign(start)
    bias.assign(old_bias)
    entries = len(columns)
    for one in range(len(old_bias)):
        column = np.zeros(before.shape)
        column[..., one] = 1
        columns.append(column.ravel())
    design, lacks = np.stack(columns, 1), (wanted - before).ravel()
    if ridge:
        # Of one system: the penalty is `ridge` times the mean square of a centered input.
        (rows, _), filters = design.shape, len(old_bias)
        one = design[np.arange(rows) % filters == 0][:, :entries:filters]
        scale = np.sqrt(ridge * one.var(0).mean() * len(one))
        penalty = np.eye(design.shape[1])[:entries] * scale
        design = np.concatenate([design, penalty])
        lacks = np.concatenate([lacks, np.zeros(entries)])
    solution = np.linalg.lstsq(design, lacks, rcond=None)[0]
    return before + (design @ solution)[: before.size].reshape(before.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_is_solved_as_by_lstsq(kind: str) -> None:
    use_bias = "conv2d" not in kind
    model = shake(behind_a_dense(kind, use_bias=use_bias))
    plan = without(model, first=[1, 4])
    x = images(model.input_shape[1:], 12)
    slim = ehap.prune(model, plan)
    wanted = model(x).numpy()
    fixed = ehap.repair(slim, model, plan, x, ridge=0)
    found, layer = fixed(x), fixed.get_layer("layer")
    hidden = tf_keras.Model(fixed.input, layer.input)(x)
    layer.set_weights(weights_with_bias(slim.get_layer("layer")))
    unrepaired = layer(hidden)
    best = least_squares_outputs(layer, hidden, wanted)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found / scale, best / scale, atol=1e-4)
    assert np.square(found - wanted).mean() < np.square(unrepaired - wanted).mean()


def weights_with_bias(layer: tf_keras.layers.Layer) -> list[np.ndarray]:
    weights = layer.get_weights()
    return weights if layer.use_bias else [*weights, np.zeros(layer.filters, np.float32)]


def test_the_ridge_is_one_of_the_mean_square_of_an_input() -> None:
    model = shake(behind_a_dense("conv2d"))
    plan = without(model, first=[1, 4])
    x = images(model.input_shape[1:])
    slim = ehap.prune(model, plan)
    fixed = ehap.repair(slim, model, plan, x, ridge=0.1)
    hidden = tf_keras.Model(fixed.input, fixed.get_layer("layer").input)(x)
    found = fixed(x)
    fixed.get_layer("layer").set_weights(slim.get_layer("layer").get_weights())
    best = least_squares_outputs(fixed.get_layer("layer"), hidden, model(x).numpy(), ridge=0.1)
    np.testing.assert_allclose(found, best, atol=1e-4)


def test_a_filter_that_others_make_up_for_goes_without_loss() -> None:
    x = inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, name="first")(x)
    x = layers.Conv2D(5, 3, use_bias=False, name="second")(layers.MaxPooling2D()(x))
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    model = shake(tf_keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x))))
    first = model.get_layer("first")
    kernel, bias = first.get_weights()
    # Max-pooling hands on a positive multiple of one channel, and a constant.
    kernel[..., 2], bias[2] = 1.5 * kernel[..., 0], 0.4
    first.set_weights([kernel, bias])
    plan = without(model, first=[2])
    x = images((8, 8, 3))
    slim = ehap.prune(model, plan)
    fixed = ehap.repair(slim, model, plan, x, ridge=1e-7)
    assert relative_error(fixed(x), model(x)) < 1e-4 < 1e-2 < relative_error(slim(x), model(x))
    # The mean went into the BatchNorm, and no bias was added.
    assert not fixed.get_layer("second").use_bias
    assert fixed.count_params() == slim.count_params()


@pytest.mark.parametrize("training", [None, True])
def test_a_norm_that_takes_the_batchs_mean_is_left_alone(training: bool | None) -> None:
    x = inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(6, 3, name="first", activation="relu")(x)
    x = layers.Conv2D(5, 3, use_bias=False, name="second")(x)
    x = layers.BatchNormalization(name="bn")(x, training=training)
    model = shake(tf_keras.Model(inputs, x))
    plan = without(model, first=[2])
    weights = model.get_weights()
    slim = ehap.prune(model, plan)
    fixed = ehap.repair(slim, model, plan, images((6, 6, 3)))
    means = [one.get_layer("bn").moving_mean.numpy() for one in (slim, fixed)]
    assert np.array_equal(*means) is (training is True)
    assert not fixed.get_layer("second").use_bias
    assert all(map(np.array_equal, weights, model.get_weights()))


def residual_plan(model: tf_keras.Model, **options: Any) -> ehap.PruningPlan:
    return ehap.plan_pruning(model, random_scores(model, 3), 0.4, **options)


@pytest.mark.parametrize(("residual", "implant_ratio"), [("union", 0.6), ("tied", 0.0)])
def test_micro_batches_and_their_order_change_rounding_alone(
    residual: str, implant_ratio: float
) -> None:
    tf_keras.utils.set_random_seed(0)
    model = small_residual_net()
    plan = residual_plan(model, residual=residual, implant_ratio=implant_ratio)
    slim = ehap.prune(model, plan)
    before = [one.get_weights() for one in (model, slim)]
    x = images((8, 8, 3), 20)
    whole, parts = (
        ehap.repair(slim, model, plan, x, positions=500, batch_size=size) for size in (20, 3)
    )
    for one, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    # All positions: the order of the examples is of no consequence.
    ordered, mixed = (ehap.repair(slim, model, plan, data) for data in (x, x[::-1]))
    assert relative_error(mixed(x), ordered(x)) < 1e-4
    assert relative_error(ordered(x), model(x)) < relative_error(slim(x), model(x))
    for weights, one in zip(before, (model, slim), strict=True):
        assert all(map(np.array_equal, weights, one.get_weights()))


def test_what_is_kept_in_half_of_the_memory_repairs_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tf_keras.utils.set_random_seed(0)
    model = small_residual_net()
    plan = residual_plan(model)
    slim, x = ehap.prune(model, plan), images((8, 8, 3), 40)
    x[0, 0, 0, 0] = 1e5  # More than float16 holds.
    exact = ehap.repair(slim, model, plan, x, batch_size=8)
    monkeypatch.setitem(vars(sys.modules[MicroBatch.__module__]), "_EXACT_BYTES", 0)
    kept: list[set[tf.DType]] = []
    monkeypatch.setattr(
        MicroBatch, "values", lambda batch: (kept.append(types_of(batch)), of_batch(batch))[1]
    )
    halved = ehap.repair(slim, model, plan, x, batch_size=8)
    assert {tf.float16, tf.float32} == set().union(*kept)
    assert 0.0 < relative_error(halved(x[1:]), exact(x[1:])) < 5e-3


of_batch = MicroBatch.values


def types_of(batch: MicroBatch) -> set[tf.DType]:
    return {getattr(value, "tensor", value).dtype for value in batch.kept.values()}


def test_positions_depend_on_the_seed_alone() -> None:
    model = small_residual_net()
    plan = residual_plan(model)
    slim, x = ehap.prune(model, plan), images((8, 8, 3), 20)
    one, same, other = (
        ehap.repair(slim, model, plan, x, positions=300, seed=seed)(x) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert relative_error(one, other) > 1e-5


def test_a_plan_that_removes_nothing_changes_nothing() -> None:
    model = small_residual_net()
    plan = ehap.plan_pruning(model, random_scores(model), 0.0)
    slim = ehap.prune(model, plan)
    fixed = ehap.repair(slim, model, plan, images((8, 8, 3)))
    for before, after in zip(slim.get_weights(), fixed.get_weights(), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_dead_channels_and_few_positions_are_solved(ridge: float) -> None:
    model = small_residual_net()
    stem = model.get_layer("stem_bn")
    stem.gamma.assign(tf.where(tf.range(6) < 3, 0.0, stem.gamma))
    stem.beta.assign(tf.fill([6], -1.0) + tf.cast(tf.range(6) > 2, tf.float32))
    plan = residual_plan(model)
    slim = ehap.prune(model, plan)
    for x in (images((8, 8, 3), 1), np.zeros((4, 8, 8, 3), np.float32)):
        fixed = ehap.repair(slim, model, plan, x, ridge=ridge, positions=20)
        assert all(np.isfinite(weight).all() for weight in fixed.get_weights())
        assert np.isfinite(fixed(images((8, 8, 3)))).all()


@pytest.mark.parametrize("norm", [False, True])
def test_a_branch_makes_up_for_what_the_other_one_lost(norm: bool) -> None:
    inputs = layers.Input((6, 6, 8))
    x = layers.Conv2D(6, 1, name="first")(inputs)
    one, two = layers.Conv2D(5, 1, name="one")(x), layers.Conv2D(5, 1, name="two")(inputs)
    if norm:
        one, two = (layers.BatchNormalization()(branch) for branch in (one, two))
    # One layer more, so that this branch comes first.
    one = layers.Activation("linear")(one)
    x = layers.ReLU()(layers.Add(name="sum")([one, two]))
    model = shake(tf_keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    plan = without(model, first=[0, 1, 4])
    slim, x = ehap.prune(model, plan), images((6, 6, 8))
    fixed = ehap.repair(slim, model, plan, x, ridge=1e-7)
    # Branch "one" is linear in the inputs, of which "two" reads all.
    assert relative_error(fixed(x), model(x)) < 1e-3 < 1e-2 < relative_error(slim(x), model(x))
    lost = [tf_keras.Model(m.input, m.get_layer("one").output)(x) for m in (model, fixed)]
    assert relative_error(*lost) > 1e-2


def flat_behind(kind: str) -> tf_keras.Model:
    """A Dense layer that reads fewer units after pruning, before an activation that is flat."""
    tf_keras.utils.set_random_seed(0)
    inputs = layers.Input((6,))
    x = layers.Dense(8, activation="tanh", name="first")(inputs)
    own = "relu" if kind == "own" else None
    x = layers.Dense(4, activation=own, use_bias=kind != "sum", name="layer")(x)
    if kind in ("norm", "sum"):
        x = layers.BatchNormalization(name="norm")(x)
    if kind == "sum":
        other = layers.Dense(4, name="other")(inputs)
        for _ in range(2):  # more layers, so that this branch comes first
            other = layers.Activation("linear")(other)
        x = layers.Add()([x, other])
    if kind != "own":
        x = {"activation": layers.Activation("relu"), "relu6": layers.ReLU(0.7)}.get(
            kind, layers.ReLU()
        )(x)
    model = shake(tf_keras.Model(inputs, x), 3)
    if kind in ("norm", "sum"):
        model.get_layer("norm").gamma.assign([1.0, -1.0, 0.7, -0.7])
    mean_of(model).assign(mean_of(model) - 0.3)  # half of what arrives is below zero
    return model


def mean_of(model: tf_keras.Model) -> tf.Variable:
    names = [layer.name for layer in model.layers]
    return model.get_layer("norm").beta if "norm" in names else model.get_layer("layer").bias


@pytest.mark.parametrize("kind", ["own", "norm", "relu", "relu6", "activation", "sum"])
def test_what_a_flat_activation_does_not_see_is_not_matched(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = flat_behind(kind)
    plan = without(model, first=[0, 2, 3, 5, 6])
    x = images((6,), 200)
    slim = ehap.prune(model, plan)
    wanted, high = arriving(model, x), 0.7 if kind == "relu6" else np.inf

    def error(model: tf_keras.Model) -> tf.Tensor:
        """Of what the activation tells apart; convex."""
        found = arriving(model, x)
        lacks = tf.where(wanted <= 0, tf.minimum(-found, 0), wanted - found)
        lacks = tf.where(wanted >= high, tf.maximum(high - found, 0), lacks)
        return tf.reduce_mean(tf.square(lacks))

    found = float(error(ehap.repair(slim, model, plan, x, ridge=1e-9)))
    monkeypatch.setattr(solver, "_ROUNDS", 0)
    plain = float(error(ehap.repair(slim, model, plan, x, ridge=1e-9)))
    monkeypatch.setattr(solver, "_ROUNDS", 60)
    monkeypatch.setattr(solver, "_ENOUGH", 1.0)
    converged = ehap.repair(slim, model, plan, x, ridge=1e-9)
    reached = float(error(converged))
    best = least(error, converged)
    # The regression is repeated towards the optimum; a few rounds make most of the way.
    gap = plain - best
    assert gap > 0.02 * plain
    assert found - best < 0.7 * gap and reached - best < 0.2 * gap


def arriving(model: tf_keras.Model, x: np.ndarray) -> tf.Tensor:
    """What the last activation reads."""
    last = model.layers[-1]
    if isinstance(last, layers.Dense):
        hidden = tf_keras.Model(model.input, last.input)(x)
        return hidden @ last.kernel + last.bias
    return tf_keras.Model(model.input, last.input)(x)


def least(error: Any, model: tf_keras.Model) -> float:
    """The least error over the kernel and mean of "layer", by scipy's L-BFGS."""
    variables = [model.get_layer("layer").kernel, mean_of(model)]
    ends = np.cumsum([int(np.prod(v.shape)) for v in variables])
    start = np.concatenate([v.numpy().ravel() for v in variables])

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        for variable, part in zip(variables, np.split(flat, ends[:-1]), strict=True):
            variable.assign(part.reshape(variable.shape))
        with tf.GradientTape() as tape:
            value = error(model)
        gradients = tape.gradient(value, variables)
        return float(value), np.concatenate([np.ravel(g) for g in gradients]).astype(np.float64)

    return float(scipy.optimize.minimize(function, start, jac=True, method="L-BFGS-B").fun)


class Leaking(layers.Activation):
    """The user's own: no output is the same for all inputs below."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.activation(x) + 0.1 * x


def way_to(*behind: tf_keras.layers.Layer) -> Way:
    x = inputs = layers.Input((3,))
    for layer in (layers.Dense(2, name="layer"), *behind):
        x = layer(x)
    program = unrolled(tf_keras.Model(inputs, x), itertools.count())
    return way_behind(program.calls()["layer"][0], program.readers(), 2)


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda: layers.ReLU(), (0, np.inf)),
        (lambda: layers.ReLU(2.0), (0, 2)),
        (lambda: layers.Activation(tf.nn.relu6), (0, 6)),
        (lambda: layers.ReLU(negative_slope=0.1), EVERYTHING),
        (lambda: layers.ReLU(threshold=0.1), EVERYTHING),
        (lambda: layers.LeakyReLU(), EVERYTHING),
        (lambda: layers.PReLU(), EVERYTHING),
        (lambda: Leaking("relu"), EVERYTHING),
    ],
)
def test_only_what_is_flat_counts_as_flat(make: Any, seen: tuple[float, float]) -> None:
    assert way_to(layers.BatchNormalization(), make()).seen == seen


def test_a_norm_of_other_channels_than_the_layers_ends_the_way() -> None:
    way = way_to(ScatterChannels([2, 0], 4), layers.BatchNormalization(), layers.ReLU())
    assert way.norm is None and way.seen == EVERYTHING


def test_what_is_kept_for_repeated_regressions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, filters = 2, 64  # the outputs are most of it
    layer = layers.Dense(filters)
    layer.build((None, inputs))
    target = types.SimpleNamespace(
        slim=kernel_of(layer), pairs=[None], filters=np.arange(filters),
        behind=types.SimpleNamespace(is_flat_somewhere=True),
    )  # fmt: skip
    monkeypatch.setattr(solver, "_ROWS_BYTES", 100_000)
    system = solver._System(target, solver.Sampling(1_000, 0), 0, 1_000)
    count = system._most
    wide = np.zeros((count, filters), np.float32)
    kept = [np.zeros((1, count, inputs), np.float32), *[wide] * 4]
    assert count > 20 and sum(array.nbytes for array in kept) < 100_000


def shared_net(nested: bool) -> tf_keras.Model:
    """Two branches read by one convolution, which reads what it made once more."""
    inputs = layers.Input((6, 6, 3))
    one, two = (
        layers.Conv2D(5, 3, padding="same", activation="tanh", name=name)(inputs)
        for name in ("one", "two")
    )
    conv = layers.Conv2D(5, 3, padding="same", name="conv")
    if nested:
        x = inner = layers.Input((6, 6, 5))
        x = layers.Conv2D(7, 3, padding="same", activation="tanh", name="inside")(x)
        conv = tf_keras.Model(inner, layers.Conv2D(5, 1, name="conv")(x), name="inner")
    x = layers.Add(name="sum")([conv(one), conv(two)])
    x = conv(layers.Activation("tanh")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return shake(tf_keras.Model(inputs, layers.Dense(3, name="logits")(x)))


@pytest.mark.parametrize("nested", [False, True])
def test_all_calls_of_a_shared_layer_are_one_system(nested: bool) -> None:
    model = shared_net(nested)
    plan = ehap.plan_pruning(model, random_scores(model, 1), 0.4)
    slim, x = ehap.prune(model, plan), images((6, 6, 3), 64)
    fixed = ehap.repair(slim, model, plan, x)
    assert relative_error(fixed(x), model(x)) < 0.7 * relative_error(slim(x), model(x))


def test_progress_names_the_errors() -> None:
    model = small_residual_net()
    plan = residual_plan(model)
    seen: list[tuple[int, int, dict[str, float]]] = []
    ehap.repair(
        ehap.prune(model, plan), model, plan, images((8, 8, 3)),
        progress=lambda done, total, figures: seen.append((done, total, dict(figures))),
    )  # fmt: skip
    assert [done for done, *_ in seen] == [1, 2, 3, 4] and {total for _, total, _ in seen} == {4}
    assert all(figures["error_left"] <= figures["error"] for *_, figures in seen)
    assert any(figures["error_left"] < 0.9 * figures["error"] for *_, figures in seen)


def test_images_come_as_arrays_or_datasets_with_labels_or_without() -> None:
    model = small_residual_net()
    plan = residual_plan(model)
    slim, x = ehap.prune(model, plan), images((8, 8, 3), 20)
    stream = tf.data.Dataset.from_tensor_slices(x).batch(8)
    pairs = tf.data.Dataset.zip((stream, tf.data.Dataset.range(3)))
    expected = ehap.repair(slim, model, plan, x)(x)
    for data in ((x, np.zeros(20)), (x, np.zeros(20), np.ones(20)), stream, pairs, [x]):
        np.testing.assert_allclose(ehap.repair(slim, model, plan, data)(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("examples must be at least 1. Received: 0", {"examples": 0}),
        ("ridge must be at least 0. Received: -1", {"ridge": -1}),
        ("ridge must be at least 0. Received: nan", {"ridge": float("nan")}),
        ("positions must be at least 1. Received: 0", {"positions": 0}),
        ("batch_size must be at least 1. Received: 0", {"batch_size": 0}),
        ("images must hold inputs of shape", {"images": np.zeros((4, 8, 7, 3), np.float32)}),
        ("images must hold as many examples", {"images": np.zeros((0, 8, 8, 3), np.float32)}),
        ("slim must be prune", {"slim": small_residual_net}),
    ],
)
def test_what_does_not_fit_is_refused(message: str, options: dict[str, Any]) -> None:
    model = small_residual_net()
    plan = residual_plan(model)
    arguments = {"slim": ehap.prune(model, plan), "images": images((8, 8, 3))} | options
    if callable(arguments["slim"]) and not isinstance(arguments["slim"], tf_keras.Model):
        arguments["slim"] = arguments["slim"]()
    with pytest.raises(ValueError, match=message):
        ehap.repair(model=model, plan=plan, **arguments)
    with pytest.raises(TypeError, match="plan must be a PruningPlan"):
        ehap.repair(arguments["slim"], model, {}, batch(model))
