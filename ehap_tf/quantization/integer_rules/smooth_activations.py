"""Activation functions that TFLite has no integer kernel of, written with operators that have one.

The exponential functions get arguments that are not positive, so that the range of what they give
is [0, 1] whatever the input's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tf_keras

if TYPE_CHECKING:
    from ehap_tf.quantization.integer_rules.builder import GraphBuilder

layers = tf_keras.layers

SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


def elu(builder: GraphBuilder, name: str, x: Any, alpha: float = 1.0, scale: float = 1.0) -> Any:
    """`scale` times x where that is positive, else `scale * alpha` times exp(x) - 1."""
    below = builder.operate("minimum", f"{name}_below", x, 0.0)
    power = builder.operate("exp", f"{name}_exp", below)
    below = builder.affine(power, scale * alpha, -scale * alpha, f"{name}_shift")
    above = builder.relu(x, f"{name}_relu")
    if scale != 1.0:
        above = builder.affine(above, scale, 0.0, f"{name}_scale")
    return builder.call(layers.Add, name, [above, below])


def _selu(builder: GraphBuilder, name: str, x: Any) -> Any:
    return elu(builder, name, x, SELU_ALPHA, SELU_SCALE)


def _softplus(builder: GraphBuilder, name: str, x: Any) -> Any:
    """max(x, 0) + log(1 + exp(-|x|))."""
    distance = builder.operate("abs", f"{name}_abs", x)
    negative = builder.affine(distance, -1.0, 0.0, f"{name}_negative")
    power = builder.operate("exp", f"{name}_exp", negative)
    log = builder.operate("log", f"{name}_log", builder.affine(power, 1.0, 1.0, f"{name}_plus"))
    return builder.call(layers.Add, name, [builder.relu(x, f"{name}_relu"), log])


def _softsign(builder: GraphBuilder, name: str, x: Any) -> Any:
    """The quotient x / (1 + |x|), by the reciprocal root twice."""
    distance = builder.operate("abs", f"{name}_abs", x)
    divisor = builder.affine(distance, 1.0, 1.0, f"{name}_plus")
    root = builder.operate("rsqrt", f"{name}_rsqrt", divisor)
    part = builder.multiply(x, root, f"{name}_part")
    return builder.multiply(part, root, name)


def _mish(builder: GraphBuilder, name: str, x: Any) -> Any:
    """The product x tanh(softplus(x))."""
    gate = _softplus(builder, f"{name}_softplus", x)
    gate = builder.call(layers.Activation, f"{name}_tanh", gate, "tanh")
    return builder.multiply(x, gate, name)


def _exponential(builder: GraphBuilder, name: str, x: Any) -> Any:
    return builder.operate("exp", name, x)


SMOOTH_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "elu": elu,
    "exponential": _exponential,
    "mish": _mish,
    "selu": _selu,
    "softplus": _softplus,
    "softsign": _softsign,
}
"""Name of the function -> what it becomes."""
