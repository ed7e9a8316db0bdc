"""Models with several outputs, each with its loss: joined into one output with one loss.

The outputs are flattened and put side by side; the loss is the (weighted) sum of theirs. Its
Hessian with respect to the joined outputs has one block for each of them, so that everything that
is computed from one output works for several.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from ehap_tf.models import output_names
from ehap_tf.sensitivity.network import losses
from ehap_tf.sensitivity.network.logits import take_logits
from ehap_tf.sensitivity.network.losses import (
    Loss,
    compiled_weights,
    resolve_loss,
    weights_by_output,
)


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the outputs.

    Attributes:
        name: of the output.
        loss: of this output alone, with its factor in the sum.
        shape: of the output, without the batch.
        first: where its numbers start in the joined output.
    """

    name: str
    loss: Loss
    shape: tuple[int, ...]
    first: int

    def of(self, joined: tf.Tensor) -> tf.Tensor:
        """This output, cut out of the joined one."""
        piece = joined[:, self.first : self.first + math.prod(self.shape)]
        return tf.reshape(piece, [-1, *self.shape])


@dataclasses.dataclass(frozen=True)
class JoinedLoss(Loss):
    """The sum of the losses of several outputs.

    Attributes:
        parts: the outputs, in the model's order.
    """

    parts: tuple[Part, ...] = ()

    def labels_of(self, labels: Any) -> list[Any]:
        """The labels of each output, from a mapping by output name or a sequence in order.

        Raises:
            ValueError: an output without labels.
        """
        names = [part.name for part in self.parts]
        if isinstance(labels, Mapping) and set(names) <= set(labels):
            return [labels[name] for name in names]
        if isinstance(labels, (list, tuple)) and len(labels) == len(names):
            return list(labels)
        found = f"{len(labels)} arrays" if isinstance(labels, (list, tuple)) else "one array"
        raise ValueError(
            f"labels must be given for each output ({', '.join(names)}), as a dict by name or a "
            "list in this order. Received: "
            f"{', '.join(labels) if isinstance(labels, Mapping) else found}"
        )


def join_outputs(
    model: tf_keras.Model, loss: Any, caller: Any, examples: Any
) -> tuple[tf_keras.Model, JoinedLoss, frozenset[int]]:
    """Makes one output and one loss of several.

    Args:
        model: a private copy; a final softmax or sigmoid of an output is made linear where the
            output's loss can be computed from logits.
        loss: one for each output, by name or in order; None for the compiled ones of `caller`, of
            which a single one serves all outputs, as in Keras.
        caller: the model as the caller gave it.
        examples: some inputs, for the sizes that the model leaves open; all have one shape.

    Returns:
        The model, its loss, and `id()` of softmax layers that are to be left out.

    Raises:
        ValueError: an output without a loss, a loss without an output, or a summed loss.
    """
    names = output_names(caller)
    chosen, weights = _by_output(names, loss, caller)
    # Joined in float32 where the network computes in 16 bits: the losses want it so.
    wide = "float64" if any(tensor.dtype == "float64" for tensor in model.outputs) else "float32"
    sizes = _sizes(model, examples)
    parts: list[Part] = []
    tensors: list[Any] = []
    skipped: frozenset[int] = frozenset()
    for name, tensor in zip(names, model.outputs, strict=True):
        resolved = resolve_loss(chosen[name], model)
        if not resolved.averaged:
            raise ValueError(
                f"loss of output {name!r} must be averaged over examples. Received: "
                f"{resolved.name} with reduction 'sum'"
            )
        resolved, without = take_logits(model, resolved, len(parts))
        resolved = dataclasses.replace(resolved, weight=weights.get(name, 1.0))
        skipped |= without
        shape = sizes[len(parts)] or (1,)
        first = sum(math.prod(part.shape) for part in parts)
        parts.append(Part(name, resolved, shape, first))
        tensors.append(tf_keras.layers.Flatten(dtype=wide, name=f"joined_{len(tensors)}")(tensor))
    joined = tf_keras.layers.Concatenate(dtype=wide, name="joined")(tensors)
    found = JoinedLoss(
        name=" + ".join(part.loss.name for part in parts),
        kind=losses.OTHER,
        sparse=False,
        from_logits=False,
        label_smoothing=0.0,
        averaged=True,
        function=lambda labels, outputs: _sum(found, labels, outputs),
        parts=tuple(parts),
        takes_structures=True,
    )
    return tf_keras.Model(model.inputs, joined), found, skipped


def _sizes(model: tf_keras.Model, examples: Any) -> list[tuple[int, ...]]:
    """The shape of each output for one of the examples."""
    shapes = [tuple(tensor.shape[1:]) for tensor in model.outputs]
    if not any(None in shape for shape in shapes):
        return shapes
    one = tf.nest.map_structure(lambda array: tf.convert_to_tensor(array[:1]), examples)
    return [tuple(output.shape[1:]) for output in tf.nest.flatten(model(one, training=False))]


def _sum(loss: JoinedLoss, labels: Any, outputs: tf.Tensor) -> tf.Tensor:
    total = tf.zeros(tf.shape(outputs)[:1], outputs.dtype)
    for part, own in zip(loss.parts, loss.labels_of(labels), strict=True):
        values = tf.convert_to_tensor(part.loss.function(own, part.of(outputs)))
        values = tf.reshape(tf.cast(values, outputs.dtype), [tf.shape(outputs)[0], -1])
        total += part.loss.weight * tf.reduce_mean(values, axis=1)
    return total


def _by_output(
    names: Sequence[str], loss: Any, caller: Any
) -> tuple[dict[str, Any], Mapping[str, float]]:
    """Loss and factor of each output, by name."""
    weights: Mapping[str, float] = {}
    if loss is None:
        loss = getattr(caller, "loss", None)
        weights = weights_by_output(compiled_weights(caller), caller)
        if loss is not None and not tf.nest.is_nested(loss):
            loss = dict.fromkeys(names, loss)
    if isinstance(loss, (list, tuple)) and len(loss) == len(names):
        loss = dict(zip(names, loss, strict=True))
    if not isinstance(loss, Mapping) or set(loss) != set(names):
        raise ValueError(
            f"loss must be one for each output ({', '.join(names)}), as a dict by name or a list "
            f"in this order. Received: {loss!r}"
        )
    return dict(loss), weights
