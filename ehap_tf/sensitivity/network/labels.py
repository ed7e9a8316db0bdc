"""Labels as a loss takes them: class numbers or one-hot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tf_keras

from ehap_tf.models import output_names
from ehap_tf.sensitivity.network.losses import SOFTMAX, resolve_loss


def require_labels(model: tf_keras.Model, labels: Any, loss: Any, name: str = "data") -> None:
    """Checks that a batch of labels is of the kind that a categorical cross entropy takes.

    Args:
        model: with one output or several.
        labels: arrays; of several outputs by name or in order.
        loss: a Keras loss or its name; of several outputs one for all, by name or in order. Any
            other loss than a categorical cross entropy takes what it wants.
        name: of the caller's argument, for the message.

    Raises:
        ValueError: one-hot labels for a sparse loss, or class numbers for one that is not.
    """
    names = output_names(model)
    own_loss, own_labels = _by_output(loss, names), _by_output(labels, names)
    for output, tensor in zip(names, model.outputs, strict=True):
        if own_loss.get(output) is not None and own_labels.get(output) is not None:
            _require_kind(tensor.shape, own_labels[output].shape, own_loss[output], model, name)


def _require_kind(
    outputs: Any, labels: Sequence[int], loss: Any, model: tf_keras.Model, name: str
) -> None:
    resolved = resolve_loss(loss, model)
    if resolved.kind != SOFTMAX or outputs[-1] == 1:
        return
    one_hot = outputs[1:].is_compatible_with(labels[1:])
    if one_hot and resolved.sparse:
        raise ValueError(
            f"{name} must hold class numbers as labels for the loss {resolved.name!r}. Received: "
            f"one-hot labels of shape {tuple(labels)}; give labels.argmax(-1), or the loss "
            "CategoricalCrossentropy"
        )
    if not one_hot and not resolved.sparse:
        raise ValueError(
            f"{name} must hold one-hot labels of shape {tuple(outputs)} for the loss "
            f"{resolved.name!r}. Received: labels of shape {tuple(labels)}; give "
            "tf_keras.utils.to_categorical(labels), or the loss SparseCategoricalCrossentropy"
        )


def _by_output(values: Any, names: Sequence[str]) -> Mapping[str, Any]:
    if isinstance(values, Mapping):
        return values
    if isinstance(values, list | tuple):
        return dict(zip(names, values, strict=False))
    return dict.fromkeys(names, values)
