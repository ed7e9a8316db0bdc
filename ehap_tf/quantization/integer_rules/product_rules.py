"""Rules of the layers that multiply tensors: EinsumDense, Dot, MultiHeadAttention."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.quantization.integer_rules.builder import GraphBuilder
from ehap_tf.quantization.integer_rules.reducing_operators import l2_normalize

layers = tf_keras.layers


def einsum_dense(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    """A Dense over the axes that are summed, which come last and become one."""
    y = _einsum_dense(builder, layer, x, layer.name)
    return builder.copy(layer)(x) if y is None else y


def _einsum_dense(builder: GraphBuilder, layer: Any, x: Any, name: str, factor: float = 1.0) -> Any:
    """`factor` times what an EinsumDense without an activation computes, or None."""
    axes = _letters(layer.equation, x.shape.rank)
    if axes is None or layer.kernel_constraint or layer.bias_constraint:
        return None
    of_input, of_kernel, of_output = axes
    new = [a for a in of_output if a not in of_input]
    summed = [a for a in of_input if a not in of_output]
    kept = [a for a in of_input if a in of_output]
    batched = [a for a in kept if a in of_kernel]
    if batched or sorted(of_kernel) != sorted(summed + new) or kept[:1] != of_output[:1]:
        return None
    kernel, bias = layer.kernel.numpy(), None if layer.bias is None else layer.bias.numpy()
    sizes = dict(zip(of_kernel, kernel.shape, strict=True))
    if bias is not None:
        bias = _spread(bias, of_output, new, [sizes[a] for a in new])
        if bias is None:
            return None
    if of_input != kept + summed:
        order = [of_input.index(a) for a in (kept + summed)[1:]]
        x = builder.call(layers.Permute, f"{name}_move", x, order)
    if len(summed) != 1:
        shape = (*x.shape[1 : len(kept)], -1)
        x = builder.call(layers.Reshape, f"{name}_join", x, shape)
    matrix = kernel.transpose([of_kernel.index(a) for a in summed + new])
    y = builder.dense(
        x,
        factor * matrix.reshape(int(np.prod([sizes[a] for a in summed])), -1),
        None if bias is None else factor * bias,
        name,
        trainable=layer.trainable,
        kernel_regularizer=layer.kernel_regularizer,
        bias_regularizer=layer.bias_regularizer,
    )
    if len(new) != 1:
        shape = (*y.shape[1:-1], *(sizes[a] for a in new))
        y = builder.call(layers.Reshape, f"{name}_part", y, shape)
    if of_output != kept + new:
        order = [(kept + new).index(a) for a in of_output[1:]]
        y = builder.call(layers.Permute, f"{name}_back", y, order)
    return builder.activate(layer.activation, y, f"{name}_activation")


def _letters(equation: str, rank: int) -> list[list[str]] | None:
    """The axes of input, kernel and output, dots written out; None where an axis comes twice."""
    operands, _, result = equation.replace(" ", "").partition("->")
    of_input, of_kernel = operands.split(",")
    free = [a for a in string.ascii_letters if a not in equation]
    dots = "".join(free[: rank - len(of_input.replace("...", ""))])
    parts = [list(part.replace("...", dots)) for part in (of_input, of_kernel, result)]
    return parts if all(len(set(part)) == len(part) for part in parts) else None


def _spread(
    bias: np.ndarray, of_output: list[str], new: list[str], sizes: Sequence[int]
) -> np.ndarray | None:
    """A bias as a vector with a value for each unit; None where it differs by position."""
    shape = [1] * (len(of_output) - bias.ndim) + list(bias.shape)
    if any(n != 1 and a not in new for n, a in zip(shape, of_output, strict=True)):
        return None
    places = [of_output.index(a) for a in new]
    others = tuple(p for p in range(len(of_output)) if p not in places)
    of_new = np.squeeze(bias.reshape(shape), axis=others)
    remaining = [a for a in of_output if a in new]
    of_new = of_new.transpose([remaining.index(a) for a in new])
    return np.broadcast_to(of_new, sizes).ravel()


def dot(builder: GraphBuilder, layer: Any, inputs: Any) -> Any:
    """A product of matrices; of two vectors the sum of their products."""
    a, b = inputs
    ranks = (a.shape.rank, b.shape.rank)
    if max(ranks) > 3:
        return builder.copy(layer)(inputs)
    given = layer.axes if isinstance(layer.axes, list | tuple) else [layer.axes] * 2
    along = [axis % rank for axis, rank in zip(given, ranks, strict=True)]
    name = layer.name
    if layer.normalize:
        a, b = (
            l2_normalize(builder, f"{name}_unit", x, axis)
            for x, axis in zip((a, b), along, strict=True)
        )
    if ranks == (2, 2):
        products = builder.multiply(a, b, f"{name}_products")
        return builder.operate("reduce_sum", name, products, axis=[1], keepdims=True)
    if ranks[0] == 2:
        a, along[0] = builder.call(layers.Reshape, f"{name}_row", a, (1, a.shape[-1])), 2
    if ranks[1] == 2:
        b, along[1] = builder.call(layers.Reshape, f"{name}_column", b, (b.shape[-1], 1)), 1
    y = builder.operate("matmul", name, a, b, transpose_a=along[0] == 1, transpose_b=along[1] == 2)
    return y if ranks == (3, 3) else builder.call(layers.Flatten, f"{name}_vector", y)


def attention(
    builder: GraphBuilder,
    layer: Any,
    query: Any,
    value: Any,
    key: Any = None,
    attention_mask: Any = None,
    return_attention_scores: bool = False,
    training: Any = None,
    use_causal_mask: bool = False,
) -> Any:
    """MultiHeadAttention over one axis, written out; with a mask a copy of it."""
    key = value if key is None else key
    given = (query, value, key)
    is_plain = (
        attention_mask is None
        and not use_causal_mask
        and all(x.shape.rank == 3 and getattr(x, "_keras_mask", None) is None for x in given)
        and tuple(layer._attention_axes) == (1,)
    )
    name = layer.name
    if is_plain:
        parts = [
            (layer._query_dense, query, "query", 1.0 / float(np.sqrt(layer._key_dim))),
            (layer._key_dense, key, "key", 1.0),
            (layer._value_dense, value, "value", 1.0),
        ]
        of_heads = [
            _einsum_dense(builder, dense, x, f"{name}_{part}", factor)
            for dense, x, part, factor in parts
        ]
        is_plain = all(x is not None for x in of_heads)
    if not is_plain:
        return builder.copy(layer)(
            query,
            value,
            key=key,
            attention_mask=attention_mask,
            return_attention_scores=return_attention_scores,
            use_causal_mask=use_causal_mask,
            training=training,
        )
    q, k, v = (builder.call(layers.Permute, f"{name}_heads", x, (2, 1, 3)) for x in of_heads)
    scores = builder.operate("matmul", f"{name}_scores", q, k, transpose_b=True)
    weights = builder.call(layers.Softmax, f"{name}_softmax", scores)
    if layer._dropout:
        weights = builder.call(layers.Dropout, f"{name}_dropout", weights, layer._dropout)
    mixed = builder.operate("matmul", f"{name}_mix", weights, v)
    mixed = builder.call(layers.Permute, f"{name}_tokens", mixed, (2, 1, 3))
    y = _einsum_dense(builder, layer._output_dense, mixed, name)
    return (y, weights) if return_attention_scores else y
