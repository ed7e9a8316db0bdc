"""The layers whose filters are scored, and one flat vector for all their filters together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras


@dataclasses.dataclass(frozen=True)
class PrunableLayer:
    """A convolution or Dense layer of a model.

    Attributes:
        name: the layer's name; a layer of a nested model is `"outer/inner"`.
        layer: the Keras layer; its `kernel` has the filters on the last axis.
    """

    name: str
    layer: tf_keras.layers.Layer

    @property
    def filters(self) -> int:
        """Number of filters: the kernel's last axis."""
        return int(self.layer.kernel.shape[-1])

    @property
    def filter_size(self) -> int:
        """Number of weights of one filter, the bias not counted."""
        return int(np.prod(self.layer.kernel.shape[:-1]))

    @property
    def kernel(self) -> np.ndarray:
        """A copy of the kernel as float64."""
        return np.asarray(self.layer.kernel, dtype=np.float64)


def walk_layers(
    model: tf_keras.Model, prefix: str = ""
) -> Iterator[tuple[str, tf_keras.layers.Layer]]:
    """Yields `(name, layer)` in model order; nested models are opened, names joined by "/"."""
    for layer in model.layers:
        if isinstance(layer, tf_keras.Model):
            yield from walk_layers(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer


def find_prunable(model: tf_keras.Model) -> list[PrunableLayer]:
    """The Conv2D and Dense layers of `model` in model order, each once, the classifier included.

    Transposed, depthwise and separable convolutions are not among them: their channels follow
    other layers' or lie on other axes.

    Raises:
        ValueError: the model has no such layer.
    """
    found: list[PrunableLayer] = []
    seen: set[int] = set()
    for name, layer in walk_layers(model):
        if id(layer) in seen or isinstance(layer, tf_keras.layers.Conv2DTranspose):
            continue
        if isinstance(layer, (tf_keras.layers.Conv2D, tf_keras.layers.Dense)):
            seen.add(id(layer))
            found.append(PrunableLayer(name, layer))
    if not found:
        raise ValueError(
            f"model must have at least one Conv2D or Dense layer. "
            f"Received: {model.name!r} with layers "
            f"{sorted({type(layer).__name__ for _, layer in walk_layers(model)})}"
        )
    return found


def filter_sums(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Sums each kernel-shaped tensor over all axes but the last; all layers end to end.

    Args:
        tensors: one tensor of shape (..., filters) a layer.

    Returns:
        float vector of all filters of all layers, layer after layer.
    """
    return tf.concat([tf.reduce_sum(t, axis=list(range(t.shape.rank - 1))) for t in tensors], 0)


def split_filters(values: np.ndarray, layers: Sequence[PrunableLayer]) -> Mapping[str, np.ndarray]:
    """Cuts a flat vector of all filters into one vector a layer, by layer name."""
    ends = np.cumsum([layer.filters for layer in layers])
    pieces = np.split(values, ends[:-1])
    return {layer.name: piece for layer, piece in zip(layers, pieces, strict=True)}
