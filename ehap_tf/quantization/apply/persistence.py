"""QAT models on disk: `.h5` or `.keras`, whole or absent, readable by a fresh process."""

from __future__ import annotations

import os
import pathlib
import warnings

import tf_keras

from ehap_tf.files import CorruptFileError, atomic_path
from ehap_tf.models.checks import require_loaded
from ehap_tf.models.saving import is_about_unknown_class, unknown_class
from ehap_tf.quantization.integer_rules.wrappers import is_qat
from ehap_tf.quantization.plan.scheme import quantization_scope

SUFFIXES = (".h5", ".keras")


def save_qat(qat: tf_keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes a model from `quantize` to `path`, atomically.

    Args:
        qat: the model; trained or not, compiled or not (`.h5` leaves the optimizer out).
        path: ends in `.h5` or `.keras`.

    Raises:
        ValueError: another suffix.
        OSError: the path cannot be written.
    """
    require_loaded(qat, "qat", "load_qat")
    _check_suffix(path)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # Keras recommends its newer format.
        warnings.simplefilter("ignore", UserWarning)
        if temporary.suffix == ".h5":
            tf_keras.models.save_model(qat, temporary, save_format="h5", include_optimizer=False)
        else:
            tf_keras.models.save_model(qat, temporary, save_format="keras")


def load_qat(path: str | os.PathLike[str]) -> tf_keras.Model:
    """Reads a model that `save_qat` wrote; the result is not compiled.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is damaged, or not a QAT model of this package.
        ValueError: another suffix, or a layer class of yours that was not registered.
    """
    _check_suffix(path)
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f"there is no QAT model at {os.fspath(path)!r}.")
    try:
        with quantization_scope():
            model = tf_keras.models.load_model(path, compile=False)
    except Exception as error:  # h5py and Keras raise whatever the broken byte happens to hit.
        if is_about_unknown_class(error):
            raise unknown_class(path, error) from error
        raise CorruptFileError(
            f"{os.fspath(path)!r} is not a QAT model, or is damaged: {error}"
        ) from error
    if not is_qat(model):
        raise CorruptFileError(
            f"{os.fspath(path)!r} is not a QAT model: no layer of it is quantized. "
            "ehap_tf.quantize makes one of a float model"
        )
    return model


def _check_suffix(path: str | os.PathLike[str]) -> None:
    if pathlib.Path(path).suffix not in SUFFIXES:
        raise ValueError(
            f"path of a QAT model must end in {' or '.join(SUFFIXES)}. "
            f"Received: {os.fspath(path)!r}"
        )
