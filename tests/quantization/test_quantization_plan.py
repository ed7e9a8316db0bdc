"""A plan of quantization: what it says, how it is edited, and that `quantize` follows it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tf_keras

import ehap_tf as ehap
from ehap_tf.graph import nodes_in_order
from tests.quantization.nets import images, randomize

layers = tf_keras.layers


def net() -> tf_keras.Model:
    """A convolution with BatchNorm and ReLU, a residual sum, a nested head of two Dense layers."""
    i = layers.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(i)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    y = layers.Conv2D(6, 3, padding="same", name="branch")(x)
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([x, y]))
    x = layers.Dropout(0.2, name="drop")(layers.MaxPooling2D(name="pool")(x))
    f = layers.Input((96,))
    z = layers.Dense(8, activation="relu", name="hidden")(f)
    top = tf_keras.Model(f, layers.Dense(4, name="logits")(z), name="head")
    return randomize(tf_keras.Model(i, top(layers.Flatten(name="flat")(x))))


@pytest.fixture(scope="module")
def model() -> tf_keras.Model:
    return net()


@pytest.fixture(scope="module")
def plan(model) -> ehap.QuantizationPlan:
    return ehap.plan_quantization(model)


def test_it_says_where_every_output_is_quantized(plan):
    said = {layer.name: (layer.output, layer.other) for layer in plan.layers}
    assert said == {
        "image_quantize": ("own", ""),
        "stem": ("inside", "norm"),
        "norm": ("inside", "relu"),
        "relu": ("own", ""),
        "branch": ("own", ""),
        "sum": ("inside", "sum_relu"),
        "sum_relu": ("own", ""),
        "pool": ("input", "sum_relu"),
        "drop": ("input", "pool"),
        "flat": ("input", "drop"),
        "hidden": ("inside", "hidden_relu"),
        "hidden_relu": ("own", ""),
        "logits": ("own", ""),
    }
    assert plan.bits == {"stem": 8, "branch": 8, "hidden": 8, "logits": 8}
    assert repr(plan) == "QuantizationPlan(13 layers, 4 kernels of 8 bits, 0 in float)"


def test_the_table_has_a_line_for_each_layer(plan):
    first, *lines = plan.summary().splitlines()
    assert first.split() == ["layer", "kind", "weights", "output"]
    assert [line.split()[0] for line in lines] == [layer.name for layer in plan.layers]
    assert "stem            Conv2D              8 bits per channel  inside norm" in lines
    assert "pool            MaxPooling2D                            grid of sum_relu" in lines


def test_it_survives_json(plan):
    edited = plan.with_bits({"*": 4, "logits": 8})
    assert ehap.QuantizationPlan.from_json(edited.to_json()) == edited
    for text, message in {
        "{": "not a quantization plan: Expecting",
        "{}": "has no format",
        json.dumps({**json.loads(plan.to_json()), "more": 1}): "more",
        plan.to_json().replace('"weight_bits": 8', '"weight_bits": 5'): "Received: 5",
    }.items():
        with pytest.raises(ValueError, match=message):
            ehap.QuantizationPlan.from_json(text)


def test_a_plan_with_all_defaults_makes_the_same_file(model, plan, tmp_path):
    files = []
    for options in ({}, {"plan": plan}, {"plan": ehap.QuantizationPlan.from_json(plan.to_json())}):
        qat = ehap.quantize(model, "ptq", representative_data=images(), **options)
        ehap.export_tflite(qat, tmp_path / "net.tflite")
        files.append((tmp_path / "net.tflite").read_bytes())
    assert files[0] == files[1] == files[2]


def test_single_kernels_get_other_bits(model, plan, tmp_path):
    mixed = plan.with_bits({"stem": 4, "hid*": 4})
    assert mixed.bits == {"stem": 4, "branch": 8, "hidden": 4, "logits": 8}
    qat = ehap.quantize(model, "ptq", representative_data=images(), plan=mixed)
    file = ehap.export_tflite(qat, tmp_path / "net.tflite", data=images())
    assert file.tensor_types["INT4"] == 2
    assert not file.float_operators


@pytest.mark.parametrize("pattern", ["head", "head/*"])
def test_layers_are_kept_in_float_by_name(model, pattern, tmp_path):
    plan = ehap.plan_quantization(model, keep_float=(pattern,))
    kept = [layer.name for layer in plan.layers if layer.output == "float"]
    assert kept == (["head"] if pattern == "head" else ["hidden", "logits"])
    qat = ehap.quantize(model, "ptq", representative_data=images(), plan=plan)
    # From the first layer of the head to the last nothing is rounded.
    (node,) = (node for node in nodes_in_order(qat) if node.layer.name == kept[0])
    read = tf_keras.Model(qat.inputs, node.keras_inputs[0])(images())
    head = model.get_layer("head")(read)
    quantized = qat(images())
    step = (quantized.numpy().max() - quantized.numpy().min()) / 255
    np.testing.assert_allclose(quantized, head, atol=0.6 * step)
    with pytest.raises(ValueError, match=r"compute in floating point: .*FULLY_CONNECTED"):
        ehap.export_tflite(qat, tmp_path / "net.tflite")
    file = ehap.export_tflite(qat, tmp_path / "net.tflite", allow_float=True, data=images())
    assert file.agreement is not None and file.agreement > 0.9
    ehap.save_qat(qat, tmp_path / "net.keras")
    np.testing.assert_array_equal(ehap.load_qat(tmp_path / "net.keras")(images()), qat(images()))


@pytest.mark.parametrize(
    ("pattern", "operator"),
    [("branch", "CONV_2D"), ("sum", "ADD"), ("head/hidden", "FULLY_CONNECTED"), ("pool", None)],
)
def test_the_converter_leaves_in_float_what_is_kept(model, pattern, operator, tmp_path):
    """Alone between quantizations, where it makes integers of all that it can."""
    plan = ehap.plan_quantization(model, keep_float=(pattern,))
    qat = ehap.quantize(model, "ptq", representative_data=images(), plan=plan)
    file = ehap.export_tflite(qat, tmp_path / "net.tflite", allow_float=True, data=images())
    computing = {name.split()[0] for name in file.float_operators} - {"ABS", "SIGN", "MUL"}
    # What only selects values loses nothing on its input's grid.
    assert computing == ({operator} if operator else set())


def test_what_is_kept_in_float_in_the_middle_trains(model):
    plan = ehap.plan_quantization(model, keep_float=("branch", "sum", "drop"))
    kept = {layer.name: layer for layer in plan.layers if layer.output == "float"}
    # Dropout does nothing at inference, and needs no float for it.
    assert {name: layer.kind for name, layer in kept.items()} == {"branch": "Conv2D", "sum": "Add"}
    qat = ehap.quantize(model, representative_data=images(), plan=plan)
    assert any("branch" in weight.name for weight in qat.trainable_weights)
    qat.compile("sgd", "mse")
    before = qat.get_layer("branch").layer.kernel.numpy()
    qat.fit(images(32), np.ones((32, 4), np.float32), verbose=0)
    assert np.abs(qat.get_layer("branch").layer.kernel - before).max() > 0


def test_a_plan_of_another_model_is_refused(model, plan):
    other = tf_keras.Sequential([layers.Input((8, 8, 3)), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ValueError, match="plan must be one that plan_quantization made of this"):
        ehap.quantize(other, plan=plan)
    shorter = dataclasses.replace(plan, layers=plan.layers[:-1])
    with pytest.raises(ValueError, match=r"13 layers. Received: 12 layers"):
        ehap.quantize(model, plan=shorter)
    last = dataclasses.replace(plan.layers[-1], output="fixed")
    with pytest.raises(ValueError, match=r"'own range'. Received: layer 'logits'"):
        ehap.quantize(model, plan=dataclasses.replace(plan, layers=(*plan.layers[:-1], last)))


def test_arguments_beside_a_plan_are_refused(model, plan):
    with pytest.raises(ValueError, match="plan says it all: leave weight_bits"):
        ehap.quantize(model, weight_bits=4, plan=plan)


@pytest.mark.parametrize(
    ("bits", "message"),
    [({"stem": 5}, "bits of 'stem' must be one of"), ({"relu": 4}, "must name layers with a kern")],
)
def test_bits_that_there_are_not_are_refused(plan, bits, message):
    with pytest.raises(ValueError, match=message):
        plan.with_bits(bits)


def test_patterns_that_fit_nothing_are_refused(model):
    with pytest.raises(ValueError, match=r"keep_float must fit names .*head/logits.*'haed/"):
        ehap.plan_quantization(model, keep_float=("haed/*",))
    with pytest.raises(TypeError, match="the text 'head'"):
        ehap.plan_quantization(model, keep_float="head")


def test_transposed_convolutions_have_no_four_bits():
    i = layers.Input((4, 4, 2))
    model = randomize(tf_keras.Model(i, layers.Conv2DTranspose(3, 2, name="up")(i)))
    plan = ehap.plan_quantization(model, 4)
    assert plan.bits == {"up": 8}
    with pytest.raises(ValueError, match="'up'"):
        ehap.quantize(model, plan=plan.with_bits({"up": 4}))
