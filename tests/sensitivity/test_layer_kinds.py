"""Every criterion against every kind of layer that owns or passes on filters."""

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
from tests.sensitivity.networks import cross_entropy, joined

layers = tf_keras.layers
SHAPES = {"1d": (8, 3), "2d": (6, 6, 3), "3d": (4, 4, 4, 2)}
pytestmark = pytest.mark.usefixtures("eagerly")


def net(kind: str, norm: bool = True) -> tf_keras.Model:
    """One layer of every kind in a row, float64, with random BatchNorm."""
    tf_keras.utils.set_random_seed(3)
    digit = kind[0]

    def layer(name: str, *arguments: Any, **options: Any) -> Any:
        made = getattr(layers, name.format(digit))
        return made(*arguments, padding="same", name=name.lower().format(digit), **options)

    steps = [layer("Conv{}D", 4, 3)]
    if norm:
        steps.append(layers.BatchNormalization(name="norm"))
    steps.append(layers.ReLU())
    if kind != "3d":
        steps += [layer("DepthwiseConv{}D", 3), layers.ReLU(), layer("SeparableConv{}D", 5, 3)]
    steps += [layers.ReLU(), layer("Conv{}DTranspose", 3, 2, strides=2, use_bias=kind != "1d")]
    if kind == "2d":
        steps += [layers.ReLU(), layers.Conv2D(4, 3, name="last")]
    x = inputs = layers.Input(SHAPES[kind])
    for step in [*steps, layers.ReLU(), layers.Flatten(), layers.Dense(3, name="hidden")]:
        x = step(x)
    model = tf_keras.Model(inputs, layers.Dense(4, name="classifier")(layers.ReLU()(x)))
    copy = tf_keras.models.clone_model(
        model, clone_function=lambda old: type(old).from_config(as_float64(old.get_config()))
    )
    rng = np.random.default_rng(5)
    copy.set_weights(
        [
            rng.uniform(0.5, 1.5, w.shape) if "variance" in w.name else rng.normal(0, 0.4, w.shape)
            for w in copy.weights
        ]
    )
    return copy


def as_float64(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "dtype": "float64"}


@pytest.fixture(scope="module")
def models() -> dict[str, tf_keras.Model]:
    return {kind: net(kind) for kind in SHAPES}


def data(kind: str, examples: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(examples, *SHAPES[kind])), rng.integers(0, 4, examples)


# Every criterion on one kind; on every kind one by kernels, one by gates, one by pairs of gates.
EVERY_KIND = ("hessian_trace", "obd", "obd_joint")


@pytest.mark.parametrize(
    ("criterion", "kind"),
    [
        pytest.param(criterion, kind, marks=() if is_tried else pytest.mark.families)
        for number, kind in enumerate(SHAPES)
        for criterion in criterion_names()
        for is_tried in [number == 0 or criterion in EVERY_KIND]
    ],
)
def test_every_filter_gets_a_score_that_plans(criterion: str, kind: str, models: Any) -> None:
    model = models[kind]
    scores = ehap.rank_filters(model, data(kind), cross_entropy(), criterion, probes=2)
    assert (scores.provenance.probes > 0) == find_criterion(criterion).samples
    atoms = trace_channels(model).ids.atoms
    assert {name: len(values) for name, values in scores.items()} == {
        name: len(ids) for name, ids in atoms.items()
    }
    assert all(np.isfinite(values).all() for values in scores.values())
    plan = ehap.plan_pruning(model, scores, target_macs=0.6)
    assert plan.macs_after <= 0.6 * plan.macs_before


@pytest.mark.parametrize("kind", SHAPES)
def test_scores_are_those_of_the_right_axis(kind: str, models: Any) -> None:
    """On weights by a tape over the Keras model, on gates by the mask."""
    model, (x, y) = models[kind], data(kind)
    owners = [layer for layer in model.layers if layer.name in trace_channels(model).ids.atoms]
    weights = [getattr(layer, "pointwise_kernel", None) for layer in owners]
    weights = [layer.kernel if w is None else w for layer, w in zip(owners, weights, strict=True)]
    with tf.GradientTape(persistent=True) as tape:
        logits = model(x, training=False)
        loss = cross_entropy()(y, logits)
    p = tf.nn.softmax(logits).numpy()
    hessian = np.einsum("nk,kl->nkl", p, np.eye(4)) - np.einsum("nk,nl->nkl", p, p)
    taylor = ehap.rank_filters(model, (x, y), cross_entropy(), "taylor_fo_weight")
    trace = ehap.rank_filters(model, (x, y), cross_entropy(), "hessian_trace", "exact").trace
    magnitude = ehap.rank_filters(model, criterion="magnitude")
    jacobians = tape.jacobian(logits, weights, experimental_use_pfor=False)
    for layer, weight, jacobian in zip(owners, weights, jacobians, strict=True):
        axis = weight.shape.rank - (2 if "Transpose" in type(layer).__name__ else 1)
        others = tuple(a for a in range(weight.shape.rank) if a != axis)
        name, value = layer.name, weight.numpy()
        np.testing.assert_allclose(magnitude[name], np.mean(value**2, axis=others), rtol=1e-9)
        products = np.sum(tape.gradient(loss, weight).numpy() * value, axis=others)
        np.testing.assert_allclose(taylor[name], products**2, rtol=1e-7, atol=1e-20)
        flat = jacobian.numpy().reshape(len(x), 4, -1)
        diagonal = np.einsum("nkw,nkl,nlw->w", flat, hessian, flat).reshape(value.shape) / len(x)
        np.testing.assert_allclose(trace[name], diagonal.sum(axis=others), rtol=1e-7)
    graph = trace_channels(model)
    oracle = ehap.rank_filters(model, (x, y), cross_entropy(), "oracle").signed
    for layer in owners[:-1]:
        flags = {name: np.ones(len(ids), bool) for name, ids in graph.ids.atoms.items()}
        flags[layer.name][1] = False
        masked = ehap.mask(model, plan_from_flags(graph, flags))
        change = float(cross_entropy()(y, masked(x, training=False)) - loss)
        np.testing.assert_allclose(oracle[layer.name][1], change, rtol=1e-7, atol=1e-12)
    # Where nothing is tied, gates where a channel is read remove what gates behind filters do.
    tied = ehap.rank_filters(model, (x, y), cross_entropy(), "oracle", residual="tied").signed
    np.testing.assert_allclose(joined(tied), joined(oracle), rtol=1e-7, atol=1e-12)


def frames_net(distributed: bool) -> tf_keras.Model:
    """Three frames, each convolved by itself: by TimeDistributed, or by kernels of one frame."""
    steps: list[Any]
    if distributed:
        inner = [layers.Conv2D(4, 2, activation="sigmoid", name="second")]
        inner += [layers.GlobalAveragePooling2D()]
        steps = [
            layers.TimeDistributed(layers.Conv2D(3, 2, name="first"), name="steps"),
            layers.TimeDistributed(layers.BatchNormalization(), name="norms"),
            layers.ReLU(),
            layers.TimeDistributed(
                tf_keras.Sequential([layers.Input((4, 4, 3)), *inner]), name="frames"
            ),
            layers.TimeDistributed(layers.Dense(3, "tanh", name="third"), name="units"),
        ]
    else:
        steps = [
            layers.Conv3D(3, (1, 2, 2), name="first"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv3D(4, (1, 2, 2), activation="sigmoid", name="second"),
            layers.AveragePooling3D((1, 3, 3)),
            layers.Reshape((3, 4)),
            layers.Dense(3, "tanh", name="third"),
        ]
    last = [layers.GlobalAveragePooling1D(), layers.Dense(4, name="last")]
    model = tf_keras.Sequential([layers.Input((3, 5, 5, 2)), *steps, *last])
    rng = np.random.default_rng(5)
    values = [
        rng.uniform(0.5, 1.5, w.shape) if "variance" in w.name else rng.normal(0, 0.7, w.shape)
        for w in model.weights
    ]
    model.set_weights(values)
    return model


def test_what_is_distributed_over_time_is_scored_like_a_kernel_of_one_step() -> None:
    """Gates stand behind the BatchNorm in a TimeDistributed of its own, one for all steps."""
    names = {"steps/first": "first", "frames/second": "second", "units/third": "third"}
    names["last"] = "last"
    model, twin = frames_net(True), frames_net(False)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(4, 3, 5, 5, 2)).astype(np.float32), rng.integers(0, 4, 4)
    np.testing.assert_allclose(model(data[0]), twin(data[0]), rtol=1e-5, atol=1e-6)
    for criterion, options in (
        ("hessian_trace", {"probes": 2}),
        ("obd", {"probes": 2}),
        ("obd", {"probes": 2, "residual": "tied"}),
        ("taylor_fo", {}),
    ):
        mine, truth = (
            ehap.rank_filters(net, data, cross_entropy(), criterion, **options)
            for net in (model, twin)
        )
        assert set(mine) == set(names)
        for path, name in names.items():
            np.testing.assert_allclose(
                mine[path], truth[name], rtol=2e-3, atol=1e-6, err_msg=f"{criterion}, {name}"
            )


def test_what_cannot_be_scored_is_refused_with_a_reason(models: Any) -> None:
    kind = "1d"
    with pytest.raises(ValueError, match="'bn_scale' needs layers that are followed by a Batch"):
        ehap.rank_filters(net(kind, norm=False), criterion="bn_scale")
    with pytest.raises(ValueError, match="Gauss-Newton sketch"):
        ehap.rank_filters(
            models[kind], (data(kind)[0], np.ones((3, 4))), tf_keras.losses.Huber(), "obd"
        )
    pool = tf_keras.Sequential([layers.Input((4, 4, 2)), layers.GlobalMaxPooling2D()])
    with pytest.raises(ValueError, match="at least one convolution or Dense layer"):
        ehap.rank_filters(pool, criterion="magnitude")
