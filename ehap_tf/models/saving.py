"""Models in files: read with clear errors, written whole or not at all."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import h5py  # type: ignore[import-untyped]
import tensorflow as tf
import tf_keras

from ehap_tf.files import CorruptFileError, atomic_path
from ehap_tf.models.checks import require_functional, require_loaded
from ehap_tf.models.keras3 import is_keras3_model, register_layers, to_tf_keras
from ehap_tf.models.old_keras_files import has_old_layout, read_old_layout

_FORMATS = ".keras, .h5 (or .hdf5), or a SavedModel folder"
_FILE_SUFFIXES = (".keras", ".h5", ".hdf5")
_QAT_ADVICE = ". A quantization-aware model is loaded with ehap_tf.quantization.load_qat"


# What a file of weights holds: that of tf_keras, and those of Keras' newer format.
_WEIGHT_GROUPS = frozenset(
    ["layer_names", "layers", "_layer_checkpoint_dependencies", "model_weights"]
)


class _NoModelError(Exception):
    """A whole file that is no saved model; the message says what it is."""


def save_model(model: tf_keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes `model` atomically, in the format that the suffix names; none means SavedModel.

    Raises:
        ValueError: another suffix.
        OSError: the folder cannot be written, or the disk is full.
    """
    require_loaded(model)
    path = pathlib.Path(path)
    if is_keras3_model(model) and path.suffix not in _FILE_SUFFIXES:
        raise ValueError(f"The path of a Keras 3 model must end in .keras or .h5. Received: {path}")
    if path.suffix in _FILE_SUFFIXES:
        with atomic_path(path) as temporary, warnings.catch_warnings():
            # Keras warns that .h5 is an old format; whoever names it wants it.
            warnings.filterwarnings("ignore", message=".*HDF5 file.*")
            model.save(temporary)
    elif path.suffix == "":
        _save_folder(model, path)
    else:
        raise ValueError(f"The path of a model must end in {_FORMATS}. Received: {path}")


def load_model(path: str | os.PathLike[str], *, safe_mode: bool = True) -> tf_keras.Model:
    """Reads a Functional or Sequential model; one saved by Keras 3 becomes an equal tf_keras model.

    A compiled model comes back compiled; where its loss or optimizer cannot be restored, a
    warning says so and the model comes back without.

    Args:
        path: of a `.keras` or `.h5` file, or of a SavedModel folder. `.keras` files of TensorFlow
            2.13 and later are read.
        safe_mode: refuses Lambda layers whose function is in the file as code. False runs that
            code: only for files that you trust.

    Raises:
        FileNotFoundError: nothing lies there.
        CorruptFileError: the file is truncated or damaged.
        ValueError: not a format of tf_keras, weights without a model, a layer class that was not
            registered, or, in a model of Keras 3, a layer that tf_keras does not have.
        TypeError: a subclassed model.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no saved model at {path}")
    version = _checked_version(path)
    read = functools.partial(_reader(path, version), path, safe_mode=safe_mode)
    try:
        model = read()
    except Exception as first:  # Keras raises whatever its parts happen to raise.
        try:
            model = read(compile=False)
        except Exception as error:
            raise _explained(path, error) from error
        reason = _first_line(first)
        warnings.warn(
            f"{path}: the model was loaded without its compiled loss, metrics and optimizer, which "
            f"could not be restored ({reason})",
            RuntimeWarning,
            stacklevel=2,
        )
    if is_keras3_model(model):
        return to_tf_keras(model)
    if not isinstance(model, tf_keras.Model):
        raise ValueError(
            f"{path} is a SavedModel without a Keras model in it: it can be run but not taken "
            "apart. Save the model with model.save() of tf_keras"
        )
    require_functional(model)
    for layer in model._flatten_layers():
        # A SavedModel gives layers of unknown classes back as shells around their traced graphs.
        if type(layer).__module__.endswith("saved_model.load"):
            raise unknown_class(path, f"{type(layer).__name__}, layer {layer.name!r}", _QAT_ADVICE)
    return model


def _reader(path: pathlib.Path, version: str) -> Callable[..., Any]:
    if version.startswith("3."):
        return _read_by_keras3
    is_old = path.suffix == ".keras" and path.is_file() and has_old_layout(path)
    return read_old_layout if is_old else tf_keras.models.load_model


def _read_by_keras3(path: pathlib.Path, compile: bool = True, safe_mode: bool = True) -> Any:
    import keras

    register_layers()
    return keras.saving.load_model(path, compile=compile, safe_mode=safe_mode)


def _checked_version(path: pathlib.Path) -> str:
    """The version of Keras that saved; tells damage from everything else before Keras looks."""
    if path.is_dir():
        if not (path / "saved_model.pb").exists():
            raise ValueError(f"{path} is not a SavedModel folder: it has no saved_model.pb")
        return ""
    if path.suffix not in _FILE_SUFFIXES:
        raise ValueError(f"The path of a model must end in {_FORMATS}. Received: {path}")
    try:
        return _version_of_zip(path) if path.suffix == ".keras" else _version_of_h5(path)
    except _NoModelError as error:
        raise ValueError(str(error)) from None
    except (zipfile.BadZipFile, OSError, KeyError, ValueError, EOFError, RuntimeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise _damaged(path, error) from error


def _version_of_zip(path: pathlib.Path) -> str:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"checksum of {damaged}")
        json.loads(archive.read("config.json"))
        return str(json.loads(archive.read("metadata.json"))["keras_version"])


def _version_of_h5(path: pathlib.Path) -> str:
    with h5py.File(path, "r") as file:
        # Reads every array once: a file cut off in the middle still opens.
        file.visititems(lambda _, item: item[()] if isinstance(item, h5py.Dataset) else None)
        if "model_config" not in file.attrs:
            raise _NoModelError(
                f"{path} holds weights alone and no model. Build the model, load them, "
                f"model.load_weights({path.name!r}), and save it whole, model.save(...)"
                if _WEIGHT_GROUPS & {*file.attrs, *file}
                else f"{path} is not a file of Keras: it holds {sorted(file) or 'nothing'}"
            )
        version = file.attrs.get("keras_version", "2")
        return version.decode() if isinstance(version, bytes) else str(version)


def _explained(path: pathlib.Path, error: Exception) -> Exception:
    reason = _first_line(error)
    if path.is_dir() and isinstance(error, (tf.errors.OpError, OSError, IndexError)):
        return _damaged(path, error)
    if "safe_mode" in str(error):
        return ValueError(
            f"{path} has a Lambda layer, whose function is in the file as code. If you trust the "
            "file, read it with ehap_tf.load_model(path, safe_mode=False)"
        )
    if is_about_unknown_class(error):
        return unknown_class(path, error, _QAT_ADVICE)
    if isinstance(error, (ValueError, TypeError, NotImplementedError)):
        return ValueError(f"{path} cannot be loaded by tf_keras {tf_keras.__version__}: {reason}")
    return _damaged(path, error)


def is_about_unknown_class(error: Exception) -> bool:
    """Whether Keras could not read a model because it did not find the class of a layer."""
    lowered = str(error).lower()
    # The last one: tf_keras takes the name of a class that it does not know for the layer itself.
    unknown = (
        "unknown",
        "could not locate",
        "not registered",
        "cannot deserialize",
        "could not deserialize",
        "'str' object is not callable",
    )
    return any(words in lowered for words in unknown)


def unknown_class(
    path: str | os.PathLike[str], reason: Exception | str, advice: str = ""
) -> ValueError:
    """An error that says what to do about a layer whose class Keras did not find in `path`."""
    if isinstance(reason, Exception):
        reason = _first_line(reason)
    return ValueError(
        f"{os.fspath(path)} has a layer of a class that is not known here ({reason}). Decorate the "
        f"class with @tf_keras.utils.register_keras_serializable() and import it first{advice}"
    )


def _damaged(path: pathlib.Path, error: Exception) -> CorruptFileError:
    return CorruptFileError(f"The model file {path} is damaged or truncated ({_first_line(error)})")


def _first_line(error: BaseException) -> str:
    text: Any = error.args[0] if isinstance(error, KeyError) and error.args else error
    lines = str(text).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0] if len(lines[0]) <= 400 else f"{lines[0][:400]} ..."


def _save_folder(model: tf_keras.Model, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    room = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        model.save(room / "new", save_format="tf")
        if path.exists():
            path.rename(room / "old")
        (room / "new").rename(path)
    finally:
        shutil.rmtree(room, ignore_errors=True)
