"""A small Keras 3 model around every layer class of `keras.layers`."""

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
    "activation": "relu", "axes": -1, "cell": lambda: layers.GRUCell(3), "dims": (2, 1),
    "equation": "abcd,de->abce", "factor": 0.3, "filters": 4, "height": 4, "height_factor": 0.2,
    "input_dim": 7, "kernel_size": 3, "key_dim": 2, "layer": lambda: layers.Dense(3), "n": 3,
    "num_heads": 2, "output_dim": 3, "output_shape": (None, None, 5), "pool_size": 2, "rate": 0.3,
    "scale": 0.5, "stddev": 0.1, "target_shape": (-1,), "units": 3, "width": 4,
    "width_factor": 0.2, "output_size": 2, "head_dim": 2, "num_query_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
_GIVEN_TO: dict[str, dict[str, Any]] = {
    "Bidirectional": {"layer": lambda: layers.LSTM(3)},
    "CategoryEncoding": {"num_tokens": 7},
    "Discretization": {"bin_boundaries": [0.2, 0.5]},
    "GroupNormalization": {"groups": 2},
    "RandomPosterization": {"factor": 4},
}
_TAKES_CLASS_NUMBERS = ("CategoryEncoding", "Embedding", "ReversibleEmbedding")

WITHOUT_MODEL = {
    "FlaxLayer": "wraps a module of Flax",
    "GRUCell": "is called with states; inside RNN here",
    "HashedCrossing": "takes columns of strings",
    "Hashing": "takes strings",
    "InputLayer": "begins every model",
    "IntegerLookup": "looks numbers up in a table, before a network",
    "JaxLayer": "wraps a function of JAX",
    "LSTMCell": "is called with states; inside RNN here",
    "Lambda": "holds a function",
    "Layer": "the base class",
    "MaxNumBoundingBoxes": "takes boxes",
    "Pipeline": "chains other layers",
    "SimpleRNNCell": "is called with states; inside RNN here",
    "SpectralNormalization": "refused, unless `tf.keras` is tf_keras, which its own code calls",
    "StackedRNNCells": "is called with states",
    "StringLookup": "takes strings",
    "TFSMLayer": "wraps a SavedModel",
    "TextVectorization": "takes strings",
    "TorchModuleWrapper": "wraps a module of PyTorch",
    "Wrapper": "the base class",
    "Equalization": "Keras 3 itself makes a cycle of it",
}
"""Classes of `keras.layers` of which no model is made here, each with the reason."""

_SHAPES = [(8, 8, 3), (8, 4), (6, 6, 6, 4), (6, 6, 6, 6, 4), (4,), (2048,), (512, 1)]


def kinds() -> Iterator[type]:
    """The layer classes of `keras.layers`, each once, whatever its names."""
    found = {
        kind: None
        for _, kind in sorted(vars(layers).items())
        if inspect.isclass(kind) and issubclass(kind, layers.Layer)
    }
    yield from (kind for kind in found if kind.__name__ not in WITHOUT_MODEL)


def is_known_to_tf_keras(kind: type) -> bool:
    return hasattr(tf_keras.layers, kind.__name__)


def made(kind: type) -> Any:
    """A layer of the class, its arguments the defaults where they have any."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    names = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    values = {name: _GIVEN[name] for name in names if name in _GIVEN}
    values |= _GIVEN_TO.get(kind.__name__, {})
    return kind(**{name: v() if callable(v) else v for name, v in values.items()})


def model_of(kind: type, **call: Any) -> Any:
    """A model of one layer of the class, on the first kind of input that it takes.

    Args:
        kind: class of the layer.
        call: further arguments of the call.
    """
    reasons = []
    is_of_numbers = kind.__name__ in _TAKES_CLASS_NUMBERS
    for shape in [(4,)] if is_of_numbers else _SHAPES:
        for form in ("one", "list", "two"):
            dtype = "int32" if is_of_numbers else "float32"
            inputs = [keras.Input(shape, dtype=dtype) for _ in range(1 if form == "one" else 2)]
            try:
                outputs = made(kind)(*([inputs] if form == "list" else inputs), **call)
                model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs)
                model(inputs_of(model), training=False)
            except Exception as error:
                reasons.append(f"{shape}, {form}: {error}")
                continue
            return model
    raise AssertionError(f"{kind.__name__} took no input: {reasons}")


def inputs_of(model: Any, seed: int = 1) -> Any:
    """Random inputs in [0, 1], class numbers where the model takes whole numbers."""
    rng = np.random.default_rng(seed)
    x = [
        rng.integers(0, 7, (2, *t.shape[1:])) if "int" in t.dtype
        else rng.uniform(0, 1, (2, *t.shape[1:])).astype(t.dtype)
        for t in model.inputs
    ]  # fmt: skip
    return x if len(x) > 1 else x[0]
