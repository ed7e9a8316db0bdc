"""The part of a model that its losses see: an output without a loss ranks nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from ehap_tf.models import output_names
from ehap_tf.sensitivity.network.losses import compiled_weights, weights_by_output


def losses_by_output(model: tf_keras.Model, loss: Any) -> dict[str, Any]:
    """The losses of a model with several outputs by name, without those that have none.

    Args:
        model: of whose outputs they are.
        loss: one for all outputs, or one for each, by name or in order; None in place of a loss, or
            no name among them, is an output without one.
    """
    names = output_names(model)
    if isinstance(loss, (list, tuple)) and len(loss) == len(names):
        loss = dict(zip(names, loss, strict=True))
    if not isinstance(loss, Mapping):
        loss = {} if loss is None else dict.fromkeys(names, loss)
    return {name: one for name, one in loss.items() if one is not None}


def supervised_part(model: tf_keras.Model, data: Any, loss: Any) -> tuple[tf_keras.Model, Any, Any]:
    """A model without its outputs that have no loss, with the data and the loss of the others.

    Layers that lead to no loss are not in it: nothing can be said of what they are worth.

    Args:
        model: it stays as it is; its layers are those of what is returned.
        data: `(x, y)` or `(x, y, sample_weight)` arrays, or a dataset of such tuples.
        loss: as in `rank_filters`; None is the compiled one, whose weights are kept.

    Returns:
        All three as they are, where each output has a loss, or none has.
    """
    names = output_names(model)
    given = getattr(model, "loss", None) if loss is None else loss
    chosen = losses_by_output(model, given)
    if not tf.nest.is_nested(given) or not 0 < len(chosen) < len(names):
        return model, data, loss
    if not set(chosen) <= set(names):
        return model, data, loss  # a wrong name, which the ranking speaks of
    tensors = dict(zip(names, model.outputs, strict=True))
    part = tf_keras.Model(model.inputs, {name: tensors[name] for name in sorted(chosen)})
    weights = weights_by_output(compiled_weights(model), model) if loss is None else {}
    own_weights = {name: weight for name, weight in weights.items() if name in chosen}
    part.compile(loss=chosen, loss_weights=own_weights or None)

    def own(labels: Any) -> Any:
        if isinstance(labels, (list, tuple)) and len(labels) == len(names):
            labels = dict(zip(names, labels, strict=True))
        if isinstance(labels, Mapping) and set(chosen) <= set(labels):
            return {name: labels[name] for name in sorted(chosen)}
        return labels

    if isinstance(data, tf.data.Dataset):
        data = data.map(lambda x, y, *weight: (x, own(y), *weight))
    elif isinstance(data, (list, tuple)) and len(data) > 1:
        data = (data[0], own(data[1]), *data[2:])
    return part, data, None
