from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.models import (
    build_model,
    ends_in_softmax,
    require_finite_weights,
    require_functional,
    require_inputs,
)


class Subclassed(tf_keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.dense = tf_keras.layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


class HalfFunctional(tf_keras.Model):
    """Looks functional but computes something else."""

    def call(self, inputs):
        return super().call(inputs) * 2.0


def sequential(*layers) -> tf_keras.Sequential:
    return tf_keras.Sequential([tf_keras.Input((4,)), *layers])


def test_functional_and_sequential_models_pass():
    require_functional(build_model("resnet8"))
    require_functional(sequential(tf_keras.layers.Dense(2)))


def test_a_subclassed_model_is_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"'mine' is subclassed \(Subclassed\).*functional API"):
        require_functional(Subclassed())


def test_a_nested_subclassed_model_is_refused():
    with pytest.raises(TypeError, match="'mine' inside 'outer' is subclassed"):
        inputs = tf_keras.Input((4,))
        require_functional(tf_keras.Model(inputs, Subclassed()(inputs), name="outer"))


def test_a_functional_model_with_a_call_of_its_own_is_refused():
    inputs = tf_keras.Input((4,))
    with pytest.raises(TypeError, match="HalfFunctional"):
        require_functional(HalfFunctional(inputs, tf_keras.layers.Dense(2)(inputs)))


def test_a_sequential_model_without_input_shape():
    with pytest.raises(ValueError, match=r"no input shape.*model\.build"):
        require_functional(tf_keras.Sequential([tf_keras.layers.Dense(2)]))


def test_something_else():
    with pytest.raises(TypeError, match=r"Received: builtins\.int"):
        require_functional(8)
    with pytest.raises(TypeError, match=r"Received: the path 'resnet8'; load it first"):
        require_functional("resnet8")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(value: float):
    model = build_model("resnet8")
    require_finite_weights(model)
    layer = model.get_layer("stage2_block1_conv1")
    kernel = layer.kernel.numpy()
    kernel[0, 0, 0, :2] = value
    layer.kernel.assign(kernel)
    with pytest.raises(ValueError, match=r"stage2_block1_conv1/kernel.* 2 NaN or infinite"):
        require_finite_weights(model)


def test_logits_and_probabilities_are_told_apart():
    dense = tf_keras.layers.Dense
    assert not ends_in_softmax(build_model("resnet8"))
    assert not ends_in_softmax(sequential(dense(3, activation="softmax"), dense(3)))
    for activation in ("softmax", tf.nn.softmax, tf_keras.layers.Softmax()):
        assert ends_in_softmax(sequential(dense(3, activation=activation)))
    assert ends_in_softmax(sequential(dense(3), tf_keras.layers.Softmax()))
    assert ends_in_softmax(sequential(dense(3), tf_keras.layers.Activation("softmax")))
    assert ends_in_softmax(sequential(sequential(dense(3, activation="softmax"))))
    inputs = tf_keras.Input((3,))
    assert ends_in_softmax(tf_keras.Model(inputs, tf.nn.softmax(inputs)))
    assert not ends_in_softmax(tf_keras.Model(inputs, tf.nn.softmax(inputs) * 2.0))


def two_inputs() -> tf_keras.Model:
    image = tf_keras.Input((None, None, 3), name="image")
    size = tf_keras.Input((2,), name="size")
    pooled = tf_keras.layers.GlobalAveragePooling2D()(image)
    return tf_keras.Model([image, size], tf_keras.layers.Concatenate()([pooled, size]))


def test_inputs_that_a_model_takes():
    image, size = np.zeros((5, 7, 9, 3)), np.zeros((5, 2))
    require_inputs(two_inputs(), (image, size))
    require_inputs(two_inputs(), {"size": size, "image": image})
    require_inputs(sequential(tf_keras.layers.Dense(2)), np.zeros((5, 4)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((np.zeros((5, 7, 9, 1)), np.zeros((5, 2))), r"\(None, None, None, 3\).*\(5, 7, 9, 1\)"),
        ((np.zeros((5, 7, 9, 3)), np.zeros(5)), r"x of shape \(None, 2\).*shape \(5,\)"),
        (np.zeros((5, 7, 9, 3)), "inputs: 2. Received: 1"),
        (tuple(np.zeros((5, 7, 9, 3))), "inputs: 2. Received: 5"),
    ],
)
def test_inputs_of_another_shape_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message.replace("x of", "x must hold inputs of")):
        require_inputs(two_inputs(), inputs, "x")
