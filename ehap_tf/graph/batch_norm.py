"""BatchNorm: which layers it is, what it computes at inference, its statistics estimated anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras
from tf_keras.src.layers.normalization.batch_normalization import BatchNormalizationBase

Floats = npt.NDArray[np.float64]

BatchNorm: TypeAlias = BatchNormalizationBase
"""The base of all BatchNorm layers, those over several devices and of the user's own among them."""

_OF_KERAS = (
    tf_keras.layers.BatchNormalization,
    tf_keras.layers.experimental.SyncBatchNormalization,
)


def is_batch_norm(layer: Any) -> bool:
    """Whether a layer is a BatchNorm: it has the statistics of the batches that it saw."""
    return isinstance(layer, BatchNormalizationBase)


def is_plain_batch_norm(layer: Any) -> bool:
    """Whether a layer is Keras' own BatchNorm, not a subclass, which may compute otherwise."""
    return type(layer) in _OF_KERAS


def batch_norms(model: tf_keras.Model) -> list[BatchNorm]:
    """The BatchNorm layers of a model, those inside wrappers and nested models included."""
    return list(filter(is_batch_norm, model._flatten_layers(include_self=False)))


def batch_norm_coefficients(norm: BatchNorm) -> tuple[tf.Tensor, tf.Tensor]:
    """(scale, offset) of a BatchNorm with its moving statistics, float32 vectors (or float64)."""
    dtype = norm.moving_variance.dtype
    return _coefficients(norm, lambda weight: tf.cast(weight, dtype), tf.math.rsqrt)


def batch_norm_numbers(norm: BatchNorm) -> tuple[Floats, Floats]:
    """As `batch_norm_coefficients`, computed in float64.

    Not finite where the statistics make it so.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return _coefficients(
            norm, lambda weight: weight.numpy().astype(np.float64), lambda x: 1.0 / np.sqrt(x)
        )


def _coefficients(
    norm: BatchNorm, read: Callable[[tf.Variable], Any], rsqrt: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """Of y = scale x + offset: gamma / sqrt(variance + epsilon), and beta - mean scale."""
    scale = rsqrt(read(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        scale = scale * read(norm.gamma)
    offset = -read(norm.moving_mean) * scale
    if norm.center:
        offset = offset + read(norm.beta)
    return scale, offset


class AveragedStatistics:
    """The statistics of every call of some BatchNorm layers in training mode, averaged.

    As a context: inside the block the layers are called, at its end they get the averages; after an
    error they keep what they have. A call counts once an example, or the single example of a last
    batch, which has no variance, would count as much as a full batch.

    Args:
        norms: the layers.
    """

    def __init__(self, norms: Iterable[BatchNorm]) -> None:
        self._sums = [_Sums(norm) for norm in norms]

    def __enter__(self) -> AveragedStatistics:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for one in self._sums:
            one.release()
            if kind is None:
                one.assign()

    def reset(self) -> None:
        """Forgets the calls that were counted."""
        for one in self._sums:
            one.reset()

    def assign(self) -> None:
        """Gives the layers the averages of the calls that were counted."""
        for one in self._sums:
            one.assign()


class _Sums:
    def __init__(self, norm: BatchNorm) -> None:
        self._norm = norm
        self._momentum = norm.momentum
        self._statistics = [norm.moving_mean, norm.moving_variance]
        self._totals = [tf.Variable(np.zeros(s.shape, np.float64)) for s in self._statistics]
        self._examples = tf.Variable(0.0, dtype=tf.float64)
        self._call = norm.call
        norm.momentum = 0.0  # the moving statistics are then those of the newest call
        norm.call = self._counted

    def _counted(self, inputs: tf.Tensor, training: Any = None, **kwargs: Any) -> Any:
        # TFMOT's wrapper hands on `training` to what has an argument of that name.
        outputs = self._call(inputs, training=training, **kwargs)
        examples = tf.cast(tf.shape(inputs)[0], tf.float64)
        for total, statistic in zip(self._totals, self._statistics, strict=True):
            total.assign_add(examples * tf.cast(statistic, tf.float64))
        self._examples.assign_add(examples)
        return outputs

    def reset(self) -> None:
        for variable in (*self._totals, self._examples):
            variable.assign(tf.zeros_like(variable))

    def assign(self) -> None:
        if not self._examples.numpy():
            return  # inside a layer that does not use it
        for statistic, total in zip(self._statistics, self._totals, strict=True):
            statistic.assign(tf.cast(total / self._examples, statistic.dtype))

    def release(self) -> None:
        del self._norm.call  # the method of the class shows again
        self._norm.momentum = self._momentum
