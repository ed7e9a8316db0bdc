"""What an activation function does to channels, found out by trying it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

_CHANNELS = 4
_PICKED = [2, 0]


def mixes_channels(activation: Callable[[Any], Any] | None, rank: int) -> bool:
    """Whether an output channel depends on other channels than its own, or on its place.

    A layer with weights in the place of a function counts as mixing.

    Args:
        activation: from a layer's attribute; None is the identity.
        rank: of the tensors that it is given, the batch axis included.
    """
    if activation is None:
        return False
    if isinstance(activation, tf.Module) and activation.variables:
        return True
    return _tried(activation, rank)[0]


def zero_at_zero(activation: Callable[[Any], Any] | None, rank: int = 2) -> bool:
    """Whether an activation maps a channel of zeros to zeros."""
    return activation is None or _tried(activation, rank)[1]


def activation_name(activation: Any) -> str:
    """What to call an activation in a message."""
    return str(getattr(activation, "__name__", type(activation).__name__))


@functools.lru_cache(maxsize=256)
def _tried(activation: Callable[[Any], Any], rank: int) -> tuple[bool, bool]:
    shape = (2, *(3,) * (rank - 2), _CHANNELS)
    x = np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)

    def value(at: np.ndarray) -> np.ndarray:
        with tf.init_scope():
            return np.asarray(activation(tf.constant(at)))

    try:
        whole, part, at_zero = value(x), value(x[..., _PICKED]), value(np.zeros_like(x))
    except Exception:
        # Somebody else's function, which may want tensors of one shape only.
        return True, False
    mixes = whole.shape != shape or not np.allclose(whole[..., _PICKED], part, 1e-5, 1e-6)
    return mixes, not at_zero.any()
