"""Slices of tensors, `x[..., :8]`: the channel rule, and arguments that can be saved."""

from __future__ import annotations

from typing import Any

import numpy as np
from tf_keras.src.layers.core.tf_op_layer import SlicingOpLambda

from ehap_tf.channels.ids import Flags
from ehap_tf.channels.operator_rules import replaced
from ehap_tf.channels.rules import Call, Effect, frozen, one_input, rule_for
from ehap_tf.graph import operator_kind, operator_symbol


@rule_for(SlicingOpLambda)
@one_input
def slicing(call: Call) -> Effect:
    """Slices of positions keep the channels; a slice of channels keeps its ids."""
    (ids,) = call.inputs
    rank = len(call.input_shapes[0])
    if operator_kind(call.layer) != "getitem":
        return frozen(call, f"no channel rule for the operator tf.{operator_symbol(call.layer)}")
    entries = slice_entries(call.operator.arguments["slice_spec"], rank)
    if any(entry is None for entry in entries):
        return frozen(call, f"{call.path!r} adds an axis")
    if not all(isinstance(entry, slice) for entry in entries):
        return frozen(call, f"{call.path!r} picks single elements")
    of_channels = entries[-1]
    if of_channels == slice(None):
        return Effect([ids], [ids], preserves_zero=True)
    if of_channels.step not in (None, 1):
        return frozen(call, f"{call.path!r} takes channels in steps of {of_channels.step}")
    part = ids[of_channels]
    call.ids.freeze(part[:1], f"{call.path!r} needs a channel in its part")
    start, _, _ = of_channels.indices(len(ids))
    settled = call.ids.settle(ids, f"{call.path!r} takes a part of it")
    part = settled[start : start + len(part)]

    def arguments(alive: Flags, args: Any, kwargs: Any) -> Any:
        first = int(alive[settled[:start]].sum())
        new = slice(first, first + int(alive[part].sum()))
        return replaced(args, kwargs, 1, "slice_spec", (*entries[:-1], new))

    return Effect([settled], [part], arguments=arguments, preserves_zero=True)


def slice_entries(spec: Any, rank: int) -> list[Any]:
    """What `x[spec]` says of each axis: a slice, an index, or None for an axis that it adds.

    In a model that was loaded a slice is a dict of its three numbers.
    """
    entries = list(spec) if isinstance(spec, tuple | list) else [spec]
    missing = rank - sum(entry is not None and entry is not Ellipsis for entry in entries)
    places = [index for index, entry in enumerate(entries) if entry is Ellipsis]
    if places:
        entries[places[0] : places[0] + 1] = [slice(None)] * missing
    else:
        entries += [slice(None)] * missing
    return [slice(e["start"], e["stop"], e["step"]) if isinstance(e, dict) else e for e in entries]


def saved_arguments(layer: Any, args: Any, kwargs: Any) -> Any:
    """The arguments of a call, of a slice in the form that Keras can save: no `slice`, no `...`.

    Keras writes slices as dicts of three numbers where a tensor of a model is sliced, and only
    there; `...` it cannot write at all.

    Args:
        layer: that is called.
        args: its positional arguments, the tensor that is sliced first.
        kwargs: its arguments by name.
    """
    if operator_kind(layer) != "getitem":
        return args, kwargs
    spec = kwargs["slice_spec"] if "slice_spec" in kwargs else args[1]
    entries = slice_entries(spec, args[0].shape.rank)
    return replaced(args, kwargs, 1, "slice_spec", tuple(map(_saved, entries)))


def _saved(entry: Any) -> Any:
    if isinstance(entry, slice):
        return {name: _saved(getattr(entry, name)) for name in ("start", "stop", "step")}
    return int(entry) if isinstance(entry, np.integer) else entry
