from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.progress import no_progress
from ehap_tf.sensitivity import estimators, gauss_newton, hutchinson, sampling
from ehap_tf.sensitivity.linearity import smooth_parts
from ehap_tf.sensitivity.probes import example_signs, kernel_signs
from ehap_tf.sensitivity.scaling import Scales
from ehap_tf.sensitivity.statistics import misranked_share
from tests.sensitivity.networks import (
    CLASSES,
    cross_entropy,
    examples,
    full_hessian,
    initializer,
    joined,
    residual_net,
    trace_by_filter,
)

layers = tf_keras.layers


@pytest.fixture(scope="module")
def relu_net() -> tf_keras.Model:
    return residual_net()


@pytest.fixture(scope="module")
def relu_truth(relu_net: tf_keras.Model) -> np.ndarray:
    x, y = examples()
    return trace_by_filter(relu_net, x, y, cross_entropy())


def rank(model: tf_keras.Model, loss: Any = None, **arguments: Any) -> ehap.FilterScores:
    data = arguments.pop("data", None) or examples()
    return ehap.rank_filters(model, data, loss or cross_entropy(), **arguments)


def largest_deviation(scores: ehap.FilterScores, truth: np.ndarray) -> float:
    """In standard errors."""
    return float(np.abs((joined(scores.trace) - truth) / joined(scores.trace_standard_error)).max())


def test_exact_is_the_trace_of_the_full_hessian(
    relu_net: tf_keras.Model, relu_truth: np.ndarray
) -> None:
    scores = rank(relu_net, estimator="exact")
    np.testing.assert_allclose(joined(scores.trace), relu_truth, rtol=1e-10)
    assert scores.provenance.quantity == "Hessian trace"
    assert not scores.standard_error and scores.probes == 0


def test_exact_with_a_smooth_activation_goes_weight_by_weight() -> None:
    model, (x, y) = residual_net("tanh"), examples()
    truth = trace_by_filter(model, x, y, cross_entropy())
    scores = rank(model, estimator="exact", batch_size=6)
    np.testing.assert_allclose(joined(scores.trace), truth, rtol=1e-9, atol=1e-12)
    assert scores.provenance.notes == ("one product a weight",)


@pytest.mark.parametrize("estimator", ["hutchinson", "gauss_newton"])
def test_estimates_are_within_four_standard_errors(
    relu_net: tf_keras.Model, relu_truth: np.ndarray, estimator: str
) -> None:
    scores = rank(relu_net, estimator=estimator, probes=400, seed=1)
    assert scores.probes == 400
    assert largest_deviation(scores, relu_truth) < 4


@pytest.mark.parametrize("estimator", ["hutchinson", "gauss_newton"])
def test_the_same_check_rejects_a_biased_estimator(
    relu_net: tf_keras.Model,
    relu_truth: np.ndarray,
    estimator: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Signs of which three in four are 1: products of different weights do not average to 0."""

    def leaning_kernels(seed: int, *arguments: Any) -> list[tf.Tensor]:
        draws = [kernel_signs(seed + i, *arguments) for i in (0, 100)]
        return [tf.maximum(a, b) for a, b in zip(*draws, strict=True)]

    def leaning_examples(seed: int, *arguments: Any) -> tf.Tensor:
        return tf.maximum(*(example_signs(seed + i, *arguments) for i in (0, 100)))

    monkeypatch.setattr(hutchinson, "kernel_signs", leaning_kernels)
    monkeypatch.setattr(gauss_newton, "example_signs", leaning_examples)
    scores = rank(relu_net, estimator=estimator, probes=400, seed=1)
    assert largest_deviation(scores, relu_truth) > 4


@pytest.mark.parametrize("estimator", ["hutchinson", "gauss_newton"])
def test_as_many_products_as_the_budget_says(
    relu_net: tf_keras.Model, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def counted(probe: tf.Tensor) -> tf.Tensor:
        def count(number: np.ndarray) -> np.ndarray:
            drawn.append(int(number))
            return number

        found = tf.numpy_function(count, [probe], tf.int32)
        found.set_shape([])
        return found

    def kernels(seed: int, probe: tf.Tensor, *rest: Any) -> list[tf.Tensor]:
        return kernel_signs(seed, counted(probe), *rest)

    def each_example(seed: int, probe: tf.Tensor, *rest: Any) -> tf.Tensor:
        return example_signs(seed, counted(probe), *rest)

    monkeypatch.setattr(hutchinson, "kernel_signs", kernels)
    monkeypatch.setattr(gauss_newton, "example_signs", each_example)
    scores = rank(relu_net, estimator=estimator, probes=19, data=examples(40), batch_size=32)
    # Each on both micro-batches.
    assert sorted(drawn) == sorted([*range(19)] * 2) and scores.probes == 19


@pytest.mark.parametrize("estimator", ["hutchinson", "gauss_newton"])
def test_the_loss_scale_changes_nothing(
    relu_net: tf_keras.Model, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = rank(relu_net, estimator=estimator, probes=20)
    made: list[Scales] = []

    def growing(adaptive: bool) -> Scales:
        made.append(Scales(True, patience=1))
        return made[-1]

    monkeypatch.setattr(estimators, "Scales", growing)
    scaled = rank(relu_net, estimator=estimator, probes=20)
    np.testing.assert_array_less([2.0**12, 1], made[0].values())
    np.testing.assert_allclose(joined(scaled.trace), joined(plain.trace), rtol=1e-9)


def test_gauss_newton_of_a_smooth_network_is_not_called_the_hessian() -> None:
    model, (x, y) = residual_net("tanh"), examples()
    scores = rank(model, estimator="gauss_newton", probes=100)
    truth = trace_by_filter(model, x, y, cross_entropy())
    assert scores.provenance.quantity == "Gauss-Newton trace"
    assert "tanh" in scores.provenance.notes[0]
    assert largest_deviation(scores, truth) > 10


def test_scores_are_the_relative_trace(relu_net: tf_keras.Model) -> None:
    scores = rank(relu_net, probes=9)
    for layer in (relu_net.get_layer(name) for name in scores):
        kernel = np.asarray(layer.kernel).reshape(-1, layer.kernel.shape[-1])
        factor = np.square(kernel).sum(axis=0) / len(kernel)
        np.testing.assert_allclose(scores[layer.name], scores.trace[layer.name] * factor)
        np.testing.assert_allclose(
            scores.standard_error[layer.name],
            scores.trace_standard_error[layer.name] * factor,
        )


@pytest.mark.parametrize("estimator", ["hutchinson", "gauss_newton", "exact"])
def test_splitting_the_batch_changes_nothing(relu_net: tf_keras.Model, estimator: str) -> None:
    data = examples(37)
    whole = rank(relu_net, data=data, estimator=estimator, probes=3, batch_size=64)
    for size in (32, 7):
        split = rank(relu_net, data=data, estimator=estimator, probes=3, batch_size=size)
        np.testing.assert_allclose(joined(split.trace), joined(whole.trace), rtol=1e-10)
    stream = tf.data.Dataset.from_tensor_slices(data).batch(9)
    np.testing.assert_allclose(
        joined(rank(relu_net, data=stream, estimator=estimator, probes=3).trace),
        joined(whole.trace),
        rtol=1e-10,
    )


@pytest.mark.parametrize("estimator", ["hutchinson", "gauss_newton"])
def test_the_seed_fixes_the_scores(relu_net: tf_keras.Model, estimator: str) -> None:
    few = rank(relu_net, estimator=estimator, probes=5)
    more = rank(relu_net, estimator=estimator, probes=11)
    again = rank(relu_net, estimator=estimator, probes=11)
    other = rank(relu_net, estimator=estimator, probes=5, seed=1)
    np.testing.assert_array_equal(joined(more), joined(again))
    assert not np.allclose(joined(few), joined(other))
    assert not np.allclose(joined(few), joined(more))


def test_the_variance_of_a_probe_is_what_the_hessian_says(relu_net: tf_keras.Model) -> None:
    """For v' H v restricted to block c: 2 sum_{i != j in c} H_ij^2 + sum_{i in c, j not} H_ij^2."""
    x, y = examples()
    hessian, owner = full_hessian(relu_net, x, y, cross_entropy())
    squares = np.square(hessian - np.diag(np.diag(hessian)))
    rows = np.stack([squares[owner == c].sum(axis=0) for c in range(10)])
    inside = np.array([rows[c, owner == c].sum() for c in range(10)])
    expected = inside + rows.sum(axis=1)
    scores = rank(relu_net, probes=1500, seed=2)
    found = joined(scores.trace_standard_error) ** 2 * 1500
    # A sample variance of 1500 values of moderate kurtosis: 4 standard errors are below 25%.
    np.testing.assert_allclose(found, expected, rtol=0.25)


def test_the_variance_of_a_sketch_is_that_of_a_quadratic_form_of_signs() -> None:
    """For r' A r it is 2 sum_{i != j} A_ij^2, A of softmax regression written out."""
    rng = np.random.default_rng(3)
    model, x, y = linear_model(3), rng.normal(size=(12, 5)), rng.integers(0, 3, 12)
    logits = x @ model.get_layer("dense").get_weights()[0]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    factor = np.stack([np.diag(np.sqrt(q)) - np.outer(q, np.sqrt(q)) for q in p])
    expected = []
    for c in range(3):
        # Row (i, k) of the gradient of filter c: x_i S_i[c, k] / sqrt(N).
        rows = (factor[:, c, :, np.newaxis] * x[:, np.newaxis, :]).reshape(36, 5) / np.sqrt(12)
        form = rows @ rows.T
        expected.append(2 * (np.square(form).sum() - np.square(np.diag(form)).sum()))
    scores = rank(model, data=(x, y), estimator="gauss_newton", probes=1500, seed=2)
    found = joined(scores.trace_standard_error) ** 2 * 1500
    np.testing.assert_allclose(found, expected, rtol=0.25)


def upsampling_net(interpolation: str) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(0)
    x = inputs = layers.Input((6, 6, 2), dtype="float64")
    x = layers.Conv2D(2, 3, activation="tanh", dtype="float64")(x)
    x = layers.UpSampling2D(interpolation=interpolation, name="larger", dtype="float64")(x)
    x = layers.Conv2D(2, 3, strides=2, activation="tanh", dtype="float64")(x)
    x = layers.GlobalAveragePooling2D(dtype="float64")(x)
    return tf_keras.Model(inputs, layers.Dense(CLASSES, dtype="float64")(x))


def test_nearest_upsampling_has_second_derivatives() -> None:
    model, (x, y) = upsampling_net("nearest"), examples()
    scores = rank(model, estimator="exact")
    assert scores.provenance.notes == ("one product a weight",)
    # One kernel entry after the other, by differences of Keras's own gradients.
    expected, step = [], 1e-5
    for layer in (layer for layer in model.layers if hasattr(layer, "kernel")):
        start, diagonal = layer.kernel.numpy(), np.zeros(layer.kernel.shape)
        for index in np.ndindex(*start.shape):
            gradients = []
            for sign in (1, -1):
                moved = start.copy()
                moved[index] += sign * step
                layer.kernel.assign(moved)
                with tf.GradientTape() as tape:
                    loss = cross_entropy()(y, model(x, training=False))
                gradients.append(tape.gradient(loss, layer.kernel).numpy()[index])
            diagonal[index] = (gradients[0] - gradients[1]) / (2 * step)
        layer.kernel.assign(start)
        expected.append(diagonal.reshape(-1, start.shape[-1]).sum(axis=0))
    np.testing.assert_allclose(joined(scores.trace), np.concatenate(expected), rtol=1e-6, atol=1e-8)


def test_a_layer_without_second_derivatives_is_named() -> None:
    model = upsampling_net("bicubic")
    with pytest.raises(ValueError, match=r"'larger/resize/ResizeBicubic'.*use estimator='gauss_n"):
        rank(model, probes=2, estimator="hutchinson")
    assert np.isfinite(joined(rank(model, probes=2, estimator="gauss_newton"))).all()


def test_a_batch_norm_in_training_mode_is_not_linear() -> None:
    inputs = layers.Input((6, 6, 2))
    x = layers.Conv2D(3, 3)(inputs)
    x = layers.BatchNormalization(name="restless")(x, training=True)
    model = tf_keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))
    x, y = examples()
    scores = rank(model, data=(x.astype(np.float32), y), estimator="gauss_newton", probes=2)
    assert scores.provenance.quantity == "Gauss-Newton trace"
    assert "restless (BatchNormalization, in training mode)" in scores.provenance.notes[0]


def test_the_calls_of_the_network_count_and_no_others() -> None:
    steps = [layers.Input((3,)), layers.Dense(3, name="dense"), layers.ReLU()]
    inner = tf_keras.Sequential(steps, name="inner")
    inputs = layers.Input((3,))
    once = tf_keras.Model(inputs, inner(inputs))
    twice = tf_keras.Model(inputs, inner(inner(inputs)))
    assert smooth_parts(once) == smooth_parts(inner) == []
    assert smooth_parts(twice) == ["inner/dense (used 2 times)"]


def test_relu_as_an_operator_is_as_linear_as_the_layer() -> None:
    layer, operator = (rank(residual_net(operators=o), estimator="exact") for o in (False, True))
    assert operator.provenance.notes == layer.provenance.notes
    assert operator.provenance.notes == ("equal to the Gauss-Newton trace",)
    np.testing.assert_allclose(joined(operator), joined(layer), rtol=1e-9)
    smooth = rank(residual_net("tanh", operators=True), estimator="gauss_newton", probes=1)
    assert "math.tanh" in smooth.provenance.notes[0]


@pytest.mark.parametrize(
    ("operator", "is_linear"),
    [
        (lambda x: 2 * x / 3 - 1, True),
        (lambda x: x * [1.0, 2.0, 3.0], True),
        (lambda x: tf.nn.leaky_relu(-abs(x)), True),
        (lambda x: tf.reduce_max(tf.concat([x, x[:, :1]], 1), 1), True),
        (lambda x: tf.cast(tf.cast(x, "float64"), "float32"), True),
        (lambda x: x * x, False),
        (lambda x: 2 / x, False),
        (lambda x: x**2, False),
        (lambda x: tf.cast(tf.cast(x, "int32"), "float32"), False),
        (tf.nn.elu, False),
    ],
)
def test_what_is_linear_of_operators(operator: Any, is_linear: bool) -> None:
    inputs = layers.Input((5, 3))
    model = tf_keras.Model(inputs, layers.Dense(2)(operator(layers.Dense(3)(inputs))))
    assert (not smooth_parts(model)) == is_linear


def test_batch_norm_over_devices_and_the_identity_are_linear() -> None:
    norm = layers.experimental.SyncBatchNormalization(name="norm")
    steps = [layers.Input((4,)), layers.Dense(3, name="dense"), norm, layers.Identity()]
    assert smooth_parts(tf_keras.Sequential(steps)) == []


def test_exact_where_a_nested_model_is_called_twice() -> None:
    inner = tf_keras.Sequential([layers.Input((5,)), layers.Dense(5, "relu", dtype="float64")])
    inputs = layers.Input((5,), dtype="float64")
    model = tf_keras.Model(inputs, inner(inner(inputs)))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 5)), rng.normal(size=(12, 5))
    (dense,) = inner.layers
    with tf.GradientTape() as outer:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        gradient = tape.gradient(loss, dense.kernel)
    hessian = np.reshape(outer.jacobian(gradient, dense.kernel), (25, 25))
    truth = np.diag(hessian).reshape(5, 5).sum(axis=0)
    scores = rank(model, tf_keras.losses.MeanSquaredError(), data=(x, y), estimator="exact")
    np.testing.assert_allclose(joined(scores.trace), truth, rtol=1e-9)


def test_a_batch_norm_in_a_nested_model_in_training_mode_is_not_linear() -> None:
    tf_keras.utils.set_random_seed(0)
    inner = tf_keras.Sequential([layers.Input((6, 6, 2)), layers.Conv2D(3, 3), layers.ReLU()])
    inner.add(layers.BatchNormalization(name="norm"))
    inputs = layers.Input((6, 6, 2))
    x = layers.GlobalAveragePooling2D()(inner(inputs, training=True))
    model = tf_keras.Model(inputs, layers.Dense(CLASSES)(x))
    scores = rank(model, estimator="gauss_newton", probes=2)
    assert scores.provenance.quantity == "Gauss-Newton trace"
    assert scores.provenance.notes[0].endswith("norm (BatchNormalization, in training mode)")


@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_that_reads_itself_is_not_linear_in_its_weights(nested: bool) -> None:
    tf_keras.utils.set_random_seed(2)
    shared, end = (layers.Dense(units, dtype="float64") for units in (5, CLASSES))
    x = inputs = layers.Input((5,), dtype="float64")
    block = tf_keras.Sequential([layers.Input((5,), dtype="float64"), shared])
    for _ in range(2):
        x = layers.ReLU(dtype="float64")((block if nested else shared)(x))
    model = tf_keras.Model(inputs, end(x))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 5)), rng.integers(0, CLASSES, 10)
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            loss = cross_entropy()(y, model(x, training=False))
        gradient = inner.gradient(loss, shared.kernel)
    hessian = outer.jacobian(gradient, shared.kernel, experimental_use_pfor=False)
    diagonal = np.diag(np.reshape(hessian, (25, 25))).reshape(5, 5)
    scores = rank(model, data=(x, y), estimator="exact")
    assert scores.provenance.notes == ("one product a weight",)
    np.testing.assert_allclose(next(iter(scores.trace.values())), diagonal.sum(axis=0), rtol=1e-9)
    sketch = rank(model, data=(x, y), estimator="gauss_newton", probes=2)
    assert "(used 2 times)" in sketch.provenance.notes[0]


def test_filters_permuted_give_scores_permuted(relu_net: tf_keras.Model) -> None:
    order = np.array([2, 0, 3, 1])
    permuted = tf_keras.models.clone_model(relu_net)
    permuted.set_weights(relu_net.get_weights())
    classifier = permuted.get_layer("classifier")
    kernel, bias = classifier.get_weights()
    classifier.set_weights([kernel[:, order], bias[order]])
    x, y = examples()
    moved = np.argsort(order)[y]
    before = rank(relu_net, estimator="exact")
    after = rank(permuted, estimator="exact", data=(x, moved))
    np.testing.assert_allclose(after["classifier"], before["classifier"][order], rtol=1e-10)
    np.testing.assert_allclose(after["first"], before["first"], rtol=1e-10)


def test_tolerance_stops_early_and_says_after_how_many(relu_net: tf_keras.Model) -> None:
    calls: list[int] = []

    def progress(done: int, total: int, figures: Any) -> None:
        calls.append(done)
        assert total == 400

    arguments: dict[str, Any] = {"estimator": "gauss_newton", "probes": 400}
    loose = rank(relu_net, tolerance=0.2, progress=progress, **arguments)
    strict = rank(relu_net, tolerance=1e-9, **arguments)
    assert 8 <= loose.probes < 400
    assert calls[-1] == loose.probes
    assert strict.probes == 400


@pytest.mark.parametrize("criterion", sampling.JUDGED)
def test_the_ranking_that_is_judged_is_the_one_that_is_returned(
    relu_net: tf_keras.Model, criterion: str
) -> None:
    judged: list[float] = []
    scores = rank(
        relu_net,
        criterion=criterion,
        probes=20,
        progress=lambda done, total, figures: judged.append(figures["misranked"]),
    )
    expected = misranked_share(joined(scores), joined(scores.standard_error))
    assert expected > 0 and judged[-1] == pytest.approx(expected, rel=1e-12)


def test_scores_that_tie_take_all_probes_however_well_their_curvature_is_known() -> None:
    def sample(probes: np.ndarray) -> np.ndarray:
        return np.array([2.0, 4.0]) + np.where(probes % 2, 0.1, -0.1)[:, np.newaxis]

    half = np.full(2, 0.5)
    apart = sampling.estimate(sample, 2, 64, 0.01, half, no_progress)
    tied = sampling.estimate(sample, 2, 64, 0.01, half, no_progress, offset=np.array([0.0, -1.0]))
    assert apart.probes == 8 and tied.probes == 64


@pytest.mark.parametrize("criterion", sampling.NOT_JUDGED)
def test_scores_that_are_not_linear_in_what_is_sampled_are_not_judged(
    relu_net: tf_keras.Model, criterion: str
) -> None:
    def progress(done: int, total: int, figures: Any) -> None:
        assert not figures

    scores = rank(relu_net, criterion=criterion, probes=2, progress=progress)
    assert scores.probes == 2 and not scores.standard_error
    # The trace's error is known all the same.
    assert np.all(joined(scores.trace_standard_error) >= 0)
    assert list(scores.trace_standard_error) == list(scores)
    with pytest.raises(ValueError, match=r"hessian_trace, obd, quadratic take one.*0\.1"):
        rank(relu_net, criterion=criterion, tolerance=0.1)


def linear_model(units: int, activation: str | None = None) -> tf_keras.Model:
    return tf_keras.Sequential(
        [
            tf_keras.layers.Input((5,), dtype="float64"),
            tf_keras.layers.Dense(units, activation=activation, dtype="float64", name="dense"),
        ]
    )


@pytest.mark.parametrize("estimator", ["hutchinson", "gauss_newton", "exact"])
def test_linear_regression_has_the_closed_form(estimator: str) -> None:
    rng = np.random.default_rng(2)
    x, y, weights = rng.normal(size=(20, 5)), rng.normal(size=(20, 3)), rng.random(20)
    # Mean over 3 outputs of squares: H of one output's weights is 2/3 mean(weight * x x').
    truth = np.full(3, 2 / 3 * np.mean(weights * (x**2).sum(axis=1)))
    scores = ehap.rank_filters(
        linear_model(3), (x, y, weights), "mse", estimator=estimator, probes=2000, batch_size=8
    )
    if estimator == "exact":
        np.testing.assert_allclose(scores.trace["dense"], truth, rtol=1e-12)
    else:
        assert largest_deviation(scores, truth) < 4


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    "activation", [None, "softmax", tf.nn.softmax, layers.Softmax(dtype="float64")]
)
def test_softmax_regression_has_the_closed_form(smoothing: float, activation: Any) -> None:
    rng = np.random.default_rng(3)
    model = linear_model(3, activation)
    given = model.get_layer("dense").activation
    x = rng.normal(size=(12, 5))
    y = np.eye(3)[rng.integers(0, 3, 12)]
    logits = x @ model.get_layer("dense").get_weights()[0]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.mean(p * (1 - p) * (x**2).sum(axis=1, keepdims=True), axis=0)
    loss = tf_keras.losses.CategoricalCrossentropy(
        from_logits=activation is None, label_smoothing=smoothing
    )
    exact = ehap.rank_filters(model, (x, y), loss, estimator="exact")
    sketch = ehap.rank_filters(model, (x, y), loss, estimator="gauss_newton", probes=1000)
    np.testing.assert_allclose(exact.trace["dense"], truth, rtol=1e-10)
    assert largest_deviation(sketch, truth) < 4
    assert model.get_layer("dense").activation is given  # the caller's layer is as it was


def test_sigmoid_regression_has_the_closed_form() -> None:
    rng = np.random.default_rng(4)
    model = linear_model(2, "sigmoid")
    x, y = rng.normal(size=(12, 5)), rng.integers(0, 2, (12, 2)).astype(float)
    p = 1 / (1 + np.exp(-x @ model.get_layer("dense").get_weights()[0]))
    truth = np.mean(p * (1 - p) / 2 * (x**2).sum(axis=1, keepdims=True), axis=0)
    exact = ehap.rank_filters(model, (x, y), "binary_crossentropy", estimator="exact")
    np.testing.assert_allclose(exact.trace["dense"], truth, rtol=1e-10)


LABELS_IN_A_ROW = [
    ("mse", None),
    ("mae", None),
    (tf_keras.losses.Huber(), None),
    (tf_keras.losses.MeanSquaredError(), None),
    ("binary_crossentropy", "sigmoid"),
    (tf_keras.losses.BinaryCrossentropy(), "sigmoid"),
    (tf_keras.losses.BinaryCrossentropy(from_logits=True), None),
    (lambda labels, outputs: tf.abs(labels - outputs), None),
]


@pytest.mark.parametrize(("loss", "activation"), LABELS_IN_A_ROW)
def test_labels_in_a_row_are_those_in_a_column_for_one_output(loss: Any, activation: Any) -> None:
    """Keras itself is the oracle: its `evaluate` takes both."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(12, 5)), rng.integers(0, 2, 12).astype(float)
    model = linear_model(1, activation)
    column = ehap.rank_filters(model, (x, y[:, np.newaxis]), loss, probes=2)
    row = ehap.rank_filters(model, (x, y), loss, probes=2)
    np.testing.assert_allclose(row["dense"], column["dense"], rtol=1e-12)
    removed = ehap.rank_filters(model, (x, y), loss, "oracle").signed["dense"]
    model.compile("sgd", loss)
    before = model.evaluate(x, y, verbose=0)
    model.get_layer("dense").kernel.assign(np.zeros((5, 1)))
    np.testing.assert_allclose(removed, model.evaluate(x, y, verbose=0) - before, rtol=1e-4)


def test_a_softmax_layer_counts_as_logits() -> None:
    rng = np.random.default_rng(3)
    plain = linear_model(3)
    ended = tf_keras.Sequential(
        [tf_keras.layers.Input((5,), dtype="float64"), plain, layers.Softmax(dtype="float64")]
    )
    data = rng.normal(size=(12, 5)), rng.integers(0, 3, 12)
    expected = ehap.rank_filters(plain, data, cross_entropy(), estimator="exact")
    scores = ehap.rank_filters(ended, data, "sparse_categorical_crossentropy", estimator="exact")
    name = f"{plain.name}/dense"
    assert list(scores) == [name]
    np.testing.assert_allclose(scores[name], expected["dense"], rtol=1e-12)


def test_the_output_of_a_nested_model_that_is_not_its_first() -> None:
    """The outer model's own loss, filter by filter removed by hand, is the oracle."""
    options: dict[str, Any] = {"dtype": "float64"}
    inputs, outer = layers.Input((5,), **options), layers.Input((5,), **options)
    x = layers.Dense(3, activation="relu", name="shared", **options)(inputs)
    ends = [layers.Dense(n, activation="softmax", **options)(x) for n in (3, 4)]
    inner = tf_keras.Model(inputs, ends, name="inner")
    model = tf_keras.Model(outer, inner(outer)[1])
    rng = np.random.default_rng(6)
    data = rng.normal(size=(12, 5)), rng.integers(0, 4, 12)
    found = ehap.rank_filters(model, data, "sparse_categorical_crossentropy", "oracle")
    loss = tf_keras.losses.SparseCategoricalCrossentropy()
    kernel = inner.get_layer("shared").kernel
    start, before = kernel.numpy(), float(loss(data[1], model(data[0])))
    changes = []
    for column in range(3):
        kernel.assign(np.where(np.arange(3) == column, 0, start))
        changes.append(float(loss(data[1], model(data[0]))) - before)
    np.testing.assert_allclose(found.signed["inner/shared"], changes, rtol=1e-6)
    exact = ehap.rank_filters(model, data, "sparse_categorical_crossentropy", "obd", "exact")
    assert np.isfinite(joined(exact)).all()


def test_the_trace_agrees_with_finite_differences_of_gradients() -> None:
    model, (x, y) = residual_net("tanh"), examples()
    kernel, loss = model.get_layer("second").kernel, cross_entropy()
    start, step = kernel.numpy(), 1e-4

    def gradient_with(value: np.ndarray) -> np.ndarray:
        kernel.assign(value)
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=False))
        return tape.gradient(value, kernel).numpy()

    trace = np.zeros(3)
    for index in np.ndindex(*start.shape):
        moved = np.zeros_like(start)
        moved[index] = step
        difference = gradient_with(start + moved) - gradient_with(start - moved)
        trace[index[-1]] += difference[index] / (2 * step)
    kernel.assign(start)
    scores = rank(model, estimator="exact")
    np.testing.assert_allclose(scores.trace["second"], trace, rtol=1e-6, atol=1e-8)


def test_a_loss_that_sums_gives_the_trace_of_the_sum(relu_net: tf_keras.Model) -> None:
    summed = tf_keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=tf_keras.losses.Reduction.SUM
    )
    for estimator in ("hutchinson", "gauss_newton"):
        mean = rank(relu_net, estimator=estimator, probes=3)
        total = rank(relu_net, summed, estimator=estimator, probes=3)
        np.testing.assert_allclose(joined(total.trace), joined(mean.trace) * 10, rtol=1e-10)


@pytest.mark.parametrize("criterion", ["hessian_trace", "obd", "obd_joint"])
def test_inputs_of_any_size_are_exact_at_the_size_of_the_data(criterion: str) -> None:
    def net(size: int | None) -> tf_keras.Model:
        inputs = layers.Input((size, size, 2), dtype="float64")
        x = layers.Conv2D(3, 3, kernel_initializer=initializer("normal", 1), activation="relu",
                          dtype="float64")(inputs)  # fmt: skip
        end = layers.Conv2D(2, 1, kernel_initializer=initializer("normal", 2), dtype="float64")
        return tf_keras.Model(inputs, end(x))

    rng = np.random.default_rng(7)
    data = rng.normal(size=(4, 5, 5, 2)), rng.integers(0, 2, (4, 3, 3))
    fixed, free = (
        rank(net(size), data=data, criterion=criterion, estimator="exact") for size in (5, None)
    )
    np.testing.assert_allclose(joined(free), joined(fixed), rtol=1e-12)


def test_a_stream_of_small_batches_gives_the_sketch_of_the_arrays(
    relu_net: tf_keras.Model,
) -> None:
    stream = tf.data.Dataset.from_tensor_slices(examples(40)).batch(4)
    expected = rank(relu_net, estimator="gauss_newton", probes=3, data=examples(40))
    scores = rank(relu_net, estimator="gauss_newton", probes=3, data=stream)
    np.testing.assert_allclose(joined(scores), joined(expected), rtol=1e-9)


@pytest.mark.parametrize("estimator", ["hutchinson", "gauss_newton"])
@pytest.mark.parametrize("pinned", ["float64", "float16", "bfloat16"])
def test_layers_with_weights_of_another_type(estimator: str, pinned: str) -> None:
    def net(dtype: str) -> tf_keras.Model:
        inputs = layers.Input((6, 6, 2))
        x = layers.Conv2D(3, 3, kernel_initializer=initializer("normal", 1))(inputs)
        x = layers.ReLU()(x)
        x = layers.Conv2D(3, 1, kernel_initializer=initializer("normal", 2), dtype=dtype)(x)
        x = layers.GlobalAveragePooling2D()(x)
        return tf_keras.Model(inputs, layers.Dense(CLASSES)(x))

    model, plain = net(pinned), net("float32")
    plain.set_weights([np.asarray(w, np.float32) for w in model.get_weights()])
    found, expected = (joined(rank(m, estimator=estimator, probes=2)) for m in (model, plain))
    tolerance = 1e-3 if pinned == "float64" else 0.1
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=atol)


def test_an_unknown_loss_works_by_hutchinson_alone(relu_net: tf_keras.Model) -> None:
    def huber(labels: Any, outputs: Any) -> Any:
        targets = tf.one_hot(tf.cast(labels, tf.int32), CLASSES, dtype=outputs.dtype)
        return tf_keras.losses.huber(targets, outputs)

    assert np.isfinite(joined(rank(relu_net, huber, probes=2))).all()
    with pytest.raises(ValueError, match=r"Gauss-Newton sketch.*huber"):
        rank(relu_net, huber, estimator="gauss_newton", probes=2)
