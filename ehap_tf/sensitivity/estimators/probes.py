"""Random signs that depend on their coordinates alone: no generator state, no batch layout.

The sign of example `i` in probe `j` is the same whichever micro-batch, chunk of probes or device
computes it. This is what makes results independent of how the work is split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def kernel_signs(
    seed: int, probe: tf.Tensor, shapes: Sequence[tf.TensorShape], dtype: tf.DType
) -> list[tf.Tensor]:
    """Rademacher vectors of probe number `probe`, one tensor a kernel.

    One draw for all kernels: a draw of its own for each would double the time that it takes to
    build the graph of a deep network.
    """
    key = int(np.random.SeedSequence([seed, 0x6B65726E]).generate_state(1)[0] >> 1)
    sizes = [shape.num_elements() for shape in shapes]
    bits = tf.random.stateless_uniform(
        [sum(sizes)],
        tf.stack([tf.constant(key, tf.int32), probe]),
        minval=None,
        maxval=None,
        dtype=tf.int32,
        alg="philox",  # the same numbers on every kind of device
    )
    signs = tf.cast(1 - 2 * (bits & 1), dtype)
    pieces = tf.split(signs, sizes)
    return [tf.reshape(piece, shape) for piece, shape in zip(pieces, shapes, strict=True)]


def example_signs(
    seed: int, probe: tf.Tensor, first_example: tf.Tensor, shape: tf.Tensor, dtype: tf.DType
) -> tf.Tensor:
    """Rademacher signs for each output of each example.

    Args:
        seed: of the run.
        probe: int32 scalar.
        first_example: int32 scalar, the number of the first example in the whole Hessian batch.
        shape: int32 vector (examples, ...) of the outputs.
        dtype: of the result.

    Returns:
        Tensor of `shape` with entries -1 and 1.
    """
    key = int(np.random.SeedSequence([seed, 0x65786D70]).generate_state(1)[0])
    row_key = _mix(tf.bitwise.bitwise_xor(tf.constant(key, tf.uint32), tf.cast(probe, tf.uint32)))
    rows = tf.cast(first_example + tf.range(shape[0]), tf.uint32)
    columns = tf.cast(tf.range(tf.reduce_prod(shape[1:])), tf.uint32)
    rows = _mix(row_key + rows * tf.constant(0x9E3779B9, tf.uint32))
    bits = _mix(rows[:, tf.newaxis] + columns[tf.newaxis] * tf.constant(0x85EBCA6B, tf.uint32))
    top = tf.cast(tf.bitwise.right_shift(bits, tf.constant(31, tf.uint32)), tf.int32)
    return tf.reshape(tf.cast(1 - 2 * top, dtype), shape)


def _mix(x: tf.Tensor) -> tf.Tensor:
    """The integer hash "lowbias32" of C. Wellons: every input bit flips every output bit."""

    def fold(x: tf.Tensor, bits: int) -> tf.Tensor:
        return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(bits, tf.uint32)))

    x = fold(x, 16) * tf.constant(0x7FEB352D, tf.uint32)
    x = fold(x, 15) * tf.constant(0x846CA68B, tf.uint32)
    return fold(x, 16)
