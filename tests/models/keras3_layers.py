"""A small Keras 3 model around every layer class of `keras.layers` that tf_keras has, too."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tf_keras

layers = keras.layers

# What an argument that has no default is given.
_GIVEN: dict[str, Any] = {
    "activation": "relu", "axes": -1, "cell": lambda: layers.GRUCell(3),
    "cells": lambda: [layers.GRUCell(3), layers.LSTMCell(2)], "dims": (2, 1),
    "equation": "abc,cd->abd", "factor": 0.3, "filters": 4, "height": 4, "height_factor": 0.2, "head_dim": 2, "layers": list, "max_number": 3, "num_query_heads": 4, "num_key_value_heads": 2, "output_size": 2,
    "input_dim": 7, "kernel_size": 3, "key_dim": 2, "layer": lambda: layers.Dense(3), "n": 3,
    "num_heads": 2, "output_dim": 3, "output_shape": (None, 5), "pool_size": 2, "rate": 0.3,
    "scale": 0.5, "stddev": 0.1, "target_shape": (-1,), "units": 3, "width": 4,
    "width_factor": 0.2,
}  # fmt: skip
_GIVEN_TO = {
    "Bidirectional": {"layer": lambda: layers.LSTM(3)},
    "Dot": {"axes": -1},
    "CategoryEncoding": {"num_tokens": 7},
    "Discretization": {"bin_boundaries": [0.0, 0.5]},
    "Hashing": {"num_bins": 5},
    "EinsumDense": {"equation": "abcd,de->abce", "output_shape": (None, None, 5)},
    "GroupNormalization": {"groups": 2},
}

EXCEPTIONS = {
    "FlaxLayer": "wraps a module of Flax",
    "GRUCell": "is called with states; inside RNN here",
    "HashedCrossing": "takes two columns of whole numbers, no tensors of a network",
    "JaxLayer": "wraps a function of JAX",
    "LSTMCell": "is called with states; inside RNN here",
    "Lambda": "holds a function: tests/models/test_lambdas.py",
    "Layer": "the base class",
    "SimpleRNNCell": "is called with states; inside RNN here",
    "StackedRNNCells": "is called with states; inside RNN below",
    "StringLookup": "takes strings",
    "TFSMLayer": "wraps a SavedModel",
    "TextVectorization": "takes strings",
    "TorchModuleWrapper": "wraps a module of PyTorch",
}
"""Classes of `keras.layers` without a model here, each with the reason."""

_SHAPES = [(8, 8, 4), (8, 4), (6, 6, 6, 4), (6, 6, 6, 6, 4), (4,)]


def kinds() -> Iterator[type]:
    """Every layer class of `keras.layers` once, also under several names, but for `EXCEPTIONS`."""
    found = {
        kind: None
        for _, kind in sorted(vars(layers).items())
        if inspect.isclass(kind) and issubclass(kind, layers.Layer)
    }
    yield from (kind for kind in found if kind.__name__ not in EXCEPTIONS)


def is_known_to_tf_keras(kind: type) -> bool:
    return hasattr(tf_keras.layers, kind.__name__)


def made(kind: type, **given: Any) -> Any:
    """A layer of the class; arguments that have no default are given here."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    names = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    values = {name: _GIVEN[name] for name in names if name in _GIVEN}
    values |= _GIVEN_TO.get(kind.__name__, {})
    return kind(**{n: v() if callable(v) else v for n, v in values.items()}, **given)


def model_of(kind: type, call: dict[str, Any] | None = None) -> Any:
    """A model of one layer of the class, on the first kind of input that it takes.

    Args:
        kind: class of the layer.
        call: further arguments of the call.
    """
    reasons = []
    for shape in _SHAPES:
        for number in (1, 2):
            dtype = "int32" if kind.__name__ == "Embedding" else "float32"
            inputs = [keras.Input(shape, dtype=dtype) for _ in range(number)]
            for arguments in (inputs, [inputs]) if number > 1 else (inputs,):
                try:
                    outputs = made(kind)(*arguments, **(call or {}))
                except Exception as error:
                    reasons.append(f"{shape} x {number}: {error}")
                    continue
                return keras.Model(inputs, outputs)
    raise AssertionError(f"{kind.__name__} took no input: {reasons}")


def inputs_of(model: Any, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(0, 1, (2, *t.shape[1:])).astype(t.dtype) for t in model.inputs]
