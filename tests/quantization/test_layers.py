"""Every layer of the zoo becomes integer operators that compute what the QAT model computes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ScatterChannels
from ehap_tf.pruning import plan_pruning, prune
from ehap_tf.quantization import TFLiteModel, export_tflite, quantize
from ehap_tf.quantization.tflite.output_grids import output_step
from tests.pruning.nets import computed, random_scores, small_residual_net
from tests.quantization.nets import (
    NETS,
    SEQUENCE,
    SEQUENCE_NETS,
    SHAPE,
    conv_norm,
    groups,
    head,
    images,
    layers,
    randomize,
    sequences,
    side_by_side,
)


def exported(model, x, path):
    """The QAT model, its outputs, and the steps by which those of its file differ."""
    qat = quantize(model, representative_data=(x,))
    file = export_tflite(qat, path)
    assert file.float_operators == ()
    assert "GATHER" not in file.operators
    outputs = [np.asarray(output) for output in qat(x, training=False)]
    steps = [
        np.abs(received - output) / output_step(qat, number)
        for number, (received, output) in enumerate(
            zip(TFLiteModel(file.path)(x), outputs, strict=True)
        )
    ]
    return outputs, steps


@pytest.mark.parametrize("names", groups(NETS), ids="-".join)
def test_layer_is_integer_in_the_file(names, tmp_path):
    model = side_by_side(NETS, names, SHAPE)
    _, differences = exported(model, images(), tmp_path / "nets.tflite")
    for name, steps in zip(names, differences, strict=True):
        # Ties are rounded the other way now and then, on few inputs, and a dense layer multiplies
        # that; an operator that computed something else is off by tens of steps, or everywhere.
        assert (steps <= 1.001).mean() >= 0.95, name
        assert steps.mean() <= 0.5, name
        assert steps.max() <= 6.001, name


@pytest.mark.parametrize("pruned", [True, pytest.param(False, marks=pytest.mark.families)])
def test_sequences_are_integer_in_the_file(pruned, tmp_path):
    names, x = sorted(SEQUENCE_NETS), sequences()
    model = side_by_side(SEQUENCE_NETS, names, SEQUENCE)
    if pruned:
        plan = plan_pruning(model, random_scores(model, 2), prune_ratio=0.4)
        whole, model = model, prune(model, plan)
        for name, before, after in zip(names, whole(x), model(x), strict=True):
            assert not np.allclose(before, after), name
    outputs, differences = exported(model, x, tmp_path / "nets.tflite")
    for name, output, truth, steps in zip(names, outputs, model(x), differences, strict=True):
        assert np.abs(output - truth).mean() <= 0.03 * np.ptp(output), name
        assert (steps <= 1.001).mean() >= 0.95, name
        # Normalizations multiply what a tie that is rounded the other way is off.
        assert steps.max() <= (6.001 if name == "mixer" else 2.001), name


@pytest.mark.parametrize(
    "between",
    [
        [layers.BatchNormalization(), layers.Dropout(0.2, noise_shape=(None, 1, 1, 1))],
        [layers.BatchNormalization(), layers.MaxPooling2D(2)],
        [layers.ReLU(), layers.MaxPooling2D(2)],
    ],
    ids=["dropout", "pool", "relu"],
)
def test_a_scatter_that_only_its_convolution_feeds_costs_no_operator(between, tmp_path):
    files = []
    for channels, scatter in ((3, [ScatterChannels([4, 0, 3], 6)]), (6, [])):
        inputs = layers.Input(SHAPE)
        x = y = conv_norm(inputs)
        for layer in (layers.Conv2D(channels, 3, padding="same"), *between, *scatter):
            y = type(layer).from_config(layer.get_config())(y)
        if y.shape[1] < x.shape[1]:
            x = layers.MaxPooling2D(2)(x)
        model = randomize(tf_keras.Model(inputs, head(layers.Add()([x, y]))))
        qat = quantize(model, representative_data=(images(),))
        files.append(export_tflite(qat, tmp_path / f"{channels}.tflite"))
        difference = TFLiteModel(files[-1].path)(images()) - computed(qat, images())
        assert np.abs(difference).max() <= 1.001 * files[-1].output.scale
    assert files[0].operators == files[1].operators


def test_a_float_layer_computes_in_the_file_as_at_inference(tmp_path):
    """A crop trains by default, at a place of its own for each batch."""
    inputs = layers.Input((10, 10, 3))
    x = conv_norm(layers.RandomCrop(8, 8)(inputs))
    model = randomize(tf_keras.Model(inputs, head(x)))
    x = np.random.default_rng(0).normal(size=(64, 10, 10, 3)).astype(np.float32)
    qat = quantize(model, representative_data=(x,), allow_float=True)
    file = export_tflite(qat, tmp_path / "net.tflite", allow_float=True, data=(x,))
    assert file.difference <= 0.5


class Halved(layers.Layer):
    """In a loop that the converter does not unroll."""

    def call(self, inputs):
        steps = tf.cast(tf.reduce_max(inputs) > -1e9, tf.int32) + 2
        return tf.while_loop(
            lambda step, x: step < steps, lambda step, x: (step + 1, x * 0.5), (0, inputs)
        )[1]


def test_operators_in_the_body_of_a_loop_are_listed(tmp_path):
    inputs = layers.Input(SHAPE)
    model = randomize(tf_keras.Model(inputs, head(Halved()(conv_norm(inputs)))))
    qat = quantize(model, representative_data=(images(),), allow_float=True)
    file = export_tflite(qat, tmp_path / "net.tflite", allow_float=True)
    assert file.operators["WHILE"] == 1
    assert any(name.startswith("MUL (") for name in file.float_operators)


class Conv2D(layers.Conv2D):
    """Weight standardisation under a name of Keras."""

    def convolution_op(self, inputs, kernel):
        mean, variance = tf.nn.moments(kernel, axes=[0, 1, 2])
        return super().convolution_op(inputs, 0.3 * (kernel - mean) / tf.sqrt(variance + 1e-5))


class BatchNormalization(layers.BatchNormalization):
    """One that centres its gamma at zero."""

    def call(self, inputs, **kwargs):
        return super().call(inputs, **kwargs) + inputs


@pytest.mark.parametrize(
    "own", [lambda: Conv2D(5, 3), BatchNormalization], ids=["Conv2D", "BatchNormalization"]
)
def test_classes_of_the_user_compute_what_they_say_whatever_their_name(own, tmp_path):
    inputs = layers.Input((8, 8, 3))
    layer = own()
    x = layers.BatchNormalization()(layer(layers.Conv2D(5, 3)(inputs)))
    model = randomize(tf_keras.Model(inputs, head(conv_norm(x))))
    text = rf"{layer.name}.*test_layers\.{type(layer).__name__}\).*allow_float=True"
    with pytest.raises(ValueError, match=text):
        quantize(model)
    qat = quantize(model, representative_data=(images(),), allow_float=True)
    difference = computed(qat, images()) - computed(model, images())
    assert np.abs(difference).mean() <= 0.1
    file = export_tflite(qat, tmp_path / "net.tflite", allow_float=True, data=(images(),))
    assert file.difference <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("residual", ["union", "tied"])
def test_implants_are_integer_in_the_file(residual, tmp_path):
    model = randomize(small_residual_net())
    plan = plan_pruning(
        model,
        random_scores(model, 2),
        prune_ratio=0.6,
        implant_ratio=0.5,
        implant_init="center",
        residual=residual,
    )
    assert any(len(filters) for filters in plan.implanted.values())
    qat = quantize(prune(model, plan), representative_data=(images(),))
    file = export_tflite(qat, tmp_path / "net.tflite")
    assert file.float_operators == ()
    assert "GATHER" not in file.operators
    difference = TFLiteModel(file.path)(images()) - computed(qat, images())
    assert np.abs(difference).max() <= 1.001 * file.output.scale
