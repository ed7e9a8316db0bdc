"""One decorator between public functions, which compute with tf_keras, and callers with Keras 3."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import tf_keras

from ehap_tf.models.checks import require_loaded
from ehap_tf.models.keras3.compile_state import translated_loss
from ehap_tf.models.keras3.detection import is_keras3_loss, is_keras3_model
from ehap_tf.models.keras3.from_keras3 import to_tf_keras
from ehap_tf.models.keras3.loaders import is_loader, loader_as_dataset, refuse_generator
from ehap_tf.models.keras3.objects import CannotTranslateError
from ehap_tf.models.keras3.to_keras3 import to_keras3

P = ParamSpec("P")
R = TypeVar("R")


def _model_back(value: Any) -> Any:
    return to_keras3(value) if isinstance(value, tf_keras.Model) else value


# Models of Keras 3 that were converted back once; the layers of a graph do not change.
_returning: weakref.WeakSet[Any] = weakref.WeakSet()


def either_keras(
    result: Callable[[Any], Any] | None = _model_back,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Lets a function that takes tf_keras models take Keras 3 models too.

    Keras 3 models and losses among the arguments are translated before the call. Where there was
    such a model, `result` makes what the function returned the caller's kind. A call without Keras
    3 passes straight through. A model that could not come back to Keras 3 is refused before the
    call, so that no work on it is lost.

    A `Sequence` or `PyDataset` among the arguments becomes a tf.data.Dataset; a generator, and a
    path where a model should be, are refused with the way out.

    Args:
        result: what to do with the result of a call with a Keras 3 model; by default, a tf_keras
            model becomes a Keras 3 model and anything else stays. None where neither this function
            nor a next step gives a model back: the result stays, and nothing has to come back.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            values = (*args, *kwargs.values())
            for parameter, value in _by_parameter(signature, args, kwargs):
                if parameter.annotation == "tf_keras.Model":
                    loader = "load_qat" if parameter.name == "qat" else "load_model"
                    require_loaded(value, parameter.name, loader)
                refuse_generator(value, parameter.name)
            if not any(map(_is_foreign, _leaves(values))):
                return function(*args, **kwargs)
            back = result is not None
            translated: Any = function(
                *(_translated(v, back) for v in args),
                **{name: _translated(v, back) for name, v in kwargs.items()},
            )
            if result is None or not any(map(is_keras3_model, values)):
                return translated
            return result(translated)

        return call

    return decorate


def _by_parameter(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[inspect.Parameter, Any]]:
    """The arguments of a call, each with its parameter; none where the call fails anyhow."""
    yield from zip(signature.parameters.values(), args, strict=False)
    for name, value in kwargs.items():
        if name in signature.parameters:
            yield signature.parameters[name], value


def _is_foreign(value: Any) -> bool:
    return is_keras3_model(value) or is_keras3_loss(value) or is_loader(value)


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
        twin = to_tf_keras(value)
        if back and value not in _returning:
            _require_way_back(twin)
            _returning.add(value)
        return twin
    if is_loader(value):
        return loader_as_dataset(value)
    return translated_loss(value) if is_keras3_loss(value) else value


def _require_way_back(twin: tf_keras.Model) -> None:
    try:
        to_keras3(twin)
    except (TypeError, ValueError) as error:
        raise CannotTranslateError(
            f"model {twin.name!r} could not be given back as a model of Keras 3: {error}. To go on "
            "with tf_keras, convert it first: model = ehap_tf.to_tf_keras(model)"
        ) from error
