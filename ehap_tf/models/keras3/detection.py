"""Which Keras an object is of, found out without importing Keras 3."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def is_keras3_model(value: Any) -> bool:
    """Whether `value` is a model of Keras 3, of whatever kind."""
    keras = _loaded()
    return keras is not None and isinstance(value, keras.Model)


def is_keras3_loss(value: Any) -> bool:
    """Whether `value` is a loss object or a built-in loss function of Keras 3."""
    keras = _loaded()
    if keras is None:
        return False
    if isinstance(value, keras.losses.Loss):
        return True
    return callable(value) and is_built_in(value)


def is_keras3_loader(value: Any) -> bool:
    """Whether `value` is a `PyDataset` of Keras 3, which gives batches by their number."""
    keras = _loaded()
    return keras is not None and isinstance(value, keras.utils.PyDataset)


def is_built_in(value: Any) -> bool:
    """Whether a class or function comes with Keras 3."""
    return str(getattr(value, "__module__", "")).startswith("keras.src.")


def register_layers() -> None:
    """Makes the layers of slim models known to Keras 3, which TensorFlow loads as a rule."""
    if _loaded() is not None:
        importlib.import_module("ehap_tf.models.keras3.twins")


def _loaded() -> Any:
    keras = sys.modules.get("keras")
    # Before version 3, the package of this name was what tf_keras is now.
    if keras is None or not str(getattr(keras, "__version__", "")).startswith("3."):
        return None
    return keras if hasattr(keras, "Model") else None
