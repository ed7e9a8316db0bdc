"""What removed channels contributed on average goes into the biases that come next."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras

import ehap_tf as ehap
from tests.pruning.nets import ROUNDING, computed, relative_error, shake, without

layers = tf_keras.layers


def plain_net(biases: bool) -> tf_keras.Model:
    """Without BatchNorm; filters 1 and 4 of "first" and 2 of "second" are constant."""
    x = inputs = layers.Input((10, 10, 3))
    x = layers.Conv2D(6, 3, name="first", activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(5, 3, use_bias=biases, name="second")(x)
    x = layers.Activation("sigmoid")(x)
    x = layers.Dense(4, use_bias=biases, name="logits")(layers.Flatten()(x))
    model = shake(tf_keras.Model(inputs, x))
    make_constant(model.get_layer("first"), [1, 4], 0.7)
    if biases:
        make_constant(model.get_layer("second"), [2], -0.4)
    return model


def make_constant(layer: tf_keras.layers.Layer, filters: list[int], value: float) -> None:
    kernel, bias = layer.get_weights()
    kernel[..., filters], bias[filters] = 0, value
    layer.set_weights([kernel, bias])


def data(examples: int = 24) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(examples, 10, 10, 3)).astype(np.float32)
    return x, np.zeros(examples, np.int64)


def test_constant_channels_go_without_a_trace() -> None:
    for biases in (True, False):
        model = plain_net(biases)
        removed = {"first": [1, 4]} | ({"second": [2]} if biases else {})
        plan = without(model, **removed)
        x, y = data()
        slim = ehap.prune(model, plan)
        made_up = ehap.compensate(slim, model, plan, (x, y), batches=1)
        expected = computed(model, x)
        assert relative_error(computed(made_up, x), expected) < ROUNDING
        assert relative_error(computed(slim, x), expected) > 1e-2
        # The arguments stay as they were, and other weights too.
        assert slim.get_layer("second").use_bias is biases
        np.testing.assert_array_equal(
            made_up.get_layer("second").kernel, slim.get_layer("second").kernel
        )
        assert made_up.count_params() == slim.count_params() + (0 if biases else 5)


@pytest.mark.parametrize("filters", [6, 8])
def test_transposed_convolutions_stay_as_they_are(filters: int) -> None:
    x = inputs = layers.Input((10, 3))
    x = layers.Conv1D(8, 3, padding="same", name="first")(x)
    x = layers.Conv1DTranspose(filters, 3, name="transposed")(x)
    x = layers.Dense(4, name="logits")(layers.GlobalAveragePooling1D()(x))
    model = shake(tf_keras.Model(inputs, x))
    plan = without(model, first=[0, 2, 3])
    slim = ehap.prune(model, plan)
    x = np.random.default_rng(0).normal(size=(6, 10, 3)).astype(np.float32)
    made_up = ehap.compensate(slim, model, plan, (x, np.zeros(6)))
    for one, other in zip(slim.get_weights(), made_up.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_mean_of_a_layers_output_is_nearly_kept() -> None:
    model = plain_net(True)
    plan = without(model, first=[0, 2, 3])
    x, y = data()
    slim = ehap.prune(model, plan)
    means = []
    for one in (model, slim, ehap.compensate(slim, model, plan, (x, y))):
        part = tf_keras.Model(one.inputs, one.get_layer("second").output)
        means.append(computed(part, x).mean((0, 1, 2)))
    # Not to rounding: each tap of a kernel sees all positions but a border, another one each.
    assert np.abs(means[2] - means[0]).max() < 0.2 * np.abs(means[1] - means[0]).max()


def test_a_batch_norm_is_left_to_recalibration_unless_it_is_frozen() -> None:
    x = inputs = layers.Input((10, 10, 3))
    x = layers.Conv2D(6, 3, name="first", activation="relu")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(layers.Conv2D(5, 3, name="second")(x)))
    x = layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(x))
    model = shake(tf_keras.Model(inputs, x))
    make_constant(model.get_layer("first"), [1], 0.7)
    plan = without(model, first=[1])
    for frozen in (False, True):
        model.get_layer("bn").trainable = not frozen
        slim = ehap.prune(model, plan)
        made_up = ehap.compensate(slim, model, plan, data())
        same = np.array_equal(made_up.get_layer("second").bias, slim.get_layer("second").bias)
        assert same is not frozen
    images = data()[0]
    error = relative_error(computed(made_up, images), computed(model, images))
    assert error < 1e-5


def test_a_batch_norm_is_seen_in_a_model_that_was_pruned_before() -> None:
    model = tf_keras.Sequential(
        [
            layers.Input((10, 10, 3)),
            layers.Conv2D(6, 3, name="first", activation="relu"),
            layers.Conv2D(5, 3, use_bias=False, name="second"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, name="logits"),
        ]
    )
    once = ehap.prune(shake(model), without(model, first=[0]))
    plan = without(once, first=[1])
    made_up = ehap.compensate(ehap.prune(once, plan), once, plan, data())
    assert not made_up.get_layer("second").use_bias


@pytest.mark.parametrize("inside", [True, False])
def test_a_batch_norm_behind_a_non_linearity_does_not_make_up_for_a_mean(inside: bool) -> None:
    x = inputs = layers.Input((10, 10, 3))
    x = layers.Conv2D(6, 3, name="first", activation="relu")(x)
    x = layers.Conv2D(5, 3, name="second", activation="relu" if inside else None)(x)
    x = layers.BatchNormalization()(x if inside else layers.ReLU()(x))
    x = layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(x))
    model = shake(tf_keras.Model(inputs, x))
    make_constant(model.get_layer("first"), [1], 0.7)
    plan = without(model, first=[1])
    images, labels = data()
    slim = ehap.prune(model, plan)
    made_up = ehap.compensate(slim, model, plan, (images, labels))
    expected = computed(model, images)
    assert relative_error(computed(made_up, images), expected) < ROUNDING
    assert relative_error(computed(slim, images), expected) > 1e-2


def test_a_batch_norm_that_is_called_in_inference_mode_is_not_left_to_recalibration() -> None:
    base = tf_keras.Sequential(
        [
            layers.Input((10, 10, 3)),
            layers.Conv2D(6, 3, name="first", activation="relu"),
            layers.Conv2D(5, 3, name="second"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(),
        ],
        name="base",
    )
    images, labels = data()
    for training in (False, None):
        x = inputs = layers.Input((10, 10, 3))
        x = layers.GlobalAveragePooling2D()(base(x, training=training))
        model = shake(tf_keras.Model(inputs, layers.Dense(4, name="logits")(x)))
        make_constant(base.get_layer("first"), [1], 0.7)
        plan = without(model, **{"base/first": [1]})
        slim = ehap.prune(model, plan)
        made_up = ehap.compensate(slim, model, plan, (images, labels))
        biases = [one.get_layer("base").get_layer("second").bias for one in (slim, made_up)]
        assert np.array_equal(*biases) is (training is None)
        if training is False:
            done = ehap.recalibrate(made_up, (images, labels))
            expected = computed(model, images)
            assert relative_error(computed(done, images), expected) < ROUNDING
