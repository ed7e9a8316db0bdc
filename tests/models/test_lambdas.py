"""Lambda layers are taken apart where that changes no output, and stay with a reason elsewhere."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.channels import trace_channels
from ehap_tf.models.cloning import copy_model
from ehap_tf.models.lambdas import open_lambdas

layers, K = tf_keras.layers, tf_keras.backend
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 8, 8, 4)).astype(np.float32)
RAMP = np.arange(4, dtype=np.float32)
VARIABLE = tf.Variable(2.0)
DENSE = layers.Dense(4)
DENSE.build((None, 4))

OPENED: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "a number": (lambda x: x * 2.0, ["math.multiply"]),
    "constants": (lambda x: x * RAMP + tf.constant(RAMP), ["math.multiply", "__operators__.add"]),
    "pad": (lambda x: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), ["compat.v1.pad"]),
    "slice": (lambda x: x[:, ::2, :, 1:3], ["__operators__.getitem"]),
    "ellipsis": (lambda x: x[..., :2], ["__operators__.getitem"]),
    "a function of TensorFlow": (tf.nn.relu, ["nn.relu"]),
    "a function of Keras": (lambda x: tf_keras.activations.gelu(x), ["nn.gelu"]),
    "the mean of the backend": (lambda x: K.mean(x, axis=[1, 2]), ["math.reduce_mean"]),
    "an axis of the backend": (
        lambda x: K.permute_dimensions(x, (0, 2, 1, 3)), ["compat.v1.transpose"]
    ),
    "the shape": (
        lambda x: tf.reshape(x, (tf.shape(x)[0], -1)),
        ["compat.v1.shape", "__operators__.getitem", "reshape"],
    ),
    "nothing": (lambda x: x, []),
}  # fmt: skip

CLOSED: dict[str, tuple[Callable[..., Any], str]] = {
    "random": (lambda x: x + tf.random.normal(tf.shape(x)), "compute something else"),
    "training": (lambda x, training=None: x * 2, "depends on training"),
    "a variable": (lambda x: x * VARIABLE, "uses a variable"),
    "a layer": (lambda x: DENSE(x), "calls the layer 'dense"),
    "a Python function": (
        lambda x: tf.numpy_function(lambda a: a, [x], tf.float32),
        "Expected func to be callable",
    ),
    "einsum": (
        lambda x: tf.einsum("bhwc,bhwc->bhw", x, x),
        "tf_keras does not save what its function calls",
    ),
    "its type": (lambda x: x * (2.0 if isinstance(x, tf.Tensor) else 3.0), "something else"),
}


def _around(function: Callable[..., Any], **options: Any) -> tf_keras.Model:
    inputs = tf_keras.Input((8, 8, 4))
    return tf_keras.Model(inputs, layers.Lambda(function, name="mine", **options)(inputs))


@pytest.mark.parametrize("name", OPENED)
def test_the_operators_compute_what_the_function_does(name: str):
    function, symbols = OPENED[name]
    opened = open_lambdas(_around(function))
    received = [layer.symbol for layer in opened.layers if hasattr(layer, "symbol")]
    assert [s.removeprefix("compat.v1.") for s in received] == [
        s.removeprefix("compat.v1.") for s in symbols
    ]
    assert opened.layers[-1].name == "mine"
    np.testing.assert_allclose(opened(X), function(tf.constant(X)), rtol=1e-6)


@pytest.mark.parametrize("name", CLOSED)
def test_what_cannot_be_taken_apart_stays_with_the_reason(name: str):
    function, reason = CLOSED[name]
    calls = len(DENSE._inbound_nodes)
    model = _around(function)
    recorded = len(DENSE._inbound_nodes)
    lambda_layer = open_lambdas(model).get_layer("mine")
    assert type(lambda_layer) is layers.Lambda
    assert reason in lambda_layer.stays_closed
    assert len(DENSE._inbound_nodes) == recorded == calls
    assert not hasattr(model.get_layer("mine"), "stays_closed")


def test_arguments_and_several_inputs():
    def between(pair, weight, other=None):
        return pair[0] * weight + pair[1] * other

    one, other = tf_keras.Input((5,)), tf_keras.Input((5,))
    arguments = {"weight": 0.25, "other": 3.0}
    blended = layers.Lambda(between, arguments=arguments, name="blend")([one, other])
    first, second = layers.Lambda(lambda x: tf.split(x, [2, 3], axis=-1), name="parts")(blended)
    model = tf_keras.Model([one, other], [second, first])
    opened = open_lambdas(model)
    assert not any(isinstance(layer, layers.Lambda) for layer in opened.layers)
    x = [RNG.normal(size=(3, 5)).astype(np.float32) for _ in range(2)]
    for expected, received in zip(model(x), opened(x), strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-6)


def _network() -> tf_keras.Model:
    """A shared Lambda, Lambdas in nested models of both kinds, and one that ends the network."""
    tf_keras.utils.set_random_seed(0)
    inputs = tf_keras.Input((8, 8, 3), name="image")
    padding = layers.Lambda(lambda x: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), name="padding")
    x = layers.Conv2D(8, 3, name="first")(padding(inputs))
    y = layers.Conv2D(8, 3, name="second")(padding(layers.ReLU()(x)))
    chain = tf_keras.Sequential(
        [
            tf_keras.Input((8, 8, 8)),
            layers.Conv2D(6, 3, name="inner"),
            layers.Lambda(lambda x: 2.0 * x, name="twice"),
            layers.BatchNormalization(name="norm"),
        ],
        name="chain",
    )
    x = chain(layers.Add()([x, y]))
    x = layers.Lambda(lambda x: K.mean(x, axis=[1, 2]), name="pooled")(x)
    x = layers.Dense(4, name="scores")(x)
    x = layers.Lambda(lambda x: x / 3.0, name="logits")(x)
    return tf_keras.Model(inputs, x, name="network")


IMAGES = RNG.normal(size=(8, 8, 8, 3)).astype(np.float32)
LABELS = np.arange(8) % 4


def test_names_weights_flags_and_the_compiled_loss_are_kept():
    model = _network()
    model.get_layer("chain").get_layer("norm").trainable = False
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", {"logits": loss})
    config = model.to_json()
    opened = open_lambdas(model)
    assert model.to_json() == config
    assert not any(isinstance(layer, layers.Lambda) for layer in opened._flatten_layers())
    np.testing.assert_allclose(opened(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-6)
    assert opened.output_names == ["logits"]
    assert [w.name for w in opened.weights] == [w.name for w in model.weights]
    assert len(opened.trainable_weights) == len(model.trainable_weights)
    assert opened.loss == {"logits": loss}
    again = open_lambdas(model)
    assert [layer.name for layer in again._flatten_layers()] == [
        layer.name for layer in opened._flatten_layers()
    ]
    assert opened.get_layer("image") is not model.get_layer("image")


@pytest.mark.parametrize("residual", ["union", "tied"])
def test_a_network_with_lambdas_is_ranked_pruned_saved_and_loaded(
    tmp_path: pathlib.Path, residual: str
):
    model = _network()
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {"criterion": "taylor_fo", "residual": residual}
    scores = ehap.rank_filters(model, (IMAGES, LABELS), loss, **options)
    plan = ehap.plan_pruning(model, scores, 0.5, residual=residual)
    assert set(plan.kept) >= {"first", "second", "chain/inner"}
    assert len(plan.kept["first"]) < 8
    slim, masked = ehap.prune(model, plan), ehap.mask(model, plan)
    np.testing.assert_allclose(slim(IMAGES), masked(IMAGES), rtol=1e-4, atol=1e-5)
    slim.save(tmp_path / "slim.keras")
    loaded = ehap.load_model(tmp_path / "slim.keras")
    np.testing.assert_allclose(loaded(IMAGES), slim(IMAGES), rtol=1e-5, atol=1e-6)


def test_a_network_with_lambdas_is_quantized():
    model = _network()
    qat = ehap.quantize(model, method="ptq", representative_data=IMAGES)
    assert not any(isinstance(layer, layers.Lambda) for layer in qat._flatten_layers())
    error = np.abs(np.asarray(qat(IMAGES)) - np.asarray(model(IMAGES))).max()
    assert error < 0.1 * np.abs(np.asarray(model(IMAGES))).max()


def test_a_closed_lambda_freezes_with_its_own_reason():
    inputs = tf_keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    noisy = layers.Lambda(CLOSED["random"][0], name="noise")(x)
    model = tf_keras.Model(inputs, layers.Flatten()(noisy))
    count, reason = trace_channels(open_lambdas(model)).frozen_filters()["conv"]
    assert count == 4
    assert "'noise' is not taken apart: its operators alone compute something else" in reason


@pytest.mark.parametrize(
    "function",
    [lambda x: keras.ops.relu(x) / 2, lambda x: x[..., 1:], lambda x: tf.nn.relu6(x)],
    ids=["keras.ops", "slice", "TensorFlow"],
)
def test_lambdas_of_keras_3_go_in_and_come_back_as_operators(function: Callable[[Any], Any]):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, name="conv")(inputs)
    x = keras.layers.Lambda(function, name="mine")(x)
    x = keras.layers.Dense(2, name="logits")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, x)
    plan = ehap.plan_pruning(model, ehap.rank_filters(model, criterion="random"), 0.5)
    assert len(plan.kept["conv"]) < 6
    slim, masked = ehap.prune(model, plan), ehap.mask(model, plan)
    assert isinstance(slim, keras.Model)
    assert not any(isinstance(layer, keras.layers.Lambda) for layer in slim.layers)
    np.testing.assert_allclose(slim(IMAGES), masked(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_lambda_of_keras_3_whose_operators_could_not_come_back_stays():
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(6, name="hidden", activation="relu")(inputs)
    x = keras.layers.Lambda(lambda x: keras.ops.cumsum(x, axis=-1), name="sums")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    settled = ehap.recalibrate(model, (RNG.normal(size=(4, 8)).astype(np.float32), np.zeros(4)))
    assert isinstance(settled.get_layer("sums"), keras.layers.Lambda)


class _Subclassed(tf_keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.double, self.dense = layers.Lambda(lambda x: x * 2.0), layers.Dense(3)

    def call(self, inputs):
        return self.dense(self.double(inputs))


def test_a_lambda_in_a_model_without_a_graph_leaves_the_reason_to_the_graph():
    inputs = tf_keras.Input((4,))
    for model in (_Subclassed(), tf_keras.Model(inputs, _around_dense(_Subclassed())(inputs))):
        with pytest.raises(TypeError, match="is subclassed"):
            ehap.rank_filters(model, criterion="magnitude")
    unbuilt = tf_keras.Sequential([layers.Lambda(lambda x: x * 2.0), layers.Dense(3)])
    with pytest.raises(ValueError, match="has no input shape yet"):
        ehap.rank_filters(unbuilt, criterion="magnitude")


def _around_dense(inner: tf_keras.Model) -> Callable[[Any], Any]:
    return lambda x: layers.Lambda(lambda y: y + 1.0)(inner(x))


def test_a_lambda_inside_of_time_distributed_keeps_what_it_encloses():
    factor = tf.constant(2.0)
    inputs = tf_keras.Input((4, 6))
    x = layers.TimeDistributed(layers.Lambda(lambda x: factor * x, name="mine"))(inputs)
    model = tf_keras.Model(inputs, layers.Dense(3, name="logits")(x))
    assert ehap.count_parameters(model) == 21
    (opened,) = [layer.layer for layer in open_lambdas(model).layers[1:2]]
    assert [type(layer).__name__ for layer in opened.layers] == ["InputLayer", "TFOpLambda"]
    data = RNG.normal(size=(2, 4, 6)).astype(np.float32)
    for copy in (copy_model(model), open_lambdas(model)):
        np.testing.assert_allclose(copy(data), model(data), rtol=1e-6)
