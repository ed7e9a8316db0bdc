"""The same network under another mixed-precision policy, the original left as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras.src.layers.core import tf_op_layer

from ehap_tf.graph import Copier, is_batch_norm, layer_from, made_by, with_policy
from ehap_tf.models.checks import require_functional

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")

# Channels that oneDNN's vectorized BatchNorm takes at once in bfloat16; others go through its
# reference code.
BFLOAT16_BATCH_NORM_MULTIPLE = 16


@tf_keras.utils.register_keras_serializable(package="ehap_tf")
class Float32Operation(tf_op_layer.TFOpLambda):
    """A TensorFlow function used as a layer, computed in float32 whatever its inputs are.

    Keras casts the inputs of layers, not those of functions, so a function that meets a 16-bit
    and a float32 tensor, or a float32 constant, would fail.
    """

    def _call_wrapper(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tf.nest.map_structure(_widened, (args, kwargs))
        return super()._call_wrapper(*args, **kwargs)


def clone_with_policy(model: tf_keras.Model, policy: str) -> tf_keras.Model:
    """Clones `model`, with the same weights and layer names, to compute under `policy`.

    Variables stay float32. What follows the last layer with weights, and that layer itself, stay
    in float32, so that outputs are float32; so do functions used as layers and Lambda layers. Under
    "mixed_bfloat16" so does a BatchNormalization of a number of channels that is no multiple of
    16: oneDNN trains it many times slower in bfloat16. Under "mixed_float16" so does max or average
    pooling in three dimensions where there is no GPU. A layer that was pinned keeps its type:
    float64, pure float16, or float32 inside a model under a mixed policy. Nested models, shared
    layers and trainability are kept. The clone is not compiled.

    Neither `model`, nor the global policy, nor a global random state is changed.

    Args:
        model: Functional or Sequential.
        policy: one of "float32", "mixed_float16", "mixed_bfloat16".

    Raises:
        TypeError: a subclassed model.
        ValueError: an unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}. Received: {policy!r}")
    require_functional(model)
    return _PolicyCopier(model, policy).copy(model)


def copy_model(model: tf_keras.Model) -> tf_keras.Model:
    """A copy of `model` with the same weights, that is not compiled.

    Raises:
        TypeError: a subclassed model.
    """
    require_functional(model)
    return Copier().copy(model)


class _PolicyCopier(Copier):
    """Copies under another dtype policy."""

    def __init__(self, model: tf_keras.Model, policy: str) -> None:
        super().__init__()
        self._policy = policy
        policies = {layer._dtype_policy.name for layer in _leaves(model)}
        mixed = {name for name in policies if name.startswith("mixed_")}
        # Inside a model under a mixed policy float32 was chosen; elsewhere it is the default.
        self._replaced = mixed or {"float32"}
        self._wide = _head(model)

    def new_layer(self, layer: Any) -> Any:
        policy = self._policy
        if id(layer) in self._wide or _belongs_in_float32(layer, policy):
            policy = "float32"
        config = layer.get_config()
        if isinstance(layer, tf_op_layer.SlicingOpLambda):
            return type(layer).from_config(config)
        if isinstance(layer, tf_op_layer.TFOpLambda):
            is_mixed = self._policy != "float32"
            kind = Float32Operation if is_mixed else tf_op_layer.TFOpLambda
            return kind.from_config(config)
        if isinstance(layer, tf_keras.layers.Lambda):
            # Lambda layers compute in float32, unless they were pinned to something else.
            policy = "float32"
        return layer_from(layer, with_policy(config, self._replaced, policy))


def _belongs_in_float32(layer: Any, policy: str) -> bool:
    """Whether TensorFlow computes `layer` slowly, or not at all, in the 16 bits of `policy`."""
    if policy == "mixed_bfloat16":
        return _is_slow_in_bfloat16(layer)
    # A CPU has no kernels for these in float16.
    return isinstance(
        layer, (tf_keras.layers.MaxPooling3D, tf_keras.layers.AveragePooling3D)
    ) and not tf.config.list_physical_devices("GPU")


def _is_slow_in_bfloat16(layer: Any) -> bool:
    """Whether `layer` is a BatchNormalization that does not fill the CPU's vector registers."""
    if not is_batch_norm(layer):
        return False
    return bool(layer.moving_mean.shape[0] % BFLOAT16_BATCH_NORM_MULTIPLE)


def _leaves(model: tf_keras.Model) -> Iterator[Any]:
    for layer in model._flatten_layers(include_self=False):
        if not isinstance(layer, (tf_keras.Model, tf_keras.layers.InputLayer)):
            yield layer


def _head(model: tf_keras.Model) -> set[int]:
    """The ids of the layers from the last one with weights to the outputs, along single paths."""
    wide: set[int] = set()
    for output in model.outputs:
        tensor = output
        while True:
            node, _ = made_by(tensor)
            layer = node.layer
            if isinstance(layer, tf_keras.Model):
                wide |= _head(layer)
                break
            wide.add(id(layer))
            if layer.weights or len(node.keras_inputs) != 1:
                break
            tensor = node.keras_inputs[0]
    return wide


def _widened(value: Any) -> Any:
    is_short = tf.is_tensor(value) and value.dtype in (tf.float16, tf.bfloat16)
    return tf.cast(value, tf.float32) if is_short else value
