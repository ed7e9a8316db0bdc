"""The full-size twin of a slim model: the same computation with removed channels set to zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ZERO, TracedCall
from ehap_tf.models.keras3 import either_keras
from ehap_tf.pruning.plan import implant_layers
from ehap_tf.pruning.plan.pruning_plan import PruningPlan
from ehap_tf.pruning.surgery.rebuild import ByPlan


@tf_keras.utils.register_keras_serializable(package="ehap_tf")
class ChannelMask(tf_keras.layers.Layer):
    """Multiplies the channels of its input by zeros and ones.

    Args:
        mask: for each channel 1 (stays) or 0 (becomes zero).
    """

    def __init__(self, mask: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mask = tuple(int(bool(m)) for m in mask)
        self.supports_masking = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Selects rather than multiplies, so that infinity in a dead channel is zero too."""
        mask = tf.constant([bool(m) for m in self.mask])
        return tf.where(mask, inputs, tf.zeros((), inputs.dtype))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "mask": list(self.mask)}


@either_keras()
def mask(model: tf_keras.Model, plan: PruningPlan) -> tf_keras.Model:
    """A copy of the model in which everything downstream of a removed channel sees zero.

    It has the size and speed of the original and the outputs of `prune(model, plan)`: the
    definition that surgery is tested against, and a way to try a plan.

    Args:
        model: a Functional or Sequential model, the one that the plan was made for.
        plan: what to keep.

    Raises:
        TypeError: the model is subclassed, or `plan` is no plan.
        ValueError: the plan does not fit the model.
    """
    return _Masker(model, plan).rebuild(model)


class _Masker(ByPlan):
    def weights(self, call: TracedCall) -> list[Any]:
        """An implanted filter has its kernel zero outside the centre, or everywhere."""
        values = super().weights(call)
        implanted = self._plan.implanted.get(call.path, ())
        if not len(implanted):
            return values
        kernel = values[0].copy()
        center = kernel[implant_layers.center(kernel)].copy()
        kernel[..., implanted] = 0
        if self._plan.implant_init == "center":
            kernel[implant_layers.center(kernel)][..., implanted] = center[..., implanted]
        return [kernel, *values[1:]]

    def outputs(self, call: TracedCall, tensors: list[Any]) -> list[Any]:
        """Zeroes the channels of the outputs that the plan removes."""
        if call.effect.preserves_zero:
            return tensors
        masked = []
        for tensor, ids in zip(tensors, call.effect.outputs, strict=True):
            stays = self._alive[ids] | (ids == ZERO)
            if not np.all(stays):
                name = self.fresh_name(f"{call.layer.name}_mask")
                tensor = ChannelMask(stays.astype(int).tolist(), name=name, dtype=tensor.dtype)(
                    tensor
                )
            masked.append(tensor)
        return masked
