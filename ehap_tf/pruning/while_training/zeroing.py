"""Removal by zero weights: what stands for a slim model while the full one is still in training.

Zero wherever surgery would cut: then everything downstream of a removed channel sees zero, and
`prune` of the model gives the same outputs. One thing zero weights cannot do: a layer that makes
something of a zero channel without weights of its own, such as a sigmoid. Where a kernel reads it,
its slice of the kernel is zero as well; where a sum adds it to a channel that stays, the filters
behind it have to stay too.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from ehap_tf.channels import ZERO, ChannelGraph, Flags, TracedCall, weight_axes, zero_at_zero
from ehap_tf.graph import is_batch_norm


def weight_masks(graph: ChannelGraph, alive: Flags) -> Iterator[tuple[tf.Variable, Flags]]:
    """For each weight with channel axes, the entries that surgery would keep.

    Args:
        graph: the trace of the model.
        alive: which channel ids are there.
    """
    # A channel that is always zero is not a removed one; its weights are left alone.
    alive = alive.copy()
    alive[ZERO] = True
    seen: set[int] = set()
    for call in graph.calls.values():
        axes_of = weight_axes(call)
        for weight in call.layer.weights:
            if id(weight) in seen or id(weight) not in axes_of:
                continue
            seen.add(id(weight))
            mask = np.ones(weight.shape, np.bool_)
            for axis, ids in enumerate(axes_of[id(weight)]):
                if ids is not None:
                    mask &= alive[ids].reshape([-1] + [1] * (mask.ndim - 1 - axis))
            yield weight, mask


def not_removable_by_zeros(graph: ChannelGraph) -> dict[str, str]:
    """The layers whose filters cannot be removed by zero weights, with the reason."""
    reasons: dict[str, str] = {}
    for call in graph.calls.values():
        if call.effect.preserves_zero or _zero_weights_give_zero(call):
            continue
        reason = (
            f"{call.path!r} ({type(call.layer).__name__}) maps a zero channel to non-zero, and "
            "a sum adds it to others"
        )
        harmful = set[int]().union(*(graph.ids.merged(ids) for ids in call.effect.outputs))
        for layer, atoms in graph.ids.atoms.items():
            if not harmful.isdisjoint(atoms.tolist()):
                reasons.setdefault(layer, reason)
    return reasons


def _zero_weights_give_zero(call: TracedCall) -> bool:
    layer = call.layer
    if is_batch_norm(layer):
        return bool(layer.scale)
    return bool(call.effect.weights) and zero_at_zero(getattr(layer, "activation", None))
