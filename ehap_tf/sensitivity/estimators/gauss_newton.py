"""The Gauss-Newton sketch of per-filter curvature traces: first derivatives only.

The Gauss-Newton matrix is the sum over examples of J^T S S^T J, with J the Jacobian of the outputs
and S S^T the Hessian of the loss on them. With random signs r per example, u = sum_i J_i^T S_i r_i
is one backward pass, and the squared norm of a filter's part of u is an unbiased, non-negative
estimate of its trace. In a network of piecewise linear layers the Gauss-Newton and the Hessian
trace of a filter are equal, because the outputs are linear in each single layer's weights.

The sum runs over blocks of `BLOCK` examples, and squares are added up over blocks: the products
of different examples, which average to zero and are the larger part of the noise, are then left
out between blocks. The variance falls in proportion to the number of blocks, at no cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ehap_tf.sensitivity.estimators.hutchinson import Step
from ehap_tf.sensitivity.estimators.output_curvature import factor_times
from ehap_tf.sensitivity.estimators.probes import example_signs
from ehap_tf.sensitivity.network.filters import filter_sums
from ehap_tf.sensitivity.network.network import Network

BLOCK = 32
"""Examples whose gradients are added before they are squared."""

Vectors = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.DType], tf.Tensor]
"""`(probe, number of the first example, shape, dtype)` -> what S is multiplied with."""


def sign_vectors(seed: int) -> Vectors:
    """Random signs: the sketch."""
    return lambda probe, first, shape, dtype: example_signs(seed, probe, first, shape, dtype)


def basis_vectors(probe: tf.Tensor, first: tf.Tensor, shape: tf.Tensor, dtype: Any) -> tf.Tensor:
    """1 at output number `probe` of each example: one term of the exact sum."""
    del first
    row = tf.one_hot(probe, tf.reduce_prod(shape[1:]), dtype=dtype)
    return tf.broadcast_to(tf.reshape(row, tf.concat([[1], shape[1:]], 0)), shape)


def gauss_newton_step(network: Network, vectors: Vectors, squared: bool = True) -> Step:
    """Builds the function that back-propagates S v for many probes.

    Args:
        network: what to differentiate.
        vectors: what S is multiplied with.
        squared: True squares, for micro-batches that are whole blocks; False gives u itself, to
            be added to that of the block's other micro-batches.

    Returns:
        `step(inputs, labels, weights, first, probes, scales)` -> (values, finite) with values of
        shape (probes, filters), or (probes, weights) when not `squared`. `scales[1]` multiplies
        the cotangent and is divided out.
    """
    kernels, dtype = network.kernels, network.dtype

    def step(
        inputs: Any, labels: Any, weights: tf.Tensor, first: tf.Tensor, probes: Any, scales: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(kernels)
            outputs = network.forward(inputs)

        def one_probe(index: tf.Tensor, values: tf.TensorArray) -> Any:
            v = vectors(probes[index], first, tf.shape(outputs), outputs.dtype)
            cotangent = factor_times(network, labels, outputs, weights, v) * scales[1]
            gradients = tape.gradient(
                outputs, kernels, output_gradients=cotangent, unconnected_gradients="zero"
            )
            if squared:
                sums = filter_sums(
                    [tf.square(tf.cast(g, dtype)) for g in gradients], network.layers
                )
                # Divided one after the other: the square of the scale may overflow.
                value = sums / scales[1] / scales[1]
            else:
                value = tf.concat([tf.reshape(tf.cast(g, dtype), [-1]) for g in gradients], 0)
                value = value / scales[1]
            return index + 1, values.write(index, value)

        count = tf.shape(probes)[0]
        _, values = tf.while_loop(
            lambda index, _: index < count,
            one_probe,
            (tf.constant(0), tf.TensorArray(dtype, count)),
            parallel_iterations=1,
        )
        return values.stack(), tf.reduce_all(tf.math.is_finite(outputs))

    return step
