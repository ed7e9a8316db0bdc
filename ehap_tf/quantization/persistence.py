"""QAT models on disk: `.h5`, whole or absent, readable by a fresh process."""

from __future__ import annotations

import os
import pathlib
import warnings

import tf_keras

from ehap_tf.files import CorruptFileError, atomic_path
from ehap_tf.quantization.scheme import quantization_scope
from ehap_tf.quantization.wrappers import keep_frozen


def save_qat(qat: tf_keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes a model from `quantize` to `path`, atomically.

    Args:
        qat: the model; trained or not, compiled or not (the optimizer is not saved).
        path: ends in `.h5`. TFMOT's wrappers do not load back from `.keras`.

    Raises:
        ValueError: another suffix.
        OSError: the path cannot be written.
    """
    _check_suffix(path)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # Keras recommends its newer format, from which TFMOT's wrappers cannot be read.
        warnings.simplefilter("ignore", UserWarning)
        tf_keras.models.save_model(qat, temporary, save_format="h5", include_optimizer=False)


def load_qat(path: str | os.PathLike[str]) -> tf_keras.Model:
    """Reads a model that `save_qat` wrote; the result is not compiled.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is damaged, or not a QAT model of this package.
    """
    _check_suffix(path)
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f"there is no QAT model at {os.fspath(path)!r}.")
    try:
        with quantization_scope():
            qat = tf_keras.models.load_model(path, compile=False)
    except Exception as error:  # h5py and Keras raise whatever the broken byte happens to hit.
        raise CorruptFileError(
            f"{os.fspath(path)!r} is not a QAT model, or is damaged: {error}"
        ) from error
    keep_frozen(qat)
    return qat


def _check_suffix(path: str | os.PathLike[str]) -> None:
    if pathlib.Path(path).suffix != ".h5":
        raise ValueError(f"path of a QAT model must end in '.h5'. Received: {os.fspath(path)!r}")
