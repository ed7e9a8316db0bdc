"""BatchNorm statistics of a model under quantization: frozen, or averaged anew."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.graph import (
    AveragedStatistics,
    as_identity,
    batch_norms,
    is_identity_at_inference,
)
from ehap_tf.models.checks import require_loaded
from ehap_tf.quantization.integer_rules.wrappers import training_forward


def training_only(model: tf_keras.Model) -> list[tf_keras.layers.Layer]:
    """The layers that do something in training only: dropout, noise, augmentation."""
    layers = model._flatten_layers(include_self=False)
    return [layer for layer in layers if is_identity_at_inference(layer)]


def freeze_batch_norm(qat: tf_keras.Model) -> None:
    """Freezes the BatchNorm statistics of a QAT model, in place.

    From here on every BatchNorm normalises with its moving statistics, in training too, and these
    do not change: training then sees the very affine maps that are folded into the file. Gamma and
    beta keep training, so that the list of trainable variables (and with it the optimizer's state)
    stays as it is. Keras reads the flag while tracing: compile the model again after freezing it,
    and retrace a training step of your own. `FreezeBatchNorm` does it inside `fit`.
    """
    require_loaded(qat, "qat", "load_qat")
    for layer in batch_norms(qat):
        layer.trainable = False


class FreezeBatchNorm(tf_keras.callbacks.Callback):
    """Calls `freeze_batch_norm` inside the `fit` of a QAT model, until its end.

    Args:
        freeze_bn_after: training steps before it, counted by the optimizer: a training that is
            resumed with its optimizer freezes where it would have.

    Raises:
        ValueError: `freeze_bn_after` is negative.
    """

    def __init__(self, freeze_bn_after: int) -> None:
        super().__init__()
        if freeze_bn_after < 0:
            raise ValueError(f"freeze_bn_after must be at least 0. Received: {freeze_bn_after}")
        self.freeze_bn_after = freeze_bn_after
        self._frozen: list[tf_keras.layers.Layer] = []

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Freezes when it is time."""
        if self._frozen or int(self.model.optimizer.iterations) < self.freeze_bn_after:
            return
        self._frozen = [layer for layer in batch_norms(self.model) if layer.trainable]
        if self._frozen:
            freeze_batch_norm(self.model)
            # The step was traced with the statistics moving.
            self.model.make_train_function(force=True)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Leaves the layers as they were."""
        for layer in self._frozen:
            layer.trainable = True
        if self._frozen:
            self.model.train_function = None
        self._frozen = []


def reestimate_batch_norm(qat: tf_keras.Model, batches: Iterable[Sequence[np.ndarray]]) -> None:
    """Averages BatchNorm's statistics over batches of the quantized network, in place.

    Where no BatchNorm is left that is trainable, nothing changes, with a warning.

    Rounding shifts and spreads what reaches a BatchNorm; its statistics of the float network no
    longer fit. Dropout, noise and augmentation are off. Activation ranges follow the batches
    meanwhile, as in training, and are then what they were.

    Args:
        qat: a model from `quantize`.
        batches: one array for each input, each large enough for statistics of its own; a larger
            one counts for more.

    Raises:
        ValueError: no batch holds more than one example.
    """
    norms = [norm for norm in batch_norms(qat) if norm.trainable]
    if not norms:
        warnings.warn(
            "reestimate changed nothing: the quantized model has no trainable BatchNorm",
            stacklevel=5,
        )
        return
    weights, largest = qat.get_weights(), 0
    with AveragedStatistics(norms):
        try:
            with as_identity(training_only(qat)):
                forward = training_forward(qat)
                for x in batches:
                    forward([tf.constant(array) for array in x])
                    largest = max(largest, len(x[0]))
        finally:
            qat.set_weights(weights)
        if largest == 1:
            raise ValueError(
                "representative_data must hold batches of more than one example for reestimate. "
                "Received: batches of 1"
            )
