from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.graph import layer_paths
from ehap_tf.models import clone_with_policy
from ehap_tf.sensitivity.network.forward import run_graph
from tests.sensitivity.networks import batch_norm, cross_entropy, examples, residual_net

layers = tf_keras.layers


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """With some weights an output is so near to zero that its last bit is more than 1e-12 of it."""
    tf_keras.utils.set_random_seed(0)


def assert_same(model: tf_keras.Model, x: Any, **tolerance: float) -> None:
    expected = tf.nest.map_structure(np.asarray, model(x, training=False))
    found = tf.nest.map_structure(np.asarray, run_graph(model, x))
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 1e-12})),
        found,
        expected,
    )


@pytest.mark.parametrize("name", ["resnet8", "resnet8a"])
def test_built_in_networks(name: str) -> None:
    model = ehap.build_model(name, input_shape=(16, 16, 3))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 1.0, weight.shape) * rng.choice([-1, 1], weight.shape))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(rng.uniform(0.5, 4, layer.moving_variance.shape))
    x = rng.normal(size=(3, 16, 16, 3)).astype(np.float32)
    assert_same(model, x, rtol=1e-4, atol=1e-3 * np.abs(model(x)).max())


def test_folding_is_exact_in_float64() -> None:
    assert_same(residual_net("tanh"), examples()[0], rtol=1e-12, atol=1e-14)


def test_several_consumers_and_outputs_are_not_folded() -> None:
    inputs = layers.Input((6, 6, 2), dtype="float64")
    x = layers.Conv2D(3, 3, dtype="float64")(inputs)  # read by two BatchNorms
    y = layers.Conv2D(3, 3, activation="relu", dtype="float64")(inputs)  # not linear
    z = layers.Conv2D(3, 3, dtype="float64")(inputs)  # a model output as well
    parts = [batch_norm(x, 1), batch_norm(x, 2), batch_norm(y, 3), batch_norm(z, 4)]
    total = layers.Add(dtype="float64")(parts)
    assert_same(tf_keras.Model(inputs, [total, z]), examples()[0])


def test_batch_norm_options_and_axes() -> None:
    inputs = layers.Input((6, 6, 2), dtype="float64")
    x = batch_norm(inputs, 1, axis=1)
    x = layers.Conv2D(3, 3, use_bias=True, dtype="float64")(x)
    x = layers.BatchNormalization(scale=False, center=False, epsilon=0.1, dtype="float64")(x)
    x = layers.Conv2D(3, 3, dilation_rate=2, padding="same", dtype="float64")(x)
    x = layers.BatchNormalization(center=False, dtype="float64")(x)
    x = layers.Dropout(0.5, dtype="float64")(x)
    x = layers.Dense(4, dtype="float64")(x)
    assert_same(tf_keras.Model(inputs, batch_norm(x, 5)), examples()[0])


@pytest.mark.parametrize("dilation", [1, 2])
def test_causal_convolutions_keep_their_padding(dilation: int) -> None:
    inputs = layers.Input((10, 2), dtype="float64")
    x = layers.Conv1D(3, 3, padding="causal", dilation_rate=dilation, dtype="float64")(inputs)
    x = layers.ReLU(dtype="float64")(batch_norm(x, 1))
    x = layers.Add(dtype="float64")([x, layers.Conv1D(3, 1, dtype="float64")(inputs)])
    model = tf_keras.Model(inputs, layers.GlobalAveragePooling1D(dtype="float64")(x))
    assert_same(model, np.random.default_rng(0).normal(size=(4, 10, 2)))


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "mixed_bfloat16"])
def test_nearest_upsampling_is_that_of_keras(data_format: str, dtype: str) -> None:
    inputs = layers.Input((5, None, 7))
    layer = layers.UpSampling2D((3, 2), data_format=data_format, dtype=dtype)
    model = tf_keras.Model(inputs, layer(inputs))
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 7))
    np.testing.assert_array_equal(run_graph(model, x), model(x))


def masked_net(*steps: Any) -> tf_keras.Model:
    """`steps` between an embedding that masks zeros and an average over what is not masked."""
    inputs = layers.Input((8,), dtype="int32")
    x = layers.Embedding(10, 4, mask_zero=True)(inputs)
    for step in steps:
        x = step(x)
    return tf_keras.Model(inputs, layers.GlobalAveragePooling1D()(x))


def masked_examples() -> np.ndarray:
    x = np.random.default_rng(0).integers(0, 10, (4, 8))
    x[:, 4:] = 0
    return x


@pytest.mark.parametrize(
    "steps",
    [
        [layers.Dense(3), layers.Activation("relu")],
        [layers.Dense(3), layers.BatchNormalization(), layers.Activation("relu")],
        [layers.Dropout(0.5), layers.BatchNormalization(), layers.ReLU()],
        [layers.Conv1D(3, 3), layers.BatchNormalization(), layers.ReLU()],  # takes no mask
        [tf_keras.Sequential([layers.Input((8, 4)), layers.Dense(3), layers.ReLU()])],
    ],
)
def test_masks_are_handed_on(steps: list[Any]) -> None:
    assert_same(masked_net(*steps), masked_examples(), rtol=1e-5, atol=1e-6)


def test_masks_survive_what_changes_inputs_and_outputs() -> None:
    model, x = masked_net(layers.Dense(3), layers.ReLU()), masked_examples()
    doubled = run_graph(
        model,
        x,
        lambda node, y: 2 * y if "dense" in node.layer.name else y,
        before=lambda _, y: y + 0,
    )
    np.testing.assert_allclose(doubled, 2 * model(x), rtol=1e-5)


def test_masks_are_handed_on_by_dense_layers_in_float16() -> None:
    model = clone_with_policy(masked_net(layers.Dense(3), layers.ReLU()), "mixed_float16")
    assert_same(model, masked_examples(), rtol=1e-2, atol=1e-3)


def test_nested_shared_and_sequential_models() -> None:
    block = tf_keras.Sequential(
        [
            layers.Input((6, 6, 2), dtype="float64"),
            layers.Conv2D(2, 3, padding="same", dtype="float64"),
            layers.BatchNormalization(dtype="float64"),
            layers.ReLU(dtype="float64"),
        ]
    )
    inputs = layers.Input((6, 6, 2), dtype="float64")
    x = block(block(inputs))
    model = tf_keras.Model(inputs, layers.Subtract(dtype="float64")([x, tf.abs(inputs)]))
    assert_same(model, examples()[0])
    names: list[str] = []

    def remember(node: Any, outputs: Any) -> Any:
        names.append(node.layer.name)
        return outputs

    run_graph(model, examples()[0], remember)
    inner = [layer.name for layer in block.layers]
    assert names[:6] == inner * 2


def test_hooks_see_every_use_of_a_layer() -> None:
    shared = layers.Dense(5, name="shared")
    a, b = layers.Input((5,)), layers.Input((5,))
    first = tf_keras.Model(a, shared(a), name="first")
    second = tf_keras.Model(b, first(shared(b)), name="second")
    inputs = layers.Input((5,))
    model = tf_keras.Model(inputs, second(first(inputs)))
    paths, names = layer_paths(model), list[str]()

    def remember(node: Any, outputs: Any) -> Any:
        names.append(paths[id(node.layer)])
        return outputs

    run_graph(model, np.ones((2, 5), np.float32), remember)
    assert names == ["first/shared"] * 3


@pytest.mark.parametrize(
    "layer",
    [
        layers.ReLU(),
        layers.Activation("relu"),
        layers.ReLU(max_value=2),
        layers.ReLU(negative_slope=0.1),
        layers.ReLU(threshold=0.5),
    ],
)
def test_derivatives_of_relu_are_those_of_keras(layer: tf_keras.layers.Layer) -> None:
    inputs = layers.Input((5,))
    model = tf_keras.Model(inputs, layer(inputs))
    x = tf.random.stateless_normal((4, 5), seed=(0, 0)) * 2

    def derivatives(function: Any) -> list[tf.Tensor]:
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = function(x * x * x)
            first = inner.gradient(y, x)
        return [y, first, outer.gradient(first, x)]

    found = derivatives(lambda z: run_graph(model, z))
    assert np.any(found[2] != 0)
    np.testing.assert_array_equal(found, derivatives(model))


def test_several_inputs_and_keyword_arguments() -> None:
    a, b = layers.Input((4,), name="a"), layers.Input((4,), name="b")
    attended = layers.Attention()([a[:, tf.newaxis], b[:, tf.newaxis]])
    model = tf_keras.Model([a, b], layers.Dense(2)(layers.Flatten()(attended)))
    x = [np.ones((3, 4), np.float32), np.full((3, 4), 2, np.float32)]
    assert_same(model, x)
    assert_same(tf_keras.Model({"a": a, "b": b}, model.output), {"a": x[0], "b": x[1]})


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_sixteen_bits_stay_close_to_keras(policy: str) -> None:
    model = clone_with_policy(residual_net(dtype="float32"), policy)
    x = examples()[0].astype(np.float32)
    assert_same(model, x, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("policy", "folded"), [("float32", True), ("mixed_bfloat16", True), ("mixed_float16", False)]
)
def test_where_batch_norm_is_folded(policy: str, folded: bool) -> None:
    model = clone_with_policy(residual_net(dtype="float32"), policy)
    x = tf.constant(examples()[0], tf.float32)
    graph = tf.function(lambda x: run_graph(model, x)).get_concrete_function(x).graph
    products = [o for o in graph.get_operations() if o.type == "Mul"]
    assert all(o.outputs[0].shape[0] != len(x) for o in products) == folded


def test_a_layer_that_trains_at_inference_is_called_so() -> None:
    inputs = layers.Input((6, 6, 2))
    x = layers.Conv2D(3, 3)(inputs)
    x = layers.BatchNormalization()(x, training=True)
    model = tf_keras.Model(inputs, x)
    x = examples()[0].astype(np.float32)
    found = np.asarray(run_graph(model, x))
    np.testing.assert_allclose(found.mean(axis=(0, 1, 2)), 0, atol=1e-5)


def noisy_block(training: bool | None = None) -> tf_keras.Model:
    """Dropout, and a BatchNorm that could be folded; both called with `training`."""
    inputs = layers.Input((6, 6, 2))
    x = layers.BatchNormalization()(layers.Conv2D(3, 3)(inputs), training)
    return tf_keras.Model(inputs, layers.Dropout(0.5)(x, training=training), name="block")


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize(
    ("inner", "outer", "trains"),
    [(None, True, True), (False, True, False), (True, None, True), (None, None, False)],
)
def test_a_nested_model_trains_where_it_is_called_so(
    inner: bool | None, outer: bool | None, trains: bool, positional: bool
) -> None:
    block = noisy_block(inner)
    inputs = layers.Input((6, 6, 2))
    outputs = block(inputs, outer) if positional else block(inputs, training=outer)
    model = tf_keras.Model(inputs, outputs)
    x = examples()[0].astype(np.float32)
    dropped = float(np.mean(np.asarray(model(x)) == 0))
    assert (dropped > 0.3) == trains
    found = np.asarray(run_graph(model, x))
    assert np.mean(found == 0) == pytest.approx(dropped, abs=0.1)
    if trains:
        # BatchNorm divides by the deviation of what it is given; what is kept is doubled.
        kept = [channel[channel != 0] for channel in np.moveaxis(found, -1, 0)]
        np.testing.assert_allclose([channel.std() for channel in kept], 2, atol=0.3)
    else:
        assert_same(model, x, rtol=1e-4, atol=1e-5)


def test_dropout_in_a_nested_model_in_training_mode_is_noticed() -> None:
    inputs = layers.Input((6, 6, 2))
    x = layers.Flatten()(noisy_block()(inputs, training=True))
    model = tf_keras.Model(inputs, layers.Dense(4)(x))
    with pytest.raises(ValueError, match=r"random at inference.*differs is 'block/dropout"):
        ehap.rank_filters(model, examples(), cross_entropy())


@pytest.mark.parametrize("final", [None, "softmax"])
def test_a_pass_that_is_not_the_models_is_refused(
    final: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = residual_net(final=final, dtype="float32")
    x, y = examples()
    data = (x.astype(np.float32), y)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=final is None)
    ehap.rank_filters(model, data, loss, probes=1)
    monkeypatch.setattr(
        "ehap_tf.sensitivity.network.forward._batch_norm", lambda layer, inputs: inputs
    )
    monkeypatch.setattr("ehap_tf.sensitivity.network.forward._folds", lambda model: {})
    with pytest.raises(RuntimeError, match="does not compute this model as Keras does"):
        ehap.rank_filters(model, data, loss, probes=1)


def test_a_pass_that_is_finite_where_the_models_is_not_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = layers.Input((6, 6, 2))
    x = layers.Lambda(lambda x: tf.where(x > 0, x, np.nan), name="holes")(
        layers.Conv2D(3, 3)(inputs)
    )
    model = tf_keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))
    monkeypatch.setattr(
        "ehap_tf.sensitivity.network.forward._call",
        lambda layer, args, kwargs, training: (
            args[0] if layer.name == "holes" else layer(*args, **kwargs)
        ),
    )
    x, y = examples()
    with pytest.raises(RuntimeError, match="does not compute this model as Keras does"):
        ehap.rank_filters(model, (x.astype(np.float32), y), cross_entropy(), probes=1)
