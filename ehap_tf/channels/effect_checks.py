"""Whether what a rule says of a call fits the call: a rule can be a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.channels.rules import Call, Effect, MacTerm, Rule, weight_of

_MISSING = object()


def require_fitting_effect(effect: Any, call: Call, rule: Rule) -> None:
    """Checks that an effect has ids for every tensor, and for axes of weights that there are.

    A weight that may be missing is named by an attribute that is None without it, such as `bias`.

    Args:
        effect: what the rule returned.
        call: what it was given.
        rule: for the messages.

    Raises:
        TypeError: no effect, or ids that are none.
        ValueError: ids of another number than there are channels; an attribute that is no weight.
    """
    name = getattr(rule, "__name__", repr(rule))
    says = f"the channel rule {name} of {type(call.layer).__name__}, for layer {call.path!r},"
    if not isinstance(effect, Effect):
        raise TypeError(f"{says} must return an Effect. Received: {_kind(effect)}")
    arriving = [len(ids) for ids in call.inputs]
    _require_ids(effect.inputs, arriving, f"{says} must give as inputs", "tensors")
    leaving = [shape[-1] if shape[1:] else 0 for shape in call.output_shapes]
    _require_ids(effect.outputs, leaving, f"{says} must give as outputs", "tensors")
    if effect.macs is not None and not (
        isinstance(effect.macs, (list, tuple)) and all(isinstance(t, MacTerm) for t in effect.macs)
    ):
        raise TypeError(f"{says} must give as macs a list of MacTerm. Received: {effect.macs!r}")
    weights = {id(weight) for weight in call.layer.weights}
    for attribute, axes in effect.weights.items():
        try:
            weight: Any = weight_of(call.layer, attribute)
        except (AttributeError, IndexError):
            weight = _MISSING
        if weight is None:
            continue
        if id(weight) not in weights:
            raise ValueError(
                f"{says} must name weights of the layer: "
                f"{', '.join(_weight_names(call.layer)) or 'it has none'}. Received: {attribute!r}"
            )
        demand = f"{says} must give as weights[{attribute!r}]"
        _require_ids(axes, weight.shape, demand, f"axes of shape {weight.shape}", optional=True)
    _require_filters(effect, call, says)


def _require_filters(effect: Effect, call: Call, says: str) -> None:
    """Checks that the ids of a layer's filters are those of the axis that counts them."""
    ids = call.ids.atoms.get(call.path)
    if effect.filters is None:
        if ids is not None:
            raise ValueError(
                f"{says} asks for ids of filters by call.ids.filters, so it must say which of the "
                "layer's weights holds them and on which axis, for instance "
                "filters=('kernel', -1). Received: filters=None"
            )
        return
    if ids is None and not effect.weights:
        return  # the layer is left as it is
    try:
        attribute, axis = effect.filters
        counted = effect.weights[attribute][axis]
    except (TypeError, ValueError, KeyError, IndexError):
        counted = None
    if ids is None or counted is None or not np.array_equal(counted, ids):
        raise ValueError(
            f"{says} must give as filters the name of one of its weights and the axis that carries "
            "call.ids.filters(call.path, count): ('kernel', -1) for weights={'kernel': (..., ids)}."
            f" Received: {effect.filters!r} and weights of {', '.join(effect.weights) or 'none'}"
        )


def _require_ids(
    arrays: Any, lengths: Sequence[int | None], demand: str, what: str, optional: bool = False
) -> None:
    """Checks one array of ids for each of `lengths`, which are None where any will do.

    Args:
        arrays: a list or tuple of them.
        lengths: of the arrays.
        demand: how the message begins.
        what: the arrays belong to: tensors or axes.
        optional: whether None may stand for an array.
    """
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"{demand} a list of arrays of ids. Received: {_kind(arrays)}")
    if len(arrays) != len(lengths):
        raise ValueError(f"{demand} ids for {len(lengths)} {what}. Received: {len(arrays)} of them")
    for number, (ids, length) in enumerate(zip(arrays, lengths, strict=True)):
        if optional and ids is None:
            continue
        if not (isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind == "i"):
            raise TypeError(f"{demand} integer arrays of ids. Received: {_kind(ids)}")
        if length is not None and len(ids) != length:
            raise ValueError(
                f"{demand} {length} ids for number {number} of the {what}. Received: {len(ids)}"
            )


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return type(value).__name__


def _weight_names(layer: tf_keras.layers.Layer) -> list[str]:
    """The attributes of a layer that are its weights."""
    weights = {id(weight) for weight in layer.weights}
    return [name for name, value in vars(layer).items() if id(value) in weights]
