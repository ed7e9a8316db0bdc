"""The scheme by TFMOT's own door, and what training may and may not change."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_registry as default_registry,
)

from ehap_tf.quantization import (
    EhapQuantizeConfig,
    EhapQuantizeScheme,
    FreezeBatchNorm,
    calibrate,
    export_float_tflite,
    export_tflite,
    freeze_batch_norm,
    load_qat,
    quantization_scope,
    quantize,
    round_biases,
    save_qat,
)
from tests.pruning.nets import computed
from tests.quantization.nets import build, images, layers, randomize


@pytest.mark.parametrize("name", ["union_block", "pools"])
def test_quantize_apply_gives_the_same_model(name):
    model = build(name)
    ours = quantize(model, representative_data=(images(),))
    with quantization_scope():
        annotated = tfmot.quantization.keras.quantize_annotate_model(model)
        theirs = tfmot.quantization.keras.quantize_apply(annotated, EhapQuantizeScheme())
    calibrate(theirs, (images(),))
    np.testing.assert_allclose(computed(theirs, images()), computed(ours, images()), atol=1e-5)


def quantized_with(**configs):
    """A net that TFMOT quantizes, whose layers are annotated with configs by their names."""
    keras, annotate = tfmot.quantization.keras, tfmot.quantization.keras.quantize_annotate_layer
    begin, end = layers.SeparableConv2D(4, 3, name="begin"), layers.Dense(4, name="end")
    with quantization_scope():
        parts = [
            annotate(layer, configs[layer.name]) if layer.name in configs else layer
            for layer in (begin, layers.Flatten(), end)
        ]
        model = tf_keras.Sequential([layers.Input((8, 8, 3)), *parts])
        return keras.quantize_apply(keras.quantize_annotate_model(model), EhapQuantizeScheme())


def test_a_config_that_a_layer_was_annotated_with_is_kept():
    config = EhapQuantizeConfig(["kernel"], "tensor", weight_bits=4)
    qat = quantized_with(end=config)
    assert qat.get_layer("quant_end").quantize_config == config


class Doubled(layers.Layer):
    """A layer of the user's, which no rule knows."""

    def call(self, inputs):
        return 2.0 * inputs


def test_an_annotated_layer_needs_no_rule():
    keras, annotate = tfmot.quantization.keras, tfmot.quantization.keras.quantize_annotate_layer
    config = EhapQuantizeConfig()
    with quantization_scope(), keras.quantize_scope({"Doubled": Doubled}):
        doubled = annotate(Doubled(name="doubled"), config)
        model = tf_keras.Sequential([layers.Input((6,)), doubled, layers.Dense(4)])
        qat = keras.quantize_apply(keras.quantize_annotate_model(model), EhapQuantizeScheme())
    assert qat.get_layer("quant_doubled").quantize_config == config


@pytest.mark.parametrize(
    ("configs", "error", "text"),
    [
        (
            {"end": default_registry.Default8BitQuantizeConfig(["kernel"], [], True)},
            TypeError,
            "'end' must be annotated .* Received: Default8BitQuantizeConfig",
        ),
        ({"begin": EhapQuantizeConfig()}, ValueError, "'begin' must .* becomes other layers"),
    ],
)
def test_a_config_that_cannot_be_kept_is_refused(configs, error, text):
    with pytest.raises(error, match=text):
        quantized_with(**configs)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weight_bits": 3}, r"weight_bits must be one of \(4, 8\)\. Received: 3"),
        ({"activation_bits": 12}, r"activation_bits must be one of \(8, 16\)\. Received: 12"),
        ({"act_percentile": 30.0}, r"act_percentile must be in .*Received: 30"),
        ({"method": "dynamic"}, "method must be one of"),
        ({"method": "ptq"}, "representative_data"),
        ({"bias_correction": True}, "representative_data"),
        ({"representative_data": (np.zeros((0, 8, 8, 3)),)}, "empty"),
        ({"representative_data": (np.zeros((4, 9, 8, 3)),)}, r"\(8, 8, 3\)|9, 8, 3"),
        ({"representative_data": (np.full((4, 8, 8, 3), np.nan),)}, "NaN"),
        ({"representative_data": (np.zeros((0, 8, 8, 3)),), "reestimate": True}, "data is empty"),
        (
            {"representative_data": (images(1),), "reestimate": True},
            r"representative_data must .* more than one example.*Received: batches of 1",
        ),
    ],
)
def test_wrong_arguments_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        quantize(build("union_block"), **options)


@pytest.mark.parametrize("name", ["keras", "float"])
def test_a_model_that_is_not_quantized_is_named(name, tmp_path):
    if name == "keras":
        keras = pytest.importorskip("keras")
        model = keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Flatten()])
    else:
        model = build("union_block")
    for call in (
        lambda: calibrate(model, (images(),)),
        lambda: round_biases(model),
        lambda: export_tflite(model, tmp_path / "net.tflite"),
    ):
        with pytest.raises(TypeError, match=r"from quantize\(\).*Received: .*, which is not"):
            call()


def test_global_random_states_stay(tmp_path):
    def draws() -> list[float]:
        weights = tf_keras.initializers.GlorotUniform()((2, 2)).numpy()
        return [*weights.ravel(), random.random(), float(tf.random.uniform(()))]

    model = build("separable")
    tf_keras.utils.set_random_seed(3)
    expected = draws()
    tf_keras.utils.set_random_seed(3)
    quantize(model, representative_data=(images(),))
    export_float_tflite(model, tmp_path / "net.tflite")
    assert draws() == expected


def test_nothing_to_estimate_anew_is_said():
    model = tf_keras.Sequential([layers.InputLayer((8, 8, 3)), layers.Flatten(), layers.Dense(2)])
    with pytest.warns(UserWarning, match="reestimate changed nothing"):
        quantize(model, representative_data=(images(),), reestimate=True)


def test_statistics_are_estimated_anew_without_noise():
    """They are those of the network in inference, and the ranges those of the calibration alone."""

    def reestimated(*noises):
        convolution = layers.Conv2D(4, 3, use_bias=False, name="conv")
        norm, relu = layers.BatchNormalization(name="norm"), layers.ReLU(name="relu")
        parts = [layers.InputLayer((8, 8, 3)), *noises, convolution, norm, relu, layers.Flatten()]
        model = randomize(tf_keras.Sequential(parts))
        return quantize(model, representative_data=(images(),), reestimate=True)

    plain = reestimated()
    noisy = reestimated(layers.Dropout(0.5), layers.GaussianNoise(1.0))
    for name in ("quant_norm", "quant_relu"):
        weights = (qat.get_layer(name).get_weights() for qat in (noisy, plain))
        for value, expected in zip(*weights, strict=True):
            np.testing.assert_array_equal(value, expected)
    norm = noisy.get_layer("quant_norm").layer
    normalized = tf_keras.Model(noisy.inputs, noisy.get_layer("quant_conv").output)(images())
    np.testing.assert_allclose(norm.moving_mean, np.mean(normalized, (0, 1, 2)), atol=1e-2)
    np.testing.assert_allclose(norm.moving_variance, np.var(normalized, (0, 1, 2)), rtol=2e-2)


def test_frozen_statistics_stay_while_gamma_trains():
    qat = quantize(build("union_block"), representative_data=(images(),))
    variables = len(qat.trainable_variables)
    freeze_batch_norm(qat)
    assert len(qat.trainable_variables) == variables
    moving = [w for w in qat.weights if "moving" in w.name]
    gammas = [w for w in qat.weights if "gamma" in w.name]
    before = [[w.numpy() for w in group] for group in (moving, gammas)]
    qat.compile(tf_keras.optimizers.SGD(0.01), "mse", run_eagerly=True)
    qat.fit(images(), np.ones((64, 4)), batch_size=16, epochs=1, verbose=0)
    assert all((w.numpy() == b).all() for w, b in zip(moving, before[0], strict=True))
    assert any((w.numpy() != b).any() for w, b in zip(gammas, before[1], strict=True))


def base() -> tf_keras.Model:
    inner = [layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.5)]
    return tf_keras.Sequential(
        [
            layers.Conv2D(6, 3, input_shape=(8, 8, 3)),
            # Twice nested: the mode of a call is that of all calls inside.
            tf_keras.Sequential([layers.Input((6, 6, 6)), *inner]),
        ]
    )


@pytest.mark.parametrize(
    ("call", "stands"),
    [
        (lambda x: base()(x, training=False), True),
        (lambda x: base()(x, False), True),
        (lambda x: layers.BatchNormalization()(layers.Conv2D(6, 3)(x), training=False), True),
        (lambda x: layers.BatchNormalization()(layers.Conv2D(6, 3)(x)), False),
        (lambda x: base()(x), False),
    ],
)
def test_layers_called_in_inference_mode_stay_in_it(call, stands):
    """Keras' pattern for transfer learning; the float model says what moves."""
    inputs = layers.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(call(inputs))
    model = randomize(tf_keras.Model(inputs, layers.Dense(4)(x)))
    qat = quantize(model, representative_data=(images(),))
    in_training = qat(images(), training=True)
    same = np.allclose(in_training, computed(qat, images()), atol=1e-5)
    assert same == stands
    for network in (model, qat):
        moving = [w for w in network.weights if "moving" in w.name]
        before = [w.numpy() for w in moving]
        network.compile(tf_keras.optimizers.SGD(0.01), "mse")
        network.fit(images(), np.ones((64, 4)), batch_size=16, epochs=1, verbose=0)
        for weight, old in zip(moving, before, strict=True):
            assert (weight.numpy() == old).all() == stands


def test_nested_model_that_is_not_trainable_does_not_train():
    frozen = base()
    frozen.trainable = False
    inputs = layers.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(frozen(inputs))
    model = randomize(tf_keras.Model(inputs, layers.Dense(4)(x)))
    qat = quantize(model, representative_data=(images(),))
    assert [w.shape for w in qat.trainable_weights] == [w.shape for w in model.trainable_weights]


def test_statistics_freeze_after_the_given_steps():
    qat = quantize(build("union_block"), representative_data=(images(),))
    moving = [w for w in qat.weights if "moving" in w.name]
    history = []
    record = tf_keras.callbacks.LambdaCallback(
        on_batch_end=lambda batch, logs: history.append([w.numpy() for w in moving])
    )
    qat.compile(tf_keras.optimizers.SGD(0.01), "mse")
    callbacks = [FreezeBatchNorm(3), record]
    qat.fit(images(), np.ones((64, 4)), batch_size=8, epochs=1, verbose=0, callbacks=callbacks)
    assert len(history) == 8
    stands = [
        all((a == b).all() for a, b in zip(before, after, strict=True))
        for before, after in itertools.pairwise(history)
    ]
    assert stands == 2 * [False] + 5 * [True]
    assert all(layer.trainable for layer in qat.layers if "norm" in layer.name)


def test_layers_that_are_not_trainable_do_not_train():
    model = build("normalization")
    model.layers[-1].trainable = False
    qat = quantize(model, representative_data=(images(),))
    names = [weight.name for weight in qat.trainable_variables]
    assert not any("dense" in name or "normalization" in name for name in names)
    assert any("conv2d" in name for name in names)


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_a_batch_norm_can_be_frozen_after_quantize(suffix, tmp_path):
    """All of it, unlike by `freeze_batch_norm`."""
    qat = quantize(build("union_block"), representative_data=(images(),))
    (norm, *_) = (layer for layer in qat.layers if "norm" in layer.name)
    variables = len(qat.trainable_variables)
    norm.trainable = False
    assert norm.trainable_variables == []
    assert len(qat.trainable_variables) == variables - 2
    save_qat(qat, tmp_path / f"qat.{suffix}")
    loaded = load_qat(tmp_path / f"qat.{suffix}")
    assert len(loaded.trainable_variables) == variables - 2
    norm.trainable = True
    assert len(qat.trainable_variables) == variables


@pytest.mark.parametrize(
    ("activation", "loss"),
    [
        ("softmax", tf_keras.losses.SparseCategoricalCrossentropy),
        ("sigmoid", tf_keras.losses.BinaryCrossentropy),
        (tf.nn.sigmoid, tf_keras.losses.BinaryCrossentropy),
    ],
)
def test_probabilities_train_like_their_logits(activation, loss, tmp_path):
    """An example that is badly wrong: its probability is 0 on the file's grid of 1/256."""
    dense = layers.Dense(4, activation=activation)
    model = tf_keras.Sequential([layers.Input((8, 8, 3)), layers.Flatten(), dense])
    randomize(model)
    dense.bias.assign([12.0, -12.0, -12.0, -12.0])
    qat = quantize(model, representative_data=(images(),))
    save_qat(qat, tmp_path / "qat.h5")
    for twin in (qat, load_qat(tmp_path / "qat.h5")):
        inside = tf_keras.Model(twin.inputs, twin.layers[-2].output)
        labels = np.ones((64, 1) if loss.__name__.startswith("Sparse") else (64, 4))
        assert (computed(twin, images())[:, 1] == 0.0).all()
        expected = loss(from_logits=True)(labels, inside(images())).numpy()
        assert expected > 5.0
        bias = twin.layers[-2].layer.bias
        start = bias.numpy()
        twin.compile(tf_keras.optimizers.SGD(1.0), loss(), run_eagerly=True)
        assert twin.evaluate(images(), labels, 64, verbose=0) == pytest.approx(expected, rel=1e-5)
        history = twin.fit(images(), labels, batch_size=64, verbose=0).history
        assert history["loss"][0] == pytest.approx(expected, rel=1e-2)
        assert (bias.numpy() - start)[1] > 0.2


def test_training_lowers_the_loss():
    rng = np.random.default_rng(0)
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(2)(layers.GlobalAveragePooling2D()(x))
    qat = quantize(randomize(tf_keras.Model(inputs, x)))
    labels = rng.integers(0, 2, 64)
    inputs_by_label = images() + labels[:, None, None, None]
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    qat.compile(tf_keras.optimizers.SGD(0.1), loss)
    losses = qat.fit(inputs_by_label, labels, batch_size=16, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
