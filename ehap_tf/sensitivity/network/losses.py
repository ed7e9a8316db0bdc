"""The loss as the estimators need it: one value per example, from logits where there are any."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from ehap_tf.models import output_names

SOFTMAX = "softmax_cross_entropy"
SIGMOID = "sigmoid_cross_entropy"
SQUARED = "mean_squared_error"
OTHER = "other"

_KINDS = {
    "sparse_categorical_crossentropy": SOFTMAX,
    "categorical_crossentropy": SOFTMAX,
    "binary_crossentropy": SIGMOID,
    "mean_squared_error": SQUARED,
}


LossFunction = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss whose form is known.

    Attributes:
        name: for messages.
        kind: `SOFTMAX`, `SIGMOID`, `SQUARED` or `OTHER`.
        sparse: labels are class indices.
        from_logits: what the caller said about the model's outputs.
        label_smoothing: as in Keras.
        averaged: the total is the mean over examples (and positions), not their sum.
        weight: a factor of the total.
        function: `(labels, outputs) -> values`, shape (batch, ...); outputs are logits when
            `kind` is a cross entropy and `takes_logits`. Labels may lack a last axis of size 1.
        takes_logits: `function` wants logits.
        takes_structures: labels may be dicts and lists of arrays: a function of the caller's own.
    """

    name: str
    kind: str
    sparse: bool
    from_logits: bool
    label_smoothing: float
    averaged: bool
    function: LossFunction
    takes_logits: bool = False
    weight: float = 1.0
    takes_structures: bool = False

    def on_logits(self) -> Loss:
        """The same loss, computed from logits."""
        keras_function = getattr(tf_keras.losses, self._keras_name())
        arguments: dict[str, Any] = {"from_logits": True}
        if not self.sparse:
            arguments["label_smoothing"] = self.label_smoothing
        return dataclasses.replace(
            self,
            function=_with_matched_labels(
                lambda labels, logits: keras_function(labels, logits, **arguments),
                self.name,
                self.sparse,
                elementwise=not self.sparse,
            ),
            takes_logits=True,
        )

    def _keras_name(self) -> str:
        if self.kind == SOFTMAX:
            return f"{'sparse_' if self.sparse else ''}categorical_crossentropy"
        return "binary_crossentropy"


def require_loss(loss: Any) -> None:
    """Checks that there is a loss, of one output at least.

    Raises:
        ValueError: it is None, or that of every output is.
    """
    if all(each is None for each in tf.nest.flatten(loss)):
        raise ValueError(
            f"loss must be given when the model is not compiled with one. Received: {loss}; pass "
            "for example tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
        )


def resolve_loss(loss: Any, model: tf_keras.Model) -> Loss:
    """Understands a Keras loss, its name, a function, or the model's compiled loss when None.

    Raises:
        ValueError: an unknown name, no loss at all, or one per output.
    """
    weight = 1.0
    if loss is None:
        loss = getattr(model, "loss", None)
        weight = next(iter(weights_by_output(compiled_weights(model), model).values()), 1.0)
        require_loss(loss)
    if isinstance(loss, (list, tuple, dict)):
        if len(loss) != 1:
            raise ValueError(f"loss must be a single loss of a single output. Received: {loss!r}")
        loss = next(iter(loss.values())) if isinstance(loss, dict) else loss[0]
    loss = _get(loss)
    if isinstance(loss, tf_keras.losses.Loss):
        function = loss.call
        averaged = loss.reduction != tf_keras.losses.Reduction.SUM
        inner, arguments = getattr(loss, "fn", None), dict(getattr(loss, "_fn_kwargs", {}))
    else:
        function, averaged, inner, arguments = loss, True, loss, {}
    name = getattr(inner, "__name__", "")
    is_keras = inner is not None and inner is getattr(tf_keras.losses, name, None)
    kind = _KINDS.get(name, OTHER) if is_keras else OTHER
    if arguments.get("axis", -1) != -1 or arguments.get("ignore_class") is not None:
        kind = OTHER
    sparse = name.startswith("sparse")
    shown = getattr(loss, "name", None) or name or type(loss).__name__
    return Loss(
        name=shown,
        kind=kind,
        sparse=sparse,
        from_logits=bool(arguments.get("from_logits", False)),
        label_smoothing=float(arguments.get("label_smoothing", 0.0)),
        averaged=averaged,
        function=_with_matched_labels(function, shown, sparse, elementwise=is_keras and not sparse),
        weight=weight,
        takes_structures=not is_keras,
    )


def compiled_weights(model: tf_keras.Model) -> Any:
    """The `loss_weights` that a model is compiled with, as they were given, or None."""
    return getattr(getattr(model, "compiled_loss", None), "_user_loss_weights", None)


def weights_by_output(loss_weights: Any, model: tf_keras.Model) -> dict[str, float]:
    """The factors of the outputs' losses in their sum, by name; an output without one has 1.

    Args:
        loss_weights: as `compile` takes them: a number for all outputs, one for each in order or
            by name, or None.
        model: whose outputs they are.

    Raises:
        ValueError: another number of them, or the name of no output.
    """
    names = output_names(model)
    if loss_weights is None:
        return {}
    if not tf.nest.is_nested(loss_weights):
        return dict.fromkeys(names, float(loss_weights))
    if not isinstance(loss_weights, Mapping) and len(loss_weights) == len(names):
        loss_weights = dict(zip(names, loss_weights, strict=True))
    if not isinstance(loss_weights, Mapping) or not set(loss_weights) <= set(names):
        raise ValueError(
            f"loss_weights must be numbers for the outputs ({', '.join(names)}), as a dict by name "
            f"or a list in this order. Received: {loss_weights!r}"
        )
    return {name: float(weight) for name, weight in loss_weights.items()}


def _with_matched_labels(
    function: LossFunction, name: str, sparse: bool, elementwise: bool
) -> LossFunction:
    """The loss with labels of shape (n,) taken as (n, 1) for outputs of that shape, as in `fit`.

    Args:
        function: the loss.
        name: for messages.
        sparse: labels are class indices, which have one axis less than the outputs.
        elementwise: labels must have as many axes as the outputs.
    """

    def matched(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        if tf.nest.is_nested(labels):  # only a function of the caller's own takes them
            return function(labels, outputs)
        if not sparse and labels.shape.rank == outputs.shape.rank - 1 and outputs.shape[-1] == 1:
            labels = labels[..., tf.newaxis]
        if elementwise and labels.shape.rank != outputs.shape.rank:
            raise ValueError(
                f"labels must have the shape of the outputs for loss {name}. Received: labels of "
                f"shape {labels.shape} for outputs of shape {outputs.shape}; one-hot encode class "
                "indices, or use a sparse loss"
            )
        return function(labels, outputs)

    return matched


def _get(loss: Any) -> Any:
    if isinstance(loss, str):
        try:
            return tf_keras.losses.get(loss)
        except ValueError:
            raise ValueError(
                "loss must be a Keras loss or the name of one, such as "
                f"'sparse_categorical_crossentropy' or 'mse'. Received: {loss!r}"
            ) from None
    if callable(loss):
        return loss
    raise TypeError(f"loss must be a Keras loss, its name or a function. Received: {loss!r}")
