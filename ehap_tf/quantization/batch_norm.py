"""BatchNorm statistics of a model under quantization: frozen."""

from __future__ import annotations

import tf_keras

from ehap_tf.graph import batch_norms, is_identity_at_inference
from ehap_tf.models.checks import require_loaded


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
