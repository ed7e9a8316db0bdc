"""Functional models drawn at random: a recipe is a list of steps, which hypothesis can shrink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras
from hypothesis import strategies as st

layers = tf_keras.layers
SIZE = 6

Step = tuple[str, int, int]


def recipes(longest: int = 7) -> st.SearchStrategy[list[Step]]:
    """Lists of (kind, a, b): `a` and `b` choose widths, activations and earlier tensors."""
    step = st.tuples(st.sampled_from(sorted(_STEPS)), st.integers(0, 5), st.integers(0, 5))
    return st.lists(step, min_size=1, max_size=longest)


def build(recipe: list[Step], head: str) -> tf_keras.Model:
    """The model that a recipe describes, with one output or two."""
    inputs = layers.Input((SIZE, SIZE, 3), name="image")
    builder = _Builder()
    tensors = [layers.Conv2D(4, 3, padding="same", name="stem")(inputs)]
    for kind, a, b in recipe:
        tensors.append(_STEPS[kind](builder, tensors, a, b))
    last = tensors[-1]
    if head == "flatten":
        x = layers.Flatten(name="flatten")(last)
        x = layers.Dense(5, activation="relu", name="hidden")(x)
    else:
        x = layers.GlobalAveragePooling2D(name="pool", keepdims=head == "keepdims")(last)
        x = layers.Flatten(name="flatten")(x) if head == "keepdims" else x
    outputs: list[Any] = [layers.Dense(3, name="logits")(x)]
    if head == "two":
        outputs.append(last)
    return tf_keras.Model(inputs, outputs)


class _Builder:
    def __init__(self) -> None:
        self.count = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}_{self.count}"


def _conv(builder: _Builder, width: int, kernel: int = 3, **options: Any) -> Any:
    return layers.Conv2D(width, kernel, padding="same", name=builder.name("conv"), **options)


def _step_conv(builder: _Builder, tensors: list[Any], a: int, b: int) -> Any:
    activation = [None, "relu", "sigmoid", None, "swish", "relu"][b]
    return _conv(builder, a + 2, 1 + 2 * (b % 2), activation=activation)(tensors[-1])


def _step_norm(builder: _Builder, tensors: list[Any], a: int, b: int) -> Any:
    del a, b
    return layers.BatchNormalization(name=builder.name("norm"))(tensors[-1])


def _step_activation(builder: _Builder, tensors: list[Any], a: int, b: int) -> Any:
    del b
    kind = ["relu", "sigmoid", "tanh", "softplus", "elu", "relu"][a]
    return layers.Activation(kind, name=builder.name(kind))(tensors[-1])


def _step_depthwise(builder: _Builder, tensors: list[Any], a: int, b: int) -> Any:
    return layers.DepthwiseConv2D(
        3, padding="same", depth_multiplier=1 + a % 2, use_bias=b % 2 == 0,
        name=builder.name("depthwise"),
    )(tensors[-1])  # fmt: skip


def _step_separable(builder: _Builder, tensors: list[Any], a: int, b: int) -> Any:
    del b
    return layers.SeparableConv2D(a + 2, 3, padding="same", name=builder.name("separable"))(
        tensors[-1]
    )


def _step_grouped(builder: _Builder, tensors: list[Any], a: int, b: int) -> Any:
    width = tensors[-1].shape[-1]
    groups = 2 if width % 2 == 0 else 1
    return _conv(builder, groups * (a % 3 + 1), 1 + 2 * (b % 2), groups=groups)(tensors[-1])


def _step_residual(builder: _Builder, tensors: list[Any], a: int, b: int) -> Any:
    earlier = tensors[a % len(tensors)]
    branch = _conv(builder, earlier.shape[-1])(tensors[-1])
    merge = [layers.Add, layers.Add, layers.Maximum, layers.Average, layers.Subtract, layers.Add]
    return merge[b](name=builder.name("sum"))([branch, earlier])


def _step_concat(builder: _Builder, tensors: list[Any], a: int, b: int) -> Any:
    del b
    pair = [tensors[-1], tensors[a % len(tensors)]]
    return layers.Concatenate(name=builder.name("concat"))(pair)


def _step_gate(builder: _Builder, tensors: list[Any], a: int, b: int) -> Any:
    x = tensors[-1]
    y = layers.GlobalAveragePooling2D(keepdims=True, name=builder.name("squeeze"))(x)
    y = _conv(builder, a % 3 + 1, 1, activation="relu")(y)
    width = 1 if b == 5 else x.shape[-1]
    y = _conv(builder, width, 1, activation="sigmoid")(y)
    return layers.Multiply(name=builder.name("gate"))([x, y])


def _step_shared(builder: _Builder, tensors: list[Any], a: int, b: int) -> Any:
    """One convolution (or norm) on two tensors."""
    x = tensors[-1]
    other = _conv(builder, x.shape[-1], 1)(tensors[a % len(tensors)])
    if b % 3 == 0:
        shared = layers.BatchNormalization(name=builder.name("shared"))
    else:
        shared = _conv(builder, b + 1)
    return layers.Add(name=builder.name("sum"))([shared(x), shared(other)])


def _step_nested(builder: _Builder, tensors: list[Any], a: int, b: int) -> Any:
    """A model inside the model, called once or twice."""
    x = tensors[-1]
    inside = layers.Input((SIZE, SIZE, x.shape[-1]))
    y = layers.Conv2D(a + 2, 3, padding="same", name="inner_conv")(inside)
    y = layers.BatchNormalization(name="inner_norm")(y)
    if b % 2:
        z = layers.Conv2D(a + 2, 1, name="inner_branch", activation="relu")(y)
        y = layers.Add(name="inner_sum")([y, z])
    nested = tf_keras.Model(inside, y, name=builder.name("nested"))
    if b < 3:
        return nested(x)
    again = _conv(builder, x.shape[-1], 1)(tensors[a % len(tensors)])
    return layers.Add(name=builder.name("sum"))([nested(x), nested(again)])


def _step_operators(builder: _Builder, tensors: list[Any], a: int, b: int) -> Any:
    x = tensors[-1]
    if a == 0:
        return tf.nn.relu6(x * 2 + 3)
    if a == 1:
        return x + _conv(builder, x.shape[-1], 1)(x)
    if a == 2 and x.shape[-1] > 1:
        parts = tf.split(x, [1, x.shape[-1] - 1], axis=-1)
        return tf.concat([parts[1], parts[0]], axis=-1)
    if a == 3 and x.shape[-1] > 2:
        return x[..., 1 : 2 + b % 2]
    if a == 4:
        return tf.pad(x, [[0, 0], [0, 0], [0, 0], [b % 3, 1]])
    return x * tf.reduce_mean(x, axis=[1, 2], keepdims=True)


def _step_mixing_norm(builder: _Builder, tensors: list[Any], a: int, b: int) -> Any:
    del a, b
    return layers.LayerNormalization(name=builder.name("layer_norm"))(tensors[-1])


_STEPS: dict[str, Callable[[_Builder, list[Any], int, int], Any]] = {
    "conv": _step_conv,
    "norm": _step_norm,
    "activation": _step_activation,
    "depthwise": _step_depthwise,
    "separable": _step_separable,
    "grouped": _step_grouped,
    "residual": _step_residual,
    "concat": _step_concat,
    "gate": _step_gate,
    "shared": _step_shared,
    "nested": _step_nested,
    "operators": _step_operators,
    "mixing_norm": _step_mixing_norm,
}
