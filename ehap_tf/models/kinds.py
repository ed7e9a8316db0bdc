"""What a layer or an activation function is, known by its class or by itself and not by its name.

Users call functions `leaky_relu` and classes `Conv2D` too; what those compute is theirs to say.
"""

from __future__ import annotations

import sys
from typing import Any

import tf_keras

from ehap_tf.models.keras3.activations import OF_KERAS3

_PACKAGES = ("ehap_tf", "keras", "tensorflow", "tf_keras")


def layer_kind(layer: tf_keras.layers.Layer) -> str:
    """The name of the layer's class, if that is one of Keras or of this package, else ""."""
    return _name_at_home(type(layer))


def function_kind(function: Any) -> str:
    """The name of a function of Keras, TensorFlow or this package, "" for any other.

    Functions that Keras 3 defines otherwise than tf_keras have the names of their twins here, and
    those that TensorFlow calls `softmax_v2` within are `softmax`, as they are without.
    """
    if _package(function) == "keras":
        function = OF_KERAS3.get(function.__name__, function)
    name = _name_at_home(function)
    return name.removesuffix("_v2") if _package(function) == "tensorflow" else name


def spelled(thing: Any) -> str:
    """What to call a class or a function in a message: one of the user's with its module."""
    name = getattr(thing, "__qualname__", None)
    if name is None or _name_at_home(thing):
        return str(getattr(thing, "__name__", thing))
    return f"{thing.__module__}.{name}"


def _name_at_home(thing: Any) -> str:
    # A decorated function may have the name and the module of another.
    name, home = getattr(thing, "__name__", ""), sys.modules.get(_module(thing))
    is_known = _package(thing) in _PACKAGES and getattr(home, name, None) is thing
    return name if is_known else ""


def _package(thing: Any) -> str:
    return _module(thing).partition(".")[0]


def _module(thing: Any) -> str:
    return str(getattr(thing, "__module__", ""))
