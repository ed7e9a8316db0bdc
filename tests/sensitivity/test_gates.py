from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.sensitivity.gates.gate_placement import find_gates
from tests.sensitivity.networks import (
    CLASSES,
    batch_norm,
    cross_entropy,
    examples,
    initializer,
    joined,
    residual_net,
)

# test_estimators, test_layer_kinds and test_filter_ranking run compiled.
pytestmark = pytest.mark.usefixtures("eagerly")

layers = tf_keras.layers


def gates_of(*steps: Any, shape: tuple[int, ...] = (6, 6, 2)) -> dict[str, tuple[str, Any]]:
    """The chain of `steps`, then a classifier; layer name -> (gate behind, name of BatchNorm)."""
    x = inputs = layers.Input(shape)
    for step in steps:
        x = step(x)
    model = tf_keras.Model(inputs, layers.Dense(4, name="end")(layers.Flatten()(x)))
    return {
        name: (gate.after, gate.batch_norm and gate.batch_norm.name)
        for name, gate in find_gates(model).items()
    }


def conv(name: str = "conv", **arguments: Any) -> Any:
    return layers.Conv2D(3, 3, padding="same", name=name, **arguments)


BN = layers.BatchNormalization
SyncBN = layers.experimental.SyncBatchNormalization


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([conv()], ("conv", None)),
        ([conv(activation="relu")], ("conv", None)),
        ([conv(), BN(name="bn"), layers.ReLU()], ("bn", "bn")),
        ([conv(), layers.ReLU(), layers.MaxPooling2D(), BN(name="bn")], ("bn", "bn")),
        ([conv(), BN(name="bn"), layers.Activation("sigmoid", name="act")], ("act", "bn")),
        ([conv(), BN(name="bn"), layers.Activation("swish")], ("bn", "bn")),
        ([conv(), layers.Identity(), SyncBN(name="bn"), layers.ReLU()], ("bn", "bn")),
        (
            [conv(), BN(name="bn"), layers.DepthwiseConv2D(3, name="dw"), BN(name="bn2")],
            ("bn2", "bn"),
        ),
    ],
)
def test_a_gate_stands_behind_the_last_layer_that_makes_something_of_zero(
    steps: list[Any], expected: tuple[str, str | None]
) -> None:
    found = gates_of(*steps)
    assert found["conv"] == expected
    assert found["end"] == ("end", None)


def test_a_chain_ends_where_a_tensor_has_two_readers() -> None:
    inputs = layers.Input((6, 6, 2))
    x = conv("a")(inputs)
    y = conv("b")(BN(name="bn")(x))
    model = tf_keras.Model(inputs, layers.Add()([x, y]))
    gates = find_gates(model)
    assert (gates["a"].after, gates["b"].after) == ("a", "b")


def test_gates_of_nested_models_have_full_names() -> None:
    block = tf_keras.Sequential([layers.Input((6, 6, 2)), conv(), BN(name="bn")], name="block")
    inputs = layers.Input((6, 6, 2))
    model = tf_keras.Model(inputs, layers.ReLU()(block(inputs)))
    assert find_gates(model)["block/conv"].after == "block/bn"


def test_calls_of_another_model_do_not_end_a_chain() -> None:
    steps = [layers.Input((6, 6, 2)), conv(), BN(name="bn"), layers.ReLU()]
    model = tf_keras.Sequential(steps)
    tf_keras.Sequential(steps)  # calls the same layers again
    assert find_gates(model)["conv"].after == "bn"


@pytest.mark.parametrize("side_by_side", [False, True])
def test_one_gate_serves_all_uses_of_a_nested_model(side_by_side: bool) -> None:
    """The oracle is the Keras model with zeros in the BatchNorm that both uses share."""
    tf_keras.utils.set_random_seed(0)
    a = layers.Input((6, 6, 2), dtype="float64")
    y = layers.Conv2D(3, 3, padding="same", dtype="float64", name="conv")(a)
    y = layers.ReLU(dtype="float64")(batch_norm(y, 1, name="bn"))
    y = layers.Conv2D(2, 1, dtype="float64", name="point")(y)
    inner = tf_keras.Model(a, y, name="inner")

    def wrapped(name: str) -> tf_keras.Model:
        b = layers.Input((6, 6, 2), dtype="float64")
        return tf_keras.Model(b, inner(b), name=name)

    inputs = layers.Input((6, 6, 2), dtype="float64")
    x = wrapped("A")(inputs)
    if side_by_side:
        x = layers.Add(dtype="float64")([wrapped("B")(inputs[:, ::-1]), x])
    else:
        x = wrapped("B")(x)
    x = layers.Dense(4, dtype="float64", name="end")(layers.Flatten(dtype="float64")(x))
    model = tf_keras.Model(inputs, x)
    (path,) = {name for name in find_gates(model) if name.endswith("inner/conv")}
    outer = path.removesuffix("conv")
    assert find_gates(model)[path].after == f"{outer}bn"

    x, y = examples()
    whole = float(cross_entropy()(y, model(x, training=False)))
    norm = inner.get_layer("bn")
    gamma, beta, *statistics = norm.get_weights()
    expected = []
    for index in range(3):
        keep = np.arange(3) != index
        norm.set_weights([gamma * keep, beta * keep, *statistics])
        expected.append(float(cross_entropy()(y, model(x, training=False))) - whole)
    norm.set_weights([gamma, beta, *statistics])
    scores = rank(model, "oracle")
    assert set(scores) == {path, f"{outer}point", "end"}
    np.testing.assert_allclose(scores.signed[path], expected, rtol=1e-9, atol=1e-12)


def dense(units: int, name: str) -> Any:
    return layers.Dense(
        units, dtype="float64", name=name, bias_initializer=initializer("normal", 1)
    )


@pytest.mark.parametrize("criterion", ["oracle", "obd_joint", "obd_joint_centered"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_layers_without_weights_may_serve_several_filters(activation: str, criterion: str) -> None:
    """One activation and one dropout for the whole model give what one of each a layer gives."""

    def model(shared: bool) -> tf_keras.Model:
        tf_keras.utils.set_random_seed(0)
        x = inputs = layers.Input((6, 6, 2), dtype="float64")
        for place in range(3):
            if place == 0 or not shared:
                steps = [
                    layers.Activation(activation, dtype="float64"),
                    layers.Dropout(0.5, dtype="float64"),
                ]
            x = dense(3 + place, f"dense{place}")(x)
            for step in steps:
                x = step(x)
        return tf_keras.Model(inputs, dense(4, "end")(layers.Flatten(dtype="float64")(x)))

    found, expected = (
        rank(model(shared), criterion, estimator="exact") for shared in (True, False)
    )
    assert min(np.abs(values).max() for values in expected.signed.values() or expected.values()) > 0
    np.testing.assert_allclose(joined(found), joined(expected), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("residual", ["union", "tied"])
def test_the_oracle_closes_every_use_of_a_layer(nested: bool, residual: str) -> None:
    """A layer that is called in the model and, when nested, in a model inside it."""
    tf_keras.utils.set_random_seed(0)
    stem, shared, last, end = dense(5, "stem"), dense(5, "d"), dense(5, "last"), dense(4, "end")
    inputs = layers.Input((6, 6, 2), dtype="float64")
    x = y = layers.Input((6, 6, 5), dtype="float64")
    block = tf_keras.Model(y, layers.ReLU(dtype="float64")(shared(y)), name="block")
    x = stem(inputs)
    x = block(x) if nested else layers.ReLU(dtype="float64")(shared(x))
    x = layers.ReLU(dtype="float64")(shared(x))
    x = layers.Flatten(dtype="float64")(layers.ReLU(dtype="float64")(last(x)))
    model = tf_keras.Model(inputs, end(x))

    def loss(kept: Any) -> float:
        # The layer reads the stem and itself: in tied mode they go together.
        x = stem(examples()[0]) * (kept if residual == "tied" else 1)
        for _ in range(2):
            x = tf.nn.relu(shared(x) * kept)
        x = tf.reshape(tf.nn.relu(last(x)), [len(x), -1])
        return float(cross_entropy()(examples()[1], end(x)))

    expected = [loss(1 - np.eye(5)[index]) - loss(1) for index in range(5)]
    scores = rank(model, "oracle", residual=residual).signed
    path = "block/d" if nested else "d"
    found = scores[path] + scores["stem"] if residual == "tied" else scores[path]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["Conv2D", "Conv3D"])  # only the first is folded
def test_a_batch_norm_that_is_shared_goes_with_the_filters(kind: str) -> None:
    """Behind each convolution the BatchNorm is a layer that makes something of zero."""
    tf_keras.utils.set_random_seed(0)
    convs = [
        getattr(layers, kind)(3, 1, dtype="float64", name=name, kernel_initializer="normal")
        for name in ("a", "b")
    ]
    norm = layers.BatchNormalization(dtype="float64", beta_initializer=initializer("normal", 1))
    shape = (6, 6, 2) if kind == "Conv2D" else (6, 6, 1, 2)
    inputs = layers.Input((6, 6, 2), dtype="float64")
    x = layers.Reshape(shape, dtype="float64")(inputs)
    parts = [layers.ReLU(dtype="float64")(norm(conv(x))) for conv in convs]
    end = dense(4, "end")
    x = layers.Flatten(dtype="float64")(layers.Concatenate(dtype="float64")(parts))
    model = tf_keras.Model(inputs, end(x))

    def loss(owner: int, kept: Any) -> float:
        x = examples()[0].reshape(-1, *shape)
        parts = [
            tf.nn.relu(norm(conv(x), training=False)) * (kept if number == owner else 1)
            for number, conv in enumerate(convs)
        ]
        x = tf.reshape(tf.concat(parts, -1), [len(x), -1])
        return float(cross_entropy()(examples()[1], end(x)))

    scores = rank(model, "oracle").signed
    for owner, name in enumerate("ab"):
        expected = [loss(owner, 1 - np.eye(3)[index]) - loss(owner, 1) for index in range(3)]
        np.testing.assert_allclose(scores[name], expected, rtol=1e-9, atol=1e-12)


def naive_losses(model: tf_keras.Model, x: Any, y: Any) -> np.ndarray:
    """The loss after zeroing each filter by hand, through Keras and no gate."""
    behind = {"first": "batch_normalization", "second": "batch_normalization_1"}
    names = [layer.name for layer in model.layers]
    norms = [name for name in names if "batch_normalization" in name]
    behind = dict(zip(["first", "second"], norms, strict=True))
    losses = []
    for name, place in behind.items():
        layer = model.get_layer(place)
        gamma, beta, mean, variance = layer.get_weights()
        for index in range(len(gamma)):
            keep = np.arange(len(gamma)) != index
            layer.set_weights([gamma * keep, beta * keep, mean, variance])
            losses.append(float(cross_entropy()(y, model(x, training=False))))
        layer.set_weights([gamma, beta, mean, variance])
        assert name in names
    classifier = model.get_layer("classifier")
    kernel, bias = classifier.get_weights()
    for index in range(len(bias)):
        keep = np.arange(len(bias)) != index
        classifier.set_weights([kernel * keep, bias * keep])
        losses.append(float(cross_entropy()(y, model(x, training=False))))
    classifier.set_weights([kernel, bias])
    return np.array(losses)


@pytest.fixture(scope="module")
def model() -> tf_keras.Model:
    return residual_net()


def rank(model: tf_keras.Model, criterion: str, **arguments: Any) -> ehap.FilterScores:
    return ehap.rank_filters(model, examples(), cross_entropy(), criterion, **arguments)


def test_the_oracle_is_the_loss_after_zeroing_by_hand(model: tf_keras.Model) -> None:
    x, y = examples()
    change = naive_losses(model, x, y) - float(cross_entropy()(y, model(x, training=False)))
    scores = rank(model, "oracle", batch_size=4)
    np.testing.assert_allclose(joined(scores.signed), change, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(joined(scores), np.abs(change), rtol=1e-9, atol=1e-12)


def test_the_oracle_removes_one_filter_from_a_batch_that_normalises_itself() -> None:
    """The rows of several removals in one batch would have statistics in common."""
    tf_keras.utils.set_random_seed(0)
    inputs = layers.Input((6, 6, 2))
    x = layers.ReLU()(conv()(inputs))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, name="read")(x), training=True)
    model = tf_keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(layers.ReLU()(x))))
    x, y = examples()
    x = x.astype(np.float32)
    whole = float(cross_entropy()(y, model(x)))
    kernel = model.get_layer("read").kernel
    start, change = kernel.numpy(), []
    for channel in range(3):
        kernel.assign(start * (np.arange(3) != channel)[:, None])
        change.append(float(cross_entropy()(y, model(x))) - whole)
    kernel.assign(start)
    np.testing.assert_allclose(rank(model, "oracle").signed["conv"], change, rtol=1e-4, atol=1e-6)


def gate_derivatives(model: tf_keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and second derivative of the loss on gates, by scaling weights and differences."""
    x, y = examples()
    norms = [layer for layer in model.layers if isinstance(layer, BN)]
    targets = [(n, [n.gamma, n.beta]) for n in norms]
    classifier = model.get_layer("classifier")
    targets.append((classifier, [classifier.kernel, classifier.bias]))
    first, second, step = [], [], 1e-4
    for _, variables in targets:
        start = [v.numpy() for v in variables]
        for index in range(start[-1].shape[0]):
            values = []
            for alpha in (1 - step, 1.0, 1 + step):
                factor = np.where(np.arange(start[-1].shape[0]) == index, alpha, 1.0)
                for variable, value in zip(variables, start, strict=True):
                    variable.assign(value * factor)
                values.append(float(cross_entropy()(y, model(x, training=False))))
            first.append((values[2] - values[0]) / (2 * step))
            second.append((values[2] - 2 * values[1] + values[0]) / step**2)
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
    return np.array(first), np.array(second)


def test_obd_and_quadratic_are_derivatives_on_gates(model: tf_keras.Model) -> None:
    gradient, curvature = gate_derivatives(model)
    exact = rank(model, "obd", estimator="exact")
    np.testing.assert_allclose(joined(exact.trace), curvature, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(joined(exact), curvature / 2, rtol=1e-4, atol=1e-6)
    quadratic = rank(model, "quadratic", estimator="exact")
    np.testing.assert_allclose(
        joined(quadratic.signed), -gradient + curvature / 2, rtol=1e-4, atol=1e-6
    )


@pytest.mark.compiled
def test_the_gate_sketch_is_unbiased_and_not_negative(model: tf_keras.Model) -> None:
    truth = joined(rank(model, "obd", estimator="exact"))
    scores = rank(model, "obd", probes=200, batch_size=3)
    assert np.all(joined(scores) >= 0)
    deviation = np.abs(joined(scores) - truth) / joined(scores.standard_error)
    assert deviation.max() < 4
    assert np.abs(joined(scores) - truth * 1.5).max() > 4 * joined(scores.standard_error).max()


def test_taylor_is_the_mean_square_over_fixed_minibatches(model: tf_keras.Model) -> None:
    x, y = examples(70)
    squares = []
    for part in (slice(0, 32), slice(32, 64), slice(64, 70)):
        with tf.GradientTape() as tape:
            loss = cross_entropy()(y[part], model(x[part], training=False))
        kernels = [model.get_layer(name).kernel for name in ("first", "second", "classifier")]
        products = [
            np.sum(g * k, axis=tuple(range(len(k.shape) - 1)))
            for g, k in zip(tape.gradient(loss, kernels), kernels, strict=True)
        ]
        squares.append(np.concatenate(products) ** 2)
    expected = np.average(squares, axis=0, weights=[32, 32, 6])
    for size in (None, 5):
        scores = ehap.rank_filters(
            model, (x, y), cross_entropy(), "taylor_fo_weight", batch_size=size
        )
        np.testing.assert_allclose(joined(scores), expected, rtol=1e-9)


@pytest.mark.parametrize("criterion", ["taylor_fo_weight", "taylor_so", "taylor_so_weight"])
def test_minibatches_together_give_the_change_of_the_whole_loss(
    model: tf_keras.Model, criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """33 examples in a minibatch of 32 and one of 1; a summed loss is 33 times the mean."""
    data = examples(33)
    summed = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    arguments: dict[str, Any] = {"criterion": criterion, "probes": 4}
    if criterion == "taylor_so":
        arguments["estimator"] = "exact"
    mean = ehap.rank_filters(model, data, cross_entropy(), **arguments)
    total = ehap.rank_filters(model, data, summed, **arguments)
    np.testing.assert_allclose(joined(total.signed), 33 * joined(mean.signed), rtol=1e-9)
    np.testing.assert_allclose(joined(total), 33**2 * joined(mean), rtol=1e-9)
    monkeypatch.setattr("ehap_tf.sensitivity.criteria.taylor.MINIBATCH", 40)
    at_once = ehap.rank_filters(model, data, cross_entropy(), **arguments)
    np.testing.assert_allclose(joined(mean.signed), joined(at_once.signed), rtol=1e-9)


@pytest.mark.compiled
def test_taylor_on_weights_takes_the_exact_trace_when_asked(model: tf_keras.Model) -> None:
    scores = rank(model, "taylor_so_weight", estimator="exact")
    trace = rank(model, "hessian_trace", estimator="exact")
    np.testing.assert_allclose(joined(scores.trace), joined(trace.trace), rtol=1e-12)
    assert (scores.estimator, scores.probes) == ("exact", 0)
    assert not scores.trace_standard_error
    # Ten examples are one minibatch, whose change is squared.
    change = joined(rank(model, "taylor_fo_weight").signed) + joined(trace) / 2
    np.testing.assert_allclose(joined(scores.signed), change, rtol=1e-9)
    np.testing.assert_allclose(joined(scores), change**2, rtol=1e-9)


def test_taylor_on_weights_says_that_it_takes_the_sketch(model: tf_keras.Model) -> None:
    default, asked = (
        rank(model, "taylor_so_weight", estimator=name, probes=2)
        for name in ("hutchinson", "gauss_newton")
    )
    assert default.estimator == asked.estimator == "gauss_newton"
    note, *others = default.provenance.notes
    assert "not by nested tapes" in note and tuple(others) == asked.provenance.notes
    np.testing.assert_array_equal(joined(default), joined(asked))


def test_taylor_on_gates_without_batch_norm_is_taylor_on_weights_and_bias() -> None:
    inputs = layers.Input((6, 6, 2), dtype="float64")
    x = layers.Conv2D(3, 3, use_bias=False, activation="relu", dtype="float64")(inputs)
    x = layers.Flatten(dtype="float64")(x)
    model = tf_keras.Model(inputs, layers.Dense(4, use_bias=False, dtype="float64")(x))
    np.testing.assert_allclose(
        joined(rank(model, "taylor_fo")), joined(rank(model, "taylor_fo_weight")), rtol=1e-9
    )


def test_bn_scale_needs_a_batch_norm() -> None:
    inputs = layers.Input((6, 6, 2))
    x = layers.Flatten()(batch_norm(layers.Conv2D(3, 3, name="conv")(inputs), 1, "float32"))
    model = tf_keras.Model(inputs, layers.Dense(2, name="end")(x))
    norm = next(layer for layer in model.layers if isinstance(layer, BN))
    scores = ehap.rank_filters(model, criterion="bn_scale")
    np.testing.assert_allclose(scores["conv"], np.abs(norm.gamma.numpy()))
    np.testing.assert_allclose(scores["end"], np.abs(norm.gamma.numpy()).max())
    assert "end" in scores.provenance.notes[0]
    bare = tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match="bn_scale"):
        ehap.rank_filters(bare, criterion="bn_scale")
