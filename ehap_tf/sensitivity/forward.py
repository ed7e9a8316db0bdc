"""A functional model's inference pass, written out so that curvature is cheap to differentiate.

Two things differ from calling the model. BatchNorm in inference mode is an affine map with
constant coefficients, and is computed as one: the second derivative of the fused BatchNorm kernel
costs many times more memory. And a final softmax or sigmoid can be left out, because losses are
computed from logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

LayerCall = Callable[[tf_keras.layers.Layer, str, tuple[Any, ...], dict[str, Any]], Any]
"""Computes a layer: called with the layer, its name ("outer/inner" when nested), its arguments."""


def call_layer(
    layer: tf_keras.layers.Layer, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The layer's output in inference mode."""
    del name
    if _is_plain_batch_norm(layer) and not kwargs.get("training"):
        return batch_norm_affine(layer, args[0])
    if getattr(layer, "_expects_training_arg", False):
        kwargs = {**kwargs, "training": kwargs.get("training") or False}
    return layer(*args, **kwargs)


def run_graph(
    model: tf_keras.Model, inputs: Any, call: LayerCall = call_layer, prefix: str = ""
) -> Any:
    """Computes a functional model node by node, each layer by `call`; nested models are opened.

    Args:
        model: Functional or built Sequential model.
        inputs: what the model takes.
        call: computes one layer.
        prefix: goes before the layers' names.

    Returns:
        What `model(inputs, training=False)` returns.
    """
    reference = model.inputs
    values: dict[str, list[Any]] = {}
    usage = model._tensor_usage_count
    for x, y in zip(reference, model._flatten_to_reference_inputs(inputs), strict=True):
        values[str(id(x))] = [model._conform_to_reference_input(y, ref_input=x)] * usage[str(id(x))]
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args, kwargs = node.map_arguments(values)
            name = prefix + node.layer.name
            if isinstance(node.layer, tf_keras.Model):
                outputs = run_graph(node.layer, args[0], call, name + "/")
            else:
                outputs = call(node.layer, name, args, kwargs)
            for key, output in zip(node.flat_output_ids, tf.nest.flatten(outputs), strict=True):
                values[key] = [output] * usage[key]
    flat = [values[str(id(x))].pop() for x in model.outputs]
    return tf.nest.pack_sequence_as(model._nested_outputs, flat)


def batch_norm_affine(layer: tf_keras.layers.BatchNormalization, x: tf.Tensor) -> tf.Tensor:
    """BatchNorm with its moving statistics as `x * scale + offset`, in float32 at least."""
    variance = tf.convert_to_tensor(layer.moving_variance)
    scale = tf.math.rsqrt(variance + tf.cast(layer.epsilon, variance.dtype))
    if layer.scale:
        scale = scale * tf.cast(layer.gamma, scale.dtype)
    offset = -tf.convert_to_tensor(layer.moving_mean) * scale
    if layer.center:
        offset = offset + tf.cast(layer.beta, offset.dtype)
    axis = layer.axis[0]
    if axis != x.shape.rank - 1:
        shape = [1] * x.shape.rank
        shape[axis] = -1
        scale, offset = tf.reshape(scale, shape), tf.reshape(offset, shape)
    wide = tf.cast(x, scale.dtype)
    return tf.cast(wide * scale + offset, layer.compute_dtype)


def _is_plain_batch_norm(layer: tf_keras.layers.Layer) -> bool:
    # Subclasses may compute anything; they are called as they are.
    return type(layer) in _BATCH_NORMS and len(layer.axis) == 1 and not layer.renorm


_BATCH_NORMS = (
    tf_keras.layers.BatchNormalization,
    tf_keras.layers.experimental.SyncBatchNormalization,
)
