"""TFMOT's wrapper around a quantized layer: taking it off, and working round its flaws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (
    QuantizeWrapper,
    QuantizeWrapperV2,
)

from ehap_tf.graph import is_batch_norm
from ehap_tf.models.checks import require_loaded

NAME_PREFIX = "quant_"
"""What TFMOT puts before a layer's name, to name the wrapper."""


def require_qat(model: Any) -> None:
    """Checks that `model` is quantized.

    Raises:
        TypeError: it does not come from `quantize`.
    """
    require_loaded(model, "qat", "load_qat")
    if not is_qat(model):
        raise TypeError(
            "qat must be a model from quantize() or load_qat(). "
            f"Received: {type(model).__module__}.{type(model).__name__} "
            f"{getattr(model, 'name', '')!r}, which is not quantized"
        )


def is_qat(model: Any) -> bool:
    """Whether a layer of the model is quantized."""
    layers = model.layers if isinstance(model, tf_keras.Model) else ()
    return any(isinstance(layer, QuantizeWrapper | QuantizeLayer) for layer in layers)


def unwrapped(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
    """The layer inside TFMOT's wrapper, or `layer` itself."""
    return layer.layer if isinstance(layer, QuantizeWrapper) else layer


def has_default_name(layer: tf_keras.layers.Layer) -> bool:
    """Whether a wrapper is called after the layer inside."""
    return isinstance(layer, QuantizeWrapper) and layer.name == f"{NAME_PREFIX}{layer.layer.name}"


class EhapQuantizeWrapper(QuantizeWrapperV2):
    """TFMOT's wrapper, without its way of listing weights.

    TFMOT's puts a layer's quantized weights on the list of trainable ones whatever the layer says,
    lists others once or twice, depending on whether the layer was built before it, and both for a
    frozen BatchNorm: files do not load back. Here each weight is listed once, in the same order
    after loading, and those of a layer that is not trainable do not train. Gamma and beta of a
    BatchNorm that `freeze_batch_norm` froze do, the wrapper being trainable still.

    Args:
        layer: to be quantized.
        quantize_config: says how.
        statistics_frozen: of a BatchNorm that `freeze_batch_norm` froze before it was saved.
        **kwargs: of a Keras layer.
    """

    def __init__(
        self, layer: Any, quantize_config: Any, statistics_frozen: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(layer, quantize_config, **kwargs)
        self._trainable_norm = statistics_frozen
        if statistics_frozen:
            self._trainable = True

    def build(self, input_shape: Any) -> None:
        """Makes the variables of the quantizers."""
        super().build(input_shape)
        # The layer has lost these, its attributes being the quantized tensors; it keeps the rest.
        self._trainable_weights[:] = [weight for weight, *_ in self._weight_vars]
        is_norm = is_batch_norm(self.layer)
        self._trainable_norm |= is_norm and self.layer.trainable

    @property
    def trainable(self) -> bool:
        """Whether the layer inside is trainable; setting it sets both."""
        return self.layer.trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self.layer.trainable = value
        self._trainable = value

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        config = super().get_config()
        if self._trainable_norm and self._trainable and not self.layer.trainable:
            config["statistics_frozen"] = True
        return config

    @property
    def trainable_weights(self) -> list[tf.Variable]:
        """What an optimizer may change."""
        if self._trainable_norm and self._trainable:
            return list(self.layer._trainable_weights)
        return super().trainable_weights if self.layer.trainable else []

    @property
    def non_trainable_weights(self) -> list[tf.Variable]:
        """All other weights."""
        trainable = {id(weight) for weight in self.trainable_weights}
        weights = self._dedup_weights([*self._trainable_weights, *super().non_trainable_weights])
        return [weight for weight in weights if id(weight) not in trainable]


def training_forward(qat: tf_keras.Model) -> Callable[[list[tf.Tensor]], Any]:
    """A traced forward pass in training mode, in which ranges and statistics move.

    Translating the wrappers' Python takes longer than everything else; only layers that stay in
    float may need it.
    """
    known = (QuantizeWrapper, QuantizeLayer, tf_keras.layers.InputLayer)
    has_others = any(not isinstance(layer, known) for layer in qat.layers)

    def forward(inputs: list[tf.Tensor]) -> Any:
        return qat(inputs, training=True)

    return tf.function(forward, autograph=has_others, reduce_retracing=True)
