"""A functional model's inference pass, written out so that curvature is cheap to differentiate.

Calling the model would give the same numbers. But BatchNorm in inference mode is an affine map with
constant coefficients: computed as one, and folded into the convolution in front of it, it needs no
derivatives of its own and no memory for them, to second order least of all.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection
from typing import Any

import tensorflow as tf
import tf_keras

from ehap_tf.graph import (
    ConvolutionKernel,
    DenseKernel,
    arguments,
    batch_norm_coefficients,
    in_training,
    is_batch_norm,
    is_plain_batch_norm,
    is_time_distributed,
    kernel_of,
    layer_calls,
    model_inside,
    nodes_in_order,
    propagate,
    readers,
    relu_limit,
)
from ehap_tf.sensitivity.network.emulated_float16 import emulated_call, is_emulated

After = Callable[[Any, Any], Any]
"""Called with a node (one call of a layer) and its outputs; returns new outputs.

Inside a TimeDistributed they have the axis of its steps behind that of the examples."""

Before = Callable[[Any, Any], Any]
"""Called with a node and the first argument, before the layer is; returns a new one.

Inside a TimeDistributed as above."""

_FOLDABLE = (ConvolutionKernel, DenseKernel)


def run_graph(
    model: tf_keras.Model,
    inputs: Any,
    after: After | None = None,
    skipped: Collection[int] = (),
    before: Before | None = None,
    training: bool = False,
) -> Any:
    """Computes a functional model in inference mode, node by node.

    Nested models and TimeDistributed layers are opened.

    Args:
        model: Functional or built Sequential model.
        inputs: what the model takes.
        after: changes the outputs of calls.
        skipped: `id()` of layers that hand on their input as it is.
        before: changes the first argument of calls.
        training: the model is nested in another and called in training mode there.

    Returns:
        What `model(inputs, training=training)` returns.
    """
    inputs = tf.nest.map_structure(tf.convert_to_tensor, inputs)
    conformed = [
        model._conform_to_reference_input(y, ref_input=x)
        for x, y in zip(model.inputs, model._flatten_to_reference_inputs(inputs), strict=True)
    ]
    folded = {} if training else _folds(model)
    absorbed = {id(node) for node in folded.values()}

    def visit(node: Any, tensors: list[Any]) -> list[Any]:
        layer = node.layer
        args, kwargs = arguments(node, tensors)
        trains, inside = in_training(node, training), model_inside(layer)
        if before is not None and args and inside is None:
            args = (_keep_mask(args[0], before(node, args[0])), *args[1:])
        if inside is not None:
            run = _run_steps if is_time_distributed(layer) else run_graph
            given = layer._maybe_cast_inputs(args[0]) if inside is not layer else args[0]
            outputs = run(inside, given, after, skipped, before, trains)
        elif id(node) in absorbed or id(layer) in skipped:
            outputs = args[0]
        elif id(node) in folded:
            outputs = _folded_call(layer, folded[id(node)].layer, args[0])
            outputs = _hand_on_mask(layer, args[0], outputs)
        else:
            outputs = _call(layer, args, kwargs, trains)
        if after is not None and inside is None:
            outputs = _keep_mask(outputs, after(node, outputs))
        return list(tf.nest.flatten(outputs))

    return tf.nest.pack_sequence_as(model._nested_outputs, propagate(model, conformed, visit))


def _run_steps(
    model: tf_keras.Model,
    inputs: Any,
    after: After | None,
    skipped: Collection[int],
    before: Before | None,
    training: bool,
) -> Any:
    """What TimeDistributed does: a model on the steps of all examples at once; see `run_graph`."""
    first = tf.nest.flatten(inputs)[0]
    sizes = first.shape[:2].as_list()
    steps = [tf.shape(first)[1] if sizes[1] is None else sizes[1]]
    examples = [-1 if sizes[0] is None else sizes[0]]

    def fold(tensor: Any) -> Any:
        return tf.reshape(tensor, [-1, *_sizes(tensor)[2:]])

    def unfold(tensor: Any) -> Any:
        return tf.reshape(tensor, [*examples, *steps, *_sizes(tensor)[1:]])

    def between(hook: After | Before | None) -> Any:
        """Shows a hook the steps."""
        if hook is None:
            return None

        def shown(node: Any, tensors: Any) -> Any:
            tensors = hook(node, tf.nest.map_structure(unfold, tensors))
            return tf.nest.map_structure(fold, tensors)

        return shown

    masks = [getattr(tensor, "_keras_mask", None) for tensor in tf.nest.flatten(inputs)]
    folded = tf.nest.map_structure(fold, inputs)
    for tensor, mask in zip(tf.nest.flatten(folded), masks, strict=True):
        if mask is not None:
            tensor._keras_mask = fold(mask)
    outputs = run_graph(model, folded, between(after), skipped, between(before), training)
    unfolded = tf.nest.map_structure(unfold, outputs)
    for old, new in zip(tf.nest.flatten(outputs), tf.nest.flatten(unfolded), strict=True):
        mask = getattr(old, "_keras_mask", None)
        if mask is not None:
            new._keras_mask = unfold(mask)
        elif masks[0] is not None:
            mask = masks[0]
            new._keras_mask = tf.reduce_any(mask, axis=list(range(2, mask.shape.rank)))
    return unfolded


def _sizes(tensor: Any) -> list[Any]:
    """The shape of a tensor, in numbers as far as they are fixed."""
    known = tensor.shape.as_list()
    return [tf.shape(tensor)[axis] if size is None else size for axis, size in enumerate(known)]


def mixes_examples(model: tf_keras.Model) -> bool:
    """Whether an example's output depends on the others: BatchNorm with the batch's statistics."""
    return any(trains and is_batch_norm(layer) for layer, trains in layer_calls(model))


def _call(
    layer: tf_keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool
) -> Any:
    if getattr(layer, "_expects_training_arg", False):
        args, kwargs = layer._call_spec.set_arg_value("training", training, args, kwargs, True)
    if _is_affine(layer) and not training:
        outputs = _batch_norm(layer, args[0])
    elif relu_limit(layer) == math.inf:
        outputs = _relu(tf.cast(args[0], layer.compute_dtype))
    elif _is_nearest_upsampling(layer):
        outputs = _repeated(layer, tf.cast(args[0], layer.compute_dtype))
    elif is_emulated(layer):
        outputs = emulated_call(layer, *args, **kwargs)
    else:
        return layer(*args, **kwargs)
    return _hand_on_mask(layer, args[0], outputs)


def _hand_on_mask(layer: tf_keras.layers.Layer, inputs: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """The outputs with the mask that Keras would have given them."""
    return _keep_mask(inputs, outputs) if layer.supports_masking else outputs


def _keep_mask(old: Any, new: Any) -> Any:
    """What was made of some tensors, with their masks."""
    for before, after in zip(tf.nest.flatten(old), tf.nest.flatten(new), strict=True):
        mask = getattr(before, "_keras_mask", None)
        if mask is not None:
            after._keras_mask = mask
    return new


def _batch_norm(layer: tf_keras.layers.BatchNormalization, inputs: tf.Tensor) -> tf.Tensor:
    scale, offset = batch_norm_coefficients(layer)
    axis, rank = layer.axis[0], inputs.shape.rank
    if axis != rank - 1:
        shape = [-1 if i == axis else 1 for i in range(rank)]
        scale, offset = tf.reshape(scale, shape), tf.reshape(offset, shape)
    # In float32 also when the network computes in 16 bits.
    return tf.cast(tf.cast(inputs, scale.dtype) * scale + offset, layer.compute_dtype)


@tf.custom_gradient
def _relu(x: tf.Tensor) -> Any:
    """ReLU with a second derivative that is absent, where TensorFlow's is a tensor of zeros.

    Zeros are written, added up and kept like all other parts of a derivative.
    """
    y = tf.nn.relu(x)
    return y, lambda upstream: _where_positive(upstream, y)


@tf.custom_gradient
def _where_positive(x: tf.Tensor, condition: tf.Tensor) -> Any:
    y = tf.raw_ops.ReluGrad(gradients=x, features=condition)
    return y, lambda upstream: (_where_positive(upstream, condition), None)


def _is_nearest_upsampling(layer: tf_keras.layers.Layer) -> bool:
    return type(layer) is tf_keras.layers.UpSampling2D and layer.interpolation == "nearest"


def _repeated(layer: tf_keras.layers.UpSampling2D, inputs: tf.Tensor) -> tf.Tensor:
    """Nearest upsampling; TensorFlow's own operation has no second derivative."""
    rows, columns = (1, 2) if layer.data_format == "channels_last" else (2, 3)
    return tf.repeat(tf.repeat(inputs, layer.size[0], rows), layer.size[1], columns)


def _folded_call(
    layer: tf_keras.layers.Layer, batch_norm: tf_keras.layers.Layer, inputs: tf.Tensor
) -> tf.Tensor:
    """BatchNorm of a linear layer: the layer with a scaled kernel and another bias.

    Both are computed in the type of the weights, then cast to that of the layer.
    """
    scale, offset = batch_norm_coefficients(batch_norm)
    kernel = tf.convert_to_tensor(layer.kernel) * scale
    if layer.use_bias:
        offset = offset + tf.convert_to_tensor(layer.bias) * scale
    inputs, kernel, offset = (
        tf.cast(tensor, layer.compute_dtype) for tensor in (inputs, kernel, offset)
    )
    owner = kernel_of(layer)
    assert isinstance(owner, _FOLDABLE)
    return tf.nn.bias_add(owner.applied(inputs, kernel), offset)


# Keyed by the model itself, which is hashable by identity; forgotten with it.
_FOLDS: weakref.WeakKeyDictionary[tf_keras.Model, dict[int, Any]] = weakref.WeakKeyDictionary()


def _folds(model: tf_keras.Model) -> dict[int, Any]:
    """`id()` of a linear layer's node -> the node of the BatchNorm that is folded into it."""
    if model not in _FOLDS:
        _FOLDS[model] = _find_folds(model)
    return _FOLDS[model]


def _find_folds(model: tf_keras.Model) -> dict[int, Any]:
    behind_tensor = readers(model)
    found = {}
    for node in nodes_in_order(model):
        if not _is_foldable(node.layer):
            continue
        behind = behind_tensor.get(id(node.outputs), [])
        if len(behind) == 1 and behind[0] is not None and _can_absorb(node, behind[0]):
            found[id(node)] = behind[0]
    return found


def _is_foldable(layer: tf_keras.layers.Layer) -> bool:
    # Causal padding is no part of the convolution. A folded kernel may leave float16's range.
    return (
        isinstance(kernel_of(layer), _FOLDABLE)
        and layer.activation is tf_keras.activations.linear
        and getattr(layer, "padding", "valid") != "causal"
        and layer.compute_dtype != "float16"
    )


def _can_absorb(node: Any, behind: Any) -> bool:
    layer = behind.layer
    return (
        _is_affine(layer)
        and not in_training(behind, False)
        and layer.axis[0] == node.outputs.shape.rank - 1
        and layer.variable_dtype == node.layer.variable_dtype
    )


def _is_affine(layer: tf_keras.layers.Layer) -> bool:
    return is_plain_batch_norm(layer) and len(layer.axis) == 1
