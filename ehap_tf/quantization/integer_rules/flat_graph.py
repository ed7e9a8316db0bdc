"""The flat graph of the file's layers: rebuilt call by call, and who reads whom in the file."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)

from ehap_tf.graph import consumers, is_identity_at_inference, layer_of, made_by, model_like, replay
from ehap_tf.quantization.integer_rules.wrappers import unwrapped


def rebuild(
    model: tf_keras.Model,
    call: Callable[[tf_keras.layers.Layer, tuple[Any, ...], dict[str, Any]], Any],
    on_input: Callable[[Any], Any] = lambda tensor: tensor,
    free_batch: bool = False,
) -> tf_keras.Model:
    """Builds the functional model that `call` makes out of `model`, on fresh float32 inputs.

    The structure of the inputs and outputs (one tensor, a list, a dict) is that of `model`.

    Args:
        model: a Functional or (built) Sequential model.
        call: what a call becomes, as for `ehap_tf.graph.replay`.
        on_input: what the rest of the model reads instead of an input.
        free_batch: take batches of any size where `model` takes one of its own.
    """
    inputs = [
        tf_keras.Input(
            batch_shape=[None, *tensor.shape[1:]] if free_batch else tensor.shape,
            dtype="float32",
            name=layer_of(tensor).name,
        )
        for tensor in model.inputs
    ]
    return model_like(model, inputs, replay(model, [on_input(x) for x in inputs], call))


def readers_in_file(model: tf_keras.Model) -> dict[str, list[str]]:
    """As `consumers`, what is identity at inference looked through: its consumers instead.

    Those are what a file's operator hands its numbers to.
    """
    direct = consumers(model)
    identities = {
        layer.name for layer in model.layers if is_identity_at_inference(unwrapped(layer))
    }

    def beyond(name: str) -> list[str]:
        found = (beyond(n) if n in identities else [n] for n in direct[name])
        return list(itertools.chain.from_iterable(found))

    return {name: beyond(name) for name in direct}


def output_layers(model: tf_keras.Model) -> list[tf_keras.layers.Layer]:
    """The layers that make the outputs, one for each; a `QuantizeLayer` behind is passed over."""
    found = []
    for tensor in model.outputs:
        node, _ = made_by(tensor)
        while isinstance(node.layer, QuantizeLayer):
            node, _ = made_by(node.keras_inputs[0])
        found.append(node.layer)
    return found
