"""A private copy of the caller's model and its loss, ready to be differentiated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.data import check_labels
from ehap_tf.graph import layer_paths
from ehap_tf.models import clone_with_policy, output_names
from ehap_tf.models.precision import policy_of
from ehap_tf.sensitivity.network import losses
from ehap_tf.sensitivity.network.emulated_float16 import round_kernels
from ehap_tf.sensitivity.network.filters import PrunableLayer, find_prunable
from ehap_tf.sensitivity.network.forward import After, Before, run_graph
from ehap_tf.sensitivity.network.hessian_batch import HessianBatch, MicroBatch
from ehap_tf.sensitivity.network.logits import FINAL_ACTIVATIONS, take_logits
from ehap_tf.sensitivity.network.several_outputs import JoinedLoss, join_outputs

LARGEST_DIFFERENCE = 0.02


@dataclasses.dataclass
class Network:
    """A model under some precision, with its loss.

    Attributes:
        model: private copy; its final softmax or sigmoid is made linear when the loss takes
            logits.
        loss: computed from what `forward` returns.
        layers: the layers whose filters are scored, of the copy.
        examples: in the whole Hessian batch: the divisor of the loss.
        skipped: `id()` of final softmax layers that are left out.
        residual: "union" gates every filter by itself, "tied" those that a sum lines up together.
        output_size: numbers per example in what `forward` returns.
        output: the name of the caller's output; None where there are several.
    """

    model: tf_keras.Model
    loss: losses.Loss
    layers: list[PrunableLayer]
    examples: int
    skipped: frozenset[int] = frozenset()
    residual: str = "union"
    output_size: int = 0
    output: str | None = None

    @property
    def kernels(self) -> list[tf.Variable]:
        """The kernels of `layers`."""
        return [layer.weight for layer in self.layers]

    @property
    def dtype(self) -> tf.DType:
        """Of every result: float32, or float64 where some layer has weights of it."""
        wide = any(kernel.dtype == tf.float64 for kernel in self.kernels)
        return tf.float64 if wide else tf.float32

    def forward(
        self, inputs: Any, after: After | None = None, before: Before | None = None
    ) -> tf.Tensor:
        """The outputs (logits where the loss takes logits) in inference mode, not in 16 bits.

        Args:
            inputs: what the model takes.
            after: changes the outputs of layers.
            before: changes the inputs of layers.
        """
        outputs = tf.nest.flatten(run_graph(self.model, inputs, after, self.skipped, before=before))
        return tf.cast(outputs[0], self.dtype)

    def loss_values(self, labels: Any, outputs: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """One value per example such that their sum over the Hessian batch is the loss."""
        values = tf.convert_to_tensor(self.loss.function(labels, outputs))
        values = tf.reshape(tf.cast(values, self.dtype), [tf.shape(weights)[0], -1])
        values = tf.reduce_sum(values, axis=1) * self.factor(tf.shape(values)[1])
        return values * weights

    def factor(self, positions: tf.Tensor) -> tf.Tensor:
        """What turns a sum over examples and positions into the loss."""
        weight = tf.constant(self.loss.weight, self.dtype)
        if not self.loss.averaged:
            return weight
        return weight / (tf.cast(positions, self.dtype) * tf.cast(self.examples, self.dtype))

    def tensors(self, batch: MicroBatch) -> tuple[Any, Any, tf.Tensor, tf.Tensor]:
        """A micro-batch as (inputs, labels, weights, number of the first example)."""
        return (
            tf.nest.map_structure(tf.convert_to_tensor, batch.inputs),
            tf.nest.map_structure(tf.convert_to_tensor, self.labels(batch)),
            tf.constant(batch.weights, self.dtype),
            tf.constant(batch.first, tf.int32),
        )

    def labels(self, batch: MicroBatch) -> Any:
        """The labels as the loss takes them: those of a single output stand alone.

        Raises:
            ValueError: a loss that takes one array is given several, or one of another name.
        """
        labels = batch.labels
        if self.output is None:
            return labels
        if isinstance(labels, Mapping) and list(labels) == [self.output]:
            labels = labels[self.output]
        elif isinstance(labels, (list, tuple)) and len(labels) == 1:
            (labels,) = labels
        if tf.nest.is_nested(labels) and not self.loss.takes_structures:
            shown = ", ".join(labels) if isinstance(labels, Mapping) else f"{len(labels)} arrays"
            raise ValueError(
                f"labels must be one array, or a dict with that of the output {self.output!r}, for "
                f"loss {self.loss.name}. Received: {type(labels).__name__} of {shown}"
            )
        return labels


def prepare_network(
    model: tf_keras.Model, loss: Any, precision: str, data: HessianBatch, residual: str = "union"
) -> Network:
    """Copies `model` under a precision and joins it with the loss.

    Call it inside `strategy.scope()` to have the copy on every replica.

    Raises:
        ValueError: a loss that does not fit the model, or labels out of range.
    """
    clone = clone_with_policy(model, policy_of(precision))
    round_kernels(clone)
    return join_loss(clone, loss, model, data, residual)


def join_loss(
    copy: tf_keras.Model,
    loss: Any,
    caller: tf_keras.Model,
    data: HessianBatch,
    residual: str = "union",
) -> Network:
    """Joins a private copy of a model with the loss, and checks that the data fit both.

    Args:
        copy: is changed.
        loss: as in `rank_filters`.
        caller: the model as the caller gave it.
        data: of which the labels are looked at, and the first examples computed.
        residual: of the network.

    Raises:
        ValueError: a loss that does not fit the model, labels out of range, or outputs or a loss
            that are not finite.
    """
    output = None
    if len(caller.outputs) == 1:
        (output,) = output_names(caller)
        resolved, skipped = take_logits(copy, losses.resolve_loss(loss, caller))
        (tensor,) = copy.outputs
        if tensor.shape.rank == 1:  # one number per example
            as_row = tf_keras.layers.Reshape((1,), name="as_row", dtype=tensor.dtype)
            copy = tf_keras.Model(copy.inputs, as_row(tensor))
    else:
        first = next(iter(data)).inputs
        copy, resolved, skipped = join_outputs(copy, loss, caller, first)
    layers = find_prunable(copy)
    network = Network(copy, resolved, layers, data.examples, skipped, residual, output=output)
    _check_class_indices(network, data)
    outputs = _check_fit(network, next(iter(data)))
    return dataclasses.replace(network, output_size=outputs[0].size)


def _check_fit(network: Network, batch: MicroBatch) -> np.ndarray:
    """Looks at the outputs and the loss of the first micro-batch; returns the outputs."""
    outputs = network.forward(batch.inputs).numpy()
    examples = f"examples {batch.first} to {batch.first + len(batch) - 1}"
    if not np.isfinite(outputs).all():
        raise ValueError(
            f"model must give finite outputs. Received: NaN or infinity for {examples}; check its "
            "weights and the inputs"
        )
    _, labels, weights, _ = network.tensors(batch)
    for loss, own_labels, own_outputs in _by_loss(network.loss, labels, tf.constant(outputs)):
        _check_probabilities(loss, own_outputs.numpy())
        _check_values(loss, own_labels, own_outputs)
    values = network.loss_values(labels, tf.constant(outputs), weights).numpy()
    if not np.isfinite(values).all():
        raise ValueError(f"loss must be finite. Received: NaN or infinity among {examples}")
    _check_deterministic(network, batch, outputs)
    _check_against_keras(network, batch, outputs)
    return outputs


def _by_loss(
    loss: losses.Loss, labels: Any, outputs: tf.Tensor
) -> list[tuple[losses.Loss, Any, tf.Tensor]]:
    """The loss of each output of the caller's model with its labels and outputs."""
    if not isinstance(loss, JoinedLoss):
        return [(loss, labels, outputs)]
    pairs = zip(loss.parts, loss.labels_of(labels), strict=True)
    return [(part.loss, own, part.of(outputs)) for part, own in pairs]


def _check_probabilities(loss: losses.Loss, outputs: np.ndarray) -> None:
    if loss.kind not in FINAL_ACTIVATIONS or loss.takes_logits:
        return
    wrong = outputs.min() < 0 or outputs.max() > 1
    if loss.kind == losses.SOFTMAX:
        wrong = wrong or np.abs(outputs.sum(axis=-1) - 1).max() > 0.05
    if wrong:
        raise ValueError(
            f"loss {loss.name} expects probabilities, but the model does not end in a "
            f"{FINAL_ACTIVATIONS[loss.kind]}. Received: outputs between {outputs.min():.3g} and "
            f"{outputs.max():.3g}; give the loss from_logits=True"
        )


def _check_values(loss: losses.Loss, labels: Any, outputs: tf.Tensor) -> None:
    shape = tf.convert_to_tensor(loss.function(labels, outputs)).shape
    if shape[:1] != outputs.shape[:1]:
        raise ValueError(
            f"loss {loss.name} must give one value per example, shape ({len(outputs)}, ...). "
            f"Received: shape {shape}; leave the mean over the examples out of it"
        )


def _check_deterministic(network: Network, batch: MicroBatch, outputs: np.ndarray) -> None:
    if agree(network.forward(batch.inputs), outputs):
        return
    passes: list[dict[str, Any]] = [{}, {}]
    paths = layer_paths(network.model)
    for found in passes:

        def remember(node: Any, output: Any, found: dict[str, Any] = found) -> Any:
            found.setdefault(paths[id(node.layer)], tf.nest.flatten(output)[0])
            return output

        network.forward(batch.inputs, remember)
    differing = [name for name in passes[0] if not agree(passes[0][name], passes[1][name])]
    raise ValueError(
        "model must give the same outputs in every inference pass. Received: a model with layers "
        f"that are random at inference; the first that differs is {(differing or ['unknown'])[0]!r}"
    )


def _check_against_keras(network: Network, batch: MicroBatch, outputs: np.ndarray) -> None:
    """Compares the pass that is written out here with the model's own.

    Not in 16 bits, where the two round differently.
    """
    kinds = {layer.compute_dtype for layer in network.model._flatten_layers(include_self=False)}
    if not kinds <= {"float32", "float64"}:
        return
    inputs = tf.nest.map_structure(tf.convert_to_tensor, batch.inputs)
    if network.skipped:
        outputs = tf.nest.flatten(run_graph(network.model, inputs))[0].numpy()
    truth = tf.nest.flatten(network.model(inputs, training=False))[0].numpy()
    difference, size = np.abs(outputs - truth).max(), np.abs(truth).max()
    # Far more than rounding does, far less than a layer that is computed wrongly.
    if not np.isfinite(difference) or difference > LARGEST_DIFFERENCE * size:
        raise RuntimeError(
            "ehap_tf does not compute this model as Keras does, so its scores would be wrong: the "
            f"outputs differ by up to {difference:.3g}, their largest being {size:.3g}. Please "
            "report it with the model."
        )


def agree(one: Any, other: Any) -> bool:
    """Whether two passes gave the same but for rounding, however small the numbers are."""
    one, other = (np.asarray(values, np.float64) for values in (one, other))
    return np.allclose(one, other, rtol=1e-3, atol=1e-5 * np.abs(other).max(initial=0))


def _check_class_indices(network: Network, data: HessianBatch) -> None:
    """Looks at the class indices of all examples.

    Raises:
        ValueError: a label that is not one of the model's classes.
    """
    loss = network.loss
    if isinstance(loss, JoinedLoss):
        for batch in data:
            for part, own in zip(loss.parts, loss.labels_of(batch.labels), strict=True):
                if _names_classes(part.loss):
                    check_labels(own, part.shape[-1])
    elif _names_classes(loss):
        classes = int(network.model.outputs[0].shape[-1])
        for batch in data:
            check_labels(network.labels(batch), classes)


def _names_classes(loss: losses.Loss) -> bool:
    return loss.kind == losses.SOFTMAX and loss.sparse
