"""Layers of the user's that only move or select values, found by trying them."""

from __future__ import annotations

import weakref

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.graph import arguments

SIZES = (1.0, 10.0, 100.0)
"""Of random inputs, one trial each: what sorts or takes the largest selects other places in each,
and what computes beyond a threshold only is found where values are large."""

_FOUND: weakref.WeakKeyDictionary[tf_keras.layers.Layer, bool] = weakref.WeakKeyDictionary()


def selects_values(layer: tf_keras.layers.Layer) -> bool:
    """Whether every number that a layer writes is one that it reads, or zero.

    Such a layer writes on its input's grid. A range of its own would contradict that: the file's
    RESHAPE, for instance, cannot change the grid that a sigmoid prescribes.

    Args:
        layer: of a built functional model, called once in it.
    """
    if layer not in _FOUND:
        _FOUND[layer] = _selects_values(layer)
    return _FOUND[layer]


def _selects_values(layer: tf_keras.layers.Layer) -> bool:
    node = layer.inbound_nodes[0]
    outputs = tf.nest.flatten(node.outputs)
    if len(node.keras_inputs) != 1 or len(outputs) != 1 or layer.weights:
        return False
    (x,), (y,) = node.keras_inputs, outputs
    if not (x.dtype.is_floating and y.dtype.is_floating) or None in x.shape[1:]:
        return False
    generator = np.random.default_rng(0)
    for size in SIZES:
        shape = (x.shape[0] or 2, *x.shape[1:])
        values = (size * generator.standard_normal(shape)).astype(np.float32)
        args, kwargs = arguments(node, [tf.constant(values)])
        if layer._expects_training_arg:
            kwargs = {**kwargs, "training": False}
        try:
            written = np.asarray(layer(*args, **kwargs))
        except Exception:  # What a layer of the user's raises when it is called on numbers.
            return False
        if not np.isin(written, [*values.ravel(), 0.0]).all():
            return False
    return True
