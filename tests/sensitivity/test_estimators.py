from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.criteria import criterion_names, find_criterion
from ehap_tf.progress import no_progress
from ehap_tf.sensitivity.estimators import estimation as estimators
from ehap_tf.sensitivity.estimators import gauss_newton, hutchinson, sampling
from ehap_tf.sensitivity.estimators.probes import example_signs, kernel_signs
from ehap_tf.sensitivity.estimators.scaling import Scales
from ehap_tf.sensitivity.statistics import misranked_share
from tests.sensitivity.networks import (
    CLASSES,
    cross_entropy,
    examples,
    full_hessian,
    initializer,
    joined,
    largest_deviation,
    linear_model,
    rank,
    residual_net,
    trace_by_filter,
)

layers = tf_keras.layers


@pytest.fixture(scope="module")
def relu_net() -> tf_keras.Model:
    return residual_net()


@pytest.fixture(scope="module")
def relu_hessian(relu_net: tf_keras.Model) -> tuple[np.ndarray, np.ndarray]:
    return full_hessian(relu_net, *examples(), cross_entropy())


@pytest.fixture(scope="module")
def relu_truth(relu_hessian: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    hessian, owner = relu_hessian
    return np.bincount(owner, weights=np.diag(hessian))


@pytest.fixture(scope="module")
def tanh_net() -> tf_keras.Model:
    return residual_net("tanh")


@pytest.fixture(scope="module")
def tanh_truth(tanh_net: tf_keras.Model) -> np.ndarray:
    return trace_by_filter(tanh_net, *examples(), cross_entropy())


def test_exact_is_the_trace_of_the_full_hessian(
    relu_net: tf_keras.Model, relu_truth: np.ndarray
) -> None:
    scores = rank(relu_net, estimator="exact")
    np.testing.assert_allclose(joined(scores.trace), relu_truth, rtol=1e-10)
    assert scores.provenance.quantity == "Hessian trace"
    assert not scores.standard_error and scores.probes == 0


def test_exact_with_a_smooth_activation_goes_weight_by_weight(
    tanh_net: tf_keras.Model, tanh_truth: np.ndarray
) -> None:
    scores = rank(tanh_net, estimator="exact", batch_size=6)
    np.testing.assert_allclose(joined(scores.trace), tanh_truth, rtol=1e-9, atol=1e-12)
    assert scores.provenance.notes == ("one product per weight",)


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


def test_gauss_newton_of_a_smooth_network_is_not_called_the_hessian(
    tanh_net: tf_keras.Model, tanh_truth: np.ndarray
) -> None:
    scores = rank(tanh_net, estimator="gauss_newton", probes=100)
    assert scores.provenance.quantity == "Gauss-Newton trace"
    assert "tanh" in scores.provenance.notes[0]
    assert largest_deviation(scores, tanh_truth) > 10


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


def test_the_variance_of_a_probe_is_what_the_hessian_says(
    relu_net: tf_keras.Model, relu_hessian: tuple[np.ndarray, np.ndarray]
) -> None:
    """For v' H v restricted to block c: 2 sum_{i != j in c} H_ij^2 + sum_{i in c, j not} H_ij^2."""
    hessian, owner = relu_hessian
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


JUDGED = [name for name in criterion_names() if find_criterion(name).judged]
NOT_JUDGED = [n for n in criterion_names() if find_criterion(n).samples and n not in JUDGED]


@pytest.mark.parametrize("criterion", JUDGED)
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


@pytest.mark.parametrize("criterion", NOT_JUDGED)
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


def test_the_trace_agrees_with_finite_differences_of_gradients() -> None:
    model, (x, y) = residual_net("tanh"), examples()
    kernel, loss = model.get_layer("second").kernel, cross_entropy()
    start, step = kernel.numpy(), 1e-4

    @tf.function
    def gradient() -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=False))
        return tape.gradient(value, kernel)

    def gradient_with(value: np.ndarray) -> np.ndarray:
        kernel.assign(value)
        return gradient().numpy()

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
