"""What a call of a layer was given, as the layer's counterpart takes it.

Keras 3 records in a graph also what nobody gave: the default of `training`, and the mask that the
input carries. tf_keras would hold on to them as to what the user chose.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from ehap_tf.graph import is_symbolic, made_by
from ehap_tf.models.keras3.objects import CannotTranslateError


def given_arguments(
    layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], counterpart: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The recorded arguments of a call, without those that say nothing.

    Left out are None and defaults of the layer's `call`. A `training` that equals the default is
    what Keras fills in for itself; another default that the counterpart does not share is passed.

    Args:
        layer: that was called.
        args: recorded; tensors may be replaced already.
        kwargs: recorded.
        counterpart: the layer in the other Keras, whose `call` may have other defaults.

    Returns:
        (args, kwargs) for the counterpart. Keras 3 takes only tensors by position.
    """
    parameters = list(inspect.signature(layer.call).parameters.values())
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) or len(args) > len(names):
        return args, dict(kwargs)
    by_name = {**dict(zip(names, args, strict=False)), **kwargs}
    first = () if names[0] not in by_name else (by_name.pop(names[0]),)
    defaults = {p.name: p.default for p in parameters}
    theirs = _defaults(counterpart)
    given = {
        name: value
        for name, value in by_name.items()
        if not _says_nothing(name, value, defaults, theirs)
    }
    # Names of tensors that both take by position need not agree.
    others = names[1 : len(args)]
    positional = []
    for name in others:
        if name not in given or not _is_tensor(given[name]):
            break
        positional.append(given.pop(name))
    return (*first, *positional), given


def automatic_masks(layer: Any, arguments: Any) -> frozenset[str]:
    """The mask arguments of a recorded call of Keras 3 that are those its inputs carry anyway.

    Args:
        layer: of Keras 3, that was called.
        arguments: of its node in the graph.
    """
    return frozenset(
        name
        for name, tensors in _masked_tensors(layer, arguments.args, arguments.kwargs).items()
        if arguments.kwargs.get(name) is not None and _same_masks(arguments.kwargs[name], tensors)
    )


def require_same_masks(layer: Any, arguments: Any, of_tensor: Mapping[int, Any]) -> None:
    """Checks that the inputs of a call carry masks in tf_keras where they do in Keras 3.

    The two do not agree on which layers hand a mask on, nested models among them.

    Args:
        layer: of Keras 3, that is called.
        arguments: of its node in the graph.
        of_tensor: the tensor of tf_keras for the id of each of Keras 3.

    Raises:
        CannotTranslateError: they do not.
    """
    for name, tensors in _masked_tensors(layer, arguments.args, arguments.kwargs).items():
        mask = arguments.kwargs.get(name)
        if mask is not None and not _same_masks(mask, tensors):
            continue  # given by the user, so handed over
        for tensor in tf.nest.flatten(tensors):
            here = getattr(tensor, "_keras_mask", None) is not None
            there = getattr(of_tensor.get(id(tensor)), "_keras_mask", None) is not None
            if here != there:
                with_mask, without = ("Keras 3", "tf_keras")[:: 1 if here else -1]
                raise CannotTranslateError(
                    f"layer {layer.name!r} ({type(layer).__name__}): its input carries a mask in "
                    f"{with_mask} and none in {without}. Give the mask to the call, mask=..., or "
                    "leave masking out"
                )


def _masked_tensors(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The mask arguments of a layer of Keras 3, each with the input whose mask it takes."""
    names = list(inspect.signature(layer.call).parameters)
    values = {**dict(zip(names, args, strict=False)), **kwargs}
    found = {}
    for name in names:
        if name == "mask":
            found[name] = values.get(names[0])
        elif name.endswith("_mask") and name.removesuffix("_mask") in names:
            found[name] = values.get(name.removesuffix("_mask"))
    return found


def _defaults(layer: Any) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(layer.call).parameters.items()}


def _says_nothing(
    name: str, value: Any, defaults: Mapping[str, Any], theirs: Mapping[str, Any]
) -> bool:
    if not isinstance(value, (bool, int, float, str, type(None))):
        return all(part is None for part in tf.nest.flatten(value))
    default = defaults.get(name)
    if value is not None and (type(value) is not type(default) or value != default):
        return False
    return name == "training" or value == theirs.get(name, value)


def _is_tensor(value: Any) -> bool:
    return is_symbolic(value) or tf.is_tensor(value)


def _same_masks(masks: Any, tensors: Any) -> bool:
    pairs = zip(tf.nest.flatten(masks), tf.nest.flatten(tensors), strict=False)
    return all(
        mask is None or _same_expression(mask, getattr(tensor, "_keras_mask", None))
        for mask, tensor in pairs
    )


def _same_expression(one: Any, other: Any) -> bool:
    """Whether two symbolic tensors are the same function of the same tensors.

    A model that was read from a file has the mask of a layer's output twice: as the layer makes
    it, and as the nodes that the file lists.
    """
    if one is other:
        return True
    if not (is_symbolic(one) and is_symbolic(other)):
        return False
    (first, place), (second, other_place) = made_by(one), made_by(other)
    if place != other_place or type(first.operation) is not type(second.operation):
        return False
    if first is second:
        return True
    import keras

    if isinstance(first.operation, keras.layers.Layer):
        return False
    nodes = (first, second)
    flat = [tf.nest.flatten((n.arguments.args, n.arguments.kwargs)) for n in nodes]
    settings = [
        {k: v for k, v in vars(n.operation).items() if not k.startswith("_") and k != "name"}
        for n in nodes
    ]
    return (
        len(flat[0]) == len(flat[1])
        and str(settings[0]) == str(settings[1])
        and all(
            _same_expression(a, b) if is_symbolic(a) else bool(a == b)
            for a, b in zip(*flat, strict=True)
        )
    )
