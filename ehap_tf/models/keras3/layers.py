"""One layer, without its weights, from one Keras to the other."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.models.keras3.objects import (
    CannotTranslateError,
    parameters,
    registered,
    takes,
    translated_activation,
    translated_object,
)

# Arguments of which no output depends: dropped with a warning when they are not the default.
_WITHOUT_EFFECT = frozenset(["use_cudnn", "flash_attention", "autocast", "seed", "input_length"])
# What a config holds that no constructor of the other Keras has to be told.
# `trainable` is set on the layer itself.
_IMPLIED = frozenset(["batch_input_shape", "build_config", "registered_name", "trainable"])
# Layers of one name that do different things, each with what they do.
_DIFFERENT = {
    "RandomCrop": "at inference Keras 3 leaves the images whole, and tf_keras resizes them"
}
_WRAPPED = ("layer", "backward_layer", "cell")


def translated_layer(layer: Any, target: ModuleType) -> Any:
    """The counterpart of `layer`, not built yet.

    Args:
        layer: of Keras 3 or tf_keras; no model.
        target: `tf_keras` or `keras`.

    Raises:
        CannotTranslateError: naming layer and argument.
    """
    kind = _counterpart(layer, target)
    if type(layer).__name__ == "Lambda":
        new = _lambda(layer, kind)
    elif not _is_built_in(layer):
        try:
            new = kind.from_config({**layer.get_config(), "dtype": _policy(layer, target)})
        except (TypeError, ValueError) as error:
            raise CannotTranslateError(
                f"{_where(layer)}: {kind} does not take its configuration: {error}"
            ) from error
    else:
        arguments = _arguments(layer, kind, target)
        try:
            new = kind(**arguments)
        except (TypeError, ValueError) as error:
            raise CannotTranslateError(f"{_where(layer)}: {error}") from error
    if new.name != layer.name:
        raise CannotTranslateError(f"{_where(layer)}: {kind} does not keep the name of a layer")
    return new


def _counterpart(layer: Any, target: ModuleType) -> Any:
    """The class by which `target` knows the layer; for custom layers the one registered so."""
    kind = type(layer)
    if _is_built_in(layer):
        if kind.__name__ in _DIFFERENT:
            raise CannotTranslateError(
                f"{_where(layer)}: {_DIFFERENT[kind.__name__]}. Crop before the model"
            )
        found = getattr(target.layers, kind.__name__, None)
        if found is not None:
            return found
        # Layers of the applications, such as ConvNeXt's LayerScale, are not exported.
        room = kind.__module__.partition(".")[2]
        try:
            return getattr(importlib.import_module(f"{target.__name__}.{room}"), kind.__name__)
        except (ImportError, AttributeError):
            pass
        raise CannotTranslateError(
            f"{_where(layer)}: {target.__name__} has no layer {kind.__name__}. Replace it before, "
            "or keep this part out of the model that is compressed"
        )
    name = _source(layer).saving.get_registered_name(kind)
    found = registered(target, name)
    if found is None:
        raise CannotTranslateError(
            f"{_where(layer)}: a layer of your own. Write it for {target.__name__} too and "
            f"register it there under the same package and name, {name!r}, with "
            f"@{target.__name__}.utils.register_keras_serializable(package=...)"
        )
    return found


def _arguments(layer: Any, kind: type, target: ModuleType) -> dict[str, Any]:
    config = {name: _plain(value) for name, value in layer.get_config().items()}
    regularizer = getattr(layer, "activity_regularizer", None)
    if regularizer is not None and not config.get("activity_regularizer"):
        again = type(layer).from_config(layer.get_config())
        if again.activity_regularizer is None:
            # Keras 3's Dense leaves it out of its config.
            room = importlib.import_module(f"{_source(layer).__name__}.regularizers")
            config["activity_regularizer"] = room.serialize(regularizer)
    for rename in _RENAMES.get(type(layer).__name__, ()):
        config = rename(config, target)
    defaults, taken = parameters(type(layer)), parameters(kind)
    arguments: dict[str, Any] = {}
    for name, value in config.items():
        if name == "dtype":
            arguments[name] = _policy(layer, target)
        elif name in taken and (
            name == "name"
            or name not in defaults
            or not (_same(value, defaults[name]) and _same(value, taken[name]))
        ):
            arguments[name] = _argument(layer, name, value, target)
    for name, value in config.items():
        if name in taken or not _matters(layer, name, value, defaults):
            continue
        if takes(kind, arguments, name, value):
            arguments[name] = value
        else:
            _check_dropped(layer, name, value, target)
    return arguments


def _argument(layer: Any, name: str, value: Any, target: ModuleType) -> Any:
    where = f"{_where(layer)}, argument {name!r}"
    role = name.rpartition("_")[2]
    if role in ("initializer", "regularizer", "constraint"):
        return translated_object(value, role, target, where)
    if role == "activation":
        own = getattr(layer, name, None)
        if isinstance(own, _source(layer).layers.Layer):
            return _activation_layer(own, target, where)
        return translated_activation(value, target, where)
    if name in _WRAPPED and isinstance(value, dict):
        return _wrapped(layer, value, target)
    if name == "cells":
        return [_wrapped(layer, cell, target) for cell in value]
    if isinstance(value, dict) and "class_name" in value:
        raise CannotTranslateError(f"{where}: cannot be carried over. Received: {value}")
    return value


def _activation_layer(activation: Any, target: ModuleType, where: str) -> Any:
    """A layer in the place of an activation function."""
    # Keras 3 builds one with weights when numbers first go through it, so it may have none yet.
    if activation.weights or not activation.built:
        raise CannotTranslateError(
            f"{where}: a layer with weights cannot be carried over there; put it behind, as a "
            f"layer of its own. Received: {_where(activation)}"
        )
    return translated_layer(activation, target)


def _wrapped(layer: Any, serialized: Mapping[str, Any], target: ModuleType) -> Any:
    return translated_layer(_source(layer).layers.deserialize(dict(serialized)), target)


def _matters(layer: Any, name: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    """Whether an argument that the counterpart's constructor does not list says anything."""
    if name in _IMPLIED or value is None or _same(value, defaults.get(name)):
        return False
    if name == "data_format" and value == "channels_last":
        return False
    # Some constructors take arguments, and their defaults, from **kwargs.
    config = dict(layer.get_config())
    known = {key: given for key, given in config.items() if key in defaults}
    if name not in defaults and not takes(type(layer), known, name, config[name]):
        return False  # what the layer was built for, not how
    del config[name]
    try:
        without = type(layer).from_config(config).get_config()
    except (TypeError, ValueError, KeyError):
        return True  # it has no default
    return not _same(_plain(without.get(name)), value)


def _check_dropped(layer: Any, name: str, value: Any, target: ModuleType) -> None:
    if name not in _WITHOUT_EFFECT:
        raise CannotTranslateError(
            f"{_where(layer)}, argument {name!r}: {type(layer).__name__} of {target.__name__} has "
            f"no such argument. Received: {value!r}"
        )
    warnings.warn(
        f"{_where(layer)}: {name}={value!r} was dropped; {target.__name__} has no such argument, "
        "and no output depends on it",
        UserWarning,
        stacklevel=2,
    )


def _lambda(layer: Any, kind: Any) -> Any:
    """Hands the function on; in bytes it would lose what it encloses."""
    shape = getattr(layer, "_output_shape", None)
    return kind(
        layer.function,
        output_shape=tuple(shape) if isinstance(shape, (list, tuple)) else shape,
        arguments=dict(layer.arguments),
        name=layer.name,
        dtype=_policy(layer, _other(layer)),
    )


def _policy(layer: Any, target: ModuleType) -> str:
    policy = layer._dtype_policy if target is not tf_keras else layer.dtype_policy
    name = getattr(policy, "name", str(policy))
    if getattr(policy, "quantization_mode", None) or name == "map":
        raise CannotTranslateError(
            f"{_where(layer)}, argument 'dtype': {name!r} has no counterpart in "
            f"{target.__name__}. Take the model as it was before keras.Model.quantize"
        )
    return "float32" if name == "_infer" else name


def _leaky_slope(config: dict[str, Any], target: ModuleType) -> dict[str, Any]:
    old, new = ("negative_slope", "alpha") if target is tf_keras else ("alpha", "negative_slope")
    return {new if key == old else key: _number(value) for key, value in config.items()}


def _single_axis(config: dict[str, Any], target: ModuleType) -> dict[str, Any]:
    axis = config["axis"]
    if target is tf_keras or not isinstance(axis, list):
        return config
    if len(axis) != 1:
        raise CannotTranslateError(
            f"layer {config['name']!r} (BatchNormalization), argument 'axis': Keras 3 takes one "
            f"axis. Received: {axis}"
        )
    return {**config, "axis": axis[0]}


def _no_whole_kernel(config: dict[str, Any], target: ModuleType) -> dict[str, Any]:
    """The arguments of a kernel that is in two parts: tf_keras lists them, and ignores them."""
    del target
    ignored = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")
    return {key: value for key, value in config.items() if key not in ignored}


def _no_rms_scaling(config: dict[str, Any], target: ModuleType) -> dict[str, Any]:
    """An old argument, which Keras 3 still writes where it is off."""
    del target
    return {k: v for k, v in config.items() if k != "rms_scaling" or v}


def _prefixed_directions(config: dict[str, Any], target: ModuleType) -> dict[str, Any]:
    """Both set "forward_" before the names inside, tf_keras also where it stands there already."""
    named = dict(config)
    for key, prefix in (("layer", "forward_"), ("backward_layer", "backward_")):
        if isinstance(config.get(key), dict):
            inner = config[key]["config"]
            name = inner["name"].removeprefix(prefix)
            name = name if target is tf_keras else prefix + name
            named[key] = {**config[key], "config": {**inner, "name": name}}
    return named


# Class -> what changes in its arguments on the way from one Keras to the other.
_RENAMES: dict[str, tuple[Callable[[dict[str, Any], ModuleType], dict[str, Any]], ...]] = {
    "BatchNormalization": (_single_axis,),
    "Bidirectional": (_prefixed_directions,),
    "LayerNormalization": (_no_rms_scaling,),
    "LeakyReLU": (_leaky_slope,),
    "SeparableConv1D": (_no_whole_kernel,),
    "SeparableConv2D": (_no_whole_kernel,),
}


def _number(value: Any) -> Any:
    """A numpy scalar as a plain number, float32 without its binary tail."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return float(str(value)) if value.dtype.kind == "f" else value.item()
    return value


def _plain(value: Any) -> Any:
    """Without the wrappers that tf_keras puts around lists and dicts of its layers."""
    if isinstance(value, dict) or type(value).__name__ == "_DictWrapper":
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return _number(value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(np.all(one == other))


def _is_built_in(layer: Any) -> bool:
    return type(layer).__module__.startswith(("keras.src.", "tf_keras.src."))


def _source(layer: Any) -> ModuleType:
    is_old = isinstance(layer, tf_keras.layers.Layer)
    return tf_keras if is_old else importlib.import_module("keras")


def _other(layer: Any) -> ModuleType:
    return importlib.import_module("keras") if _source(layer) is tf_keras else tf_keras


def _where(layer: Any) -> str:
    return f"layer {layer.name!r} ({type(layer).__name__})"
