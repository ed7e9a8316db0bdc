"""Copies of models, and of layers that are about to get their weights from elsewhere."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import tf_keras
from tf_keras.src.engine.functional import has_functional_like_constructor

from ehap_tf.graph.replay import model_like, replay
from ehap_tf.graph.tensors import layer_of

# How the configuration's names of what can be called end.
_CALLABLES = ("activation", "_regularizer", "_constraint", "_initializer")


def layer_from(
    layer: tf_keras.layers.Layer,
    config: Mapping[str, Any],
    layer_class: type[tf_keras.layers.Layer] | None = None,
) -> tf_keras.layers.Layer:
    """A new layer of the same class, or of `layer_class`, with another configuration.

    Functions and objects that are not Keras' own are handed on: reading an activation, regularizer,
    constraint or initializer back by its name would need a registration, and writing the function
    of a Lambda layer to bytes and back would lose what it encloses. An object in `config`, or a
    None, comes first.
    """
    if isinstance(layer, tf_keras.layers.Lambda):
        return tf_keras.layers.Lambda(
            layer.function,
            output_shape=layer._output_shape,
            mask=layer.mask,
            arguments=layer.arguments,
            name=config["name"],
            trainable=config.get("trainable", True),
            dtype=config.get("dtype"),
        )
    is_wrapper = type(layer) is tf_keras.layers.TimeDistributed and layer_class is None
    if is_wrapper and not isinstance(layer.layer, tf_keras.Model):
        inner = layer_from(layer.layer, config["layer"]["config"])
        return type(layer)(inner, **{key: config[key] for key in config if key != "layer"})
    layer_class = layer_class or type(layer)
    return layer_class.from_config({**config, **_not_of_keras(layer, config)})


def _not_of_keras(layer: tf_keras.layers.Layer, config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in config:
        value = getattr(layer, key, None)
        if not (callable(value) and key.endswith(_CALLABLES)):
            continue
        given = config[key]
        if given is None or (callable(given) and given is not value):
            continue
        home = str(getattr(value, "__module__", None))
        if isinstance(value, tf_keras.layers.Layer):
            found[key] = layer_from(value, value.get_config())
        elif not home.startswith("tf_keras."):
            found[key] = value
    return found


def with_policy(
    config: Mapping[str, Any], replaced: Collection[str], policy: str
) -> dict[str, Any]:
    """A layer's config, those of layers inside it included, under another dtype policy.

    The layers of a model inside follow into float32 only: the functions among them have constants
    in float32.

    Args:
        config: as `get_config` gives it.
        replaced: the names of the policies that layers change from.
        policy: that they change to.
    """

    def changed(key: str, value: Any) -> Any:
        if key == "dtype" and _policy_name(value) in replaced:
            return policy
        if isinstance(value, dict) and isinstance(value.get("config"), dict):
            return {**value, "config": with_policy(value["config"], replaced, policy)}
        if isinstance(value, list | tuple) and policy == "float32":
            parts = [changed("", part) for part in value]
            return tuple(parts) if isinstance(value, tuple) else parts
        return value

    return {key: changed(key, value) for key, value in config.items()}


def _policy_name(dtype: Any) -> Any:
    if isinstance(dtype, dict):
        return dtype.get("config", {}).get("name")
    return dtype


def copy_state(pairs: Iterable[tuple[tf_keras.layers.Layer, tf_keras.layers.Layer]]) -> None:
    """Gives copies the weights and the trainable flags of their originals.

    Args:
        pairs: each layer or nested model with its copy; the layers of a nested model are pairs of
            their own.
    """
    for old, new in pairs:
        if isinstance(old, tf_keras.Model):
            # The setter would push the flag down onto layers that have flags of their own.
            new._trainable = old._trainable
        else:
            copy_trainable(old, new)
            new.set_weights(old.get_weights())


def copy_trainable(old: tf_keras.layers.Layer, new: tf_keras.layers.Layer) -> None:
    """Gives a copy, once it is built, and the layers inside it the trainable flags of the original.

    `layer.weights` lists what trains first, so weights are copied in the right order only after
    this. The setter would push a flag down onto layers that have flags of their own.
    """
    for before, after in zip(old._flatten_layers(), new._flatten_layers(), strict=False):
        after._trainable = before._trainable


class ZeroInitializers:
    """Lets layers create zeros for weights that are about to be copied.

    Random initial values would be wasted, and could draw from global random states. On leaving the
    context every layer has its own initializers back.
    """

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> ZeroInitializers:
        return self

    def __exit__(self, *_: object) -> None:
        for module, name, initializer in self._replaced:
            setattr(module, name, initializer)

    def apply(self, layer: tf_keras.layers.Layer) -> None:
        """Replaces the initializers of a layer, and of the layers inside it, for the time being."""
        for module in layer._flatten_layers():
            for name, value in list(vars(module).items()):
                if name.endswith("_initializer") and isinstance(
                    value, tf_keras.initializers.Initializer
                ):
                    self._replaced.append((module, name, value))
                    setattr(module, name, tf_keras.initializers.Zeros())


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Restores the generators that Keras draws seeds from when a layer has none of its own."""
    keras_generator = getattr(tf_keras.src.backend._SEED_GENERATOR, "generator", None)
    states = [(g, g.getstate()) for g in (random, keras_generator) if g is not None]
    try:
        yield
    finally:
        for generator, state in states:
            generator.setstate(state)


class Copier:
    """Copies a functional model call by call; a subclass says which layers or calls differ.

    Nested models stay nested, shared layers shared and Sequential models Sequential; weights, names
    and trainable flags are kept. The copy is not compiled. The original and global random states
    stay as they are. Unlike Keras' own `clone_model` it hands functions and objects of the user's
    own on, and needs no registration of theirs.
    """

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}

    def copy(self, model: tf_keras.Model) -> tf_keras.Model:
        """The whole copy, with its weights."""
        with kept_random_state():
            with ZeroInitializers() as self._zeros:
                copy = self.layer(model)
            copy_state(self._made.values())
        return copy

    def layer(self, layer: Any) -> Any:
        """The copy of a layer or nested model, made when it is first asked for."""
        if id(layer) not in self._made:
            if isinstance(layer, tf_keras.Model):
                new = self.sequential(layer) if self.is_chain(layer) else self.functional(layer)
            elif isinstance(layer, tf_keras.layers.InputLayer):
                new = type(layer).from_config(layer.get_config())
            else:
                new = self.new_layer(layer)
                self._zeros.apply(new)
            self._made[id(layer)] = (layer, new)
        return self._made[id(layer)][1]

    def is_chain(self, model: tf_keras.Model) -> bool:
        """Whether the copy of a model is a Sequential model."""
        return isinstance(model, tf_keras.Sequential)

    def sequential(self, model: tf_keras.Sequential) -> tf_keras.Sequential:
        """The copy of a Sequential model, without its weights."""
        (tensor,) = model.inputs
        return tf_keras.Sequential(
            [self.layer(layer_of(tensor)), *map(self.layer, model.layers)], name=model.name
        )

    def functional(self, model: tf_keras.Model) -> tf_keras.Model:
        """The copy of a Functional model, without its weights."""
        inputs = [self.layer(layer_of(tensor)).output for tensor in model.inputs]
        takes_tensors = has_functional_like_constructor(type(model))  # a user's subclass may
        model_class = type(model) if takes_tensors else tf_keras.Model
        return model_like(model, inputs, replay(model, inputs, self.call), model_class)

    def new_layer(self, layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        """The copy of a layer that is no model, without its weights."""
        return layer_from(layer, layer.get_config())

    def call(
        self, layer: tf_keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What a call of a layer becomes; its arguments are those of the copy."""
        return self.layer(layer)(*args, **kwargs)
