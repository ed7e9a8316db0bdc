"""float16 layers on a CPU, computed as a GPU's matrix units compute them.

Those multiply float16 operands, add up in float32 and hand on float16. TensorFlow's own float16
kernels for CPUs are up to hundreds of times slower than its float32 ones; a float32 kernel
between two casts gives what matrix units give, at the speed of float32. What is handed from layer
to layer, forward and backward, is float16 and overflows and underflows as such.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras.src.mixed_precision import autocast_variable

from ehap_tf.graph import DenseKernel, kernel_of

_KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")


def is_emulated(layer: tf_keras.layers.Layer) -> bool:
    """Whether a layer multiplies float16 where no device does.

    Not where its weights are float16, too: those are not cast when they are read.
    """
    return (
        layer.compute_dtype == "float16"
        and layer.variable_dtype != "float16"
        and any(hasattr(layer, name) for name in _KERNELS)
        and not tf.config.list_physical_devices("GPU")
    )


def round_kernels(model: tf_keras.Model) -> None:
    """Rounds the kernels of emulated layers to float16, in place: the operands they stand for."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, tf_keras.Model) or not is_emulated(layer):
            continue
        for name in _KERNELS:
            kernel = getattr(layer, name, None)
            if kernel is not None:
                kernel.assign(tf.cast(tf.cast(kernel, tf.float16), kernel.dtype))


def emulated_call(layer: tf_keras.layers.Layer, inputs: Any, **kwargs: Any) -> Any:
    """What `layer(inputs)` returns, summed in float32."""
    inputs = tf.cast(tf.cast(inputs, tf.float16), tf.float32)
    with autocast_variable.enable_auto_cast_variables(tf.float32):
        if isinstance(kernel := kernel_of(layer), DenseKernel):
            # Its own call casts the inputs back.
            outputs = kernel.applied(inputs, tf.convert_to_tensor(layer.kernel))
            if layer.use_bias:
                outputs = tf.nn.bias_add(outputs, layer.bias)
            outputs = layer.activation(outputs)
        else:
            outputs = layer.call(inputs, **kwargs)
    return tf.nest.map_structure(lambda output: tf.cast(output, tf.float16), outputs)
