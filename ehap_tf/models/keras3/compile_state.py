"""Loss and optimizer of a compiled Keras 3 model, for tf_keras."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import tf_keras

from ehap_tf.models.keras3.detection import is_built_in, is_keras3_loss
from ehap_tf.models.keras3.objects import CannotTranslateError, parameters, registered


def copy_compile_state(old: Any, new: tf_keras.Model) -> None:
    """Compiles `new` with the loss and the optimizer of `old`, a Keras 3 model, if it has a loss.

    The optimizer starts afresh. One that tf_keras does not have is left out, with a warning; of a
    loss that it does not have, `new` stays without any.
    """
    loss = getattr(old, "loss", None)
    if not getattr(old, "compiled", False) or loss is None:
        return
    try:
        translated = _each(loss)
    except (CannotTranslateError, TypeError, ValueError) as error:
        warnings.warn(
            f"model {old.name!r}: its compiled loss was left out ({error})",
            UserWarning,
            stacklevel=3,
        )
        return
    optimizer = "rmsprop"
    try:
        optimizer = _optimizer(old.optimizer)
    except (CannotTranslateError, TypeError, ValueError) as error:
        warnings.warn(
            f"model {old.name!r}: its optimizer was left out ({error})", UserWarning, stacklevel=3
        )
    # Keras 3 keeps them nowhere else.
    compiled = getattr(old, "_compile_loss", None)
    new.compile(optimizer, translated, loss_weights=getattr(compiled, "_user_loss_weights", None))


def translated_loss(loss: Any) -> Any:
    """A loss of tf_keras from one of Keras 3; a function of the user's own stays.

    Raises:
        CannotTranslateError: a loss or an argument that tf_keras does not have.
    """
    if not is_keras3_loss(loss):
        return loss
    if inspect.isfunction(loss):
        return _found(tf_keras.losses, loss.__name__, "loss")
    name = type(loss).__name__
    if name == "LossFunctionWrapper" and inspect.isfunction(getattr(loss, "fn", None)):
        return translated_loss(loss.fn) if is_built_in(loss.fn) else loss.fn
    if is_built_in(type(loss)):
        kind = _found(tf_keras.losses, name, "loss")
    else:
        import keras

        key = keras.saving.get_registered_name(type(loss))
        kind = registered(tf_keras, key)
        if kind is None:
            raise CannotTranslateError(
                f"loss {key!r} is a class of your own for Keras 3. Give a function "
                "f(y_true, y_pred), or register the class for tf_keras under the same name"
            )
    config = {key: value for key, value in loss.get_config().items() if key != "dtype"}
    return kind(**_checked(config, type(loss), kind, f"loss {name}"))


def _each(loss: Any) -> Any:
    if isinstance(loss, dict):
        return {key: _each(value) for key, value in loss.items()}
    if isinstance(loss, (list, tuple)):
        return [_each(value) for value in loss]
    return translated_loss(loss)


def _optimizer(optimizer: Any) -> Any:
    name = type(optimizer).__name__
    if not is_built_in(type(optimizer)):
        raise CannotTranslateError(f"{name} is a class of your own")
    kind = _found(tf_keras.optimizers, name, "optimizer")
    config = dict(optimizer.get_config())
    rate = config.get("learning_rate")
    if isinstance(rate, dict):
        schedule = _found(tf_keras.optimizers.schedules, rate["class_name"], "schedule")
        config["learning_rate"] = schedule(**rate["config"])
    return kind(**_checked(config, type(optimizer), kind, f"optimizer {name}"))


def _checked(config: dict[str, Any], source: type, kind: type, what: str) -> dict[str, Any]:
    defaults, taken = parameters(source), parameters(kind)
    lost = {
        key: value
        for key, value in config.items()
        if key not in taken and value is not None and value != defaults.get(key)
    }
    if lost:
        raise CannotTranslateError(f"{what} of tf_keras takes no {lost}")
    return {key: value for key, value in config.items() if key in taken}


def _found(room: Any, name: str, what: str) -> Any:
    found = getattr(room, name, None)
    if found is None:
        raise CannotTranslateError(f"tf_keras has no {what} {name!r}")
    return found
