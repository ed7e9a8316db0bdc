"""In tied mode a group's score is the effect of removing the whole group at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.channels import trace_channels
from ehap_tf.criteria import criterion_names, find_criterion
from ehap_tf.pruning.plan.selection import plan_from_flags
from ehap_tf.sensitivity.criteria.joint_removal import joint_removal_losses
from tests.sensitivity.networks import batch_norm, cross_entropy, examples, initializer, joined

pytestmark = pytest.mark.usefixtures("eagerly")

layers = tf_keras.layers
DTYPE = "float64"


def conv(filters: int, seed: int, name: str) -> Any:
    return layers.Conv2D(
        filters,
        3,
        padding="same",
        kernel_initializer=initializer("normal", seed),
        bias_initializer=initializer("normal", seed + 50),
        dtype=DTYPE,
        name=name,
    )


def stream_net() -> tf_keras.Model:
    """Two blocks on one stream, the second with BatchNorm on the sum before its convolution."""
    inputs = layers.Input((6, 6, 2), dtype=DTYPE)
    x = layers.ReLU(dtype=DTYPE)(batch_norm(conv(3, 1, "stem")(inputs), 2))
    y = conv(2, 3, "inner")(x)
    y = conv(3, 5, "first")(layers.ReLU(dtype=DTYPE)(y))
    x = layers.Add(dtype=DTYPE)([x, batch_norm(y, 7)])
    y = layers.Activation("sigmoid", dtype=DTYPE)(batch_norm(x, 11))
    y = conv(3, 13, "second")(y)
    x = layers.Add(dtype=DTYPE)([y, x])
    x = layers.Flatten(dtype=DTYPE)(layers.MaxPooling2D(3, dtype=DTYPE)(x))
    x = layers.Dense(
        4, kernel_initializer=initializer("normal", 17), dtype=DTYPE, name="classifier"
    )(x)
    return tf_keras.Model(inputs, x)


@pytest.fixture(scope="module")
def model() -> tf_keras.Model:
    return stream_net()


STREAM = ("stem", "first", "second")


def rank(model: tf_keras.Model, criterion: str, **arguments: Any) -> ehap.FilterScores:
    arguments = {"residual": "tied", **arguments}
    return ehap.rank_filters(model, examples(), cross_entropy(), criterion, **arguments)


def group_oracle(model: tf_keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Loss changes of removing each group with `ehap.mask`: of the stream, of "inner"."""
    x, y = examples()
    graph = trace_channels(model, "tied")
    whole = float(cross_entropy()(y, model(x, training=False)))
    changes: list[list[float]] = [[], []]
    for place, (names, number) in enumerate(((STREAM, 3), (("inner",), 2))):
        for channel in range(number):
            flags = {name: np.ones(len(ids), bool) for name, ids in graph.ids.atoms.items()}
            for name in names:
                flags[name][channel] = False
            masked = ehap.mask(model, plan_from_flags(graph, flags))
            changes[place].append(float(cross_entropy()(y, masked(x, training=False))) - whole)
    return np.array(changes[0]), np.array(changes[1])


def of_stream(values: Any) -> np.ndarray:
    return np.sum([values[name] for name in STREAM], axis=0)


def test_the_oracle_removes_the_group_as_the_mask_does(model: tf_keras.Model) -> None:
    stream, inner = group_oracle(model)
    scores = rank(model, "oracle")
    np.testing.assert_allclose(of_stream(scores.signed), stream, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scores.signed["inner"], inner, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(of_stream(scores), np.abs(stream), rtol=1e-9, atol=1e-12)
    # The parts removed one by one are something else: that is why there are groups.
    parts = rank(model, "oracle", residual="union")
    assert np.abs(of_stream(parts.signed) - stream).max() > 0.1 * np.abs(stream).max()
    # The plan's sums are the groups' scores: the least of all removals goes first.
    plan = ehap.plan_pruning(model, scores, prune_ratio=1e-6, residual="tied")
    least = min((change, name) for name, changes in (
        ("stem", np.abs(stream)), ("inner", np.abs(inner))
    ) for change in changes)  # fmt: skip
    changes = {"stem": np.abs(stream), "inner": np.abs(inner)}[least[1]]
    assert set(range(len(changes))) - set(plan.kept[least[1]]) == {int(np.argmin(changes))}


def logits_with_gates(
    model: tf_keras.Model, x: Any, alpha: tf.Tensor, centered: bool = False
) -> tf.Tensor:
    """By hand: everything that reads channel c of the stream reads alpha[c] times it.

    Centered: alpha[c] times its distance from the mean.
    """

    def close(tensor: tf.Tensor, axes: Any = (0, 1, 2)) -> tf.Tensor:
        mean = tf.stop_gradient(tf.reduce_mean(tensor, axes, keepdims=True)) if centered else 0
        return mean + (tensor - mean) * alpha

    get = {layer.name: layer for layer in model.layers}
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    stem_norm, first_norm, sum_norm = norms
    stream = tf.nn.relu(stem_norm(get["stem"](x), training=False))
    y = get["first"](tf.nn.relu(get["inner"](close(stream))))
    stream = stream + first_norm(y, training=False)
    y = get["second"](close(tf.sigmoid(sum_norm(stream, training=False))))
    stream = tf.nn.max_pool2d(y + stream, 3, 3, "VALID")
    # Each position of a flattened channel is an input of its own, with a mean of its own.
    return get["classifier"](tf.reshape(close(stream, 0), [len(x), -1]))


def test_derivatives_are_those_of_the_common_gate(model: tf_keras.Model) -> None:
    x, y = examples()
    alpha = tf.ones([3], tf.float64)
    np.testing.assert_allclose(
        logits_with_gates(model, x, alpha), model(x, training=False), rtol=1e-9
    )
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(alpha)
        logits = logits_with_gates(model, x, alpha)
        loss = cross_entropy()(y, logits)
    gradient = tape.gradient(loss, alpha).numpy()
    jacobian = tape.jacobian(logits, alpha, experimental_use_pfor=False).numpy()
    p = tf.nn.softmax(logits).numpy()
    hessian = np.einsum("nk,kl->nkl", p, np.eye(4)) - np.einsum("nk,nl->nkl", p, p)
    curvature = np.einsum("nkc,nkl,nlc->c", jacobian, hessian, jacobian) / len(x)
    exact = rank(model, "obd", estimator="exact")
    np.testing.assert_allclose(of_stream(exact), curvature / 2, rtol=1e-9)
    quadratic = rank(model, "quadratic", estimator="exact")
    np.testing.assert_allclose(of_stream(quadratic), -gradient + curvature / 2, rtol=1e-9)
    taylor = rank(model, "taylor_fo")
    np.testing.assert_allclose(of_stream(taylor), gradient**2, rtol=1e-9)
    parts = rank(model, "obd", estimator="exact", residual="union")
    assert np.abs(of_stream(parts) - curvature / 2).max() > 0.1 * curvature.max() / 2


@pytest.mark.parametrize("centered", [False, True])
def test_joint_criteria_take_the_terms_between_common_gates(
    model: tf_keras.Model, centered: bool
) -> None:
    x, _ = examples()
    alpha = tf.ones([3], tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(alpha)
        logits = logits_with_gates(model, x, alpha, centered)
    np.testing.assert_allclose(logits, model(x, training=False), rtol=1e-9)
    jacobian = tape.jacobian(logits, alpha, experimental_use_pfor=False).numpy()
    p = tf.nn.softmax(logits).numpy()
    hessian = np.einsum("nk,kl->nkl", p, np.eye(4)) - np.einsum("nk,nl->nkl", p, p)
    curvature = np.einsum("nkc,nkl,nld->cd", jacobian, hessian, jacobian) / len(x)
    criterion = "obd_joint_centered" if centered else "obd_joint"
    exact = rank(model, criterion, estimator="exact")
    np.testing.assert_allclose(of_stream(exact.trace), np.diag(curvature), rtol=1e-9)
    losses = joint_removal_losses(curvature)
    np.testing.assert_allclose(of_stream(exact), losses, rtol=1e-9)
    assert np.abs(losses - np.diag(curvature) / 2).max() > 0.05 * losses.max()
    # "inner" is a layer of its own, whose terms with the stream do not count.
    assert exact["inner"].min() == pytest.approx(exact.trace["inner"].min() / 2, rel=1e-9)
    assert exact.provenance.residual == "tied"


@pytest.mark.compiled
def test_the_sketch_of_groups_is_unbiased(model: tf_keras.Model) -> None:
    truth = rank(model, "obd", estimator="exact")
    sketch = rank(model, "obd", probes=200, estimator="gauss_newton")
    deviation = np.abs(joined(sketch) - joined(truth)) / joined(sketch.standard_error)
    assert deviation.max() < 4
    assert "8 groups" in sketch.provenance.notes[-1] or "9 groups" in sketch.provenance.notes[-1]


def test_such_scores_plan_tied_pruning_only(model: tf_keras.Model, tmp_path: Any) -> None:
    scores = rank(model, "taylor_fo")
    assert scores.provenance.residual == "tied"
    scores.save(tmp_path / "scores.npz")
    loaded = ehap.FilterScores.load(tmp_path / "scores.npz")
    with pytest.raises(ValueError, match=r"residual must be 'tied'.*Received: 'union'"):
        ehap.plan_pruning(model, loaded, 0.3)
    # A criterion on weights is the same in both modes.
    tied, union = (
        ehap.rank_filters(model, criterion="magnitude", residual=mode) for mode in ("tied", "union")
    )
    assert tied.provenance.residual == "union"
    np.testing.assert_array_equal(joined(tied), joined(union))
    ehap.plan_pruning(model, tied, 0.3)
    with pytest.raises(ValueError, match="residual must be one of"):
        ehap.rank_filters(model, criterion="magnitude", residual="both")


@pytest.mark.parametrize("criterion", [name for name in criterion_names() if name != "bn_scale"])
def test_criteria_score_groups_where_their_registration_says_so(
    model: tf_keras.Model, criterion: str
) -> None:
    provenance = rank(model, criterion, probes=1).provenance
    by_groups = any("groups that go together" in note for note in provenance.notes)
    assert by_groups == find_criterion(criterion).grouped == (provenance.residual == "tied")
