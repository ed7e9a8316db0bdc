"""A layer of every kind is unfolded inputs times a matrix."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from ehap_tf.graph import kernel_of
from tests.pruning.repair.nets import KINDS, images


@pytest.mark.parametrize("kind", KINDS)
def test_unfolded_inputs_times_the_matrix_are_the_outputs(kind: str) -> None:
    make, shape = KINDS[kind]
    layer = make(activation="relu", bias_initializer="random_normal")
    x = images(shape, 3)
    expected = layer(x)
    kernel = kernel_of(layer)
    assert kernel is not None and kernel.filters == expected.shape[-1]
    assert kernel.output_positions(x.shape) == tuple(expected.shape[1:-1])
    value = kernel.value
    np.testing.assert_array_equal(kernel.from_matrix(kernel.matrix(value)), value)
    flat = np.reshape(expected, (-1, expected.shape[-1]))
    every_second = np.arange(0, len(flat), 2)
    found = tf.nn.relu(kernel.outputs(tf.constant(x), every_second))
    np.testing.assert_allclose(found, flat[every_second], atol=1e-5)
