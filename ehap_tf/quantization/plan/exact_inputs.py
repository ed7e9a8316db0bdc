"""Inputs whose exact numbers count, which those of an integer file cannot be."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tf_keras

from ehap_tf.graph import consumers, layer_of, traits_of
from ehap_tf.models.kinds import spelled
from ehap_tf.quantization.integer_rules.integer_kernels import keeps_grid


def require_no_exact_inputs(
    model: tf_keras.Model, flat: tf_keras.Model, is_float: Callable[[tf_keras.layers.Layer], bool]
) -> None:
    """Refuses an input that a layer in float needs the exact numbers of.

    Every input is quantized: of ids from 0 to 199, 5 becomes 4.68, and an Embedding looks up 4.

    Args:
        model: as the caller has it, with the types of its inputs.
        flat: its canonical graph.
        is_float: says which layers of `flat` stay in float.

    Raises:
        ValueError: a layer in float looks up what it reads from an input, or makes integers or
            truth values of it; or it reads an input of integers that do not fit 8 bits.
    """
    layers, readers = {layer.name: layer for layer in flat.layers}, consumers(flat)
    for tensor in model.inputs:
        name = layer_of(tensor).name
        wide = tensor.dtype.is_integer and tensor.dtype.size > 1
        waiting = [name]
        while waiting:
            for layer in (layers[reader] for reader in readers[waiting.pop()] if reader):
                if keeps_grid(layer):
                    waiting.append(layer.name)
                elif is_float(layer) and (wide or _needs_exact_numbers(layer)):
                    raise ValueError(
                        f"input {name!r} must not be read by layer {layer.name!r} "
                        f"({spelled(type(layer))}), which stays in float and needs exact numbers: "
                        "the file has its inputs in 8 bits. Compute that layer outside the model, "
                        "which gets its output as an input. Received: an input of type "
                        f"{tensor.dtype.name}"
                    )


def _needs_exact_numbers(layer: tf_keras.layers.Layer) -> bool:
    outputs = tf.nest.flatten(layer.output)
    return traits_of(layer).looks_up or not all(y.dtype.is_floating for y in outputs)
