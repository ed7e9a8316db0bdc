"""Inputs are quantized, so that none may be looked up in a table."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.quantization import quantize
from tests.pruning.nets import computed
from tests.quantization.nets import conv, head, images, layers, randomize


def image_and_category(look_up, dtype: str) -> tf_keras.Model:
    """Sorts images by what is in them and by a category that comes with them."""
    image, category = layers.Input((8, 8, 3)), layers.Input((2,), dtype=dtype, name="category")
    x = layers.Concatenate()([head(conv(image)), layers.Flatten()(look_up(category))])
    return randomize(tf_keras.Model([image, category], layers.Dense(4)(x)))


def embedded(x):
    return layers.Embedding(200, 4, name="table")(x)


@pytest.mark.parametrize(
    ("look_up", "dtype", "text"),
    [
        (embedded, "int32", r"'table' \(Embedding\).*int32"),
        (embedded, "uint8", r"'table' \(Embedding\).*uint8"),
        (embedded, "float32", r"'table' \(Embedding\).*float32"),
        (lambda x: embedded(layers.Reshape((2, 1))(x)[:, :1]), "int32", "'table'"),
        (lambda x: embedded(tf.cast(x, tf.int64)), "float32", "cast"),
        (layers.CategoryEncoding(200, "multi_hot", name="table"), "float32", "'table'"),
        (layers.Lambda(lambda x: tf.one_hot(tf.cast(x, tf.int32), 200)), "int32", "lambda"),
    ],
    ids=["int32", "uint8", "float32", "moved", "cast", "encoding", "lambda"],
)
def test_an_input_that_is_looked_up_is_refused(look_up, dtype, text):
    model = image_and_category(look_up, dtype)
    with pytest.raises(ValueError, match=rf"input 'category' must not be read by.*{text}"):
        quantize(model, allow_float=True)


def test_pixels_that_a_layer_in_float_reads_are_not():
    inputs = layers.Input((8, 8, 3), dtype="uint8")
    halves = layers.Lambda(lambda x: tf.cast(x, tf.float32) / 128.0 - 1.0)(inputs)
    model = randomize(tf_keras.Model(inputs, head(conv(halves))))
    x = np.clip(128.0 + 50.0 * images(), 0, 255).astype(np.uint8)
    qat = quantize(model, representative_data=(x,), allow_float=True)
    expected = computed(model, x)
    difference = computed(qat, x.astype(np.float32)) - expected
    assert np.abs(difference).mean() <= 0.05 * np.abs(expected).mean()
