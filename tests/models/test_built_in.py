from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.models import MODEL_NAMES, build_model
from ehap_tf.models.networks.blocks import Blocks

# Trainable parameters of the published networks (10 classes): for the padded ResNets those of
# He et al.'s option A, for the others by the sum over their layers.
TRAINABLE = {
    "resnet20a": 269_722,
    "resnet32a": 464_154,
    "resnet56a": 853_018,
    "resnet20": 272_474,
    "resnet32": 466_906,
    "wrn16_4": 2_748_890,
    "vgg16": 14_724_042,
}


def trainable(model: tf_keras.Model) -> int:
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


@pytest.mark.parametrize("name", sorted(TRAINABLE))
def test_the_published_number_of_parameters(name: str):
    assert trainable(build_model(name)) == TRAINABLE[name]


# The deepest and widest ones are the same code with other numbers.
@pytest.mark.parametrize("name", ["resnet8", "resnet8a", "wrn16_4", "preresnet29", "vgg16"])
def test_every_family_ends_in_finite_logits(name: str):
    model = build_model(name, num_classes=7)
    assert model.layers[-1].name == "logits"
    assert model.name == name
    outputs = model(np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32))
    assert outputs.shape == (2, 7)
    assert np.all(np.isfinite(outputs))
    assert np.std(outputs) > 1e-3


def test_all_names_are_there():
    expected = {f"resnet{d}{form}" for d in (8, 20, 32, 44, 56, 110) for form in ("", "a")}
    assert set(MODEL_NAMES) == expected | {"wrn16_4", "wrn28_8", "wrn28_10", "preresnet29", "vgg16"}


def test_convolutional_layers_count_up_to_the_depth_in_the_name():
    for name, depth in (("resnet20", 20), ("resnet32a", 32), ("preresnet29", 29), ("vgg16", 14)):
        layers = build_model(name).layers
        counted = [
            layer
            for layer in layers
            if isinstance(layer, (tf_keras.layers.Conv2D, tf_keras.layers.Dense))
            and "shortcut" not in layer.name
        ]
        assert len(counted) == depth


def test_the_seed_decides_the_weights_and_no_global_seed_matters():
    tf.random.set_seed(1)
    first = build_model("resnet8", seed=3).get_weights()
    tf.random.set_seed(2)
    tf.random.normal([3])
    again = build_model("resnet8", seed=3).get_weights()
    other = build_model("resnet8", seed=4).get_weights()
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(first[0] != other[0])


def test_building_draws_nothing_from_the_global_generator():
    tf_keras.utils.set_random_seed(7)
    expected = tf.random.normal([4]).numpy(), np.random.random(), tf_keras.layers.Dense(3)
    expected_kernel = expected[2](np.ones((1, 2), np.float32)).numpy()
    tf_keras.utils.set_random_seed(7)
    build_model("resnet8")
    np.testing.assert_array_equal(tf.random.normal([4]).numpy(), expected[0])
    assert np.random.random() == expected[1]
    np.testing.assert_array_equal(
        tf_keras.layers.Dense(3)(np.ones((1, 2), np.float32)), expected_kernel
    )


def test_layers_of_one_shape_start_differently_with_he_variance():
    model = build_model("resnet20")
    kernels = [w.numpy() for w in model.weights if w.shape == (3, 3, 64, 64)]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels) == 5
    variance = np.var(np.stack(kernels)) * 3 * 3 * 64
    assert abs(variance - 2.0) < 0.05


def test_width_multiplies_every_layer():
    narrow, wide = build_model("resnet8"), build_model("resnet8", width=2)
    for a, b in zip(narrow.layers[1:-1], wide.layers[1:-1], strict=True):
        assert b.output_shape[-1] == 2 * a.output_shape[-1]
    assert wide.output_shape == narrow.output_shape


def test_the_shortcut_without_weights_subsamples_and_centres_the_channels():
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 16)).astype(np.float32)
    inputs = tf_keras.Input((8, 8, 16))
    model = tf_keras.Model(inputs, Blocks(0).shift_channels(inputs, 32, 2, "s"))
    expected = np.zeros((2, 4, 4, 32), np.float32)
    expected[..., 8:24] = image[:, ::2, ::2]
    np.testing.assert_array_equal(model(image), expected)


def test_no_layer_has_a_regularizer_and_losses_are_empty():
    assert build_model("resnet8").losses == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet33"}, r"resnet8, resnet20.*vgg16, or of .*: 'resnet33'"),
        ({"name": "resnet8", "num_classes": 0}, "num_classes .* Received: 0"),
        ({"name": "resnet8", "width": 0}, "width .* Received: 0"),
        ({"name": "resnet8", "seed": -1}, "seed .* Received: -1"),
        ({"name": "vgg16", "input_shape": (8, 8, 3)}, r"input_shape .*\(8, 8, 3\)"),
    ],
)
def test_impossible_networks(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build_model(**arguments)
