"""What becomes of a layer in integers: the registry of rules, and the check of a user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.graph import is_symbolic
from ehap_tf.models.kinds import spelled
from ehap_tf.quantization.integer_rules.builder import GraphBuilder
from ehap_tf.quantization.integer_rules.integer_kernels import IntegerKernel, declare

Rule = Callable[..., Any]

TOLERANCE = 1e-3
"""How far what a rule builds may be from the layer, relative to the largest output."""
IGNORED = ("mask", "training")
"""Arguments of a call that a rule need not know: a file has no masks, and infers."""

_RULES: dict[type, Rule] = {}
_UNCHECKED: set[type] = set()
"""Classes whose rule is not this package's, so that it is tried before it is believed."""


def register_integer_rule(layer_class: type, rule: Rule | IntegerKernel | None = None) -> Any:
    """Teaches `quantize` what a layer class is in integers.

    A rule builds what the layer computes of layers that have an integer kernel: it is a function
    `rule(builder, layer, x, ...)` of a `GraphBuilder`, the layer and the tensors that it is called
    on, and returns its outputs. An `IntegerKernel` says that the converter has an operator for the
    layer as it is: on whose grid that writes; the file is checked for it. Either holds for this
    class alone, not for its subclasses. What a rule builds is compared with the layer on random
    numbers, at each call. See "Layers of your own" in the documentation.

    Args:
        layer_class: a tf_keras layer class; Keras's own can be given another rule.
        rule: the rule or the kernel; when absent, the function is a decorator.

    Raises:
        TypeError: `layer_class` is no layer class of tf_keras, or `rule` is neither of the two.

    Example:
        >>> @ehap.register_integer_rule(MyNorm)  # y = x / self.deviation + self.offset
        ... def my_norm(builder, layer, x):
        ...     return builder.affine(x, 1 / layer.deviation, layer.offset, layer.name)
        >>> ehap.register_integer_rule(MyPool, IntegerKernel("grid"))  # it selects values
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, tf_keras.layers.Layer)):
        raise TypeError(
            f"layer_class must be a layer class of tf_keras. Received: {spelled(layer_class)!r}"
        )

    def decorate(given: Any) -> Any:
        if isinstance(given, IntegerKernel):
            _RULES.pop(layer_class, None)
            _UNCHECKED.discard(layer_class)
            declare(given, layer_class)
        elif callable(given):
            _RULES[layer_class] = given
            _UNCHECKED.add(layer_class)
        else:
            raise TypeError(f"rule must be a function or an IntegerKernel. Received: {given!r}")
        return given

    return decorate if rule is None else decorate(rule)


def rule_for(*layer_classes: type) -> Callable[[Rule], Rule]:
    """Registers a rule of this package for several classes."""

    def decorate(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(layer_classes, rule))
        return rule

    return decorate


def has_rule_of_the_users(layer: Any) -> bool:
    """Whether the layer's class has a rule that is not this package's."""
    return type(layer) in _UNCHECKED


def rewrite_layer(builder: GraphBuilder, layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns what a call of a layer becomes: by its rule, or of a copy of it.

    Raises:
        ValueError: a user's rule builds something else than the layer computes.
    """
    rule = _RULES.get(type(layer))
    if rule is None:
        return builder.copy(layer)(*args, **kwargs)
    known = inspect.signature(rule).parameters
    kwargs = {key: value for key, value in kwargs.items() if key in known or key not in IGNORED}
    if has_rule_of_the_users(layer):
        _try(rule, layer, args, kwargs)
    return rule(builder, layer, *args, **kwargs)


def _try(rule: Rule, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Compares what a rule builds with the layer, on random numbers in the place of its inputs.

    Raises:
        ValueError: they differ.
    """
    random = np.random.default_rng(0)
    values: list[np.ndarray] = []
    inputs: list[Any] = []

    def as_input(value: Any) -> Any:
        if not is_symbolic(value):
            return value
        values.append(random.standard_normal((2, *value.shape[1:])).astype(value.dtype.name))
        inputs.append(tf_keras.Input(value.shape[1:], dtype=value.dtype))
        return inputs[-1]

    ours_args, ours_kwargs = tf.nest.map_structure(as_input, (args, kwargs))
    built = tf_keras.Model(inputs, rule(GraphBuilder(), layer, *ours_args, **ours_kwargs))
    given = iter(values)
    its_args, its_kwargs = tf.nest.map_structure(
        lambda value: tf.constant(next(given)) if is_symbolic(value) else value, (args, kwargs)
    )
    if layer._expects_training_arg:
        its_kwargs["training"] = False
    wanted = tf.nest.flatten(layer(*its_args, **its_kwargs))
    received = tf.nest.flatten(built([tf.constant(value) for value in values], training=False))
    shapes = [[tuple(y.shape) for y in side] for side in (received, wanted)]
    says = f"the integer rule of {spelled(type(layer))} must build what layer {layer.name!r} "
    if shapes[0] != shapes[1]:
        raise ValueError(f"{says}computes, of shape {shapes[1]}. Received: {shapes[0]}")
    for ours, its in zip(received, wanted, strict=True):
        its = tf.cast(its, tf.float32).numpy()
        apart = np.abs(tf.cast(ours, tf.float32).numpy() - its)
        largest = float(np.abs(its).max(initial=0.0))
        if not (apart <= TOLERANCE * largest + 1e-6).all():
            raise ValueError(
                f"{says}computes, to {TOLERANCE:g} of its largest output, {largest:.3g}. "
                f"Received: a difference of {float(apart.max()):.3g} on random numbers"
            )
