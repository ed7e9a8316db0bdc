"""The layers whose filters are scored, and one flat vector for all their filters together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import is_depthwise
from ehap_tf.graph import layer_paths, model_inside, traits_of


@dataclasses.dataclass(frozen=True)
class PrunableLayer:
    """A convolution or Dense layer of a model.

    Attributes:
        name: the layer's name; a layer of a nested model is `"outer/inner"`.
        layer: the Keras layer.
    """

    name: str
    layer: tf_keras.layers.Layer

    @property
    def filters(self) -> int:
        """Number of filters."""
        return int(self.weight.shape[self.filter_axis])

    @property
    def weight(self) -> tf.Variable:
        """The variable that holds the filters: of a separable convolution the pointwise kernel."""
        return getattr(self.layer, self._owner[0])

    @property
    def filter_axis(self) -> int:
        """The axis of `weight` that counts the filters: the last but one of a transposed layer."""
        return self._owner[1]

    @property
    def _owner(self) -> tuple[str, int]:
        owner = traits_of(self.layer).filters
        assert owner is not None
        return owner

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

    Convolutions of one to three dimensions, plain, transposed and separable, and Dense layers. A
    depthwise convolution owns none: its channels are those of the layer before it. Neither does a
    grouped convolution with a group for each input channel, which is one.

    Raises:
        ValueError: the model has no such layer.
    """
    found = [
        PrunableLayer(name, layer)
        for name, layer in walk_layers(model)
        if traits_of(layer).filters is not None and not is_depthwise(layer)
    ]
    if not found:
        raise ValueError(
            f"model must have at least one convolution or Dense layer. "
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
        others = [axis for axis in range(rank) if axis != rank + layer.filter_axis]
        sums.append(tf.reduce_sum(tensor, axis=others))
    return tf.concat(sums, 0)


def split_filters(values: np.ndarray, layers: Sequence[PrunableLayer]) -> Mapping[str, np.ndarray]:
    """Cuts a flat vector of all filters into one vector a layer, by layer name."""
    ends = np.cumsum([layer.filters for layer in layers])
    pieces = np.split(values, ends[:-1])
    return {layer.name: piece for layer, piece in zip(layers, pieces, strict=True)}
