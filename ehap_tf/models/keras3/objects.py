"""Initializers, regularizers, constraints and activations, from one Keras to the other."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.models.keras3.activations import OF_KERAS3, SHARED

_ROOMS = {"initializer": "initializers", "regularizer": "regularizers", "constraint": "constraints"}
_OTHER_NAMES = {"OrthogonalInitializer": "Orthogonal", "IdentityInitializer": "Identity"}


class CannotTranslateError(ValueError):
    """Something of a model has no counterpart in the other Keras."""


def parameters(kind: type) -> Mapping[str, Any]:
    """The arguments that a constructor takes, those that it hands on included, with defaults."""
    key: Any = kind  # mypy does not know that classes can be hashed
    return _parameters(key)


@functools.cache
def _parameters(kind: Any) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        signature = inspect.signature(base.__init__)
        for name, parameter in list(signature.parameters.items())[1:]:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter.default)
        if not any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return found


def takes(kind: type, arguments: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether a constructor takes an argument by this name that its signature does not list.

    Args:
        kind: class whose constructor is tried.
        arguments: with which it works.
        name: of the argument.
        value: of the argument.
    """
    try:
        kind(**arguments)
    except (TypeError, ValueError):
        return False
    try:
        kind(**{**arguments, name: value})
    except TypeError:
        return False
    except ValueError:
        return True  # the argument is known, and this value is not
    return True


def registered(target: ModuleType, name: str | None) -> Any:
    """What was registered in `target` under the same package and name, or None."""
    return target.saving.get_registered_object(name) if name else None


def translated_object(value: Any, role: str, target: ModuleType, where: str) -> Any:
    """An initializer, regularizer or constraint of `target` from a serialized one.

    Args:
        value: what stands in a layer's configuration: None, a name or a dict.
        role: "initializer", "regularizer" or "constraint".
        target: `keras` or `tf_keras`.
        where: layer and argument, for errors.
    """
    if not isinstance(value, dict):
        return value
    name = str(value["class_name"])
    kind = registered(target, value.get("registered_name"))
    kind = kind or getattr(getattr(target, _ROOMS[role]), _OTHER_NAMES.get(name, name), None)
    if not inspect.isclass(kind):
        raise CannotTranslateError(
            f"{where}: the {role} {value.get('registered_name') or name!r} is not known to "
            f"{target.__name__}. Register one under the same package and name, or remove it"
        )
    config = dict(value["config"])
    if isinstance(config.get("seed"), dict):
        config["seed"] = config["seed"]["config"].get("seed")  # a generator around a plain seed
    if role == "regularizer" and target is not tf_keras:
        # tf_keras keeps them in float32; the number that was written is the shortest one.
        config = {
            k: float(str(np.float32(v))) if type(v) is float else v for k, v in config.items()
        }
    taken = parameters(kind)
    lost = {k: v for k, v in config.items() if k not in taken and v is not None}
    if lost:
        raise CannotTranslateError(
            f"{where}: {name} of {target.__name__} takes no argument {', '.join(map(repr, lost))}. "
            f"Received: {lost}"
        )
    return kind(**{k: v for k, v in config.items() if k in taken})


def translated_activation(value: Any, target: ModuleType, where: str) -> Any:
    """An activation function of `target` from a serialized one."""
    if value is None:
        return None
    name = _function_name(value)
    if target is tf_keras:
        if name in OF_KERAS3:
            return OF_KERAS3[name]
        custom = registered(target, name)
    else:
        ours = {function.__name__: known for known, function in OF_KERAS3.items()}
        plain = name.removeprefix("ehap_tf>")
        custom = registered(target, name)
        name = ours.get(plain, plain)
        if name in OF_KERAS3 and (plain in ours or plain == "swish"):
            return getattr(target.activations, name)
    if custom is not None:
        return custom
    if name in SHARED:
        return getattr(target.activations, name)
    raise CannotTranslateError(
        f"{where}: the activation {name!r} is not known to {target.__name__}. Register a function "
        f"under this name with {target.__name__}.utils.register_keras_serializable"
    )


def _function_name(value: Any) -> str:
    if isinstance(value, dict):
        config = value.get("config")
        return (
            config
            if isinstance(config, str)
            else str(value.get("registered_name") or value.get("class_name"))
        )
    return value if isinstance(value, str) else str(getattr(value, "__name__", value))
