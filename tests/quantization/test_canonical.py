"""The canonical graph computes what the model computes, out of layers with integer kernels."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.graph import consumers, is_batch_norm
from ehap_tf.models import clone_with_policy
from ehap_tf.quantization import export_tflite, quantize
from ehap_tf.quantization.integer_rules.canonical import canonical_model
from ehap_tf.quantization.plan.layout import EhapQuantizeLayoutTransform
from ehap_tf.quantization.plan.registry import EhapQuantizeRegistry
from ehap_tf.quantization.tflite.output_grids import output_range
from tests.pruning.nets import computed
from tests.quantization.nets import (
    NETS,
    SEQUENCE,
    SEQUENCE_NETS,
    SHAPE,
    build,
    build_sequence,
    conv,
    groups,
    head,
    images,
    layers,
    randomize,
    residual_row,
    sequence_head,
    sequences,
    side_by_side,
)


@pytest.mark.parametrize(
    ("nets", "names", "x"),
    [(NETS, names, images(16)) for names in groups(NETS)]
    + [(SEQUENCE_NETS, names, sequences(16)) for names in groups(SEQUENCE_NETS)],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else "",
)
def test_canonical_model_computes_the_same(nets, names, x):
    model = side_by_side(nets, names, x.shape[1:])
    pairs = zip(names, computed(canonical_model(model), x), computed(model, x), strict=True)
    for name, received, expected in pairs:
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_sequences_are_images_of_one_row():
    """From end to end: with the operators, the numbers and the names of the net by hand."""
    row = layers.Input((1, *SEQUENCE))
    by_hand = randomize(tf_keras.Model(row, residual_row(row)))
    model = build_sequence("residual_sequence")
    x = sequences()
    image = x[:, None]
    expected = computed(model, x)
    np.testing.assert_allclose(computed(by_hand, image), expected, rtol=1e-4, atol=1e-4)

    assert sorted(kinds(model)) == sorted(["Reshape", *kinds(by_hand)])
    assert {"causal", "strided", "depthwise", "grouped"} <= {
        layer.name for layer in canonical_model(model).layers
    }
    qat = quantize(model, representative_data=(x,))
    qat_by_hand = quantize(by_hand, representative_data=(image,))
    np.testing.assert_allclose(computed(qat, x), computed(qat_by_hand, image), atol=1e-5)


class OwnUnitNorm(tf_keras.constraints.UnitNorm):
    """Not registered with Keras."""


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (layers.Conv1D(4, 3, kernel_constraint=tf_keras.constraints.UnitNorm([0, 1])), "kernel"),
        (layers.Conv1D(4, 3, kernel_constraint=OwnUnitNorm([0, 1])), "kernel"),
        (
            layers.SeparableConv1D(4, 3, depthwise_constraint=tf_keras.constraints.UnitNorm(0)),
            "depthwise_kernel",
        ),
        (layers.Dense(4, kernel_constraint=tf_keras.constraints.UnitNorm(0)), "kernel"),
    ],
)
def test_constraints_hold_for_the_axes_that_they_are_given_for(layer, name):
    inputs = layers.Input(SEQUENCE)
    model = randomize(tf_keras.Model(inputs, layer(inputs)))
    (twin,) = (twin for twin in canonical_model(model).layers if hasattr(twin, name))
    kernel, of_twin = getattr(layer, name), getattr(twin, name)
    constrained = np.reshape(of_twin.constraint(of_twin), kernel.shape)
    np.testing.assert_allclose(constrained, kernel.constraint(kernel), rtol=1e-5)


@pytest.mark.parametrize("norm", [layers.LayerNormalization, layers.GroupNormalization])
def test_regularizers_and_constraints_of_a_normalization_stay(norm):
    """As they are: a factor behind it would have to go into them."""
    inputs = layers.Input((8, 8, 32))
    layer = norm(
        gamma_regularizer=tf_keras.regularizers.L2(0.1),
        gamma_constraint=tf_keras.constraints.UnitNorm(-1),
        beta_regularizer=tf_keras.regularizers.L1(0.2),
        beta_constraint=tf_keras.constraints.NonNeg(),
    )
    outputs = layers.Rescaling(0.5)(layers.ReLU()(layer(inputs)))
    model = randomize(tf_keras.Model(inputs, outputs))
    flat = canonical_model(model)
    names = [twin.name for twin in flat.layers]
    gamma, beta = (
        flat.get_layer(name if name in names else layer.name)
        for name in (f"{layer.name}_gamma", f"{layer.name}_beta")
    )
    for weight, of_twin in ((layer.gamma, gamma.depthwise_kernel), (layer.beta, beta.bias)):
        constrained = np.ravel(of_twin.constraint(of_twin))
        np.testing.assert_allclose(constrained, weight.constraint(weight), rtol=1e-5)
    np.testing.assert_allclose(flat.losses, model.losses, rtol=1e-5)


def test_a_group_norm_rounds_its_tensor_twice():
    """Once scaled and once shifted, as plain conversion does: 25 dB where it is centred before."""
    inputs = layers.Input((16, 16, 8))
    norm = layers.GroupNormalization(4)
    model = tf_keras.Model(inputs, norm(inputs))
    rng = np.random.default_rng(0)
    norm.set_weights([rng.uniform(0.5, 1.5, 8), rng.normal(size=8)])
    noise = rng.normal(size=(64, 16, 16, 8)) + 0.3 * rng.normal(size=(64, 1, 1, 8))
    x = (rng.lognormal(0.0, 0.5, (64, 1, 1, 8)) * noise).astype(np.float32)
    qat = quantize(model, representative_data=x, bias_correction=False)
    exact = model(x).numpy()
    error = np.square(qat(x) - exact).sum()
    assert 10.0 * np.log10(np.square(exact).sum() / error) > 27.0


MAX_NORM, L2 = tf_keras.constraints.MaxNorm(1.0), tf_keras.regularizers.L2(0.1)


HELD = {"gamma_regularizer": L2, "beta_constraint": tf_keras.constraints.NonNeg()}


@pytest.mark.parametrize(
    ("kind", "layer", "norm"),
    [
        ("Dense", {"kernel_constraint": MAX_NORM}, {}),
        ("Dense", {"use_bias": False}, {"trainable": False}),
        ("Conv2DTranspose", {}, HELD),
        ("Flatten", {}, HELD),
        pytest.param("Dense", {"kernel_regularizer": L2}, {}, marks=pytest.mark.families),
        pytest.param("Dense", {"trainable": False}, {}, marks=pytest.mark.families),
        pytest.param("Dense", {}, HELD, marks=pytest.mark.families),
        pytest.param(
            "Conv2DTranspose", {"kernel_constraint": MAX_NORM}, {}, marks=pytest.mark.families
        ),
    ],
)
def test_a_batch_norm_trains_as_it_would_by_itself(kind, layer, norm, tmp_path):
    """Where a kernel with both in it would be held or moved otherwise, and on vectors."""
    inputs = layers.Input((8, 8, 3))
    if kind == "Conv2DTranspose":
        x = layers.Conv2DTranspose(5, 3, **layer)(inputs)
    else:
        x = layers.Flatten()(inputs)
        x = layers.Dense(5, **layer)(x) if kind == "Dense" else x
    x = layers.BatchNormalization(**norm)(x)
    model = randomize(tf_keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x))))
    for weight in model.weights:
        if "variance" in weight.name:
            weight.assign(0.01 * tf.ones_like(weight))
        elif weight.constraint is not None:
            weight.assign(weight.constraint(weight))
    qat = quantize(model, representative_data=(images(),))
    np.testing.assert_allclose(sum(qat.losses), sum(model.losses), rtol=0.05)
    shapes = [sorted(tuple(w.shape) for w in net.trainable_weights) for net in (qat, model)]
    assert shapes[0] == shapes[1]

    before = [weight.numpy() for weight in qat.trainable_weights]
    qat.compile(tf_keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    qat.fit(images(), np.ones((64, 4)), epochs=1, verbose=0)
    for weight, value in zip(qat.trainable_weights, before, strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-5)
    file = export_tflite(qat, tmp_path / "net.tflite", data=(images(),))
    assert file.float_operators == () and file.difference < 1.0


def test_a_batch_norm_of_sequences_trains():
    """As a convolution of its own, whatever is around it."""
    inputs = layers.Input(SEQUENCE)
    model = randomize(tf_keras.Model(inputs, sequence_head(layers.BatchNormalization()(inputs))))
    flat, _ = EhapQuantizeLayoutTransform(EhapQuantizeRegistry()).apply(model, {})
    assert [layer.trainable for layer in flat.layers if is_batch_norm(layer)] == [True]


def test_a_batch_norm_over_several_devices_becomes_a_plain_one():
    x = inputs = layers.Input(SHAPE)
    norm = layers.experimental.SyncBatchNormalization
    model = randomize(tf_keras.Model(inputs, head(norm(name="norm")(conv(x)))))
    flat = canonical_model(model)
    assert type(flat.get_layer("norm")) is layers.BatchNormalization
    np.testing.assert_allclose(flat(images()), model(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainable", [True, False])
def test_a_normalization_that_a_factor_goes_into_trains_as_before(trainable):
    inputs = layers.Input(SHAPE)
    x = layers.ReLU()(layers.LayerNormalization(trainable=trainable)(conv(inputs)))
    model = randomize(tf_keras.Model(inputs, head(layers.Rescaling(0.5)(x))))
    affines = [
        layer
        for layer in canonical_model(model).layers
        if isinstance(layer, layers.DepthwiseConv2D) and layer.name.endswith("_affine")
    ]
    assert affines and all(layer.trainable is trainable for layer in affines)


@pytest.mark.parametrize("shape", [(5, *SEQUENCE), (2, 5, *SEQUENCE)])
@pytest.mark.parametrize("padding", ["same", "causal"])
def test_convolution_of_several_sequences_mixes_none(shape, padding):
    inputs = layers.Input(shape)
    convolution = layers.Conv1D(4, 3, strides=2, padding=padding)
    model = randomize(tf_keras.Model(inputs, convolution(inputs)))
    x = np.random.default_rng(1).standard_normal((4, *shape)).astype(np.float32)
    received = computed(canonical_model(model), x)
    np.testing.assert_allclose(received, computed(model, x), rtol=1e-4, atol=1e-4)
    if len(shape) > 3:
        with pytest.raises(ValueError, match=r"\(Conv1D\) is not supported in integers"):
            quantize(model)


def test_an_average_of_what_a_mask_leaves_is_refused():
    inputs = layers.Input(SEQUENCE)
    model = tf_keras.Model(inputs, sequence_head(layers.Dense(4)(layers.Masking()(inputs))))
    with pytest.raises(ValueError, match=r"global_average_pooling1d.*mask"):
        quantize(model, allow_float=True)


@pytest.mark.parametrize(
    "name",
    [
        *"hard_swish leaky_relu relu6 softmax".split(),
        *(
            pytest.param(name, marks=pytest.mark.families)
            for name in "hard_sigmoid hard_silu linear relu silu tanh".split()
        ),
    ],
)
def test_the_users_function_computes_what_it_says_whatever_its_name(name):
    def steep(x):
        return tf.nn.leaky_relu(x, alpha=0.6)

    steep.__name__ = steep.__qualname__ = name
    inputs = layers.Input((8, 8, 3))
    outputs = head(layers.Activation(steep)(conv(conv(inputs, activation=steep))))
    model = randomize(tf_keras.Model(inputs, outputs))
    expected = computed(model, images(16))
    received = computed(canonical_model(model), images(16))
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=rf"test_canonical\.{name}'.*allow_float=True"):
        quantize(model)


@pytest.mark.parametrize(
    "operate",
    [
        lambda x: tf.nn.silu(x, beta=2.0),
        lambda x: x + tf.reduce_mean(x, keepdims=True),
        lambda x: tf.image.resize(x, (16, 16), antialias=True),
        lambda x: tf.reshape(tf.reshape(x, (-1, 8, 6)), (-1, 8, 8, 6)),
        lambda x: tf.abs(x) ** 1.3,
    ],
    ids="silu reduce_mean antialias rows power".split(),
)
def test_operators_with_options_compute_the_same(operate):
    inputs = layers.Input((8, 8, 3))
    model = randomize(tf_keras.Model(inputs, head(operate(conv(inputs)))))
    expected = computed(model, images(16))
    received = computed(canonical_model(model), images(16))
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"the operator .*allow_float=True"):
        quantize(model)


def test_inputs_become_float32():
    inputs = layers.Input((8, 8, 3), dtype="uint8")
    model = randomize(tf_keras.Model(inputs, head(conv(layers.Rescaling(1.0 / 255.0)(inputs)))))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    flat = canonical_model(model)
    assert flat.inputs[0].dtype == tf.float32
    received = computed(flat, pixels.astype(np.float32))
    np.testing.assert_allclose(received, computed(model, pixels), rtol=1e-4, atol=1e-4)


def kinds(model: tf_keras.Model) -> list[str]:
    return [type(layer).__name__ for layer in canonical_model(model).layers]


def test_spellings_of_hard_swish_are_one_operator():
    x = inputs = layers.Input((8, 8, 3))
    x = layers.Multiply()([x, layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)])
    x = x * tf.nn.relu6(x + 3.0) / 6.0
    model = tf_keras.Model(inputs, head(conv(x)))
    assert kinds(model).count("EhapHardSwish") == 2
    assert "DepthwiseConv2D" not in kinds(model)


def test_hard_sigmoid_is_one_convolution():
    x = inputs = layers.Input((8, 8, 3))
    x = layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)
    model = tf_keras.Model(inputs, head(x))
    assert kinds(model).count("DepthwiseConv2D") == kinds(model).count("ReLU") == 1


@pytest.mark.parametrize("axis", [None, 1, (1, 3), (2, -1)])
@pytest.mark.parametrize("options", [{}, {"invert": True}])
def test_normalization_over_any_axis(axis, options):
    """As it was adapted: in Keras' own layer where the operators cannot have it by channel."""
    normalization = layers.Normalization(axis=axis, **options)
    spread = 1.0 + np.arange(64.0).reshape(8, 8, 1)
    normalization.adapt(images() * spread + [1.0, 2.0, 3.0])
    model = tf_keras.Sequential([layers.Input((8, 8, 3)), normalization])
    expected = computed(model, images(4))
    received = computed(canonical_model(model), images(4))
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("shape", [(4, 3), (8, 8, 3)])
def test_batch_norm_over_any_axis(axis, shape):
    inputs = layers.Input(shape)
    norm = layers.BatchNormalization(axis=axis, name="norm")
    x = layers.Dense(6, activation="relu")(norm(layers.Dense(5)(inputs)))
    model = randomize(tf_keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x))))
    x = np.random.default_rng(1).standard_normal((64, *shape)).astype(np.float32)
    expected = computed(model, x)
    received = computed(canonical_model(model), x)
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)

    qat = quantize(model, representative_data=(x,))
    difference = np.abs(computed(qat, x) - expected)
    assert difference.mean() <= 0.03 * np.ptp(expected)
    before = model.get_layer("norm").moving_mean.numpy()
    qat(5.0 + x, training=True)
    (moved,) = (v for v in qat.weights if "moving_mean" in v.name)
    assert moved.shape == before.shape == (shape[axis - 1] if axis < len(shape) else 5,)
    assert np.abs(moved.numpy() - before).max() > 1e-4


def test_batch_norm_over_two_axes_is_refused():
    inputs = layers.Input((8, 8, 3))
    norm = layers.BatchNormalization(axis=[1, 3], name="norm")
    model = tf_keras.Model(inputs, head(norm(conv(inputs))))
    with pytest.raises(ValueError, match=r"'norm' must normalise one axis.*\[1, 3\]"):
        quantize(model)


class Squares(tf_keras.regularizers.Regularizer):
    """Not registered with Keras."""

    def __call__(self, x):
        return tf.reduce_sum(x * x)

    def get_config(self):
        return {}


def test_regularizer_that_keras_cannot_read_back():
    inputs = layers.Input((6,))
    x = layers.Dense(5, kernel_regularizer=Squares())(inputs)
    model = tf_keras.Model(inputs, layers.Dense(4)(layers.BatchNormalization()(x)))
    qat = quantize(model)
    np.testing.assert_allclose(qat.losses, model.losses, rtol=0.05)


def test_mixed_precision_becomes_float32():
    with_policy = tf_keras.Sequential(
        [layers.Conv2D(3, 3, dtype="mixed_bfloat16", input_shape=(8, 8, 3)), layers.ReLU()]
    )
    flat = canonical_model(with_policy)
    assert all(layer.compute_dtype == "float32" for layer in flat.layers)
    assert flat.outputs[0].dtype == tf.float32


@pytest.mark.parametrize(
    "policy", [pytest.param("mixed_float16", marks=pytest.mark.families), "mixed_bfloat16"]
)
def test_layers_inside_a_layer_become_float32(policy):
    inputs = layers.Input((8, 8, 3))
    own = {"dtype": policy}
    rows = tf_keras.Sequential([layers.Conv1D(4, 3, **own), layers.Dense(4, **own)])
    x = layers.TimeDistributed(rows, **own)(
        layers.TimeDistributed(layers.Conv1D(4, 3), **own)(inputs)
    )
    x = layers.Reshape((-1, 4), **own)(x)
    x = layers.Bidirectional(layers.LSTM(3, **own), **own)(x)
    model = randomize(tf_keras.Model(inputs, layers.Dense(4, dtype="float32")(x)))
    flat = canonical_model(model)
    assert {layer.compute_dtype for layer in flat._flatten_layers()} == {"float32"}
    received = computed(flat, images(16))
    np.testing.assert_allclose(received, computed(model, images(16)), atol=0.05)


def test_operators_of_a_mixed_precision_clone_are_known():
    inputs = layers.Input((8, 8, 3))
    model = tf_keras.Model(inputs, head(tf.nn.relu(conv(inputs) * 2.0)))
    assert kinds(clone_with_policy(model, "mixed_bfloat16")) == kinds(model)


def test_batch_norm_alone_gets_an_identity_convolution():
    flat, configs = EhapQuantizeLayoutTransform(EhapQuantizeRegistry()).apply(
        build("pre_activation"), {}
    )
    names = [layer.name for layer in flat.layers]
    (identity,) = (name for name in names if name.endswith("_identity"))
    assert configs[identity]["quantize_config"].output == "none"
    assert not flat.get_layer(identity).trainable


def test_each_operator_quantizes_once():
    _, configs = EhapQuantizeLayoutTransform(EhapQuantizeRegistry()).apply(build("union_block"), {})
    outputs = {name: entry["quantize_config"].output for name, entry in configs.items()}
    observed = [name for name, output in outputs.items() if output == "observed"]
    # First convolution with its BatchNorm and ReLU, second with its BatchNorm, Add with its ReLU,
    # pool, classifier.
    assert len(observed) == 5


def test_averages_are_rounded_to_the_grid_they_are_read_from():
    model = build("pools")
    flat, configs = EhapQuantizeLayoutTransform(EhapQuantizeRegistry()).apply(model, {})
    convolution = model.layers[1].name
    (pool,) = (layer for layer in flat.layers if isinstance(layer, layers.AveragePooling2D))
    grid = f"{convolution}_quantize"
    assert configs[convolution]["quantize_config"].output == "none"
    assert {name for name, readers in consumers(flat).items() if grid in readers} == {
        convolution,
        pool.name,
    }

    qat = quantize(model, representative_data=(images(),))
    averages = tf_keras.Model(qat.inputs, qat.get_layer(grid).get_output_at(-1))
    low, high = output_range(qat.get_layer(grid))
    steps = computed(averages, images(8)) * 255.0 / (high - low)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-2)
    assert np.unique(np.rint(steps)).size > 20


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (layers.ThresholdedReLU(0.3), "ThresholdedReLU"),
        (layers.ReLU(max_value=1.0, negative_slope=0.1), "ReLU"),
        (layers.Softmax(axis=[1, 2]), "Softmax"),
        (layers.UpSampling2D(interpolation="area"), "UpSampling2D"),
        (layers.UpSampling2D(interpolation="bicubic"), "UpSampling2D"),
        (layers.Normalization(axis=1, mean=1.0, variance=2.0), "Normalization"),
    ],
)
def test_layer_without_integer_kernel_is_named(layer, text):
    inputs = layers.Input((8, 8, 3))
    model = tf_keras.Model(inputs, head(layer(conv(inputs))))
    with pytest.raises(ValueError, match=f"{layer.name}.*{text}.*allow_float=True"):
        quantize(model)


def test_a_3d_convolution_is_named():
    inputs = layers.Input((8, 8, 8, 3))
    outputs = layers.GlobalAveragePooling3D()(layers.Conv3D(4, 3, name="voxels")(inputs))
    with pytest.raises(ValueError, match=r"'voxels' \(Conv3D\) is not supported in integers"):
        quantize(tf_keras.Model(inputs, outputs))


def test_operator_without_integer_kernel_is_named():
    inputs = layers.Input((8, 8, 3))
    model = tf_keras.Model(inputs, head(tf.math.erf(conv(inputs))))
    with pytest.raises(ValueError, match=r"operator math\.erf.*allow_float=True"):
        quantize(model)


def test_quantized_model_is_refused():
    with pytest.raises(ValueError, match=r"must be a float model.*Received: .*quantized layer"):
        quantize(quantize(build("union_block")))


def test_channels_first_is_refused():
    inputs = layers.Input((3, 8, 8))
    model = tf_keras.Model(inputs, layers.Conv2D(2, 3, data_format="channels_first")(inputs))
    with pytest.raises(ValueError, match="channels_last"):
        quantize(model)


def test_subclassed_model_is_refused():
    class Subclassed(tf_keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match="Subclassed"):
        quantize(Subclassed())


def test_a_call_of_the_users_own_is_not_passed_over():
    class Scaled(tf_keras.Model):
        def call(self, x, training=None):
            return super().call(x / 255.0, training=training)

    inputs = layers.Input((8, 8, 3))
    with pytest.raises(TypeError, match="subclassed"):
        quantize(Scaled(inputs, head(conv(inputs))))


def test_inputs_of_a_nested_model_are_taken_by_name():
    b, a = (layers.Input((8, 8, 3), name=name) for name in "ba")
    inner = tf_keras.Model([b, a], layers.Subtract()([b, a]))
    inputs = layers.Input((8, 8, 3))
    outputs = head(inner({"a": conv(inputs, 3), "b": conv(inputs, 3)}))
    model = randomize(tf_keras.Model(inputs, outputs))
    expected = computed(model, images(16))
    received = computed(canonical_model(model), images(16))
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)


def test_a_nested_layer_may_have_the_name_of_an_input():
    inputs = layers.Input(SHAPE, name="features")
    nested = tf_keras.Sequential([layers.Conv2D(6, 3, name="features", input_shape=SHAPE)])
    flat = canonical_model(tf_keras.Model(inputs, head(nested(inputs))))
    assert [layer.name for layer in flat.layers[:2]] == ["features", "features_1"]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("layer", [layers.BatchNormalization, lambda: layers.Dropout(0.5)])
def test_a_layer_that_trains_at_inference_is_refused(layer, nested):
    inputs = layers.Input((8, 8, 3))
    if nested:
        block = tf_keras.Sequential([layers.Input((8, 8, 3)), layer()])
        x = block(inputs, training=True)
    else:
        x = layer()(inputs, training=True)
    with pytest.raises(ValueError, match=r"must not be called with training=True"):
        quantize(tf_keras.Model(inputs, head(conv(x))))


@pytest.mark.parametrize(
    "spell",
    [
        lambda x, m, v: (x - m) / tf.sqrt(v + 1e-5),
        lambda x, m, v: (x - m) / (v + 1e-5) ** 0.5,
        lambda x, m, v: (x - m) * (1.0 / tf.sqrt(v + 1e-5)),
    ],
    ids="sqrt power reciprocal".split(),
)
def test_a_quotient_by_a_root_is_a_product_with_the_reciprocal_root(spell):
    """As in instance norms of tf. operators: one root less to round, 0.7 dB of three of them."""
    inputs = layers.Input((8, 8, 3))
    mean, variance = tf.nn.moments(inputs, [1, 2], keepdims=True)
    model = tf_keras.Model(inputs, spell(inputs, mean, variance))
    expected = computed(model, images(16))
    flat = canonical_model(model)
    np.testing.assert_allclose(computed(flat, images(16)), expected, rtol=1e-4, atol=1e-4)
    operators = [layer.operator for layer in flat.layers if hasattr(layer, "operator")]
    assert operators.count("rsqrt") == 1 and "sqrt" not in operators
