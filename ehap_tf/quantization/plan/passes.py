"""The graph of the file's operators, before it is decided how each is quantized."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.graph import (
    consumers,
    is_identity_at_inference,
    is_plain_batch_norm,
    layer_from,
    producers,
    traits_of,
)
from ehap_tf.models.kinds import layer_kind
from ehap_tf.quantization.integer_rules.builder import GraphBuilder
from ehap_tf.quantization.integer_rules.flat_graph import readers_in_file, rebuild
from ehap_tf.quantization.integer_rules.integer_kernels import multiplies

SMALLEST_GAMMA = 1e-6
"""The TFLite converter leaves a convolution in float where a BatchNorm gamma is exactly 0."""


def is_plain_relu(layer: Any) -> bool:
    """Whether `layer` is max(x, 0), perhaps with an upper limit."""
    return (
        layer_kind(layer) == "ReLU"
        and not float(layer.negative_slope or 0.0)
        and not float(layer.threshold or 0.0)
    )


def reading_layers(flat: tf_keras.Model) -> dict[str, list[Any]]:
    """Those that `readers_in_file` names; None stands for the model's output."""
    by_name = {layer.name: layer for layer in flat.layers}
    found = readers_in_file(flat)
    return {name: [by_name.get(reader) for reader in found[name]] for name in found}


def _only_scales(layer: Any) -> bool:
    """Whether a layer multiplies by numbers that are not negative, and by 1 at inference."""
    return traits_of(layer).training_only == "scaling"


def drop_out_behind_relus(flat: tf_keras.Model) -> tf_keras.Model:
    """Puts a dropout right before a ReLU right behind it, which gives the same in training.

    It multiplies by 0 or 1 / (1 - rate), as a ReLU lets it. The values that the ReLU's range is
    trained for are then those of inference, not 1 / (1 - rate) times as large.
    """
    sources, readers = producers(flat), consumers(flat)
    by_name = {layer.name: layer for layer in flat.layers}
    destinations: dict[str, str] = {}
    for layer in flat.layers:
        if is_plain_relu(layer) and layer.max_value is None:
            (source,) = sources[layer.name]
            while _only_scales(by_name[source]) and len(readers[source]) == 1:
                destinations[source] = layer.name
                (source,) = sources[source]
    if not destinations:
        return flat
    moved: dict[str, list[Callable[[Any], Any]]] = {name: [] for name in destinations.values()}

    def visit(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if layer.name in destinations:
            moved[destinations[layer.name]].append(functools.partial(layer, **kwargs))
            return args[0]
        y = layer(*args, **kwargs)
        for drop_out in moved.get(layer.name, ()):
            y = drop_out(y)
        return y

    return rebuild(flat, visit)


def attach_batch_norms(flat: tf_keras.Model, on_input: Callable[[Any], Any]) -> tf_keras.Model:
    """Gives every BatchNorm without a kernel of its own an identity depthwise convolution.

    Scale and shift of the BatchNorm then fold into it, as into any convolution, and so does a
    ReLU behind it: one integer operator where the converter would make three. Vectors are images
    of one position meanwhile. What is identity at inference may stand between a kernel and its
    BatchNorm; in training it acts there.
    """
    sources, readers = producers(flat), reading_layers(flat)
    by_name = {layer.name: layer for layer in flat.layers}
    builder = GraphBuilder(layer.name for layer in flat.layers)

    def only_reader(name: str) -> Any:
        return readers[name][0] if len(readers[name]) == 1 else None

    def visit(layer: tf_keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not is_plain_batch_norm(layer):
            return layer(*args, **kwargs)
        (source,) = sources[layer.name]
        while is_identity_at_inference(by_name[source]):
            (source,) = sources[source]
        x, feeding = args[0], by_name[source] if only_reader(source) is layer else None
        if len(layer.axis) > 1:
            raise ValueError(
                f"layer {layer.name!r} must normalise one axis; integer kernels have a scale for "
                f"each channel. Received: axis={list(layer.axis)}"
            )
        if layer.scale:
            gamma = layer.gamma.numpy()
            layer.gamma.assign(np.where(np.abs(gamma) < SMALLEST_GAMMA, SMALLEST_GAMMA, gamma))
        if multiplies(feeding):
            return layer(x)

        def normalize(image: Any) -> Any:
            return _on_image(layer, builder.affine(image, 1.0, 0.0, f"{layer.name}_identity"))

        return builder.as_image(normalize, x, layer.name)

    # What the batch is needed for, the shapes of operators, is layers by now.
    return rebuild(flat, visit, on_input, free_batch=True)


def _on_image(batch_norm: tf_keras.layers.BatchNormalization, image: Any) -> Any:
    """Returns a call of a BatchNorm over the last axis of a tensor of any rank, on an image."""
    twin = layer_from(batch_norm, {**batch_norm.get_config(), "axis": -1})
    y = twin(image)
    twin.set_weights(batch_norm.get_weights())
    return y
