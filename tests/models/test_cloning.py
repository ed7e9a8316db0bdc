from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.models import build_model, clone_with_policy, copy_model
from tests.pruning.nets import Pair

layers = tf_keras.layers
IMAGES = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
MIXED = {"mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}


def plain() -> tf_keras.Model:
    return build_model("resnet8a", num_classes=4, input_shape=(16, 16, 3))


def sequential() -> tf_keras.Model:
    return tf_keras.Sequential(
        [
            tf_keras.Input((16, 16, 3)),
            layers.Conv2D(4, 3, strides=4, activation="relu"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )


def nested() -> tf_keras.Model:
    inner_input = tf_keras.Input((16, 16, 4))
    x = layers.Conv2D(4, 3, padding="same", name="inner_conv")(inner_input)
    x = layers.BatchNormalization(name="inner_bn")(x)
    inner = tf_keras.Model(inner_input, x, name="inner")
    inputs = tf_keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 1, name="stem")(inputs)
    # Called twice: shared weights, two nodes.
    x = inner(inner(x))
    x = layers.GlobalAveragePooling2D()(x)
    return tf_keras.Model(inputs, layers.Dense(3)(x))


def shared() -> tf_keras.Model:
    inputs = tf_keras.Input((16, 16, 3))
    stem = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    twice = layers.Conv2D(4, 3, padding="same", name="twice")
    x = layers.Concatenate()([twice(stem), twice(layers.ReLU()(stem))])
    return tf_keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def operators() -> tf_keras.Model:
    """Functions as layers, with float32 constants and a cast, as MobileNetV3 and others have."""
    inputs = tf_keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs / 2.0 - 1.0)
    x = x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0)
    x = x + tf.constant([0.1, 0.2, 0.3, 0.4])
    x = tf.concat([x, tf.cast(x[..., :1], tf.float32)], axis=-1)
    x = layers.Lambda(lambda t: t * tf.constant(2.0))(x)
    x = layers.Conv2D(4, 3, strides=2)(x)
    return tf_keras.Model(inputs, layers.Dense(3)(tf.reduce_mean(x, [1, 2])))


def wrapped() -> tf_keras.Model:
    inputs = tf_keras.Input((16, 16, 3))
    x = layers.TimeDistributed(layers.Conv1D(4, 3, name="rows"), name="wrapper")(inputs)
    return tf_keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


MODELS = (plain, sequential, nested, shared, operators, wrapped)


def randomised(model: tf_keras.Model) -> tf_keras.Model:
    generator = np.random.default_rng(1)
    for weight in model.weights:
        noise = generator.normal(size=weight.shape) * 0.1
        weight.assign(
            np.abs(weight.numpy() + noise) if "variance" in weight.name else weight.numpy() + noise
        )
    return model


@pytest.mark.parametrize("build", MODELS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("policy", ["float32", *MIXED])
def test_a_clone_computes_the_same_to_the_precision_of_its_policy(build, policy: str):
    model = randomised(build())
    weights = model.get_weights()
    expected = model(IMAGES).numpy()
    clone = clone_with_policy(model, policy)
    outputs = clone(IMAGES)
    assert outputs.dtype == tf.float32
    scale = np.abs(expected).max()
    tolerance = {"float32": 1e-6, "mixed_float16": 1e-2, "mixed_bfloat16": 5e-2}[policy]
    assert np.abs(outputs - expected).max() <= tolerance * scale
    assert [layer.name for layer in clone.layers] == [layer.name for layer in model.layers]
    assert type(clone) is type(model)
    for before, after, cloned in zip(
        weights, model.get_weights(), clone.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(before, after)
        np.testing.assert_array_equal(before, cloned)
        assert cloned.dtype == np.float32
    assert len(clone.trainable_weights) == len(model.trainable_weights)


@pytest.mark.parametrize("policy", MIXED)
def test_convolutions_do_compute_in_16_bits(policy: str):
    clone = clone_with_policy(plain(), policy)
    name = "stage2_block1_conv1"
    convolution = clone.get_layer(name)
    assert convolution.compute_dtype == MIXED[policy]
    assert convolution.kernel.dtype == tf.float32
    inside = tf_keras.Model(clone.input, convolution.output)(IMAGES)
    assert inside.dtype == MIXED[policy]
    inner = clone_with_policy(nested(), policy).get_layer("inner").get_layer("inner_conv")
    assert inner.compute_dtype == MIXED[policy]
    wrapper = clone_with_policy(wrapped(), policy).get_layer("wrapper")
    assert wrapper.layer.compute_dtype == MIXED[policy]


def test_the_classifier_and_what_follows_it_stay_in_float32():
    inputs = tf_keras.Input((16, 16, 3))
    x = layers.Dense(5, name="before")(layers.Flatten()(inputs))
    x = layers.Softmax(name="softmax")(layers.Dense(3, name="classifier")(x))
    clone = clone_with_policy(tf_keras.Model(inputs, x), "mixed_bfloat16")
    computed = {layer.name: layer.compute_dtype for layer in clone.layers[2:]}
    assert computed == {"before": "bfloat16", "classifier": "float32", "softmax": "float32"}


@pytest.mark.parametrize(
    ("policy", "channels", "computed"),
    [
        ("mixed_bfloat16", 16, "bfloat16"),
        ("mixed_bfloat16", 12, "float32"),
        ("mixed_bfloat16", 40, "float32"),
        ("mixed_float16", 12, "float16"),
    ],
)
def test_batch_norm_that_bfloat16_would_slow_down_stays_in_float32(policy, channels, computed):
    inputs = tf_keras.Input((16, 16, 3))
    x = layers.Conv2D(channels, 3, name="convolution")(inputs)
    x = layers.BatchNormalization(scale=False, name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    model = randomised(tf_keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    clone = clone_with_policy(model, policy)
    assert clone.get_layer("norm").compute_dtype == computed
    for name in ("convolution", "relu"):
        assert clone.get_layer(name).compute_dtype == MIXED[policy]
    np.testing.assert_allclose(clone(IMAGES), model(IMAGES), rtol=5e-2, atol=5e-2)


@pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="a GPU has these in float16"
)
@pytest.mark.parametrize("pooling", [layers.MaxPooling3D, layers.AveragePooling3D])
def test_pooling_that_a_cpu_lacks_in_float16_stays_in_float32(pooling):
    inputs = tf_keras.Input((4, 4, 4, 2))
    x = pooling(name="pooling")(layers.Conv3D(3, 2, padding="same", name="convolution")(inputs))
    model = tf_keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Conv3D(3, 2)(x))))
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 4, 2)).astype(np.float32)
    clone = clone_with_policy(model, "mixed_float16")
    assert clone.get_layer("pooling").compute_dtype == "float32"
    assert clone.get_layer("convolution").compute_dtype == "float16"
    np.testing.assert_allclose(clone(images), model(images), rtol=1e-2, atol=1e-2)
    bfloat16 = clone_with_policy(model, "mixed_bfloat16")
    assert bfloat16.get_layer("pooling").compute_dtype == "bfloat16"


def test_a_pinned_layer_keeps_its_type():
    inputs = tf_keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, name="free")(inputs)
    x = layers.Conv2D(4, 3, dtype="float64", name="pinned")(x)
    x = layers.Conv2D(4, 3, name="free_too")(x)
    model = tf_keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    clone = clone_with_policy(model, "mixed_bfloat16")
    assert clone.get_layer("pinned").compute_dtype == "float64"
    assert clone.get_layer("pinned").kernel.dtype == tf.float64
    assert clone.get_layer("free").compute_dtype == "bfloat16"
    assert clone(IMAGES).dtype == tf.float32


def test_float32_pinned_in_a_mixed_model_stays_pinned_under_another_mixed_policy():
    inputs = tf_keras.Input((16, 16, 3))
    policy = tf_keras.mixed_precision.Policy("mixed_float16")
    x = layers.Conv2D(4, 3, dtype=policy, name="free")(inputs)
    x = layers.Conv2D(4, 3, dtype="float32", name="pinned")(x)
    x = layers.Conv2D(4, 3, dtype=policy, name="free_too")(x)
    model = tf_keras.Model(inputs, layers.Dense(3, dtype=policy)(layers.Flatten()(x)))
    clone = clone_with_policy(model, "mixed_bfloat16")
    computed = [clone.get_layer(n).compute_dtype for n in ("free", "pinned", "free_too")]
    assert computed == ["bfloat16", "float32", "bfloat16"]
    wide = clone_with_policy(model, "float32")
    assert {layer.compute_dtype for layer in wide.layers} == {"float32"}


def test_there_and_back_gives_the_same_function(tmp_path):
    for build in (plain, operators):
        model = randomised(build())
        back = clone_with_policy(clone_with_policy(model, "mixed_float16"), "float32")
        np.testing.assert_allclose(back(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
        original, returned = model.get_config(), back.get_config()
        assert [c["class_name"] for c in original["layers"]] == [
            c["class_name"] for c in returned["layers"]
        ]


def test_initializers_survive_although_no_random_numbers_are_drawn():
    model = build_model("resnet8", seed=5, input_shape=(16, 16, 3))
    clone = clone_with_policy(model, "mixed_bfloat16")
    name = "stage1_block1_conv1"
    original = model.get_layer(name).get_config()["kernel_initializer"]
    assert clone.get_layer(name).get_config()["kernel_initializer"] == original


def test_trainability_is_kept():
    model = nested()
    model.get_layer("stem").trainable = False
    model.get_layer("inner").get_layer("inner_bn").trainable = False
    clone = clone_with_policy(model, "mixed_bfloat16")
    names = [w.name for w in model.trainable_weights]
    assert [w.name for w in clone.trainable_weights] == names
    assert not clone.get_layer("stem").trainable


def test_a_layer_made_of_layers_keeps_which_of_them_train():
    """Keras lists the weights that train first, whichever part of the layer they are of."""
    inputs = layers.Input((4,))
    model = randomised(tf_keras.Model(inputs, layers.Dense(3)(Pair(name="pair")(inputs))))
    model.get_layer("pair").first.trainable = False
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    for copy in (copy_model(model), clone_with_policy(model, "float32")):
        np.testing.assert_array_equal(copy(x), model(x))
        pair = copy.get_layer("pair")
        assert [part.trainable for part in (pair.first, pair.second, pair.norm)] == [
            False, True, True,
        ]  # fmt: skip


def test_a_copy_needs_no_registration_and_keeps_every_policy():
    def doubled(x):
        return 2 * x

    inputs = layers.Input((4,))
    x = layers.Dense(5, activation=doubled, dtype="mixed_bfloat16", name="mixed")(inputs)
    x = layers.Dense(3, trainable=False, name="frozen")(tf.abs(x))
    model = tf_keras.Model(inputs, x)
    tf_keras.utils.set_random_seed(3)
    expected = layers.Dense(4)(np.ones((1, 2), np.float32)).numpy()
    tf_keras.utils.set_random_seed(3)
    copy = copy_model(model)
    np.testing.assert_array_equal(layers.Dense(4)(np.ones((1, 2), np.float32)), expected)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.testing.assert_array_equal(copy(x), model(x))
    assert [v.name for v in copy.trainable_weights] == [v.name for v in model.trainable_weights]
    assert copy.get_layer("mixed").compute_dtype == "bfloat16"
    assert type(copy_model(tf_keras.Sequential([inputs, layers.Dense(2)]))) is tf_keras.Sequential


def test_nothing_global_and_nothing_of_the_callers_changes():
    model = sequential()
    model.compile("sgd", "mse")
    optimizer = model.optimizer
    tf_keras.utils.set_random_seed(3)
    expected = tf.random.normal([3]).numpy(), layers.Dense(4)(np.ones((1, 2), np.float32)).numpy()
    tf_keras.utils.set_random_seed(3)
    clone = clone_with_policy(model, "mixed_float16")
    np.testing.assert_array_equal(tf.random.normal([3]), expected[0])
    np.testing.assert_array_equal(layers.Dense(4)(np.ones((1, 2), np.float32)), expected[1])
    assert tf_keras.mixed_precision.global_policy().name == "float32"
    assert model.optimizer is optimizer
    assert model.layers[0].compute_dtype == "float32"
    assert clone.optimizer is None
    clone.layers[0].kernel.assign_add(tf.ones_like(clone.layers[0].kernel))
    assert np.any(clone.layers[0].kernel.numpy() != model.layers[0].kernel.numpy())


def test_the_gradient_flows_through_every_kernel():
    clone = clone_with_policy(operators(), "mixed_bfloat16")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(clone(IMAGES) ** 2)
    gradients = tape.gradient(loss, clone.trainable_weights)
    assert all(g is not None and np.any(g.numpy() != 0) for g in gradients)


def test_a_global_policy_of_the_caller_does_not_leak_in():
    model = plain()
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        clone = clone_with_policy(model, "float32")
        assert tf_keras.mixed_precision.global_policy().name == "mixed_bfloat16"
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert {layer.compute_dtype for layer in clone.layers} == {"float32"}


def test_an_unknown_policy_and_a_subclassed_model():
    with pytest.raises(ValueError, match=r"float32, mixed_float16.*Received: 'int8'"):
        clone_with_policy(sequential(), "int8")

    class Mine(tf_keras.Model):
        pass

    with pytest.raises(TypeError, match="subclassed"):
        clone_with_policy(Mine(), "float32")
