"""The layers whose filters are scored, and one flat vector for all their filters together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import trace_channels, weight_of
from ehap_tf.graph import layer_paths, model_inside


@dataclasses.dataclass(frozen=True)
class PrunableLayer:
    """A layer of a model that owns filters, as its channel rule says.

    Attributes:
        name: the layer's name; a layer of a nested model is `"outer/inner"`.
        layer: the Keras layer.
        attribute: that holds the weight of the filters.
        filter_axis: the axis of `weight` that counts the filters.
    """

    name: str
    layer: tf_keras.layers.Layer
    attribute: str
    filter_axis: int

    @property
    def filters(self) -> int:
        """Number of filters."""
        return int(self.weight.shape[self.filter_axis])

    @property
    def weight(self) -> tf.Variable:
        """The variable that holds the filters: of a separable convolution the pointwise kernel."""
        return weight_of(self.layer, self.attribute)

    @property
    def filter_size(self) -> int:
        """Number of weights of one filter, the bias not counted."""
        return int(np.prod(self.weight.shape)) // self.filters

    @property
    def kernel(self) -> np.ndarray:
        """A copy of the kernel as float64, the filters on the last axis."""
        return np.moveaxis(np.asarray(self.weight, dtype=np.float64), self.filter_axis, -1)


def walk_layers(model: tf_keras.Model) -> Iterator[tuple[str, tf_keras.layers.Layer]]:
    """Yields `(path, layer)` in model order, each layer once; nested models are opened."""
    paths, seen = layer_paths(model), set[int]()

    def walk(model: tf_keras.Model) -> Iterator[tuple[str, tf_keras.layers.Layer]]:
        for layer in model.layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            inside = model_inside(layer)
            if inside is not None:
                yield from walk(inside)
            else:
                yield paths[id(layer)], layer

    return walk(model)


def find_prunable(model: tf_keras.Model) -> list[PrunableLayer]:
    """The layers of `model` that own filters, in model order, each once, the classifier included.

    Those whose channel rule says so (`Effect.filters`): convolutions of one to three dimensions,
    plain, transposed and separable, Dense layers, and layers of a user's own. A depthwise
    convolution owns none: its channels are those of the layer before it. Neither does a grouped
    convolution with a group for each input channel, which is one.

    Raises:
        TypeError: the model is subclassed, or a layer's rule returns no effect.
        ValueError: the model has no such layer, or a layer's rule does not fit it.
    """
    owners = trace_channels(model).filters
    found = [
        PrunableLayer(name, layer, *owners[name])
        for name, layer in walk_layers(model)
        if name in owners
    ]
    if not found:
        raise ValueError(
            "model must have at least one convolution or Dense layer, or another whose channel "
            "rule names the weight of its filters. "
            f"Received: {model.name!r} with layers "
            f"{sorted({type(layer).__name__ for _, layer in walk_layers(model)})}"
        )
    return found


def filter_sums(tensors: Sequence[tf.Tensor], layers: Sequence[PrunableLayer]) -> tf.Tensor:
    """Sums each kernel-shaped tensor over all axes but that of the filters; layers end to end.

    Args:
        tensors: one tensor of the shape of its `weight` a layer.
        layers: the layers.

    Returns:
        float vector of all filters of all layers, layer after layer.
    """
    sums = []
    for tensor, layer in zip(tensors, layers, strict=True):
        rank = tensor.shape.rank
        others = [axis for axis in range(rank) if axis != layer.filter_axis % rank]
        sums.append(tf.reduce_sum(tensor, axis=others))
    return tf.concat(sums, 0)


def split_filters(values: np.ndarray, layers: Sequence[PrunableLayer]) -> Mapping[str, np.ndarray]:
    """Cuts a flat vector of all filters into one vector per layer, by layer name."""
    ends = np.cumsum([layer.filters for layer in layers])
    pieces = np.split(values, ends[:-1])
    return {layer.name: piece for layer, piece in zip(layers, pieces, strict=True)}
