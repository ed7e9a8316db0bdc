"""TensorFlow operators in a functional model (`x * 2`, `tf.nn.relu(x)`) as named Keras layers."""

from __future__ import annotations

import inspect
from typing import Any

import tf_keras

from ehap_tf.graph import operator_kind, operator_of
from ehap_tf.quantization.arithmetic_operators import ARITHMETIC_OPERATORS
from ehap_tf.quantization.builder import GraphBuilder
from ehap_tf.quantization.moving_operators import MOVING_OPERATORS
from ehap_tf.quantization.reducing_operators import REDUCING_OPERATORS

OPERATORS = {**ARITHMETIC_OPERATORS, **MOVING_OPERATORS, **REDUCING_OPERATORS}
"""Kind of the operator -> its rule; a rule returns None where it does not apply."""


def rewrite_operator(
    builder: GraphBuilder,
    layer: tf_keras.layers.Layer,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Returns what a `TFOpLambda` computes as layers that quantization knows, or None.

    Args:
        builder: makes the new layers.
        layer: Keras's layer around one TensorFlow function.
        args: of the call, symbolic tensors among them.
        kwargs: likewise.
    """
    rule = OPERATORS.get(operator_kind(layer))
    if rule is None:
        return None
    arguments = dict(operator_of(layer, args, kwargs).arguments)
    # The first has a name of its own in almost every function.
    x = arguments.pop(next(iter(arguments)))
    try:
        inspect.signature(rule).bind(builder, layer.name, x, **arguments)
    except TypeError:
        return None  # An option that the rule does not know.
    return rule(builder, layer.name, x, **arguments)
