"""Weights and trainable flags, from a layer to its counterpart in the other Keras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ehap_tf.models.keras3.objects import CannotTranslateError

# The same weight under its name in tf_keras and in Keras 3.
_OTHER_NAMES = {
    "DepthwiseConv1D": {"depthwise_kernel": "kernel"},
    "DepthwiseConv2D": {"depthwise_kernel": "kernel"},
    "SpectralNormalization": {"sn_u": "vector_u"},
}


def copy_weights(old: Any, new: Any) -> None:
    """Sets the weights of a layer to those of its counterpart, matched by their names.

    Raises:
        CannotTranslateError: naming the layer and the weight without a partner.
    """
    if type(old).__name__ == "Bidirectional":
        # The two do not give a backward layer that the user made the same name.
        copy_weights(old.forward_layer, new.forward_layer)
        copy_weights(old.backward_layer, new.backward_layer)
        return
    sources, targets = list(old.weights), list(new.weights)
    aliases = _OTHER_NAMES.get(type(old).__name__, {})
    for depth in range(1, 8):
        by_name = {_name(weight, depth, aliases): weight for weight in sources}
        wanted = [_name(weight, depth, aliases) for weight in targets]
        if len(by_name) == len(sources) and len(set(wanted)) == len(targets):
            break
    if len(sources) == len(targets) == 1:
        by_name = {wanted[0]: sources[0]}
    if set(wanted) != set(by_name):
        raise CannotTranslateError(
            f"layer {old.name!r} ({type(old).__name__}): its weights are {sorted(by_name)}, and "
            f"those of its counterpart {sorted(wanted)}"
        )
    for name, weight in zip(wanted, targets, strict=True):
        value = np.asarray(_value(by_name[name]))
        if tuple(weight.shape) != value.shape:
            raise CannotTranslateError(
                f"layer {old.name!r} ({type(old).__name__}): the weight {name!r} has shape "
                f"{value.shape}, and that of its counterpart {tuple(weight.shape)}"
            )
        weight.assign(value)
    if hasattr(new, "finalize_state"):
        new.finalize_state()  # Normalization computes with what it derives from its weights


def _name(weight: Any, depth: int, aliases: dict[str, str]) -> str:
    path = getattr(weight, "path", None) or weight.name
    parts: Sequence[str] = path.split(":")[0].split("/")
    return "/".join([*parts[-depth:-1], aliases.get(parts[-1], parts[-1])])


def _value(weight: Any) -> Any:
    return weight.numpy() if hasattr(weight, "numpy") else weight
