"""Weights and ranges that are not finite are refused at every door, by name."""

import numpy as np
import pytest
import tf_keras

import ehap_tf as ehap
from ehap_tf.quantization import export_float_tflite, require_quantizable
from tests.quantization.nets import images, layers, randomize


def network():
    parts = [
        layers.Input((8, 8, 3)),
        layers.Conv2D(4, 3, use_bias=False, name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(name="relu"),
        layers.Flatten(),
        layers.Dense(2, name="dense"),
    ]
    inner = randomize(tf_keras.Sequential(parts, name="inner"))
    inputs = layers.Input((8, 8, 3))
    return tf_keras.Model(inputs, inner(inputs))


def spoil(layer, index, value):
    weights = layer.get_weights()
    weights[index].flat[0] = value
    layer.set_weights(weights)


SPOILT = [
    ("conv", 0, np.nan, "kernel"),
    ("norm", 3, np.inf, "variance"),
    ("dense", 1, -np.inf, "bias"),
]


@pytest.mark.parametrize(("name", "index", "value", "weight"), SPOILT)
def test_float_models_are_checked(tmp_path, name, index, value, weight):
    model = network()
    spoil(model.layers[-1].get_layer(name), index, value)
    for door in (
        lambda: ehap.quantize(model),
        lambda: ehap.quantize(model, "ptq", representative_data=images()),
        lambda: require_quantizable(model),
        lambda: export_float_tflite(model, tmp_path / "net.tflite"),
    ):
        with pytest.raises(
            ValueError, match=rf"layer '{name}' must be finite.*{weight}:0' .* 1 that"
        ):
            door()
    assert not (tmp_path / "net.tflite").exists()


@pytest.fixture(scope="module")
def qat():
    return ehap.quantize(network(), representative_data=images())


@pytest.mark.parametrize(
    ("name", "weight"),
    [("conv", "kernel"), ("norm", "mean"), ("dense", "bias"), ("relu", "output_max")],
)
def test_quantized_models_are_checked(qat, tmp_path, name, weight):
    before = qat.get_weights()
    variable = next(w for w in qat.weights if name in w.name and weight in w.name)
    variable.assign(np.nan * variable)
    with pytest.raises(ValueError, match=rf"layer '{name}' must be finite.*{weight}:0'"):
        ehap.export_tflite(qat, tmp_path / "net.tflite", data=images())
    qat.set_weights(before)
    assert not (tmp_path / "net.tflite").exists()


def test_finite_weights_with_a_product_that_is_not(qat, tmp_path):
    """A variance below zero, as a broken average leaves it."""
    before = qat.get_weights()
    next(w for w in qat.weights if "variance" in w.name).assign([-1.0, 1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="'conv' with its BatchNorm 'norm' must"):
        ehap.export_tflite(qat, tmp_path / "net.tflite")
    qat.set_weights(before)
