"""Settings as text that is the same in every process, to tell one schedule from another."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf


def stable_text(value: Any) -> str:
    """What a setting is, without the addresses that `repr` puts into it.

    Functions and classes go by their names, objects by their class and the configuration that they
    have in Keras, but for their own names, which Keras may count on.
    """
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return f"partial({', '.join(map(stable_text, parts))})"
    if isinstance(value, (tf.Tensor, tf.Variable)):
        value = value.numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        items = sorted((str(name), stable_text(item)) for name, item in value.items())
        return "{" + ", ".join(f"{name}: {item}" for name, item in items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(stable_text, value)) + "]"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    kind = stable_text(type(value))
    if not hasattr(value, "get_config"):
        return kind
    config = {name: item for name, item in value.get_config().items() if name != "name"}
    return kind + stable_text(config)
