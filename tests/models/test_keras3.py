"""Keras 3 models become tf_keras models and come back: outputs, names, flags, refusals."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.models import load_model, save_model, to_keras3, to_tf_keras
from tests.models.keras3_nets import (
    NETS,
    arrays,
    distance,
    operators,
    outputs,
    residual,
    sequential,
    with_random_weights,
)

layers = keras.layers


@pytest.mark.parametrize("name", NETS)
def test_there_and_back(name: str, tmp_path: pathlib.Path):
    model = with_random_weights(NETS[name]())
    x = arrays(model)
    expected = outputs(model, x)

    copy = to_tf_keras(model)

    assert isinstance(copy, tf_keras.Model)
    assert distance(expected, outputs(copy, x)) < 1e-5
    assert [layer.name for layer in copy.layers] == _names(model)
    assert copy.name == model.name

    back = to_keras3(copy)

    assert isinstance(back, type(model))
    assert distance(expected, outputs(back, x)) < 1e-5
    assert _names(back) == _names(model)
    for mine, theirs in zip(model.weights, back.weights, strict=True):
        assert mine.path.split("/")[-2:] == theirs.path.split("/")[-2:]
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    # What was made can be saved by its own Keras.
    back.save(tmp_path / "back.keras")
    loaded = keras.saving.load_model(tmp_path / "back.keras")
    assert distance(expected, outputs(loaded, x)) < 1e-5
    copy.save(tmp_path / "copy.keras")
    assert (
        distance(expected, outputs(tf_keras.models.load_model(tmp_path / "copy.keras"), x)) < 1e-5
    )


def test_regularizers_constraints_policies_and_flags_survive():
    regularizer = keras.regularizers.L1L2(1e-4, 1e-3)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, kernel_regularizer=regularizer, kernel_constraint="max_norm"),
            layers.BatchNormalization(trainable=False, gamma_regularizer="l2"),
            layers.Dense(2, activity_regularizer="l1", dtype="mixed_bfloat16", trainable=False),
        ]
    )
    copy = to_tf_keras(model)
    back = to_keras3(copy)
    for other, maker in ((copy, tf_keras), (back, keras)):
        conv, norm, dense = other.layers
        assert isinstance(conv.kernel_regularizer, maker.regularizers.L1L2)
        assert float(conv.kernel_regularizer.l1) == pytest.approx(1e-4)
        assert float(conv.kernel_regularizer.l2) == pytest.approx(1e-3)
        assert isinstance(conv.kernel_constraint, maker.constraints.MaxNorm)
        assert isinstance(norm.gamma_regularizer, maker.regularizers.L2)
        assert isinstance(dense.activity_regularizer, maker.regularizers.L1)
        assert [layer.trainable for layer in other.layers] == [True, False, False]
        assert len(other.trainable_weights) == 2
        assert dense.compute_dtype == "bfloat16"
    assert back.layers[0].kernel_regularizer.l1 == 1e-4


def test_the_model_given_stays_as_it_is():
    model = with_random_weights(residual())
    weights, config = model.get_weights(), model.get_config()
    copy = to_tf_keras(model)
    for weight in copy.weights:
        weight.assign(weight * 0)
    assert model.get_config() == config
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_compiled_model_keeps_loss_and_optimizer():
    model = residual()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    schedule = keras.optimizers.schedules.CosineDecay(0.3, 10)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.8), loss)
    copy = to_tf_keras(model)
    assert isinstance(copy.loss, tf_keras.losses.SparseCategoricalCrossentropy)
    assert copy.loss.get_config()["from_logits"] is True
    assert isinstance(copy.optimizer, tf_keras.optimizers.SGD)
    assert copy.optimizer.momentum == 0.8
    assert float(copy.optimizer.learning_rate) == pytest.approx(0.3)


def test_an_optimizer_that_tf_keras_lacks_is_left_out_aloud():
    model = residual()
    model.compile(keras.optimizers.Lamb(), "mse")
    with pytest.warns(UserWarning, match="has no optimizer 'Lamb'"):
        assert to_tf_keras(model).loss == "mse"


def test_a_loss_that_tf_keras_lacks_is_left_out_aloud():
    model = residual()
    model.compile("sgd", keras.losses.Dice())
    with pytest.warns(UserWarning, match="its compiled loss was left out.*Dice"):
        assert getattr(to_tf_keras(model), "loss", None) is None


def test_the_weights_of_several_losses_are_kept():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [layers.Dense(1, name=name)(inputs) for name in "ab"])
    weights = {"a": 1.0, "b": 0.01}
    model.compile("sgd", {"a": "mse", "b": "mse"}, loss_weights=weights)
    assert to_tf_keras(model).compiled_loss._user_loss_weights == weights


def test_defaults_and_rests_of_operators_are_those_of_tensorflow():
    inputs = tf_keras.Input((4,))
    parts = tf.split(3.0 * inputs, [-1, 1], axis=-1)
    model = tf_keras.Model(inputs, [tf.nn.gelu(part) for part in parts])
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    expected = [np.asarray(part) for part in model(x)]
    for part, received in zip(expected, to_keras3(model)(x), strict=True):
        np.testing.assert_allclose(np.asarray(received), part, rtol=1e-5, atol=1e-6)


class Doubled(layers.Layer):
    def call(self, inputs):
        return 2 * inputs


def _model_with(layer: Any) -> Any:
    inputs = keras.Input((8, 8, 8, 4) if "3D" in type(layer).__name__ else (8, 8, 4))
    return keras.Model(inputs, layer(inputs))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: layers.RMSNormalization(name="norm"), r"'norm' \(RMSNormalization\)"),
        (lambda: Doubled(name="twice"), r"'twice' \(Doubled\): a layer of your own"),
        (
            lambda: layers.Resizing(4, 4, antialias=True, name="small"),
            r"'small' \(Resizing\), argument 'antialias'",
        ),
        (
            lambda: layers.Dense(2, activation=lambda x: x * 2, name="dense"),
            r"'dense' \(Dense\), argument 'activation'",
        ),
        (
            lambda: layers.Dense(2, activation=layers.PReLU(name="slopes"), name="dense"),
            r"'dense' \(Dense\), argument 'activation': .* put it behind.*'slopes' \(PReLU\)",
        ),
        (
            lambda: layers.Conv3DTranspose(2, 3, dilation_rate=2, name="wide"),
            r"'wide' \(Conv3DTranspose\): gives the shape",
        ),
        (lambda: lambda x: keras.ops.cumsum(x, axis=-1), r"operation 'cumsum.*' \(Cumsum\)"),
    ],
)
def test_what_cannot_be_carried_over_is_named(layer: Any, message: str):
    with pytest.raises(ValueError, match=message):
        to_tf_keras(_model_with(layer()))


def test_a_layer_as_activation_is_carried_over(tmp_path: pathlib.Path):
    steep = layers.LeakyReLU(negative_slope=0.7, name="steep")
    model = _model_with(layers.Conv2D(3, 3, activation=steep, name="conv"))
    x = arrays(model)
    expected = outputs(model, x)
    copy = to_tf_keras(model)
    back = to_keras3(copy)
    assert isinstance(copy.get_layer("conv").activation, tf_keras.layers.LeakyReLU)
    assert isinstance(back.get_layer("conv").activation, layers.LeakyReLU)
    for other in (copy, back):
        assert distance(expected, outputs(other, x)) < 1e-5
    back.save(tmp_path / "back.keras")
    loaded = keras.saving.load_model(tmp_path / "back.keras")
    assert distance(expected, outputs(loaded, x)) < 1e-5


def test_subclassed_and_unbuilt_models_are_refused():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    inputs = keras.Input((4,))
    for model in (Subclassed(), keras.Model(inputs, Subclassed()(inputs), name="around")):
        with pytest.raises(TypeError, match="is subclassed"):
            to_tf_keras(model)
    with pytest.raises(ValueError, match="has no input shape yet"):
        to_tf_keras(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(TypeError, match=r"Received: builtins\.int"):
        to_tf_keras(3)


def test_layers_of_ones_own_are_found_under_their_registered_name():
    @keras.saving.register_keras_serializable(package="test_keras3")
    class Shifted(keras.layers.Layer):
        def __init__(self, by: float, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.by = by

        def call(self, inputs):
            return inputs + self.by

        def get_config(self):
            return {**super().get_config(), "by": self.by}

    twin = type("Shifted", (tf_keras.layers.Layer,), dict(Shifted.__dict__))
    twin.__init__ = lambda self, by, **kwargs: (
        tf_keras.layers.Layer.__init__(self, **kwargs),
        setattr(self, "by", by),
    )[-1]
    twin.get_config = lambda self: {**tf_keras.layers.Layer.get_config(self), "by": self.by}
    tf_keras.utils.register_keras_serializable(package="test_keras3")(twin)

    model = _model_with(Shifted(3.0, name="shifted"))
    x = arrays(model)
    copy = to_tf_keras(model)
    assert isinstance(copy.get_layer("shifted"), twin)
    assert distance(outputs(model, x), outputs(copy, x)) == 0
    assert isinstance(to_keras3(copy).get_layer("shifted"), Shifted)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_load_model_reads_files_of_keras_3(tmp_path: pathlib.Path, suffix: str):
    # Keras 3 itself cannot read operators back from .h5.
    model = with_random_weights(operators() if suffix == ".keras" else sequential())
    x, path = arrays(model), tmp_path / f"model{suffix}"
    save_model(model, path)
    loaded = load_model(path)
    assert isinstance(loaded, tf_keras.Model)
    assert distance(outputs(model, x), outputs(loaded, x)) < 1e-5


def test_a_keras_3_model_has_no_saved_model_folder(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=r"must end in \.keras or \.h5"):
        save_model(residual(), tmp_path / "folder")


def _names(model: Any) -> list[str]:
    if isinstance(model, keras.Sequential):
        return [layer.name for layer in model.layers]
    return [operation.name for operation in model.operations]
