"""One decorator before public functions: what callers have becomes what the functions take."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

import tf_keras

from ehap_tf.models.checks import require_loaded
from ehap_tf.models.keras3.compile_state import translated_loss
from ehap_tf.models.keras3.detection import is_keras3_loss, is_keras3_model
from ehap_tf.models.keras3.from_keras3 import to_tf_keras
from ehap_tf.models.keras3.loaders import is_loader, loader_as_dataset, refuse_generator
from ehap_tf.models.keras3.objects import CannotTranslateError
from ehap_tf.models.keras3.to_keras3 import to_keras3
from ehap_tf.models.lambdas import has_lambdas, open_lambdas

P = ParamSpec("P")
R = TypeVar("R")


def _model_back(value: Any) -> Any:
    return to_keras3(value) if isinstance(value, tf_keras.Model) else value


# Models of Keras 3 that were converted back once, and whether with their Lambda layers opened; with
# the layers that they had then, as `Sequential.add` brings others.
_returning: weakref.WeakKeyDictionary[Any, tuple[list[int], bool]] = weakref.WeakKeyDictionary()


def either_keras(
    result: Callable[[Any], Any] | None = _model_back,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Lets a function that takes tf_keras models take Keras 3 models too.

    Keras 3 models and losses among the arguments are translated before the call. Where there was
    such a model, `result` makes what the function returned the caller's kind. A call without Keras
    3 passes straight through. A model that could not come back to Keras 3 is refused before the
    call, so that no work on it is lost.

    A model with Lambda layers comes as a copy without those that can be taken apart
    (`open_lambdas`). A `Sequence` or `PyDataset` among the arguments becomes a tf.data.Dataset; a
    generator, and a path where a model should be, are refused with the way out.

    Args:
        result: what to do with the result of a call with a Keras 3 model; by default, a tf_keras
            model becomes a Keras 3 model and anything else stays. None where neither this function
            nor a next step gives a model back: the result stays, and nothing has to come back.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            named = [*zip(parameters, args, strict=False), *kwargs.items()]
            for name, value in named:
                if name in parameters and parameters[name].annotation == "tf_keras.Model":
                    require_loaded(value, name, "load_qat" if name == "qat" else "load_model")
                refuse_generator(value, name)
            if not any(_is_foreign(value) for _, part in named for value in _leaves([part])):
                return function(*args, **kwargs)
            translated: Any = function(
                *(_translated(value, result is not None) for value in args),
                **{name: _translated(value, result is not None) for name, value in kwargs.items()},
            )
            if result is None or not any(is_keras3_model(value) for _, value in named):
                return translated
            return result(translated)

        return call

    return decorate


def _is_foreign(value: Any) -> bool:
    return is_keras3_model(value) or is_keras3_loss(value) or is_loader(value) or _is_closed(value)


def _is_closed(value: Any) -> bool:
    """Whether `value` is a float model of tf_keras with Lambda layers."""
    return (
        isinstance(value, tf_keras.Model)
        and has_lambdas(value)
        and not any(hasattr(layer, "quantize_config") for layer in value._flatten_layers())
    )


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """The arguments, and what is in lists and dictionaries: losses of several outputs."""
    for value in values:
        if isinstance(value, dict):
            yield from value.values()
        elif type(value) in (list, tuple):
            yield from value
        yield value


def _translated(value: Any, back: bool) -> Any:
    if isinstance(value, dict):
        return {name: _translated(item, back) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_translated(item, back) for item in value)
    if is_keras3_model(value):
        return _twin(value, back)
    if _is_closed(value):
        return open_lambdas(value)
    if is_loader(value):
        return loader_as_dataset(value)
    return translated_loss(value) if is_keras3_loss(value) else value


def _twin(model: Any, back: bool) -> tf_keras.Model:
    """The model of tf_keras, its Lambda layers opened where that leaves it a way back."""
    twin = to_tf_keras(model)
    opened = open_lambdas(twin)
    if not back:
        return opened
    layers = [id(layer) for layer in model._flatten_layers()]
    known, with_lambdas_opened = _returning.get(model, ([], False))
    if known != layers:
        with_lambdas_opened = True
        try:
            _require_way_back(opened)
        except CannotTranslateError:
            if opened is twin:
                raise
            _require_way_back(twin)
            with_lambdas_opened = False
        _returning[model] = (layers, with_lambdas_opened)
    return opened if with_lambdas_opened else twin


def _require_way_back(twin: tf_keras.Model) -> None:
    try:
        to_keras3(twin)
    except (TypeError, ValueError) as error:
        raise CannotTranslateError(
            f"model {twin.name!r} could not be given back as a model of Keras 3: {error}. To go on "
            "with tf_keras, convert it first: model = ehap_tf.to_tf_keras(model)"
        ) from error
